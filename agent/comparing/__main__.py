"""`python -m agent.comparing < wish.json`: compare, and print {"report": …, "page": Markdown}.

Ends with 0 for go and no go alike; with the exit code of its error where nothing was compared.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec

from agent.comparing import report
from agent.comparing.asking import measure
from agent.comparing.verdict import verdict
from agent.comparing.wish import Wish
from agent.errors import CoveyError, UsageError
from agent.unreadable import UNREADABLE

_MOST_BYTES = 2**20


def main() -> None:
    """Read the wish on stdin, compare, and tell."""
    try:
        wish = _read(sys.stdin.buffer.read(_MOST_BYTES))
        wish, pairs = asyncio.run(measure(wish, lambda line: print(line, file=sys.stderr)))
    except CoveyError as error:
        print(f"Error: {error.line()}", file=sys.stderr)
        sys.exit(error.exit_code)
    found = verdict(pairs, wish.threshold_percent)
    when = time.strftime("%Y-%m-%d %H:%M %Z")
    told = {
        "report": report.document(wish, found, when),
        "page": report.markdown(wish, found, when),
    }
    print(msgspec.json.encode(told).decode())


def _read(raw: bytes) -> Wish:
    try:
        return msgspec.json.decode(raw, type=Wish)
    except UNREADABLE as error:  # also for what does not fit the type
        raise UsageError(f"what to compare cannot be read: {error}") from None


if __name__ == "__main__":
    main()
