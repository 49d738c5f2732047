"""The life of a control plane: one bridge after the other, so that no fault ends it for long.

    start ──▶ up ──fault──▶ down ──pause──▶ start …      the pauses grow from 1 s to 60 s; after
                              ▲                 │        STEADY_S without a fault they begin anew
                              └──── fault ──────┘

Used by `host.py`, on the asyncio side, which knows what a bridge is started with; it keeps what was
subscribed, served and wanted, so that each bridge begins with all of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent.control.bridge import TrioThread
from agent.errors import CoveyError, EnvironmentFault, one_line

log = logging.getLogger(__name__)

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
# A fault that comes with one peer or one message comes again within minutes.
STEADY_S = 300.0


@dataclass(frozen=True)
class Down:
    """Why there is no control plane now, and when it is started again (unix seconds)."""

    reason: str
    hint: str
    again_at: float

    def when(self) -> str:
        """Return the time of the next start in words: the clock of this machine."""
        return f"at {time.strftime('%H:%M:%S', time.localtime(self.again_at))}"


Follower = Callable[[Down | None], None]


class Pauses:
    """How long to wait before each start."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def after(self, ran_s: float) -> float:
        """Return the pause, in seconds, after a fault that came `ran_s` seconds after the start."""
        if ran_s >= STEADY_S:
            self._next_s = FIRST_PAUSE_S
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, MAX_PAUSE_S)
        return pause_s


class Life:
    """Owns the bridge there is. One start, one stop."""

    def __init__(
        self,
        make: Callable[[], TrioThread],
        begin: Callable[[TrioThread], Awaitable[None]],
        fallen: Callable[[], None],
    ) -> None:
        """`make` returns a bridge that has not started, and `begin` starts it or raises CoveyError.

        `fallen` is called when a bridge has ended by a fault, and nothing of it runs any more.
        """
        self._make = make
        self._begin = begin
        self._fallen = fallen
        self._followers: list[Follower] = []
        self._pauses = Pauses()
        self._task: asyncio.Task[None] | None = None
        self.bridge = make()
        self.down: Down | None = None

    def follow(self, follower: Follower) -> None:
        """Call `follower` with each Down, and with None when all is well again."""
        self._followers.append(follower)

    async def start(self) -> None:
        """Start; from then on a fault is mended. Raises the CoveyError with which it failed."""
        await self._begin(self.bridge)
        self._keep_up(None)

    def start_later(self, error: CoveyError) -> None:
        """Go on after a `start` that failed with `error`, until it succeeds."""
        self._keep_up(error)

    async def stop(self) -> None:
        """End the bridge, and what would start the next one."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.bridge.stop()

    def advice(self) -> str:
        """Say what whoever finds no bridge can do."""
        if self._task is None or self._task.done():
            return "Start the agent with `agent up`."
        when = self.down.when() if self.down is not None else "in a moment"
        return f"A fault ended it; it is started again {when}."

    def _keep_up(self, error: CoveyError | None) -> None:
        self._task = asyncio.get_running_loop().create_task(
            self._run(error), name="control plane's life"
        )

    async def _run(self, failed: CoveyError | None) -> None:
        """Mend one fault after the other; `failed` is what the first start came to."""
        if failed is not None:
            await self._rise(failed, 0.0)
        while True:
            began = time.monotonic()
            reason = one_line(await self.bridge.ended())
            fault = EnvironmentFault(
                f"the control plane (libp2p) ended by a fault: {reason}", hint="The log says more."
            )
            await self._rise(fault, time.monotonic() - began)

    async def _rise(self, error: CoveyError, ran_s: float) -> None:
        """Start a bridge, and another one, until one is up."""
        while True:
            # What the guest still asks ends with it, so that nothing of it comes after `fallen`.
            await self.bridge.stop()
            self._fallen()
            pause_s = self._pauses.after(ran_s)
            self._tell(Down(error.message, error.hint, time.time() + pause_s))
            await asyncio.sleep(pause_s)
            if self.bridge.left_behind:  # it holds the port, and a second one may end like it
                continue
            self.bridge = self._make()
            try:
                await self._begin(self.bridge)
            except CoveyError as again:
                error, ran_s = again, 0.0
            except Exception as again:  # whatever it is, the next try may go well
                log.exception("the control plane was not started")
                reason = one_line(repr(again))
                error, ran_s = EnvironmentFault(f"the control plane cannot start: {reason}"), 0.0
            else:
                self._tell(None)
                return

    def _tell(self, down: Down | None) -> None:
        self.down = down
        for follower in tuple(self._followers):
            try:
                follower(down)
            except Exception:
                log.exception("a follower of the control plane's life failed")
