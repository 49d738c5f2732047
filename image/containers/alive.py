"""Whether an agent or a gateway answers: the containers' probe. A shell.

`python3 -m image.containers.alive` asks the agent, `… alive URL` whatever serves that. Exit status
0 or 1, and on 1 a line that says why. Python without anything of Covey: it runs every few seconds.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from image.node import asking

_SOCKET = Path("/run/covey/agent.sock")
_ANSWER_S = 5.0


def fault(url: str | None, socket: Path = _SOCKET) -> str:
    """Return why the agent, or what serves the URL, does not answer; "" when it does."""
    if url is None:
        return "" if asking.ask(socket) is not None else f"no agent answers on {socket}"
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S):  # noqa: S310 - the operator's own
            return ""
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except (OSError, ValueError) as error:
        return f"{url} does not answer: {error}"


def main(arguments: Sequence[str]) -> int:
    """Ask, and return the exit status."""
    words = fault(arguments[0] if arguments else None)
    if words:
        print(words)
    return 1 if words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
