"""Watches the appliance while it runs: `python3 -m image.node.watching`. A shell.

Every ten seconds, and more often while the agent starts: what the agent says goes to the screen; a
version on trial is called good, or given up; and once the machine is a member the secrets leave
covey.toml. A thread tells the LAN of a machine that is not set up yet (`announcing.py`).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import __version__
from agent.errors import CoveyError
from image.node import announcing, conditions, hostfiles, kept, screen
from image.node.probation import Probation
from image.node.screen import View
from image.node.scrub import scrub
from image.node.settings import Settings, read
from image.node.slots import GaveUp, Healthy, Slot, Trial
from image.node.slotstore import SlotStore
from image.node.startup import KEPT, RUN, SETTINGS, write_private

_PERIOD_S = 10.0
# While the agent starts: somebody may be in front of the screen.
_SOON_S = 2.0
_ANSWER_S = 5.0
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


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket; aiohttp would take 30 MB for it."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect(str(self._path))


def ask(path: Path) -> dict[str, Any] | None:
    """Return the status of the agent at a socket; None when it does not answer."""
    connection = _Connection(path)
    try:
        connection.request("GET", "/v1/status")
        answer = connection.getresponse()
        found = json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return found if isinstance(found, dict) else None


def running_slot(command_line: str) -> Slot:
    """Return the slot that runs, by the kernel's command line; a where it names none."""
    return "b" if re.search(r"\bcovey\.slot=b\b", command_line) else "a"


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

    def __init__(self, slot: Slot, store: SlotStore, places: Places) -> None:
        self._slot: Slot = slot
        self._store = store
        self._places = places
        self._probation = Probation()
        self._scrubbed = False
        self.settled = False

    def look(self, now: float) -> None:
        """Look once; `now` is a steady clock's seconds."""
        status = ask(self._places.socket)
        items = status.get("health", []) if status else []
        faults = [f"{item['title']}: {item['what_to_do']}" for item in items]
        try:
            self._try(status is not None, now)
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

    def _try(self, answers: bool, now: float) -> None:
        """Report to the probation of a version on trial, and store what follows."""
        if not isinstance(self._store.read().state.of(self._slot), Trial):
            return
        outcome = self._probation.report(answers, now)
        if outcome == "good":
            self._store.change(Healthy(self._slot))
        elif outcome == "gave up":
            self._store.change(GaveUp(self._slot))
            subprocess.run(["reboot"], check=False, timeout=_TIMEOUT_S)

    def _view(self, status: dict[str, Any] | None, faults: list[str]) -> View:
        run, found = self._places.run, status or {}
        return View(
            version=__version__,
            slot=self._slot,
            name=(run / hostfiles.HOSTNAME).read_text().strip(),
            addresses=addresses(),
            member=self._places.member.exists(),
            mesh=found.get("mesh", ""),
            overlay=found.get("ipv6", ""),
            roles=found.get("roles", []),
            peers=found.get("peers", {}).get("alive", 0),
            wireguard=found.get("parts", {}).get("overlay", ""),
            joining=bool((run / hostfiles.WISH).read_bytes()),
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


def addresses() -> list[str]:
    """Return this machine's addresses on its LANs."""
    done = subprocess.run(
        ["ip", "-o", "address", "show", "scope", "global"],
        capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
    )  # fmt: skip
    found = re.findall(r"^\d+: (\S+)\s+inet6? (\S+)/", done.stdout, re.MULTILINE)
    return [address for port, address in found if port != "covey0"]


def main() -> None:
    """Watch for ever."""
    watch = Watch(running_slot(Path("/proc/cmdline").read_text()), SlotStore(), Places())
    announcing.begin(RUN)
    while True:
        watch.look(time.monotonic())
        time.sleep(_PERIOD_S if watch.settled else _SOON_S)


if __name__ == "__main__":
    main()
