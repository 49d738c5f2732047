"""Real libp2p hosts on loopback: what works, and what a person is told when it does not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agent.control import ControlPlane
from agent.errors import (
    CoveyError,
    EnvironmentFault,
    NotRunning,
    PeerError,
    TicketError,
    UsageError,
)
from agent.identity.keys import NodeId, NodeKey
from agent.membership.networkkeys import NetworkKeys

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

# A label of DNS holds 63 characters: no resolver is asked, so the answer is the same everywhere.
NO_NAME = "a" * 64
KEYS = NetworkKeys.single(bytes(range(32)))
FOREIGN_KEYS = NetworkKeys.single(bytes(32))
SOON_S = 5.0
# Long enough for a loopback handshake on a busy machine, short enough to wait for in a test.
SHORT_S = 0.3
MIB = 1024 * 1024


def key(number: int) -> NodeKey:
    return NodeKey(bytes([number]) * 32)


SERVER, CLIENT, STRANGER, OTHER = (key(n) for n in (1, 2, 3, 4))


def member(who: NodeKey, listen: list[str], keys: NetworkKeys = KEYS) -> ControlPlane:
    """A node that takes all the others for members."""
    plane = ControlPlane(who, keys, listen)
    plane.set_members(each.id for each in (SERVER, CLIENT, STRANGER, OTHER))
    return plane


class Server:
    """A control plane with a handler of every kind."""

    def __init__(self) -> None:
        self.plane = member(SERVER, ["127.0.0.1:0", "[::1]:0"])
        self.events: list[str] = []
        self.plane.serve("/test/echo/1", self.echo)
        self.plane.serve("/test/who/1", self.who)
        self.plane.serve("/test/refuse/1", self.refuse)
        self.plane.serve("/test/crash/1", self.crash)
        self.plane.serve("/test/hang/1", self.hang)
        self.plane.serve("/test/long/1", self.long)

    @property
    def v4(self) -> str:
        return self.plane.addresses[0]

    async def echo(self, peer: NodeId, request: bytes) -> bytes:
        return request

    async def who(self, peer: NodeId, request: bytes) -> bytes:
        return str(peer).encode()

    async def refuse(self, peer: NodeId, request: bytes) -> bytes:
        raise TicketError("this ticket expired 5 minutes ago", hint="Ask for another.")

    async def crash(self, peer: NodeId, request: bytes) -> bytes:
        raise RuntimeError("secret detail")

    async def hang(self, peer: NodeId, request: bytes) -> bytes:
        self.events.append("began")
        try:
            await asyncio.sleep(3600)
        finally:
            self.events.append("cancelled")
        return b""

    async def long(self, peer: NodeId, request: bytes) -> bytes:
        return bytes(4 * MIB + 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.plane.start()
    yield server
    await server.plane.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[ControlPlane]:
    async with running(member(CLIENT, [])) as plane:
        yield plane


@contextlib.asynccontextmanager
async def running(plane: ControlPlane) -> AsyncIterator[ControlPlane]:
    await plane.start()
    try:
        yield plane
    finally:
        await plane.stop()


async def until(events: list[str], expected: list[str]) -> None:
    async with asyncio.timeout(SOON_S):
        while events != expected:  # noqa: ASYNC110 - a list is all that handlers have here
            await asyncio.sleep(0.002)


async def ask(
    plane: ControlPlane,
    server: Server,
    protocol: str = "/test/echo/1",
    payload: bytes = b"hello",
    timeout_s: float = SOON_S,
) -> bytes:
    return await plane.request(
        SERVER.id, server.plane.addresses, protocol, payload, timeout_s=timeout_s
    )


async def test_libp2p_and_covey_give_a_node_the_same_name() -> None:
    from agent.control.swarm import Host

    rfc8032_test_1 = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    for seed in (bytes.fromhex(rfc8032_test_1), *(bytes([n]) * 32 for n in range(0, 256, 50))):
        assert str(Host(seed).id) == str(NodeKey(seed).id)


async def test_what_is_offered_is_noise_and_yamux_and_nothing_else() -> None:
    from agent.control.swarm import Host

    swarm = Host(bytes(32)).swarm
    assert list(swarm.upgrader.security_multistream.transports) == ["/noise"]
    assert list(swarm.upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]
    assert not swarm.transport_manager.get_transports()
    assert not swarm.notifees


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "UNKNOWN_NAME"),
        (UnicodeError("label too long"), "UNKNOWN_NAME"),
        (OSError(errno.ECONNREFUSED, "refused"), "REFUSED"),
        (OSError(errno.ENETUNREACH, "unreachable"), "UNREACHABLE"),
        (OSError(errno.ETIMEDOUT, "timed out"), "UNREACHABLE"),
    ],
)
async def test_what_a_failed_dial_is_called(error: OSError | UnicodeError, trouble: str) -> None:
    from agent.control.listening import trouble as called

    assert called(error).name == trouble
    gathered = OSError("all attempts failed")
    gathered.__cause__ = ExceptionGroup("of a name's addresses", [error, OSError(errno.EIO, "")])
    if not isinstance(error, UnicodeError):
        assert called(gathered).name == trouble


async def test_echo_over_one_kept_connection(server: Server, client: ControlPlane) -> None:
    for n in range(5):
        assert await ask(client, server, payload=b"%d" % n) == b"%d" % n
    assert await client.connections() == 1


@pytest.mark.parametrize("size", [0, 1, 300_000, 4 * MIB])
async def test_sizes(server: Server, client: ControlPlane, size: int) -> None:
    payload = bytes(size)
    assert await ask(client, server, payload=payload) == payload


async def test_more_than_four_mebibytes_is_our_own_mistake(
    server: Server, client: ControlPlane
) -> None:
    with pytest.raises(ValueError, match="at most"):
        await ask(client, server, payload=bytes(4 * MIB + 1))


async def test_many_at_once_share_a_connection(server: Server, client: ControlPlane) -> None:
    payloads = [bytes([n]) * 1000 for n in range(24)]
    assert (
        await asyncio.gather(*(ask(client, server, payload=each) for each in payloads)) == payloads
    )
    assert await client.connections() == 1


async def test_the_handler_gets_the_proved_identity(server: Server, client: ControlPlane) -> None:
    assert await ask(client, server, "/test/who/1") == str(CLIENT.id).encode()


async def test_ipv6_and_names(server: Server) -> None:
    v6 = server.plane.addresses[1]
    port = server.v4.rpartition(":")[2]
    for address in (v6, f"localhost:{port}"):
        async with running(member(OTHER, [])) as plane:
            assert await plane.request(
                SERVER.id, [address], "/test/echo/1", b"x", timeout_s=SOON_S
            ) == b"x"  # fmt: skip


async def test_the_listening_side_can_ask_back(server: Server) -> None:
    plane = member(OTHER, [])
    plane.serve("/test/who/1", server.who)
    async with running(plane):
        await ask(plane, server)
        answer = await server.plane.request(OTHER.id, [], "/test/who/1", b"", timeout_s=SOON_S)
        assert answer == str(SERVER.id).encode()


async def test_serve_while_running(server: Server, client: ControlPlane) -> None:
    with pytest.raises(PeerError, match="does not answer /test/late/1"):
        await ask(client, server, "/test/late/1")
    server.plane.serve("/test/late/1", server.echo)
    assert await ask(client, server, "/test/late/1") == b"hello"


async def test_a_handlers_covey_error_is_raised_at_the_caller(
    server: Server, client: ControlPlane
) -> None:
    with pytest.raises(TicketError) as caught:
        await ask(client, server, "/test/refuse/1")
    assert caught.value.message == "this ticket expired 5 minutes ago"
    assert caught.value.hint == "Ask for another."


@pytest.mark.parametrize(
    ("protocol", "logged"),
    [("/test/crash/1", "secret detail"), ("/test/long/1", "a frame holds at most")],
)
async def test_a_handlers_other_error_is_logged_there_and_hidden_here(
    server: Server,
    client: ControlPlane,
    caplog: pytest.LogCaptureFixture,
    protocol: str,
    logged: str,
) -> None:
    with pytest.raises(PeerError) as caught:
        await ask(client, server, protocol)
    assert caught.value.message == "the node met an internal error"
    assert logged in caplog.text


async def test_a_handler_that_hangs_is_cancelled_when_the_caller_leaves(
    server: Server, client: ControlPlane
) -> None:
    server.events.clear()
    with pytest.raises(PeerError, match=r"127.0.0.1:\d+ did not answer /test/hang/1 within 0.2 s"):
        await ask(client, server, "/test/hang/1", timeout_s=0.2)
    await until(server.events, ["began", "cancelled"])

    server.events.clear()
    task = asyncio.create_task(ask(client, server, "/test/hang/1"))
    await until(server.events, ["began"])
    task.cancel()
    await until(server.events, ["began", "cancelled"])
    assert await ask(client, server) == b"hello"


async def test_a_handler_that_hangs_is_cancelled_in_the_end(
    server: Server, client: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.control.host.HANDLER_LIMIT_S", 0.05)
    server.events.clear()
    with pytest.raises(PeerError, match="internal error"):
        await ask(client, server, "/test/hang/1")
    assert server.events == ["began", "cancelled"]


async def test_leaving_in_the_middle_of_a_write_harms_nobody_else(server: Server) -> None:
    async with running(member(OTHER, [])) as plane:
        await ask(plane, server)
        server.events.clear()
        other = asyncio.create_task(ask(plane, server, "/test/hang/1"))
        await until(server.events, ["began"])
        for delay_ms in range(1, 16, 3):
            leaving = asyncio.create_task(ask(plane, server, payload=bytes(4 * MIB)))
            await asyncio.sleep(delay_ms / 1000)
            leaving.cancel()
        assert await ask(plane, server) == b"hello"
        assert await plane.connections() == 1
        assert not other.done()
        assert server.events == ["began"]
        other.cancel()


async def test_another_network_key_gets_no_answer(server: Server) -> None:
    async with running(member(STRANGER, [], FOREIGN_KEYS)) as plane:
        with pytest.raises(PeerError) as caught:
            await plane.request(SERVER.id, [server.v4], "/test/echo/1", b"", timeout_s=SHORT_S)
        assert server.v4 in caught.value.message
        assert "a node of another mesh does not answer" in caught.value.hint


async def test_another_node_at_that_address(server: Server) -> None:
    async with running(member(STRANGER, [])) as plane:
        with pytest.raises(PeerError, match=rf"{server.v4} is another node \(peer …"):
            await plane.request(OTHER.id, [server.v4], "/test/echo/1", b"", timeout_s=SOON_S)


@contextlib.asynccontextmanager
async def silent_port() -> AsyncIterator[str]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_closed_silent_and_unknown(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    async with running(member(STRANGER, [])) as plane, silent_port() as silent:
        with pytest.raises(PeerError, match=f"{closed} refused the connection"):
            await plane.request(SERVER.id, [closed], "/test/echo/1", b"", timeout_s=SOON_S)
        with pytest.raises(PeerError, match=f"{silent} did not answer within {SHORT_S} s"):
            await plane.request(SERVER.id, [silent], "/test/echo/1", b"", timeout_s=SHORT_S)
        with pytest.raises(PeerError, match="no address is known"):
            await plane.request(SERVER.id, [], "/test/echo/1", b"", timeout_s=SOON_S)
        with pytest.raises(PeerError, match="is a name that cannot be resolved"):
            await plane.request(SERVER.id, [f"{NO_NAME}:1"], "/t/e/1", b"", timeout_s=SOON_S)
        # One good address among bad ones is found.
        answer = await plane.request(
            SERVER.id, [silent, closed, server.v4], "/test/echo/1", b"ok", timeout_s=SOON_S
        )
        assert answer == b"ok"


async def test_wrong_use(server: Server, client: ControlPlane) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        await client.request(SERVER.id, ["nowhere"], "/test/echo/1", b"", timeout_s=1)
    with pytest.raises(UsageError, match="to itself"):
        await client.request(CLIENT.id, [server.v4], "/test/echo/1", b"", timeout_s=1)
    for protocol in ("echo", "/" + "x" * 100, "/é", "/a\nb"):
        with pytest.raises(ValueError, match="not a protocol name"):
            client.serve(protocol, server.echo)
    with pytest.raises(UsageError, match="is not an address"):
        member(CLIENT, ["4001"])


async def test_a_port_in_use_is_named(server: Server) -> None:
    port = server.v4.rpartition(":")[2]
    plane = member(OTHER, [f"127.0.0.1:{port}"])
    with pytest.raises(EnvironmentFault) as caught:
        await plane.start()
    assert caught.value.message == f"port {port} (control plane) is in use"
    assert port in caught.value.hint
    assert not plane.running
    await plane.stop()


@pytest.mark.parametrize(
    ("address", "said"),
    [("192.0.2.77:0", "this machine has no such address"), (f"{NO_NAME}:0", "is not an address")],
)
async def test_an_address_that_is_not_ours(address: str, said: str) -> None:
    with pytest.raises(EnvironmentFault, match=said):
        await member(OTHER, ["127.0.0.1:0", address]).start()


async def test_a_peer_that_restarted_is_found_again_and_its_port_was_freed(server: Server) -> None:
    async with running(member(CLIENT, [])) as plane:
        first = member(OTHER, ["127.0.0.1:0"])
        first.serve("/test/echo/1", server.echo)
        async with running(first):
            where = first.addresses
            for _ in range(2):
                await plane.request(OTHER.id, where, "/test/echo/1", b"1", timeout_s=SOON_S)
        second = member(OTHER, where)
        second.serve("/test/echo/1", server.echo)
        async with running(second):
            answer = await plane.request(OTHER.id, where, "/test/echo/1", b"2", timeout_s=SOON_S)
            assert answer == b"2"
            assert await plane.connections() == 1
        with pytest.raises(PeerError, match="refused the connection"):
            await plane.request(OTHER.id, where, "/test/echo/1", b"3", timeout_s=SOON_S)


class Cable:
    """A TCP relay in front of the server that can be cut without either end noticing."""

    def __init__(self, to: str) -> None:
        self._to = to.rsplit(":", 1)
        self.cut = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Cable:
        self._listener = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._to[0], int(self._to[1]))
        cut = self.cut
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pump(source, sink, cut)))

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, cut: asyncio.Event
    ) -> None:
        try:
            while data := await source.read(65536):
                if not cut.is_set():
                    sink.write(data)
        except OSError as error:
            assert error.errno in (errno.ECONNRESET, errno.EPIPE)
        finally:
            sink.close()


async def test_a_connection_that_died_silently_is_replaced_within_the_timeout(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.control.node.REUSE_LIMIT_S", 1.0)
    async with Cable(server.v4) as cable, running(member(OTHER, [])) as plane:
        where = [cable.address]
        assert await plane.request(SERVER.id, where, "/test/echo/1", b"1", timeout_s=1) == b"1"
        cable.cut.set()
        cable.cut = asyncio.Event()  # a new connection goes through
        assert await plane.request(SERVER.id, where, "/test/echo/1", b"2", timeout_s=4) == b"2"


async def test_stop_ends_what_is_in_flight(server: Server) -> None:
    plane = member(OTHER, [])
    async with running(plane), silent_port() as silent:
        await ask(plane, server)
        server.events.clear()
        hanging = asyncio.create_task(ask(plane, server, "/test/hang/1"))
        dialling = asyncio.create_task(
            plane.request(STRANGER.id, [silent], "/test/echo/1", b"", timeout_s=SOON_S)
        )
        await until(server.events, ["began"])
        await plane.stop()
        for task in (hanging, dialling):
            with pytest.raises(NotRunning, match="the control plane is not running"):
                await task
        await until(server.events, ["began", "cancelled"])
    with pytest.raises(NotRunning):
        await ask(plane, server)
    assert await plane.connections() == 0


async def test_stop_ends_handlers(server: Server, client: ControlPlane) -> None:
    events: list[str] = []

    async def hang(peer: NodeId, request: bytes) -> bytes:
        events.append("began")
        try:
            await asyncio.sleep(3600)
        finally:
            events.append("cancelled")
        return b""

    plane = member(OTHER, ["127.0.0.1:0"])
    plane.serve("/test/hang/1", hang)
    async with running(plane):
        task = asyncio.create_task(
            client.request(OTHER.id, plane.addresses, "/test/hang/1", b"", timeout_s=SOON_S)
        )
        await until(events, ["began"])
    assert events == ["began", "cancelled"]
    with pytest.raises(PeerError, match="the connection broke before"):
        await task


async def test_libp2p_says_nothing_on_stderr_and_touches_no_root_logger(
    server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    async with running(member(STRANGER, [], FOREIGN_KEYS)) as plane:
        with pytest.raises(CoveyError):
            await plane.request(SERVER.id, [server.v4], "/test/echo/1", b"", timeout_s=0.1)
    async with running(member(OTHER, [])) as plane:
        await ask(plane, server)
        with pytest.raises(PeerError):
            await plane.request(STRANGER.id, [server.v4], "/test/echo/1", b"", timeout_s=SOON_S)
    assert logging.getLogger().handlers == []
    assert capfd.readouterr() == ("", "")
