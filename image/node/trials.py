"""How the trial of the running version stands, for who asks: /run/covey/trial. A shell.

`watching.py` writes it each time that it looks. Times are those of this machine's steady clock,
which all its processes share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from agent.unreadable import UNREADABLE
from image.node.probation import Outlook
from image.node.startup import write_private

_FILE = "trial"


def write(run: Path, outlook: Outlook) -> None:
    """Keep how it stands. Raises OSError."""
    write_private(run / _FILE, msgspec.json.encode(outlook))


def read(run: Path, now: float) -> dict[str, Any]:
    """Describe how it stands: seconds from now on; all None before the first look."""
    try:
        outlook = msgspec.json.decode((run / _FILE).read_bytes(), type=Outlook)
    except (OSError, *UNREADABLE):
        return {"healthy_s": None, "good_in_s": None, "over_in_s": None}
    since, good_at = outlook.healthy_since, outlook.good_at
    return {
        "healthy_s": None if since is None else max(0.0, now - since),
        "good_in_s": None if good_at is None else max(0.0, good_at - now),
        "over_in_s": max(0.0, outlook.over_at - now),
    }
