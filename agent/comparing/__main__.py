"""`python -m agent.comparing < wish.json`: compare, and print {"report": …, "page": Markdown}.

Ends with 0 for go and no go alike; with the exit code of its error where nothing was compared.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time

import msgspec

from agent.comparing import report
from agent.comparing.asking import measure
from agent.comparing.wish import Wish
from agent.errors import CoveyError, UsageError
from agent.unreadable import UNREADABLE

_MOST_BYTES = 2**20


def main() -> None:
    """Read the wish on stdin, compare, and tell."""
    try:
        wish = _read(sys.stdin.buffer.read(_MOST_BYTES))
        wish, found = asyncio.run(measure(wish, lambda line: print(line, file=sys.stderr)))
    except CoveyError as error:
        print(f"Error: {error.line()}", file=sys.stderr)
        sys.exit(error.exit_code)
    compared = report.levels(wish, found)
    conditions = report.Conditions(time.strftime("%Y-%m-%d %H:%M %Z"))
    told = {
        "report": report.document(wish, compared, conditions),
        "page": report.markdown(wish, compared, conditions),
    }
    print(msgspec.json.encode(told).decode())


def _read(raw: bytes) -> Wish:
    try:
        wish = msgspec.json.decode(raw, type=Wish)
    except UNREADABLE as error:  # also for what does not fit the type
        raise UsageError(f"what to compare cannot be read: {error}") from None
    return wish if wish.salt else msgspec.structs.replace(wish, salt=f"{secrets.token_hex(3)}.")


if __name__ == "__main__":
    main()
