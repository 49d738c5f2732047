"""Weights that are fetched before the stage that needs them is asked for: a ring that moves for a
gain leaves its old stages only once the new ones have little to wait for.

`Ahead` is the side of the node that fetches, for `stages.py`; `fetch_all` that of the ring's head,
for `gain.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.deploy.mesh import Mesh
from agent.deploy.messages import CutFile, FetchAhead, StageState, StoredLayers
from agent.errors import CoveyError, EngineError, PeerError
from agent.identity.keys import NodeId
from agent.ownership.lease import Token

_log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0
_POLL_S = 0.5

SoFar = Callable[[int, int], None]
"""Called with the bytes that are there, and all of them."""

Weights = CutFile | StoredLayers


class Ahead:
    """Weights on their way by `fetch`, which returns their file; `state` says how far."""

    def __init__(
        self, weights: Weights, fetch: Callable[[Weights, SoFar], Awaitable[Path]]
    ) -> None:
        self.weights = weights
        self.state = StageState(phase="fetching", total=weights.size)
        self._task = asyncio.create_task(self._run(fetch), name="weights ahead")

    @property
    def broken(self) -> bool:
        """Whether it failed."""
        return self.state.phase == "broken"

    async def stop(self) -> None:
        """End it; what came is kept."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self, fetch: Callable[[Weights, SoFar], Awaitable[Path]]) -> None:
        def so_far(done: int, total: int) -> None:
            self.state = StageState(phase="fetching", done=done, total=total)

        try:
            await fetch(self.weights, so_far)
        except CoveyError as error:
            _log.info("weights are not fetched ahead: %s", error.line())
            self.state = StageState(phase="broken", message=error.message, hint=error.hint)
        else:
            self.state = StageState(phase="ready", done=self.weights.size, total=self.weights.size)


async def fetch_all(
    mesh: Mesh, ring: str, token: Callable[[], Token], weights: Mapping[NodeId, Weights],
    within_s: float,
) -> None:  # fmt: skip
    """Have nodes fetch the weights of a ring's stages, all at once, and wait until they have.

    Raises CoveyError where one cannot, or it takes longer.
    """
    try:
        async with asyncio.timeout(within_s):
            await _all([_fetched(mesh, node, ring, token, one) for node, one in weights.items()])
    except TimeoutError:
        raise PeerError(f"the weights did not come within {within_s:.0f} s") from None


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except* CoveyError as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def _fetched(
    mesh: Mesh, node: NodeId, ring: str, token: Callable[[], Token], weights: Weights
) -> None:
    while True:
        state = await mesh.ask(node, FetchAhead(ring, token(), weights), _CALL_TIMEOUT_S)
        if not isinstance(state, StageState) or state.phase == "unknown":
            raise PeerError(f"node …{node.short} fetches nothing ahead")
        if state.phase == "broken":
            raise EngineError(f"node …{node.short}: {state.message}", hint=state.hint)
        if state.phase == "ready":
            return
        await asyncio.sleep(_POLL_S)
