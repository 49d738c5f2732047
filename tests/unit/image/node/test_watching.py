"""The watch: secrets leave the file once the machine is a member, and trials end."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from covey_toml import TICKET
from updates import appliance, update

from image.node import kept, lans, slotblocks, trials, watching
from image.node.asking import ask
from image.node.probation import Probation
from image.node.settings import Settings, read
from image.node.slots import Bad, Good, State, Trial
from image.node.slotstore import SlotStore
from image.node.startup import start
from image.node.watching import Places, Watch, forget_secrets, last_error

STATUS = {
    "mesh": "home", "ipv6": "fd86::1", "peers": {"alive": 1}, "roles": ["worker"],
    "parts": {"overlay": "covey0 (kernel), UDP port 51820"},
    "health": [{"title": "No relay", "what_to_do": "Open a port."}],
}  # fmt: skip
FILE = f'ticket = "{TICKET}"\nname = "shed-1"\nwifi = "Ours"\nwifi_password = "long secret"\n'


class Handler(http.server.BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, json.dumps(STATUS).encode())

    def do_GET(self) -> None:
        status, body = self.answer
        self.send_response(status if self.path == "/v1/status" else 404)
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "agent"

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def agent(path: Path, answer: tuple[int, bytes] = Handler.answer) -> Iterator[None]:
    handler = type("Answering", (Handler,), {"answer": answer})
    with Server(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "covey.toml").write_text(FILE)
    start(tmp_path / "covey.toml", tmp_path / "kept", tmp_path / "run", tmp_path / "net")
    return Places(
        tmp_path / "covey.toml", tmp_path / "kept", tmp_path / "run", tmp_path / "mesh.json",
        tmp_path / "agent.sock",
    )  # fmt: skip


def watch(places: Places, state: State) -> tuple[Watch, SlotStore]:
    machine = appliance(places.run.parent, state)
    return Watch(machine, places), machine.store


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """No program of this machine is run; those that would be are returned."""
    ran: list[list[str]] = []
    given = [lans.Address(2, IPv4Address("10.0.2.15"))]
    monkeypatch.setattr(lans, "addresses", lambda: given)
    monkeypatch.setattr(watching.conditions, "temperature", lambda _: None)
    monkeypatch.setattr(watching.subprocess, "run", lambda command, **_: ran.append(command))
    return ran


def test_the_agents_answer_is_shown(places: Places) -> None:
    one, _ = watch(places, State())
    with agent(places.socket):
        one.look(0.0)
    shown = (places.run / "status").read_text()
    assert "slot a: shed-1\n  Addresses: 10.0.2.15\n  Wifi: connecting\n  Mesh: home" in shown
    assert "  Mesh: home, fd86::1, 1 peer\n  Role: worker\n" in shown
    assert "\n  WireGuard: covey0 (kernel), UDP port 51820\n" in shown
    assert "No relay: Open a port." in shown


def test_it_looks_more_often_only_while_an_agent_that_shall_come_up_is_not_there(
    places: Places,
) -> None:
    one, _ = watch(places, State())
    one.look(0.0)
    assert not one.settled
    with agent(places.socket):
        one.look(0.0)
    assert one.settled
    # Without a ticket there is nothing to wait for; as a member there is.
    (places.run / "wish").write_bytes(b"")
    one.look(0.0)
    assert one.settled
    places.member.touch()
    one.look(0.0)
    assert not one.settled


@pytest.mark.parametrize("answer", [(500, b"{}"), (200, b"{"), (200, b"[]")])
def test_nonsense_is_no_answer(places: Places, answer: tuple[int, bytes]) -> None:
    with agent(places.socket, answer):
        assert ask(places.socket) is None
    assert ask(places.socket) is None


def test_secrets_stay_until_the_machine_is_a_member(places: Places) -> None:
    one, _ = watch(places, State())
    one.look(0.0)
    assert places.settings.read_text() == FILE
    assert "joining with the ticket" in (places.run / "status").read_text()
    assert (places.run / "setup").read_text() == "joining\n"
    places.member.write_text("{}")
    one.look(10.0)
    assert places.settings.read_text() == 'name = "shed-1"\nwifi = "Ours"\n'
    left = read(places.settings.read_bytes()).settings
    assert left is not None
    wifi = left.with_kept(kept.decode(places.kept.read_bytes())).wifi
    assert wifi is not None and wifi.password == "long secret"
    assert places.kept.stat().st_mode & 0o077 == 0


def test_what_was_kept_before_stays(places: Places) -> None:
    assert forget_secrets(places.settings, places.kept)
    assert not forget_secrets(places.settings, places.kept)
    # A new ticket for the same machine says nothing of the password that it has.
    places.settings.write_text(f'ticket = "{TICKET}"\nwifi = "Ours"\n')
    assert forget_secrets(places.settings, places.kept)
    again = kept.decode(places.kept.read_bytes())
    assert isinstance(again, Settings) and again.wifi and again.wifi.password == "long secret"


def test_a_file_with_a_mistake_is_left_as_it_is_and_told(places: Places) -> None:
    places.settings.write_text(f"{FILE}wrong\n")
    places.member.write_text("{}")
    one, _ = watch(places, State())
    one.look(0.0)
    assert places.settings.read_text() == f"{FILE}wrong\n"
    assert "covey.toml, line 5" in (places.run / "status").read_text()


def test_a_version_on_trial_that_answers_for_long_enough_is_good(places: Places) -> None:
    one, store = watch(places, State(a=Trial(2), b=Good()))
    with agent(places.socket):
        for now in range(0, 310, 10):
            one.look(float(now))
            assert store.read().state.a == (Trial(2) if now < 300 else Good())


def test_one_that_never_answers_is_given_up_and_the_machine_restarts(
    places: Places, alone: list[list[str]]
) -> None:
    one, store = watch(places, State(a=Trial(0), b=Good()))
    for now in range(0, 1810, 10):
        assert alone == []
        one.look(float(now))
    assert store.read().state.a == Bad("unhealthy")
    assert alone == [["reboot"]]


def test_without_the_slots_state_the_rest_goes_on(places: Places) -> None:
    one, _ = watch(places, State())
    for name in slotblocks.FILES:
        (places.run.parent / name).unlink()
    one.look(0.0)
    assert "neither copy of the slots' state is whole" in (places.run / "status").read_text()


def test_a_machine_that_waits_for_a_ticket_is_healthy_without_an_agent(places: Places) -> None:
    one, store = watch(places, State(a=Trial(2), b=Good()))
    (places.run / "wish").write_bytes(b"")
    for now in range(0, 310, 10):
        one.look(float(now))
    assert store.read().state.a == Good()


def test_while_it_is_on_trial_how_that_stands_is_there_to_read(places: Places) -> None:
    one, _ = watch(places, State(a=Trial(2), b=Good()))
    one.look(1000.0)
    assert trials.read(places.run, 1000.0) == {
        "healthy_s": None, "good_in_s": None, "over_in_s": 1800.0,
    }  # fmt: skip
    with agent(places.socket):
        one.look(1010.0)
    assert trials.read(places.run, 1011.0) == {
        "healthy_s": 1.0, "good_in_s": 299.0, "over_in_s": 1789.0,
    }  # fmt: skip


def test_a_version_that_proved_itself_raises_the_floor(places: Places) -> None:
    machine = appliance(places.run.parent, State("b", Good(), Trial(2)), version="0.2.0",
                        running="b")  # fmt: skip
    machine.keep_head("b", update("0.2.0", floor="0.1.7", content=b"x")[:-1])
    one = Watch(machine, places, Probation(20.0, 100.0))
    with agent(places.socket):
        one.look(0.0)
        assert machine.floor() == "0.0.0"
        one.look(20.0)
    assert machine.floor() == "0.1.7" and machine.store.read().state.b == Good()


def test_why_an_update_was_left_is_on_the_screen(places: Places) -> None:
    one, _ = watch(places, State(b=Bad("tries")))
    one.look(0.0)
    shown = (places.run / "status").read_text()
    assert "The update was taken back: the version in slot b did not come up in 3 tries" in shown


def test_the_log_is_asked_for_its_last_error_and_kept_short(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    assert last_error(log) == ""
    log.write_text("Error: one\n2026 INFO line\nError: two\n2026 INFO line\n")
    assert last_error(log) == "Error: two"
    before = os.stat(log).st_ino
    log.write_text("x" * (1 << 18) + "\nError: three\n")
    assert last_error(log) == "Error: three"
    assert log.stat().st_size == 0 and log.stat().st_ino == before
