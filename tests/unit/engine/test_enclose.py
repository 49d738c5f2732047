"""A process that is enclosed as engines are: what it cannot do any more, and what it still can."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from agent.engine import confine, landlock
from agent.engine.spec import EngineSpec
from agent.engine.supervisor import Engine, environment
from agent.models import bundled

landlocked = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")

# Run as `python -c`, in a folder whose files must stay closed, though Python looks there first.
PROBE = """
import ctypes, os, pathlib, socket, subprocess, sys, threading
from agent.engine import enclose
from agent.engine.means import Means
from agent.engine.spec import EngineSpec
model, later, secret, port, purpose, parent, user = sys.argv[1:]
if user:
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
cache = str(pathlib.Path(secret).parent / "engine")
spec = EngineSpec(role="whole", files=(model,), later=(later,), cache=cache)
missing = enclose.enclose(spec, purpose, Means(1, False))
assert missing == "", missing

def refused(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        assert error.errno in (1, 13, 18), error
        return True
    raise SystemExit(f"{what} {arguments} was not refused")

libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)

# Files.
for path in (secret, "/etc/passwd", "/proc/1/environ", f"/proc/{parent}/environ", "beside.py"):
    refused(open, path)
for folder in (".", "/", "/etc", "/tmp", os.path.dirname(secret)):
    refused(os.listdir, folder)
refused(open, model, "r+b")
refused(open, later + "/new", "wb")
refused(os.unlink, model)
refused(os.rename, model, model + ".new")
refused(os.link, secret, later + "/linked")
refused(os.symlink, secret, later + "/linked")
refused(os.mkfifo, later + "/pipe")
refused(os.chmod, secret, 0o777)
refused(os.truncate, secret, 0)
refused(os.utime, secret)
# Other programs and processes.
refused(os.execv, sys.executable, [sys.executable])
refused(subprocess.run, [sys.executable, "-c", ""])
refused(os.posix_spawn, sys.executable, ["python"], {})
refused(os.fork)
refused(os.kill, int(parent), 0)
refused(os.kill, -1, 0)
refused(os.pidfd_open, int(parent))
refused(call, "ptrace", 16, int(parent), 0, 0)
refused(call, "prlimit", int(parent), 7, 0, 0)
# Namespaces, mounts, the kernel.
for namespace in (0x10000000, 0x40000000, 0x00020000):
    refused(call, "unshare", namespace)
