"""What msgspec raises for bytes that do not hold what they should. A core.

Whoever decodes bytes from a file, a process or the network catches all of it: next to msgspec's own
errors there are texts that are no UTF-8, and nesting that is deeper than Python's stack.
"""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
