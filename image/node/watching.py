"""Watches the appliance while it runs: `python3 -m image.node.watching`. A shell.

Every ten seconds, and more often while the agent starts: what the agent says goes to the screen; a
version on trial is called good, or given up; and once the machine is a member the secrets leave
covey.toml. In between it lets in who wants an update (`door.py`). A thread tells the LAN of a
machine that is not set up yet (`announcing.py`).
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import CoveyError
from image.node import (
    announcing,
    conditions,
    hostfiles,
    kept,
    lans,
    machine,
    probation,
    screen,
    trials,
)
from image.node.asking import ask
from image.node.door import Door
from image.node.machine import Machine
from image.node.probation import Probation
from image.node.screen import View
from image.node.scrub import scrub
from image.node.settings import Settings, read
from image.node.slots import GaveUp, Healthy, Trial, why_not
from image.node.startup import KEPT, RUN, SETTINGS, write_private

_PERIOD_S = 10.0
# While the agent starts: somebody may be in front of the screen.
_SOON_S = 1.0
_TIMEOUT_S = 30.0
# Of memory: what services write goes to no disk.
_LOG_BYTES = 1 << 18


@dataclass(frozen=True)
class Places:
    """Where things are on the appliance; `member` is there once it is in a mesh."""

    settings: Path = SETTINGS
    kept: Path = KEPT
    run: Path = RUN
    member: Path = Path("/var/lib/covey/mesh.json")
    socket: Path = Path("/run/covey/agent.sock")


def forget_secrets(settings_file: Path, kept_file: Path) -> bool:
    """Take the secrets out of covey.toml, the passwords into a file; say whether any was there.

    Raises CoveyError for a file with mistakes, and OSError.
    """
    raw = settings_file.read_bytes()
    scrubbed = scrub(raw)
    if not scrubbed.lines:
        return False
    before = kept.decode(kept_file.read_bytes() if kept_file.exists() else b"")
    settings = read(raw).settings or Settings()
    # First into safety: a power cut in between leaves both.
    write_private(kept_file, kept.encode(settings.with_kept(before)))
    write_private(settings_file, scrubbed.raw)
    return True


class Watch:
    """One appliance's watch; `look` is called again and again.

    `settled` is false while an agent that does not answer yet is to come up.
    """

    def __init__(self, appliance: Machine, places: Places, trial: Probation | None = None) -> None:
        self._machine = appliance
        self._store = appliance.store
        self._places = places
        self._probation = trial or Probation()
        self._scrubbed = False
        self.settled = False

    def look(self, now: float) -> None:
        """Look once; `now` is a steady clock's seconds."""
        status = ask(self._places.socket)
        items = status.get("health", []) if status else []
        faults = [f"{item['title']}: {item['what_to_do']}" for item in items]
        try:
            self._try(status is not None or not self._wanted(), now)
            faults += self._left()
            if self._places.member.exists() and not self._scrubbed:
                forget_secrets(self._places.settings, self._places.kept)
                self._scrubbed = True
        except CoveyError as error:
            faults.append(error.line())
        except OSError as error:
            faults.append(f"{error.filename or 'The disk'}: {error.strerror or error}.")
        faults += conditions.faults(self._places.run)
        view = self._view(status, faults)
        self.settled = bool(view.mesh) or not (view.member or view.joining)
        write_private(self._places.run / "status", screen.text(view).encode())
        write_private(self._places.run / announcing.SETUP, screen.setup(view).encode())

    def _wanted(self) -> bool:
        """Say whether an agent has to be there: a machine without a ticket waits for one."""
        return self._places.member.exists() or bool(_read(self._places.run / hostfiles.WISH))

    def _try(self, healthy: bool, now: float) -> None:
        """Report to the probation of a version on trial, and store what follows."""
        slot = self._machine.running
        if not isinstance(self._store.read().state.of(slot), Trial):
            return
        outcome = self._probation.report(healthy, now)
        if outlook := self._probation.outlook():
            trials.write(self._places.run, outlook)
        if outcome == "good":
            # Before it is good: a power cut in between tries it once more.
            self._machine.raise_floor()
            self._store.change(Healthy(slot))
        elif outcome == "gave up":
            self._store.change(GaveUp(slot))
            subprocess.run(["reboot"], check=False, timeout=_TIMEOUT_S)

    def _left(self) -> list[str]:
        """Return why the last update does not run, if it does not."""
        own, state = self._machine, self._store.read().state
        if not why_not(state, own.running):
            return []
        why = why_not(state, own.running, own.version(own.target))
        return [f"The update was taken back: {why}."]

    def _view(self, status: dict[str, Any] | None, faults: list[str]) -> View:
        run, found = self._places.run, status or {}
        return View(
            version=self._machine.release.version,
            slot=self._machine.running,
            name=(run / hostfiles.HOSTNAME).read_text().strip(),
            addresses=[str(one.ip) for one in lans.addresses()],
            member=self._places.member.exists(),
            mesh=found.get("mesh", ""),
            overlay=found.get("ipv6", ""),
            roles=found.get("roles", []),
            peers=found.get("peers", {}).get("alive", 0),
            wireguard=found.get("parts", {}).get("overlay", ""),
            joining=bool(_read(run / hostfiles.WISH)),
            notes=(run / hostfiles.NOTES).read_text().splitlines(),
            faults=faults,
            error=last_error(run / "agent.log"),
            conditions=conditions.lines(run),
        )


def last_error(log: Path) -> str:
    """Return what the agent ended with the last time, "" for nothing; keeps its log short."""
    if not log.exists():
        return ""
    lines = log.read_text(errors="replace").splitlines()
    if log.stat().st_size > _LOG_BYTES:
        # Who writes to it appends, so what comes next begins at its beginning.
        os.truncate(log, 0)
    return next((line for line in reversed(lines) if line.startswith("Error: ")), "")


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def main() -> None:
    """Watch for ever."""
    trial = probation.of_command_line(Path("/proc/cmdline").read_text())
    watch = Watch(machine.find(), Places(), trial)
    announcing.begin(RUN)
    with Door() as door:
        while True:
            watch.look(time.monotonic())
            door.serve(_PERIOD_S if watch.settled else _SOON_S)


if __name__ == "__main__":
    main()
