"""UPnP orders with a pretended gateway, and the real child against hostile ones on loopback."""

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from random import Random

import pytest

from agent.portmap import igd, igdchild
from agent.portmap.igdchild import Order, Reply, carry_out
from agent.portmap.words import Alive, Answer, Gone, Granted, Kind, Refused, Released, Request

PORT, HOME, ROUTER, WAN = 51820, "192.168.1.7", "192.168.1.1", "9.9.9.9"
URL = f"http://{ROUTER}:5000/rootDesc.xml"
OTHER = "192.168.1.99"


class FakeIgd:
    """A gateway as miniupnpc.UPnP shows it."""

    def __init__(self) -> None:
        self.lanaddr = HOME
        self.control = f"http://{ROUTER}:5000/ctl"
        self.entries: dict[int, tuple[str, int, str, bool, int]] = {}
        self.fault = ""
        self.permanent_only = False
        self.overwrites_with: str | None = None
        self.wan = WAN

    def selectigd(self, url: str) -> str:
        return self.control

    def externalipaddress(self) -> str:
        return self.wan

    def getspecificportmapping(self, port: int, kind: str) -> object:
        assert kind == "UDP"
        return self.entries.get(port)

    def addportmapping(
        self, port: int, kind: str, host: str, inner: int, text: str, remote: str, life: int
    ) -> bool:
        assert (kind, host, text, remote) == ("UDP", HOME, "Covey", "")
        if self.fault:
            raise Exception(self.fault)
        if self.permanent_only and life:
            raise Exception("OnlyPermanentLeasesSupported")
        self.entries[port] = (self.overwrites_with or host, inner, text, True, life)
        return True

    def deleteportmapping(self, port: int, kind: str) -> bool:
        del self.entries[port]
        return True


def order(kind: Kind, *ports: int) -> Order:
    return Order(kind.value, URL, ROUTER, HOME, PORT, list(ports or (PORT, 20001)), 7200)


def test_it_maps_checks_and_releases() -> None:
    gateway = FakeIgd()
    assert carry_out(order(Kind.PROBE), gateway) == Reply("alive", address=WAN)
    assert carry_out(order(Kind.ASK), gateway) == Reply(
        "granted", port=PORT, lifetime_s=7200, address=WAN
    )
    assert carry_out(order(Kind.CHECK), gateway) == Reply("alive", address=WAN)
    assert carry_out(order(Kind.RELEASE), gateway) == Reply("released")
    assert gateway.entries == {}
    assert carry_out(order(Kind.CHECK), gateway) == Reply("gone")


def test_a_port_of_another_machine_is_left_alone() -> None:
    gateway = FakeIgd()
    others = (OTHER, PORT, "game", True, 0)
    gateway.entries[PORT] = others
    assert carry_out(order(Kind.ASK), gateway).port == 20001
    carry_out(order(Kind.RELEASE), gateway)
    assert gateway.entries == {PORT: others}


def test_a_taken_port_that_is_not_shown_is_passed_over() -> None:
    gateway = FakeIgd()
    gateway.fault = "ConflictInMappingEntry"
    assert carry_out(order(Kind.ASK), gateway) == Reply(
        "refused", "the ports that we asked for are taken by others"
    )


def test_a_gateway_that_gives_mappings_without_end_only() -> None:
    gateway = FakeIgd()
    gateway.permanent_only = True
    reply = carry_out(order(Kind.ASK), gateway)
    assert (reply.outcome, reply.lifetime_s) == ("granted", None)


def test_a_gateway_that_maps_to_another_machine_is_not_believed() -> None:
    gateway = FakeIgd()
    gateway.overwrites_with = OTHER
    assert carry_out(order(Kind.ASK), gateway).why == "it mapped the port to another machine"


@pytest.mark.parametrize(
    "control",
    ["http://192.168.1.2/ctl", "http://evil.example/ctl", "/ctl", "", "http://127.0.0.1/"],
)
def test_a_description_that_leads_elsewhere_is_not_followed(control: str) -> None:
    gateway = FakeIgd()
    gateway.control = control
    for kind in Kind:
        assert carry_out(order(kind), gateway).why == "its description does not lead to itself"
    assert gateway.entries == {}


def test_nothing_is_done_from_another_address_of_this_machine() -> None:
    gateway = FakeIgd()
    carry_out(order(Kind.ASK), gateway)
    gateway.lanaddr = "192.168.1.8"
    for kind in Kind:
        assert carry_out(order(kind), gateway).outcome == "refused"
    assert PORT in gateway.entries


