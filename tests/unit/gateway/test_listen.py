"""Sockets of its own, given ones, and what is wrong with others."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import EnvironmentFault, UsageFault
from gateway.listen import Listener, address, open_sockets, sibling


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_it_binds_and_says_where() -> None:
    [sock] = open_sockets("127.0.0.1:0", None, {})
    with sock:
        port = sock.getsockname()[1]
        assert address(sock) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_port_in_use_is_one_line(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(EnvironmentFault, match=f"port {port} on 127.0.0.1 is in use") as caught:
        open_sockets(f"127.0.0.1:{port}", None, {})
    assert "--listen" in caught.value.hint


def test_workers_listen_on_one_port_and_nobody_else_does() -> None:
    [reserved] = open_sockets("127.0.0.1:0", None, {}, shared=True)
    where = reserved.getsockname()
    with reserved, sibling(reserved) as one, sibling(reserved) as two:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where)  # no one has begun
        one.listen()
        two.listen()
        assert one.getsockname() == two.getsockname() == where
        for _ in range(4):  # whichever of the two it is
            socket.create_connection(where).close()
        for shared in (True, False):
            with pytest.raises(EnvironmentFault, match=f"port {where[1]} on 127.0.0.1 is in use"):
                open_sockets(f"127.0.0.1:{where[1]}", None, {}, shared=shared)


def test_workers_take_turns_at_a_given_socket(listener: socket.socket) -> None:
    [sock] = open_sockets("ignored", os.dup(listener.fileno()), {}, shared=True)
    with sock:
        assert sibling(sock) is sock


def test_addresses_that_are_not_here() -> None:
    with pytest.raises(EnvironmentFault, match="no address of this machine"):
        open_sockets("192.0.2.1:8088", None, {})
    with pytest.raises(UsageFault, match="no host name"):
        open_sockets("no.such.host.invalid:8088", None, {})


def test_an_inherited_socket_is_used(listener: socket.socket) -> None:
    [sock] = open_sockets("ignored", os.dup(listener.fileno()), {})
    with sock:
        assert sock.getsockname() == listener.getsockname()


def test_a_bound_socket_is_made_to_listen() -> None:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    [sock] = open_sockets("ignored", bound.detach(), {})
    with sock:
        socket.create_connection(sock.getsockname()).close()


def test_descriptors_that_do_not_do() -> None:
    with pytest.raises(UsageFault, match="descriptor 9999 is no socket"):
        open_sockets("ignored", 9999, {})
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(UsageFault, match="no stream socket"):
            open_sockets("ignored", datagrams.fileno(), {})
        assert datagrams.getsockname()  # still open: it is not ours
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(UsageFault, match="cannot listen"):
        open_sockets("ignored", ours.fileno(), {})


def test_systemd_sockets_are_taken_when_they_are_for_us(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.listen.SYSTEMD_FIRST_FD", os.dup(listener.fileno()))
    environment = {
        "LISTEN_FDS": "1",
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDNAMES": "x",
        "A": "b",
    }
    [sock] = open_sockets("ignored", None, environment)
    with sock:
        assert sock.getsockname() == listener.getsockname()
    assert environment == {"A": "b"}


@pytest.mark.parametrize("pid", ["1", "", "x"])
def test_systemd_sockets_of_another_process_are_not(pid: str) -> None:
    [sock] = open_sockets("127.0.0.1:0", None, {"LISTEN_FDS": "1", "LISTEN_PID": pid})
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def accepted(listener: Listener, client: socket.socket) -> socket.socket:
    client.connect(listener.getsockname())
    connection, _ = listener.accept()
    return connection


def test_connections_are_refused_when_files_run_short(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with Listener(listener, 0, plain=True) as bounded, socket.socket() as client:
        client.connect(bounded.getsockname())
        client.sendall(b"POST / HTTP/1.1\r\n\r\n")
        with pytest.raises(BlockingIOError):
            bounded.accept()
        client.settimeout(10)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in head
        assert "no file left" in json.loads(body)["error"]["message"]
        with socket.create_connection(bounded.getsockname()), pytest.raises(BlockingIOError):
            bounded.accept()
        assert len(caplog.records) == 1  # the second is told of later
        assert "refusing connections" in caplog.text


def test_a_refusal_before_tls_is_a_closed_connection(listener: socket.socket) -> None:
    with Listener(listener, 0, plain=False) as bounded, socket.socket() as client:
        client.connect(bounded.getsockname())
        with pytest.raises(BlockingIOError):
            bounded.accept()
        client.settimeout(10)
        assert client.recv(1) == b""


def test_a_client_that_takes_nothing_is_found_out(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.listen.GONE_S", 1)
    with (
        Listener(listener, 2**20, plain=True) as bounded,
        socket.socket() as client,
        accepted(bounded, client) as connection,
    ):
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        connection.settimeout(60)
        with pytest.raises(TimeoutError) as caught:
            while True:
                connection.sendall(b"x" * 2**20)
        assert caught.value.errno == errno.ETIMEDOUT  # the kernel's, not the socket's own


def test_a_unix_socket_can_be_bounded_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.bind(str(tmp_path / "s"))
        plain.listen()
        with Listener(plain, 2**20, plain=True) as bounded, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            bounded.accept()[0].close()
