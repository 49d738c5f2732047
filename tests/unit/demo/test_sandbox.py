"""The sandbox: whatever runs in it, and however it ends, nothing of it is left on the machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.demo import sandbox
from agent.demo.netlab import NetLab
from agent.errors import EnvironmentFault

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# Leaves a named network, an interface, a file and a process of another session, then waits. The
# word is for finding that process from outside.
MESS = """
ip netns add left-over; ip link add left-over type bridge; touch /run/left-over
setsid -f sleep 987.%s
echo ready
exec sleep 60
"""


def gone(word: str) -> bool:
    """Say whether no process on the machine has `word` in its command line."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in process.read_bytes():
                return False
        except OSError:
            continue
    return True


def wait(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_however_it_ends(number: signal.Signals) -> None:
    word = f"{os.getpid()}{int(number):02d}"
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.demo.sandbox", "--", "sh", "-c", MESS % word],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        assert not gone(f"987.{word}")
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does it
        else:
            process.send_signal(number)
        code = process.wait(timeout=20)
    assert code == (
        128 + number if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) else -9
    )
    assert wait(lambda: gone(f"987.{word}"))
    assert not Path("/run/left-over").exists()
    assert not Path("/run/netns/left-over").exists()
    assert not Path("/sys/class/net/left-over").exists()


def test_the_commands_exit_code_comes_out() -> None:
    command = [sys.executable, "-m", "agent.demo.sandbox", "--", "sh", "-c", "exit 7"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 7


def test_no_command_is_a_usage_error() -> None:
    command = [sys.executable, "-m", "agent.demo.sandbox"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage:")


def test_networks_are_not_built_outside() -> None:
    assert not sandbox.inside()
    with pytest.raises(EnvironmentFault, match="only built in a sandbox"):
        NetLab()


@pytest.mark.parametrize("program", ["unshare", "ip", "wireguard-go"])
def test_a_missing_program_is_named_with_its_package(
    program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in sandbox._PACKAGES:
        if name != program:
            (tmp_path / name).symlink_to("/bin/true")
    monkeypatch.setattr(sandbox, "_PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=f"{program} is not installed") as caught:
        sandbox.check()
    assert sandbox._PACKAGES[program] in caught.value.hint


def test_a_closed_tun_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.os, "access", lambda path, mode: path != "/dev/net/tun")
    with pytest.raises(EnvironmentFault, match="/dev/net/tun"):
        sandbox.check()


def test_a_system_without_private_namespaces_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ["sh", "-c", "echo 'unshare failed: Operation not permitted' >&2; exit 1"]
    monkeypatch.setattr(sandbox, "_unshare", lambda: refused)
    with pytest.raises(EnvironmentFault, match="Operation not permitted"):
        sandbox.check()
