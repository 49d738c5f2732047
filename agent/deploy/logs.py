"""What this node's engines said last: those that run, and the last that ended or did not start.

For `agent logs`. Engines log what they do and what went wrong, never what was asked or answered.
`Logs` is kept by `engines.py`; `gather` asks other members, for `deployments.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import msgspec

from agent.deploy.messages import TAILS_MAX, Answer, AskLogs, EngineTails, LogTail, Request
from agent.engine.supervisor import Engine
from agent.errors import CoveyError, PeerError
from agent.identity.keys import NodeId

# Of one deployment (or ring, for a stage) and of all: a few attempts tell more than one.
_ENDED_EACH, _ENDED = 3, 24
_ASK_TIMEOUT_S = 3.0

Ask = Callable[[NodeId, Request, float], Awaitable[Answer]]


class Logs:
    """The engines of this node that ran lately, the oldest first."""

    def __init__(self) -> None:
        self._engines: list[Engine] = []

    def add(self, engine: Engine) -> None:
        """Take in an engine that was just made, whatever becomes of it."""
        self._engines.append(engine)
        ended = [one for one in self._engines if not one.alive and one is not engine]
        alike = [one for one in ended if _subject(one) == _subject(engine)]
        dropped = [*ended[:-_ENDED], *alike[:-_ENDED_EACH]]
        self._engines = [one for one in self._engines if one not in dropped]

    def tails(self, lines: int, name: str = "", rings: Collection[str] = ()) -> list[LogTail]:
        """Return what engines said: of the deployment `name`, whose ring is one of `rings`, or all.

        `lines`: so many of each, the newest.
        """
        found = [
            _tail(engine, lines)
            for engine in self._engines
            if not name or engine.spec.model_name == name or engine.spec.ring in rings
        ]
        return found[-TAILS_MAX:]


def _subject(engine: Engine) -> str:
    spec = engine.spec
    return spec.model_name if spec.role in ("whole", "head") else spec.ring


def _tail(engine: Engine, lines: int) -> LogTail:
    said = engine.log_tail[-lines:]
    return LogTail(
        title=engine.spec.title, pid=engine.pid, first=engine.log_lines - len(said),
        lines=tuple(said), state=engine.state,
    )  # fmt: skip


async def gather(
    nodes: Collection[NodeId], name: str, lines: int, ask: Ask, name_of: Callable[[NodeId], str]
) -> list[dict[str, Any]]:
    """Ask nodes what their engines said; those that do not answer have an `error` instead."""

    async def one(node: NodeId) -> dict[str, Any]:
        tails: Sequence[LogTail] = ()
        error = ""
        try:
            answer = await ask(node, AskLogs(name=name, lines=lines), _ASK_TIMEOUT_S)
            if not isinstance(answer, EngineTails):
                raise PeerError(f"it answered {type(answer).__name__}")
            tails = answer.tails
        except CoveyError as fault:
            error = fault.line()
        return {"node": str(node), "name": name_of(node), "error": error,
                "tails": [msgspec.to_builtins(tail) for tail in tails]}  # fmt: skip

    return sorted(await asyncio.gather(*map(one, nodes)), key=lambda found: str(found["name"]))
