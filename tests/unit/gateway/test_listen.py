"""Sockets of its own, given ones, and what is wrong with others."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from gateway.errors import EnvironmentFault, UsageFault
from gateway.listen import address, open_sockets, sibling


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
