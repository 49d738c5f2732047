"""Starts the agent: `python3 -m image.node.agentstart`, as its user. A shell.

What an agent needs is loaded while the machine still boots, which takes as long. Then standard
input says what there is to start: the environment's lines NAME=VALUE, an empty one, and a word.
`up` is a member's agent; `join` one that joins by the line after it; `wait` none at all.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from agent.cli import loading
from agent.cli import main as agent

_WAIT = ("/bin/sleep", "infinity")
_UP = ("agent", "up", "--foreground")


def told(words: TextIO) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the environment and the command; what joins is left in `words` to be read.

    Raises ValueError for anything else than what is said above.
    """
    environment = {}
    for line in iter(lambda: words.readline().rstrip("\n"), ""):
        name, _, environment[name] = line.partition("=")
    match words.readline().rstrip("\n"):
        case "up":
            return environment, _UP
        case "join":
            return environment, (*_UP, "--join-from-stdin")
        case "wait":
            return environment, _WAIT
        case other:
            raise ValueError(f"{other!r} says nothing of what to start")


def main() -> None:
    """Load, wait for what to do, and do it."""
    loading.load()
    environment, command = told(sys.stdin)
    os.environ.update(environment)
    if command == _WAIT:
        # All that was loaded goes; the service stays.
        os.execv(_WAIT[0], _WAIT)  # noqa: S606 - no shell is wanted
    sys.argv = list(command)
    agent()


if __name__ == "__main__":
    main()
