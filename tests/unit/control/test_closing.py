"""A connection that breaks in the middle of something ends itself, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from agent.control import links, streams
from agent.control.topics import Topics
from agent.identity.keys import NodeId

NODE = NodeId(bytes([7]) * 32)


class GoneConnection:
    """What libp2p gives for a connection that was aborted: its goodbye cannot be written."""

    async def close(self) -> None:
        raise RuntimeError("closed on this side")


class Tcp:
    aborted = False

    def abort(self) -> None:
        self.aborted = True


class GoneLink:
    node = NODE

    def __init__(self) -> None:
        self.connection, self.tcp = GoneConnection(), Tcp()


def test_a_goodbye_that_cannot_be_said_does_not_end_the_host() -> None:
    link: Any = GoneLink()

    async def main() -> None:
        async with trio.open_nursery() as nursery:  # an exception would end it, and raise
            nursery.start_soon(links._close, link)

    trio.run(main)
    assert link.tcp.aborted


class DyingTalk:
    """A stream whose connection breaks while something is being written, late and uncancelled."""

    def __init__(self) -> None:
        self.stream = self
        self.writing, self.broken = trio.Event(), trio.Event()

    async def write(self, data: bytes) -> None:
        self.writing.set()
        with trio.CancelScope(shield=True):  # as yamux writes: whole frames
            await self.broken.wait()
        raise ConnectionResetError("reset by the peer")

    async def read(self, size: int) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def reset(self) -> None:
        raise ConnectionResetError("reset by the peer")


def test_a_connection_that_breaks_while_its_member_leaves_does_not_end_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = SimpleNamespace(member=True, connection=None)
    members = {NODE}
    table: Any = SimpleNamespace(members=lambda: members, kept=lambda node: link)

    async def main() -> bool:
        talk = DyingTalk()

        async def open_stream(connection: Any, protocol: str) -> DyingTalk:
            return talk

        monkeypatch.setattr(streams, "open_stream", open_stream)
        topics = Topics(SimpleNamespace(ask=None), table, NodeId(bytes([8]) * 32))  # type: ignore[arg-type]
        topics.gossip.subscribe("health")
        topics.gossip.set_members(frozenset({NODE.ed25519}), trio.current_time(), 0.0)
        async with trio.open_nursery() as nursery:  # an exception would end it, and raise
            nursery.start_soon(topics.run, nursery)
            with trio.fail_after(5):
                await talk.writing.wait()
            members.clear()
            topics.links_changed()
            await trio.testing.wait_all_tasks_blocked()
            talk.broken.set()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return talk.writing.is_set()

    assert trio.run(main)
