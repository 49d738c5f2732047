"""A model over llama.cpp's RPC servers, as the head's event loop sees it.

For `process.py`. llama.cpp never comes back from a call once a server is lost, so whatever calls it
is in a thread that can be left behind, and the loop hears of the loss by `rpc_link.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from agent.engine.head import Head
from agent.engine.llama import Context
from agent.engine.pipeline import SpreadPipeline
from agent.engine.rpc_library import Spread
from agent.engine.rpc_link import RpcLinks
from agent.engine.spec import EngineSpec
from agent.errors import EngineError

_T = TypeVar("_T")


class RpcHead:
    """The servers of one model; made, and used, in the event loop's thread."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[EngineError] = self._loop.create_future()
        self._links: RpcLinks | None = None

    async def load(self, load: Callable[[Spread], _T]) -> _T:
        """Connect to the servers and return what `load` returns, in a thread of its own.

        Raises CoveyError when a server cannot be reached, or is lost meanwhile.
        """
        loaded: asyncio.Future[_T] = self._loop.create_future()

        def work() -> None:
            try:
                links = self._links = RpcLinks(self._spec, self._tell)
                with links.working():
                    spread = Spread(links.places, [s.layers for s in self._spec.servers])
                    result = load(spread)
            except Exception as error:
                self._post(loaded.set_exception, error)
            else:
                self._post(loaded.set_result, result)

        threading.Thread(target=work, daemon=True).start()
        ends: set[asyncio.Future[Any]] = {loaded, self._lost}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if loaded.done():
            return loaded.result()
        raise self._lost.result()

    def pipeline(self, context: Context) -> SpreadPipeline:
        """Return the pipeline over a context that was loaded."""
        if self._links is None:
            raise ValueError("nothing was loaded yet")
        return SpreadPipeline(context, self._links.working)

    def watch(self, head: Head) -> None:
        """Have the head break once a server is lost."""
        self._lost.add_done_callback(lambda lost: head.give_up(lost.result()))

    def _tell(self, error: EngineError) -> None:
        self._post(self._lost.set_result, error)

    def _post(self, call: Callable[[_T], object], value: _T) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(call, value)
