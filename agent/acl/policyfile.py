"""The policy's file: where it lies, what it says now, and what was wrong with it. A shell.

It is looked at by its marks (times, size, inode) and read only when they have changed and then
stayed for a moment, so that a half-written file is not taken for a policy. A file that cannot be
used keeps the policy before it; no file is the default policy. Used by `service.py` and by
`agent acl check`.
"""

from __future__ import annotations

import logging
import stat
from pathlib import Path
from typing import Literal

from agent.acl.policy import MAX_FILE_BYTES, Policy, parse
from agent.acl.ports import CoveyPorts
from agent.config import OVERLAY_HOST, Config, default_file
from agent.errors import ConfigError

_log = logging.getLogger(__name__)

FILE_NAME = "acl.toml"
# An editor that writes a file in place takes a few milliseconds from the first byte to the last.
SETTLE_S = 0.5

_Marks = tuple[int, ...] | None
# The marks that no file has: nothing was looked at yet.
_NEVER: _Marks = (-1,)


def where(settings: Config) -> Path:
    """Return the policy's file: the one that network.acl names, else the default one."""
    named = settings.network.acl
    return Path(named).expanduser() if named else default_file().parent / FILE_NAME


def covey_ports(settings: Config) -> CoveyPorts:
    """Return the ports that Covey serves on the overlay by these settings. Raises ConfigError."""
    network, pages = settings.network, settings.http_listen
    return CoveyPorts.of(
        control=network.control_port,
        overlay=network.overlay_port,
        engine=settings.engine_ports,
        discovery=network.discovery_port,
        ownership=network.beat_port,
        pages=pages[1] if pages is not None and pages[0] == OVERLAY_HOST else None,
    )


def read(path: Path) -> Policy:
    """Return the policy in a file; the default policy when there is none. Raises ConfigError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path} is no regular file", hint="Name a TOML file of rules.")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return Policy()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="Let the user that runs the agent read it.",
        ) from None
    return parse(raw, str(path))


class PolicyFile:
    """A policy that follows its file; `path` None stands for the default policy."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.policy = Policy()
        self.fault: ConfigError | None = None
        self._taken: _Marks = _NEVER
        self._pending: _Marks = _NEVER
        self._pending_since = 0.0

    @property
    def state(self) -> Literal["none", "absent", "loaded", "broken"]:
        """No file is asked for; there is none; it is in force; it is wrong."""
        if self.path is None:
            return "none"
        if self.fault is not None:
            return "broken"
        return "loaded" if self.policy.file else "absent"

    def load(self) -> None:
        """Read the file as it is now; `policy` and `fault` say what came of it."""
        if self.path is None:
            return
        # The marks first: a change while we read is then seen at the next look.
        self._taken = self._pending = _marks(self.path)
        try:
            self.policy = read(self.path)
        except ConfigError as fault:
            self.fault = fault
            return
        self.fault = None
        _log.info("acl policy taken file=%s rules=%d", self.path, len(self.policy.rules))

    def look(self, now: float) -> bool:
        """Load the file if it has changed and settled; say whether it was loaded.

        `now` is in seconds of any one clock.
        """
        if self.path is None:
            return False
        marks = _marks(self.path)
        if marks == self._taken:
            self._pending = marks
            return False
        if marks != self._pending or now < self._pending_since:
            self._pending, self._pending_since = marks, now
            return False
        if now - self._pending_since < SETTLE_S:
            return False
        self.load()
        return True


def _marks(path: Path) -> _Marks:
    """Return what changes with the file (behind symbolic links); None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)