refused(call, "mount", b"none", b"/tmp", b"tmpfs", 0, None)
refused(os.chroot, "/")
refused(call, "personality", 0)
refused(call, "reboot", 0)
# The network, and the agent's socket.
refused(socket.socket, socket.AF_UNIX)
refused(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
refused(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
refused(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)
outside = socket.socket()
if purpose == "text":
    outside.connect(("127.0.0.1", int(port)))
else:
    refused(outside.connect, ("127.0.0.1", int(port)))

# What an engine does.
assert open(model).read() == "weights" and os.listdir(later) == ["next.gguf"]
assert open(later + "/next.gguf").read() == "more"
socket.create_server(("127.0.0.1", 0))
socket.socketpair()
os.kill(os.getpid(), 0)
assert open("/proc/self/maps").read() and open("/proc/cpuinfo").read()
assert open("/dev/urandom", "rb").read(1) and os.listdir("/sys/devices/system/cpu")
open("/dev/null", "wb").write(b"x")
found = []
thread = threading.Thread(target=lambda: found.append(refused(open, secret)))
thread.start()
thread.join()
assert found == [True]
if not user:  # who may not read where Python lies
    import decimal  # a library of its own
    if os.environ.get("COVEY_TEST_DEVICES") != "kernel":  # an emulated CPU runs no build for ours
        import llama_cpp
        llama_cpp.llama_backend_init()
os.write(1, b"enclosed")
os.abort()
"""


def run(probe: str, *words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(confine.__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", probe, *map(str, words)], capture_output=True, text=True,
        check=False, timeout=240, cwd=folder, env={**environment(), "PYTHONPATH": str(root)},
    )  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may look into, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="covey-test-") as name:
        found = Path(name)
        found.chmod(0o755)
        yield found


@landlocked
@pytest.mark.parametrize(
    ("purpose", "user"), [("text", ""), ("embeddings", ""), ("text", "65534")], ids=str
)
def test_an_enclosed_process_has_its_model_and_nothing_else(
    folder: Path, purpose: str, user: str
) -> None:
    if user and os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    model, later = folder / "model.gguf", folder / "parts"
    secret = folder / "state" / "identity.key"
    for path, text in (
        (model, "weights"), (later / "next.gguf", "more"), (secret, "key"),
        (folder / "beside.py", ""),
    ):  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        if user:  # all of it would be this user's
            for each in (path, path.parent):
                os.chown(each, int(user), int(user))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        done = run(PROBE, model, later, secret, port, purpose, os.getpid(), user, folder=folder)
    assert done.stdout == "enclosed", done.stderr
    assert done.returncode == -signal.SIGABRT
    assert secret.read_text() == "key"


DOOR = """
import socket, sys, threading
from agent.engine import enclose
from agent.engine.means import Means
from agent.engine.spec import EngineSpec
spec = EngineSpec(role="stage", files=(sys.executable,))
assert enclose.enclose(spec, "text", Means(1, False)) == ""
listening = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(listening.getsockname())
other, _ = listening.accept()
go, found = threading.Event(), []
def elsewhere():
    go.wait()
    for make in (socket.socket, lambda: listening.listen(1)):
        try:
            make()
        except PermissionError:
            found.append("refused")
thread = threading.Thread(target=elsewhere)
thread.start()
enclose.close_door(spec)
go.set()
thread.join()
one.sendall(b"rows")
print(found, other.recv(9))
"""


def test_a_stage_that_has_met_its_neighbours_calls_nobody_by_any_thread(folder: Path) -> None:
    done = run(DOOR, folder=folder)
    assert done.stdout == "['refused', 'refused'] b'rows'\n", done.stderr


OLD_KERNEL = """
import os, sys
from agent.engine import confine, enclose, landlock
from agent.engine.means import Means
from agent.engine.spec import EngineSpec
landlock._SYS_CREATE_RULESET = 9999
confine.SECCOMP = (9999, 9999)
spec = EngineSpec(role="whole", files=(sys.executable,))
print(enclose.enclose(spec, "text", Means(1, False)))
open_one = EngineSpec(role="whole", files=("x",), confined=False)
print(enclose.enclose(open_one, "text", Means(1, False)))
open("/etc/passwd").read()
"""


def test_what_a_kernel_cannot_do_is_told_and_the_engine_goes_on(folder: Path) -> None:
    done = run(OLD_KERNEL, folder=folder)
    why = "(Function not implemented)"
    assert done.stdout.splitlines() == [
        f"files: no Landlock {why}; system calls: no seccomp {why}", "engine.confine is off"
    ]  # fmt: skip
    assert done.returncode == 0, done.stderr


THREAD = """
import sys, threading
from agent.engine import enclose
from agent.engine.means import Means
from agent.engine.spec import EngineSpec
over = threading.Event()
threading.Thread(target=over.wait).start()
spec = EngineSpec(role="whole", files=(sys.executable,))
print(enclose.enclose(spec, "text", Means(1, False)))
over.set()
"""


@landlocked
def test_a_thread_that_keeps_its_files_is_told(folder: Path) -> None:
    done = run(THREAD, folder=folder)
    assert done.stdout == "files: threads that ran before keep them\n", done.stderr


async def answer(cache: str, *, confined: bool) -> tuple[str, str, dict[str, str]]:
    """Return what the bundled model says, what its engine could not give up, and its status."""
    spec = EngineSpec(
        role="whole", files=(str(bundled.path()),), n_ctx=512, threads=1, cache=cache,
        http_address="127.0.0.1", confined=confined,
    )  # fmt: skip
    engine = await Engine.start(spec)
    body = {"model": "model", "prompt": "Covey is", "max_tokens": 24, "temperature": 0,
            "logprobs": 1}  # fmt: skip
    try:
        url = f"http://127.0.0.1:{engine.http_port}/v1/completions"
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as reply:
            said = (await reply.json())["choices"][0]
        status = Path(f"/proc/{engine.pid}/status").read_text()
    finally:
        await engine.stop()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    return str((said["text"], said["logprobs"])), engine.unconfined, fields


@landlocked
@pytest.mark.slow
async def test_a_confined_engine_answers_as_one_that_is_not(cache: str) -> None:
    open_one, why, _ = await answer(cache, confined=False)
    assert why == "engine.confine is off"
    confined, missing, status = await answer(cache, confined=True)
    assert (confined, missing) == (open_one, "")
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapBnd"], 16) == 0
    # Root's may still read a model that is somebody else's.
    assert int(status["CapEff"], 16) in ((1 << 1, 1 << 2) if os.geteuid() == 0 else (0,))
