"""What the gateway's commands end with besides the codes of `errors.py`. A core."""

from __future__ import annotations

from typing import Final

# What shells report for those that a signal ended: 128 + SIGINT, SIGPIPE.
INTERRUPTED: Final = 130
NO_READER: Final = 141
