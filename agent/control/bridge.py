"""A trio loop in a thread of its own beside asyncio, and the only door between the two.

Commands go in by name (`call`, `post`), questions come out by name (`ask`); what crosses is bytes,
numbers and strings, and an error crosses as its kind and text. Cancelling either side of a call
cancels the other. It knows nothing of libp2p: `Guest` is what runs inside, and `load` imports it
in the thread, so that nobody pays for trio or libp2p before they are wanted. Used by `host.py`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from agent.errors import CoveyError, from_wire, to_wire

if TYPE_CHECKING:
    import trio

log = logging.getLogger(__name__)

Crossing = bytes | str | int | float | None
Answer = Callable[..., Coroutine[Any, Any, Crossing]]
CROSSING_TYPES = (bytes, str, int, float, type(None))
# What a call came to: its value, or a CoveyError's fields, or another fault's text.
Outcome = tuple[Crossing, dict[str, str] | None, str]
CANCELLED: Outcome = (None, None, "cancelled")

# Importing libp2p takes 1-2 s on a PC and a multiple of that from an SD card.
START_LIMIT_S = 120.0
# A reset that is being sent to a peer who takes no bytes is waited for: 2 s.
STOP_LIMIT_S = 5.0
# The thread says that it has ended as its last act.
JOIN_LIMIT_S = 1.0


class BridgeClosed(Exception):
    """The trio side is not running: not started, stopped, or ended by a fault."""


class GuestFault(Exception):
    """The trio side failed with what is not a CoveyError; the message is `Type: text`."""


class Guest(Protocol):
    """What runs in the trio thread."""

    commands: Mapping[str, Callable[..., Awaitable[Crossing]]]

    async def run(self, started: Callable[[], None]) -> None:
        """Call `started` once ready, then run until cancelled; clean up in bounded time."""


@dataclass(frozen=True)
class _Inside:
    """The trio side while it runs."""

    guest: Guest
    token: trio.lowlevel.TrioToken
    nursery: trio.Nursery


class TrioThread:
    """Owns the thread. One start, one stop; every method but `ask` belongs to the asyncio side."""

    def __init__(self, name: str, answers: Mapping[str, Answer]) -> None:
        """`answers`: coroutine functions on the asyncio loop that the guest may `ask`."""
        self._name = name
        self._answers = answers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inside: _Inside | None = None
        self._started: asyncio.Future[None] | None = None
        self._finished: asyncio.Future[None] | None = None
        self._waiting: set[asyncio.Future[Any]] = set()
        self._answering: set[asyncio.Task[Any]] = set()
        self._stopping = self._announced = False
        self._fault = ""

    @property
    def running(self) -> bool:
        """Whether calls are possible now."""
        return (
            self._started is not None
            and self._started.done()
            and self._finished is not None
            and not self._finished.done()
            and not self._stopping
        )

    @property
    def left_behind(self) -> bool:
        """Whether the thread still runs, though it may have been told to stop."""
        return self._thread is not None and self._thread.is_alive()

    async def start(self, load: Callable[[TrioThread], Guest]) -> None:
        """Start the thread, call `load` in it, run the guest; return when the guest has started.

        Raises the guest's CoveyError, or GuestFault for anything else, imports included.
        """
        if self._loop is not None:
            raise ValueError("a TrioThread starts once")
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._finished = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(load,), name=self._name, daemon=True
        )
        self._thread.start()
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await asyncio.shield(self._started)
        except TimeoutError:
            await self.stop()
            raise GuestFault(f"it did not start within {START_LIMIT_S:g} s") from None
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def ended(self) -> str:
        """Return, once a guest that had started has ended, by what fault it has."""
        if self._finished is None:
            raise BridgeClosed("not started")
        await asyncio.shield(self._finished)
        return self._fault

    async def stop(self) -> None:
        """End the guest, every call and every answer; returns within about STOP_LIMIT_S."""
        self._stopping = True
        if self._finished is None:
            return
        self._in_trio(_cancel_all)
        await asyncio.wait([self._finished], timeout=STOP_LIMIT_S)
        if not self._finished.done():
            log.error("%s did not stop within %g s; its thread is left behind",
                      self._name, STOP_LIMIT_S)  # fmt: skip
        elif self._thread is not None:
            self._thread.join(JOIN_LIMIT_S)
        self._fail_waiting()
        for task in self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering, timeout=STOP_LIMIT_S)

    async def call(self, command: str, *args: Crossing, timeout_s: float) -> Crossing:
        """Run a guest's command and return what it returns.

        Raises its CoveyError, GuestFault for any other exception, TimeoutError after `timeout_s`
        seconds, BridgeClosed when the trio side is not (or no longer) running.
        """
        _check(args)
        if not self.running or self._loop is None:
            raise BridgeClosed("not running")
        future: asyncio.Future[Crossing] = self._loop.create_future()
        self._waiting.add(future)
        scopes: list[trio.CancelScope] = []
        try:
            if not self._in_trio(self._begin, command, args, future, scopes):
                raise BridgeClosed("not running")
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._waiting.discard(future)
            if future.cancelled():
                self._in_trio(_cancel, scopes)
            elif future.done():
                future.exception()  # seen, also when the caller was cancelled at this moment

    def post(self, command: str, *args: Crossing) -> None:
        """Run a guest's command some time soon; nobody waits. Does nothing when not running."""
        _check(args)
        if self.running and self._loop is not None:
            self._in_trio(self._begin, command, args, None, [])

    # On the trio side.

    async def ask(self, question: str, *args: Crossing) -> Crossing:
        """For the guest: run an answer on the asyncio loop and return what it returns.

        Raises its CoveyError, or GuestFault for anything else. Cancelled here, it is cancelled
        there.
        """
        import trio

        _check(args)
        loop = self._loop
        if loop is None:
            raise GuestFault("not started")
        done = trio.Event()
        task: list[asyncio.Task[Any]] = []
        result: list[Outcome] = []
        abandoned = False

        def finish(ended: asyncio.Task[Any]) -> None:
            self._answering.discard(ended)
            result.append(_outcome(ended))
            self._in_trio(lambda _: done.set())

        def begin() -> None:
            if abandoned:
                return
            task.append(loop.create_task(self._answers[question](*args)))
            self._answering.add(task[0])
            task[0].add_done_callback(finish)

        def abandon() -> None:
            for each in task:
                each.cancel()

        if not self._in_asyncio(begin):
            raise GuestFault("the asyncio loop is closed")
        try:
            await done.wait()
        except BaseException:
            abandoned = True
            self._in_asyncio(abandon)
            raise
        return _open(*result[0])

    def _run(self, load: Callable[[TrioThread], Guest]) -> None:
        fault: tuple[dict[str, str] | None, str] = (None, "")
        try:
            # Imported here, in the thread: it takes long, and some agents run without it.
            import trio

            trio.run(self._main, load(self))
        except BaseException as error:
            fault = _describe(error)
            # One that could not start has said all; what ended a running one has to be found.
            level = logging.ERROR if self._announced else logging.DEBUG
            log.log(level, "%s: its fault in full", self._name, exc_info=True)
        self._in_asyncio(self._end, *fault)

    async def _main(self, guest: Guest) -> None:
        import trio

        async with trio.open_nursery() as nursery:
            self._inside = _Inside(guest, trio.lowlevel.current_trio_token(), nursery)
            if self._stopping:
                nursery.cancel_scope.cancel()
            await guest.run(self._announce)
            nursery.cancel_scope.cancel()

    def _announce(self) -> None:
        self._announced = True
        self._in_asyncio(self._ready)

    def _begin(
        self,
        inside: _Inside,
        command: str,
        args: tuple[Crossing, ...],
        future: asyncio.Future[Crossing] | None,
        scopes: list[trio.CancelScope],
    ) -> None:
        import trio

        scope = trio.CancelScope()
        scopes.append(scope)
        function = inside.guest.commands[command]

        async def run() -> None:
            outcome = CANCELLED
            try:
                with scope:
                    outcome = (await function(*args), None, "")
            except Exception as error:
                outcome = (None, *_describe(error))
                if outcome[1] is None:
                    log.debug("%s failed in %s", command, self._name, exc_info=True)
            finally:
                if future is not None:
                    self._in_asyncio(_settle, future, outcome)

        try:
            inside.nursery.start_soon(run, name=command)
        except RuntimeError:  # the guest has just ended, and trio with it in a moment
            if future is not None:
                self._in_asyncio(_settle, future, CANCELLED)

    # From one side to the other. False: the other side has ended.

    def _in_trio(self, function: Callable[..., object], *args: object) -> bool:
        """Call `function` in the trio thread, with what is inside as its first argument."""
        inside = self._inside
        if inside is None:
            return False
        import trio

        try:
            inside.token.run_sync_soon(function, inside, *args)
        except trio.RunFinishedError:
            return False
        return True

    def _in_asyncio(self, function: Callable[..., object], *args: object) -> bool:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed
            return False
        return self._loop is not None

    # Called back on the asyncio side.

    def _ready(self) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    def _end(self, wire: dict[str, str] | None, text: str) -> None:
        if self._started is None or self._finished is None:
            return
        if not self._started.done():
            try:
                _open(None, wire, text or "it ended at once")
            except (CoveyError, GuestFault) as error:
                self._started.set_exception(error)
        elif not self._stopping:
            self._fault = wire["message"] if wire else text or "its guest returned"
            log.error("%s ended by a fault: %s", self._name, self._fault)
        self._finished.set_result(None)
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(BridgeClosed("stopped"))


