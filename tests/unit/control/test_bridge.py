"""The bridge between asyncio and trio, with a guest that knows no libp2p."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio

from agent.control.bridge import BridgeClosed, Crossing, GuestFault, TrioThread
from agent.errors import EnvironmentFault, PeerError, TicketError, UsageError

SOON_S = 5.0


class Guest:
    """Commands that succeed, fail, hang, and ask back."""

    def __init__(self, bridge: TrioThread) -> None:
        self._bridge = bridge
        self.events: list[str] = []
        self.commands: Mapping[str, Callable[..., Awaitable[Crossing]]] = {
            "double": self.double,
            "fail": self.fail,
            "hang": self.hang,
            "ask": self.ask,
            "note": self.note,
            "die": self.die,
        }
        self._dead = trio.Event()

    async def run(self, started: Callable[[], None]) -> None:
        started()
        await self._dead.wait()
        raise OSError("the guest died")

    async def double(self, number: int) -> int:
        return 2 * number

    async def fail(self, kind: str) -> None:
        if kind == "covey":
            raise TicketError("used up", hint="Ask for another.")
        raise KeyError(kind)

    async def hang(self) -> None:
        self.events.append("began")
        try:
            await trio.sleep_forever()
        finally:
            self.events.append("cancelled")

    async def ask(self, question: str, *args: Crossing) -> Crossing:
        return await self._bridge.ask(question, *args)

    async def note(self, text: str) -> None:
        self.events.append(text)

    async def die(self) -> None:
        self._dead.set()


class Host:
    """The asyncio side: what the guest may ask."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.guest: Guest | None = None
        self.bridge = TrioThread(
            "test bridge", {"upper": self.upper, "refuse": self.refuse, "wait": self.wait}
        )

    def load(self, bridge: TrioThread) -> Guest:
        self.guest = Guest(bridge)
        return self.guest

    async def upper(self, text: str) -> str:
        return text.upper()

    async def refuse(self, kind: str) -> str:
        if kind == "covey":
            raise UsageError("not that")
        raise ZeroDivisionError

    async def wait(self) -> str:
        self.events.append("began")
        try:
            await asyncio.sleep(3600)
        finally:
            self.events.append("cancelled")
        return ""

    def call(self, command: str, *args: Any, timeout_s: float = SOON_S) -> Awaitable[Crossing]:
        return self.bridge.call(command, *args, timeout_s=timeout_s)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    await host.bridge.start(host.load)
    yield host
    await host.bridge.stop()
    assert not [t for t in threading.enumerate() if t.name == "test bridge"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - it changes in another thread
            await asyncio.sleep(0.001)


async def test_a_value_crosses_and_comes_back(host: Host) -> None:
    assert host.bridge.running
    assert await host.call("double", 21) == 42


async def test_many_calls_do_not_mix(host: Host) -> None:
    assert await asyncio.gather(*(host.call("double", n) for n in range(50))) == [
        2 * n for n in range(50)
    ]


async def test_errors_cross_as_text(host: Host) -> None:
    with pytest.raises(TicketError) as caught:
        await host.call("fail", "covey")
    assert (caught.value.message, caught.value.hint) == ("used up", "Ask for another.")
    with pytest.raises(GuestFault, match="KeyError: 'other'"):
        await host.call("fail", "other")


async def test_only_plain_values_cross(host: Host) -> None:
    with pytest.raises(TypeError, match="list does not cross"):
        await host.call("double", [1])


async def test_a_timeout_cancels_the_trio_side(host: Host) -> None:
    assert host.guest is not None
    with pytest.raises(TimeoutError):
        await host.call("hang", timeout_s=0.02)
    await until(lambda: host.guest is not None and host.guest.events == ["began", "cancelled"])


async def test_cancelling_a_call_cancels_the_trio_side(host: Host) -> None:
    guest = host.guest
    assert guest is not None
    task = asyncio.ensure_future(host.call("hang"))
    await until(lambda: guest.events == ["began"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: guest.events == ["began", "cancelled"])


async def test_the_guest_asks_and_is_answered(host: Host) -> None:
    assert await host.call("ask", "upper", "abc") == "ABC"


async def test_an_answers_error_reaches_the_guest(host: Host) -> None:
    with pytest.raises(UsageError, match="not that"):
        await host.call("ask", "refuse", "covey")
    with pytest.raises(GuestFault, match="ZeroDivisionError"):
        await host.call("ask", "refuse", "other")


async def test_cancelling_the_question_cancels_the_answer(host: Host) -> None:
    task = asyncio.ensure_future(host.call("ask", "wait"))
    await until(lambda: host.events == ["began"])
    task.cancel()
    await until(lambda: host.events == ["began", "cancelled"])


async def test_post_is_done_soon_and_waited_for_by_nobody(host: Host) -> None:
    guest = host.guest
    assert guest is not None
    host.bridge.post("note", "posted")
    host.bridge.post("fail", "other")
    await until(lambda: guest.events == ["posted"])


async def test_stop_ends_calls_and_answers(host: Host) -> None:
    hanging = asyncio.ensure_future(host.call("hang"))
    asking = asyncio.ensure_future(host.call("ask", "wait"))
    await until(lambda: host.events == ["began"])
    await host.bridge.stop()
    for task in (hanging, asking):
        with pytest.raises(BridgeClosed):
            await task
    assert host.events == ["began", "cancelled"]
    assert not host.bridge.running
    with pytest.raises(BridgeClosed):
        await host.call("double", 1)
    host.bridge.post("note", "too late")


async def test_a_guest_that_dies_ends_its_calls(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    hanging = asyncio.ensure_future(host.call("hang"))
    host.bridge.post("die")
    with pytest.raises(BridgeClosed):
        await hanging
    await until(lambda: not host.bridge.running)
    assert "ended by a fault: OSError: the guest died" in caplog.text


@pytest.mark.parametrize(
    ("fault", "expected", "text"),
    [
        (EnvironmentFault("port 1 is in use"), EnvironmentFault, "port 1 is in use"),
        (ImportError("no libp2p"), GuestFault, "ImportError: no libp2p"),
    ],
)
async def test_a_guest_that_cannot_be_loaded(
    fault: Exception, expected: type[Exception], text: str
) -> None:
    def load(bridge: TrioThread) -> Guest:
        raise fault

    bridge = TrioThread("failing bridge", {})
    with pytest.raises(expected, match=text):
        await bridge.start(load)
    assert not bridge.running
    await bridge.stop()


async def test_a_guest_that_fails_before_it_has_started() -> None:
    class Early(Guest):
        async def run(self, started: Callable[[], None]) -> None:
            async with trio.open_nursery() as nursery:  # as listeners do: errors come in groups
                nursery.start_soon(self.fail, "covey")

    bridge = TrioThread("early bridge", {})
    with pytest.raises(TicketError, match="used up"):
        await bridge.start(Early)
    await bridge.stop()


async def test_stop_without_start_and_twice() -> None:
    bridge = TrioThread("idle bridge", {})
    await bridge.stop()
    host = Host()
    await host.bridge.start(host.load)
    await host.bridge.stop()
    await host.bridge.stop()
    with pytest.raises(ValueError, match="starts once"):
        await host.bridge.start(host.load)


async def test_a_cancelled_start_leaves_nothing() -> None:
    class Never(Guest):
        async def run(self, started: Callable[[], None]) -> None:
            await trio.sleep_forever()

    bridge = TrioThread("slow bridge", {})
    task = asyncio.create_task(bridge.start(Never))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [t for t in threading.enumerate() if t.name == "slow bridge"]


async def test_peer_errors_keep_their_class(host: Host) -> None:
    host.bridge._answers = {"upper": _peer_error}
    with pytest.raises(PeerError, match="gone"):
        await host.call("ask", "upper", "x")


async def _peer_error(text: str) -> str:
    raise PeerError("gone")
