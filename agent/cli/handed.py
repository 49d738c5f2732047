"""A ticket that is handed over as a file: how a node joins that nobody logs in to (a container).

A shell; used by `agent up --ticket-file`.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from agent.config import Config
from agent.enrol import Enrolment
from agent.errors import UsageError
from agent.membership.store import StateDir

_POLL_S = 0.5


def enrolment(settings: Config, file: Path) -> Enrolment | None:
    """Return the wish to join with the ticket in a file; None for a node that is a member.

    Waits until there is something in the file, and ends the process at SIGTERM: the first process
    of a container has no other end. Raises UsageError for a file that cannot be read, StateError.
    """
    if StateDir(settings.state_dir).membership() is not None:
        return None
    before = signal.signal(signal.SIGTERM, _end)
    try:
        text, told = _read(file), False
        while not text:
            if not told:
                print(f"Waiting for a ticket in {file}.", file=sys.stderr, flush=True)
                told = True
            time.sleep(_POLL_S)
            text = _read(file)
    finally:
        signal.signal(signal.SIGTERM, before)
    return Enrolment(text)


def _read(file: Path) -> str:
    """Return a file's first line; "" where there is none, or no file."""
    try:
        lines = file.read_text().split("\n", 1)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(
            f"the ticket in {file} cannot be read: {reason}",
            hint="Put there what `agent invite` prints.",
        ) from None
    return lines[0].strip()


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