def test_faults_are_told_in_words() -> None:
    assert (
        igdchild.why(Exception("Action not authorized"))
        == "it does not allow this machine mappings"
    )
    assert igdchild.why(Exception("x" * 500)) == f"it answered “{'x' * 80}”"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (Reply("alive", address=WAN), Alive(None, WAN)),
        (Reply("granted", port=5, lifetime_s=9, address=WAN), Granted(5, 9, None, WAN)),
        (Reply("released"), Released()),
        (Reply("gone"), Gone()),
        (Reply("refused", "no"), Refused("no")),
        (Reply("alive", address="0.0.0.0"), Refused(igd.NO_ADDRESS)),
        (Reply("alive", address=""), Refused(igd.NO_ADDRESS)),
        (Reply("granted", port=5, address="not an address"), Refused(igd.NO_ADDRESS)),
    ],
)
def test_replies_become_answers(reply: Reply, answer: Answer) -> None:
    assert igd._read(reply) == answer


# The real child, miniupnpc and all, against servers on loopback.


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Return what starts an HTTP server of one behaviour and gives its URL."""
    open_sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(behave: Callable[[socket.socket], None]) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        open_sockets.append(listening)

        def run() -> None:
            while True:
                try:
                    taken, _ = listening.accept()
                except OSError:
                    return  # the test is over
                with taken, contextlib.suppress(OSError):  # the child has gone, as it should
                    taken.recv(4096)
                    behave(taken)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/d.xml"

    yield start
    for listening in open_sockets:
        listening.shutdown(socket.SHUT_RDWR)  # wakes who accepts
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    for listening in open_sockets:
        listening.close()


def local_order(url: str) -> Order:
    return Order("ask", url, "127.0.0.1", "127.0.0.1", PORT, [PORT], 7200)


async def test_a_gateway_that_drips_without_end_is_left_at_the_deadline(serve) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    began = time.monotonic()
    assert await igd._in_child(local_order(serve(drip)), 1.0) is None
    assert time.monotonic() - began < 3


async def test_a_gateway_that_floods_costs_no_memory_here(serve) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(2**16))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # It ends by its own limit of memory, with or without a word, or at the deadline.
    reply = await igd._in_child(local_order(serve(flood)), 5.0)
    assert reply is None or reply.outcome == "refused"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


async def test_a_description_of_nonsense_is_a_refusal(serve) -> None:
    def nonsense(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n<root><a><b>")

    reply = await igd._in_child(local_order(serve(nonsense)), 5.0)
    assert reply is not None
    assert reply.outcome == "refused"


async def test_a_description_that_leads_elsewhere_is_not_followed_by_the_real_one(serve) -> None:
    def elsewhere(connection: socket.socket) -> None:
        service = "urn:schemas-upnp-org:service:WANIPConnection:1"
        body = (
            '<root xmlns="urn:schemas-upnp-org:device-1-0">'
            "<URLBase>http://127.0.0.9:1/</URLBase><device><serviceList><service>"
            f"<serviceType>{service}</serviceType><controlURL>/ctl</controlURL>"
            "</service></serviceList></device></root>"
        ).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    reply = await igd._in_child(local_order(serve(elsewhere)), 5.0)
    assert reply == Reply("refused", "its description does not lead to itself")


async def test_a_release_waits_for_the_asking_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What maps is not broken off: else nobody would know what to take back."""
    done: list[str] = []
    answers: list[Answer] = []

    async def slowly(order: Order, limit_s: float) -> Reply:
        await asyncio.sleep(0.05)
        done.append(order.kind)
        return Reply("released") if order.kind == "release" else Reply("granted", port=PORT)

    async def found(local: str, gateway: str) -> str:
        return URL

    monkeypatch.setattr(igd, "_in_child", slowly)
    monkeypatch.setattr(igd, "_search", found)
    gateway = igd.Igd(HOME, ROUTER, PORT, answers.append, Random(1))
    gateway.send(Request(Kind.PROBE))
    await gateway.ended()
    gateway.send(Request(Kind.ASK, 7200, PORT))
    await asyncio.sleep(0)
    gateway.send(Request(Kind.RELEASE))
    await gateway.ended()
    assert done == ["probe", "ask", "release"]
    assert answers[1:] == [Released()]  # the asking's answer is no longer wanted


async def test_a_check_is_broken_off_by_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def carry(order: Order, limit_s: float) -> Reply:
        if order.kind == "check":
            await asyncio.sleep(60)
        done.append(order.kind)
        return Reply("released")

    monkeypatch.setattr(igd, "_in_child", carry)
    gateway = igd.Igd(HOME, ROUTER, PORT, lambda answer: None, Random(1))
    gateway._url = URL
    gateway.send(Request(Kind.CHECK, 0, PORT))
    await asyncio.sleep(0)
    gateway.send(Request(Kind.RELEASE, 0, PORT))
    await gateway.ended()
    assert done == ["release"]
