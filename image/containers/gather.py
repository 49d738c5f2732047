"""Lets the nodes of compose.yaml into the first one's mesh, and deploys a model. A shell.

`python3 -m image.containers.gather --tickets DIR --deploy MODEL NAME…` runs beside the first node's
agent, and ends when all is done; done before, it does nothing. Each node that is no member yet gets
a ticket of its own, good for one use and ten minutes, as DIR/NAME. It goes once the node is in.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from image.node import asking

_SOCKET = Path("/run/covey/agent.sock")
_POLL_S = 0.5
_TICKET_S = 600.0
# So that a node that takes it at the last moment is still let in.
_RENEWED_S = 540.0
_INVITE_S = 30.0


class Gatherer:
    """Hands tickets to nodes by their names, until all of them are members."""

    def __init__(self, socket: Path, tickets: Path) -> None:
        self._socket = socket
        self._tickets = tickets
        self._handed: dict[str, float] = {}

    def look(self, names: Sequence[str], now: float) -> list[str]:
        """Do what is to be done at `now` (a steady clock's seconds); return who is missing.

        While the agent does not answer all are. Raises Refused, OSError.
        """
        answer = asking.get(self._socket, "/v1/members")
        if answer is None:
            return list(names)
        there = {one["name"] for one in answer["members"] if one["state"] == "member"}
        for name in there.intersection(self._handed):
            self._take_back(name)
            print(f"{name} has joined.", flush=True)
        missing = [name for name in names if name not in there]
        for name in missing:
            if now - self._handed.get(name, -_RENEWED_S) >= _RENEWED_S:
                self._hand(name, now)
        return missing

    def close(self) -> None:
        """Take all tickets back that nobody has used."""
        for name in list(self._handed):
            self._take_back(name)

    def _hand(self, name: str, now: float) -> None:
        wish = {"ttl_s": _TICKET_S, "uses": 1, "roles": ["worker"], "tags": []}
        answer = asking.post(self._socket, "/v1/invite", wish, _INVITE_S)
        if answer is None:
            return
        path = self._tickets / name
        partial = path.with_name(f".{name}.new")
        partial.unlink(missing_ok=True)
        self._handed[name] = now
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(answer["ticket"] + "\n")
        partial.rename(path)

    def _take_back(self, name: str) -> None:
        for path in (self._tickets / name, self._tickets / f".{name}.new"):
            path.unlink(missing_ok=True)
        del self._handed[name]


def deployed(socket: Path) -> frozenset[str]:
    """Return the names of what runs, or shall run. Raises Refused."""
    answer: dict[str, Any] = asking.get(socket, "/v1/replicas") or {}
    return frozenset(answer.get("deployed", ()))


def main() -> int:
    """Gather, then deploy; the exit status is that of `agent deploy`."""
    parser = argparse.ArgumentParser(prog="image.containers.gather")
    parser.add_argument("--tickets", type=Path, required=True, metavar="DIR")
    parser.add_argument("--deploy", default="", metavar="MODEL")
    parser.add_argument("names", nargs="+", metavar="NAME")
    arguments = parser.parse_args()
    # The first process of a container has no other end.
    signal.signal(signal.SIGTERM, _end)
    gatherer = Gatherer(_SOCKET, arguments.tickets)
    try:
        while gatherer.look(arguments.names, time.monotonic()):
            time.sleep(_POLL_S)
    except asking.Refused as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"No ticket can be left at {error.filename}: {error.strerror}.", file=sys.stderr)
        return 1
    finally:
        gatherer.close()
    if not arguments.deploy or arguments.deploy in deployed(_SOCKET):
        return 0
    nodes = str(len(arguments.names) + 1)
    return subprocess.run(
        ["agent", "deploy", arguments.deploy, "--nodes", nodes], check=False
    ).returncode


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