def _check(values: tuple[Crossing, ...]) -> None:
    for value in values:
        if not isinstance(value, CROSSING_TYPES):
            raise TypeError(f"{type(value).__name__} does not cross between trio and asyncio")


def _cancel_all(inside: _Inside) -> None:
    inside.nursery.cancel_scope.cancel()


def _cancel(_: _Inside, scopes: list[trio.CancelScope]) -> None:
    for scope in scopes:
        scope.cancel()


def _describe(error: BaseException) -> tuple[dict[str, str] | None, str]:
    """Return an exception as strings; of a group the first member, since a nursery wraps them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, CoveyError):
        return to_wire(error), ""
    return None, f"{type(error).__name__}: {error}".removesuffix(": ")


def _outcome(task: asyncio.Task[Any]) -> Outcome:
    if task.cancelled():
        return CANCELLED
    error = task.exception()
    if error is not None:
        return None, *_describe(error)
    return task.result(), None, ""


def _settle(future: asyncio.Future[Crossing], outcome: Outcome) -> None:
    if future.done():
        return
    if outcome is CANCELLED:  # not by the caller, who has cancelled the future: by `stop`
        future.set_exception(BridgeClosed("stopped"))
        return
    try:
        future.set_result(_open(*outcome))
    except (CoveyError, GuestFault) as error:
        future.set_exception(error)


def _open(value: Crossing, wire: dict[str, str] | None, text: str) -> Crossing:
    if wire is not None:
        raise from_wire(wire)
    if text:
        raise GuestFault(text)
    return value
