"""Closing a link whose socket is gone already ends that link, and nothing else."""

from typing import Any

import trio

from agent.control import links
from agent.identity.keys import NodeId


class GoneConnection:
    """What libp2p gives for a connection that was aborted: its goodbye cannot be written."""

    async def close(self) -> None:
        raise RuntimeError("closed on this side")


class Tcp:
    aborted = False

    def abort(self) -> None:
        self.aborted = True


class GoneLink:
    node = NodeId(bytes([7]) * 32)

    def __init__(self) -> None:
        self.connection, self.tcp = GoneConnection(), Tcp()


def test_a_goodbye_that_cannot_be_said_does_not_end_the_host() -> None:
    link: Any = GoneLink()

    async def main() -> None:
        async with trio.open_nursery() as nursery:  # an exception would end it, and raise
            nursery.start_soon(links._close, link)

    trio.run(main)
    assert link.tcp.aborted
