"""Holds: the rule's text, one change after another, nothing left; the lab has the kernel do it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agent.acl.firewall import Finished
from agent.probing import hold
from agent.probing.hold import Holds

OLD, NEW = ("198.51.100.10", 51840), ("192.0.2.7", 51820)
OLD6 = ("2001:db8::1", 51820)


class Nft:
    """What nft was told; `code` is what it answers with."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.code = 0

    async def run(self, arguments: Sequence[str], stdin: bytes) -> Finished:
        self.done.append(stdin.decode())
        return Finished(self.code, b"", b"Error: no such thing" if self.code else b"")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0)


def test_the_source_is_rewritten_before_tracking_and_our_own_datagrams_are_left_alone() -> None:
    text = hold.rules(51820, {OLD: NEW})
    assert "type filter hook prerouting priority -300;" in text
    assert (
        "ip saddr 198.51.100.10 udp sport 51840 udp dport 51820 @th,64,32 != 0x43565901"
        " ip saddr set 192.0.2.7 udp sport set 51820" in text
    )


def test_between_families_packets_are_dropped() -> None:
    text = hold.rules(51820, {OLD6: NEW})
    assert "ip6 saddr 2001:db8::1 udp sport 51820" in text
    assert text.count("drop") == 1
    assert "set" not in text.replace("@th", "")


async def test_the_table_stands_only_while_something_is_held() -> None:
    nft = Nft()
    holds = Holds("wg0", 51820, run=nft.run)
    await holds.start()
    assert nft.done == ["table inet covey-hold-wg0\ndelete table inet covey-hold-wg0\n"]
    holds.hold(OLD, NEW)
    await until(lambda: len(nft.done) == 2)
    assert hold.rules(51820, {OLD: NEW}) in nft.done[1]
    holds.release(OLD)
    await until(lambda: len(nft.done) == 3)
    assert nft.done[2] == nft.done[0]
    await holds.stop()
    assert len(nft.done) == 3, "there was nothing to remove any more"


async def test_stop_removes_what_is_held() -> None:
    nft = Nft()
    holds = Holds("wg0", 51820, run=nft.run)
    await holds.start()
    holds.hold(OLD, NEW)
    await until(lambda: len(nft.done) == 2)
    await holds.stop()
    assert nft.done[2] == nft.done[0]
    await holds.stop()


async def test_a_kernel_that_refuses_is_said_and_tried_again() -> None:
    nft = Nft()
    holds = Holds("wg0", 51820, run=nft.run)
    await holds.start()
    nft.code = 1
    holds.hold(OLD, NEW)
    await until(lambda: holds.fault is not None)
    nft.code = 0
    holds.hold(OLD6, NEW)
    await until(lambda: holds.fault is None)
    await holds.stop()
