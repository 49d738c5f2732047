"""The process with rights over the disk: what it does for a caller, and what it answers."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from updates import CONTENT, appliance, update

from image.node import locks, trials
from image.node.door import Door
from image.node.machine import Machine
from image.node.probation import Outlook
from image.node.slots import Bad, Empty, Good, State, Trial
from image.node.updating import Caller, serve

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]


def call(
    machine: Machine, run: Path, raw: bytes, stall_s: float = 60.0, *, root: bool = True
) -> tuple[Any, bool]:
    """Return the last line of what it answers, and whether the machine has to restart."""
    ours, its = socket.socketpair()
    with ours, its:
        sender = threading.Thread(target=lambda: (ours.sendall(raw), ours.shutdown(1)))
        sender.start()
        restarts = serve(Caller(its, stall_s, root=root), machine, run)
        its.close()
        lines = ours.makefile("rb").read().splitlines()
        sender.join()
    return json.loads(lines[-1]), restarts


def want(do: str, *, restart: bool = False, start: int = 0) -> bytes:
    return json.dumps({"do": do, "restart": restart, "start": start}).encode() + b"\n"


def state(machine: Machine) -> State:
    return machine.store.read().state


def test_an_update_is_installed_and_the_machine_restarts(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    answer, restarts = call(machine, tmp_path, want("install", restart=True) + update())
    assert answer == {"done": {"version": "0.2.0", "slot": "b", "restarts": True}}
    assert restarts
    assert state(machine) == State("b", Good(), Trial(3))
    answer, restarts = call(machine, tmp_path, want("install") + update("0.3.0", content=b"x"))
    assert answer["done"]["restarts"] is False and not restarts


@pytest.mark.parametrize("do", ["install", "back", "reset", "restart", "leave"])
def test_who_is_not_root_changes_nothing(tmp_path: Path, do: str) -> None:
    machine = appliance(tmp_path)
    before = state(machine)
    answer, restarts = call(machine, tmp_path, want(do, restart=True) + update(), root=False)
    assert answer["error"]["message"] == "only root may change an appliance"
    assert not restarts and state(machine) == before


def test_who_is_not_root_may_look_and_have_the_update(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    answer, _ = call(machine, tmp_path, want("status"), root=False)
    assert answer["done"]["version"] == machine.release.version
    answer, _ = call(machine, tmp_path, want("give"), root=False)
    assert (
        "came neither by an update nor with an image that was signed" in answer["error"]["message"]
    )


def test_a_refusal_is_answered_and_remembered(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    raw = want("install", restart=True) + update(seed=b"o" * 32, content=b"x")
    answer, restarts = call(machine, tmp_path, raw)
    assert answer["error"]["kind"] == "UsageError" and not restarts
    assert "not signed by a key" in answer["error"]["message"]
    shown = call(machine, tmp_path, want("status"))[0]["done"]
    assert shown["last_error"].startswith("the update is not signed by a key")
    call(machine, tmp_path, want("install") + update(content=b"x"))
    assert call(machine, tmp_path, want("status"))[0]["done"]["last_error"] == ""


def test_what_came_is_told_and_gone_on_with(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    raw = update()
    head = len(raw) - len(CONTENT)
    assert call(machine, tmp_path, want("status"))[0]["done"]["partial"] is None
    call(machine, tmp_path, want("install") + raw[: head + 5000])
    came = call(machine, tmp_path, want("status"))[0]["done"]["partial"]
    assert came == {"etag": hashlib.sha256(raw[:head]).hexdigest(), "size": 5000}
    rest = raw[:head] + raw[head + 5000 :]
    answer, _ = call(machine, tmp_path, want("install", start=5000) + rest)
    assert answer["done"]["version"] == "0.2.0"
    assert call(machine, tmp_path, want("status"))[0]["done"]["partial"] is None


def test_a_silent_source_ends_it(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    ours, its = socket.socketpair()
    with ours, its:
        ours.sendall(want("install") + update()[: 64 << 10])
        assert not serve(Caller(its, stall_s=0.1), machine, tmp_path)
        its.close()
        said = ours.makefile("rb").read().splitlines()
    assert "is silent for 0 s" in json.loads(said[-1])["error"]["message"]
    assert state(machine) == State("a", Good(), Empty())


@pytest.mark.parametrize(
    "raw", [b"", b"\n", b"{", b'{"do": "format"}\n', b"GET / HTTP/1.1\r\n\r\n"]
)
def test_nonsense_is_answered(tmp_path: Path, raw: bytes) -> None:
    answer, restarts = call(appliance(tmp_path), tmp_path, raw)
    assert answer["error"]["kind"] == "PeerError" and not restarts


def test_one_at_a_time(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    with locks.alone(tmp_path, locks.CHANGING):
        answer, _ = call(machine, tmp_path, want("install") + update(content=b"x"))
        assert "another update is being written" in answer["error"]["message"]
        assert call(machine, tmp_path, want("status"))[0]["done"]["version"] == "0.1.0"
    assert "done" in call(machine, tmp_path, want("install") + update(content=b"x"))[0]


def leaves(machine: Machine, run: Path) -> bool:
    return bool(call(machine, run, want("status"))[0]["done"]["leaving"])


def test_it_is_leaving_while_who_said_so_stays(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    assert not leaves(machine, tmp_path)
    ours, its = socket.socketpair()
    with ours, its:
        ours.sendall(want("leave"))
        thread = threading.Thread(target=lambda: serve(Caller(its), machine, tmp_path))
        thread.start()
        assert json.loads(ours.recv(9999)) == {"done": {}}
        assert leaves(machine, tmp_path)
        answer, _ = call(machine, tmp_path, want("leave"))
        assert "another command waits until this machine" in answer["error"]["message"]
        ours.shutdown(socket.SHUT_WR)
        thread.join(60)
    assert not leaves(machine, tmp_path)


def test_it_is_leaving_from_the_restart_on(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    assert call(machine, tmp_path, want("restart"))[1] is False
    assert not leaves(machine, tmp_path)
    assert call(machine, tmp_path, want("restart", restart=True))[1] is True
    assert leaves(machine, tmp_path)


def test_back_and_reset_are_noted(tmp_path: Path) -> None:
    machine = appliance(tmp_path, State(b=Good()))
    answer, restarts = call(machine, tmp_path, want("back", restart=True))
    assert answer["done"] == {"version": "", "slot": "b", "restarts": True} and restarts
    assert state(machine) == State("b", Good(), Good())
    answer, restarts = call(machine, tmp_path, want("reset", restart=True))
    assert answer["done"]["restarts"] and restarts
    assert state(machine).reset
    machine = appliance(tmp_path)
    assert "holds no version" in call(machine, tmp_path, want("back"))[0]["error"]["message"]


def test_without_the_slots_state_it_says_so(tmp_path: Path) -> None:
    machine = appliance(tmp_path)
    for path in tmp_path.glob("*.env"):
        path.unlink()
    for do in ("status", "reset", "install"):
        answer, _ = call(machine, tmp_path, want(do) + update(content=b"x"))
        assert "neither copy of the slots' state" in answer["error"]["message"]


def test_the_status_tells_of_both_slots_the_trial_and_why(tmp_path: Path) -> None:
    machine = appliance(tmp_path, State(b=Bad("unhealthy")))
    machine.keep_head("b", update(content=b"x")[:-1])
    shown = call(machine, tmp_path, want("status"))[0]["done"]
    assert shown["why_not"].startswith("version 0.2.0 in slot b came up, but did not stay healthy")
    assert shown["slots"]["a"] == {
        "standing": "good", "tries_left": None, "why": "", "version": "0.1.0",
    }  # fmt: skip
    assert shown["slots"]["b"]["why"] == "unhealthy" and shown["trial"] is None
    tried = appliance(tmp_path, State("b", Good(), Trial(2)), version="0.2.0", running="b")
    shown = call(tried, tmp_path, want("status"))[0]["done"]
    assert shown["trial"] == {"healthy_s": None, "good_in_s": None, "over_in_s": None}
    now = time.monotonic()
    trials.write(tmp_path, Outlook(now - 100, now + 200, now + 1700))
    shown = call(tried, tmp_path, want("status"))[0]["done"]
    assert shown["slots"]["b"] == {
        "standing": "trial", "tries_left": 2, "why": "", "version": "0.2.0",
    }  # fmt: skip
    assert shown["trial"]["healthy_s"] >= 100 and shown["trial"]["good_in_s"] <= 200


def test_the_door_starts_a_process_for_each_caller(tmp_path: Path) -> None:
    echo = "import os, time; os.write(0, os.read(0, 99).upper()); time.sleep(0.5)"
    with Door(tmp_path / "sock", (sys.executable, "-c", echo)) as door:
        assert (tmp_path / "sock").stat().st_mode & 0o777 == 0o660
        callers = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for caller in callers:
            caller.settimeout(60)
            caller.connect(str(tmp_path / "sock"))
            caller.sendall(b"hello")
        while len(door._running) < len(callers):
            door.serve(0.05)
        for caller in callers:
            assert caller.recv(99) == b"HELLO"
            caller.close()
        for process in door._running:
            process.wait(60)
    # A socket that was left is taken over.
    Door(tmp_path / "sock").close()


def test_on_another_machine_the_process_says_so(tmp_path: Path) -> None:
    ours, its = socket.socketpair()
    with ours, its:
        done = subprocess.run(
            [sys.executable, "-m", "image.node.updating"], stdin=its.fileno(), check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0
        assert "is no appliance of Covey" in json.loads(ours.recv(9999))["error"]["message"]
