"""Ask a member what it can hold, where who does not answer is simply left out.

Used by `planning.py` and `offers.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from agent.deploy.messages import Answer, AskFacts, Facts, Request
from agent.errors import CoveyError
from agent.identity.keys import NodeId

_log = logging.getLogger(__name__)

Ask = Callable[[NodeId, Request, float], Awaitable[Answer]]
"""Asks a member, with a timeout in seconds; raises CoveyError."""


async def facts_of(
    ask: Ask, node: NodeId, timeout_s: float, ring: str = "", deployment: str = ""
) -> Facts | None:
    """Return what a node can hold, as if no stage of `ring` were there; None for no answer.

    `deployment`: which of that one's rings are there is asked as well.
    """
    try:
        answer = await ask(node, AskFacts(ring, deployment), timeout_s)
    except CoveyError as error:
        _log.info("node %s is left out: %s", node, error.line())
        return None
    return answer if isinstance(answer, Facts) else None
