"""The gateways that are compared, each a process on the same one core.

LiteLLM and SMG are installed as `requirements/peers.txt` pins them, in an environment of their own
in the cache folder; their processes get none of this one's environment.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gatewaylab.client import BenchError
from gatewaylab.replica import MODEL

ROOT = Path(__file__).parents[3]
PINS = ROOT / "requirements" / "peers.txt"
START_S = 120.0
STOP_S = 10.0
SETTLE_S = 0.5


class Process:
    """A server on one core; what it prints goes into a file."""

    def __init__(
        self, name: str, command: list[str], core: int, folder: Path, cwd: Path = ROOT,
        **environment: str,
    ) -> None:  # fmt: skip
        self.name = name
        self._log = folder / f"{name}.log"
        plain = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=cwd,
                env=plain | environment, start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )  # fmt: skip

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`; raises BenchError when it ends before or takes too long."""
        until = time.monotonic() + START_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > until:
                tail = self._log.read_text(errors="replace").strip().splitlines()[-1:]
                raise BenchError(f"{self.name} does not come up: {' '.join(tail) or 'it ended'}")
            time.sleep(0.1)

    @property
    def rss_mib(self) -> float:
        """The memory it holds."""
        # What /proc/PID/status says lags behind by up to some hundred pages.
        exact = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        return int(exact.partition("Rss:")[2].split()[0]) / 1024

    @property
    def files(self) -> int:
        """How many files it has open."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    @property
    def cpu_s(self) -> float:
        """The processor's time that it took up to now, on any behalf."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def pause(self) -> None:
        """Stop it where it is, so that nothing it does by itself falls on others."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let a paused one run, and do first what has come due meanwhile."""
        os.killpg(self._process.pid, signal.SIGCONT)
        time.sleep(SETTLE_S)
        try:
            yield
        finally:
            self.pause()

    def stop(self) -> None:
        """End it and all that it started, paused or not."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
        if self._process.stdin:
            self._process.stdin.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def replica(core: int, folder: Path) -> tuple[Process, int]:
    """Start what answers; return its port."""
    port = free_port()
    script = Path(__file__).parent / "replica.py"
    command = [sys.executable, str(script), str(port)]
    return _up(Process("replica", command, core, folder), port, "/health")


def covey(upstream: int, core: int, folder: Path) -> tuple[Process, int]:
    """Start ours, with its access log and without an agent."""
    port = free_port()
    command = [sys.executable, "-m", "gateway", "serve", "--listen", f"127.0.0.1:{port}",
               "--socket", str(folder / "no-agent.sock"), "--store", str(folder / "gateway.db"),
               "--replica", f"bench=http://127.0.0.1:{upstream}"]  # fmt: skip
    return _up(Process("Covey", command, core, folder), port, "/health")


def plain(upstream: int, core: int, folder: Path) -> tuple[Process, int]:
    """Start a proxy that is aiohttp and nothing else."""
    port = free_port()
    script = Path(__file__).parent / "plain.py"
    command = [sys.executable, str(script), str(port), str(upstream)]
    return _up(Process("aiohttp alone", command, core, folder), port, "/health")


def litellm(upstream: int, core: int, folder: Path) -> tuple[Process, int]:
    """Start LiteLLM's proxy with one worker."""
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n- model_name: {MODEL}\n  litellm_params:\n    model: openai/{MODEL}\n"
        f"    api_base: http://127.0.0.1:{upstream}/v1\n    api_key: none\n"
        "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n"
    )
    command = [str(peers_bin() / "litellm"), "--config", str(config), "--host", "127.0.0.1",
               "--port", str(port), "--num_workers", "1", "--telemetry", "False"]  # fmt: skip
    process = Process(
        "LiteLLM", command, core, folder, folder,
        LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR",
    )  # fmt: skip
    return _up(process, port, "/health/liveliness")


def smg(upstream: int, core: int, folder: Path) -> tuple[Process, int]:
    """Start SMG as a router before one worker."""
    port = free_port()
    command = [str(peers_bin() / "smg"), "launch", "--host", "127.0.0.1", "--port", str(port),
               "--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin",
               "--prometheus-port", str(free_port()), "--log-level", "warn"]  # fmt: skip
    return _up(Process("SMG", command, core, folder, folder), port, "/readiness")


def install_peers() -> None:
    """Install LiteLLM and SMG where they are not yet; raises BenchError in one line."""
    marker = peers_bin().parent / ".ready"
    if marker.exists():
        return
    uv = Path(sys.executable).parent / "uv"
    pip = [str(uv), "pip", "install", "-q", "--python", str(peers_bin() / "python")]
    if not uv.exists():
        pip = [str(peers_bin() / "python"), "-m", "pip", "install", "-q"]
    print(f"Installing LiteLLM and SMG into {peers_bin().parent}", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", str(peers_bin().parent)],
        [*pip, "--require-hashes", "-r", str(PINS)],
    ):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise BenchError(f"LiteLLM and SMG cannot be installed: {said[0]}")
    marker.touch()


def peers_bin() -> Path:
    """Return where the programs of these very pins are."""
    cache = os.environ.get("COVEY_CACHE") or Path.home() / ".cache" / "covey"
    pins = hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]
    return Path(cache) / f"bench-peers-{pins}" / "bin"


def _up(process: Process, port: int, path: str) -> tuple[Process, int]:
    try:
        process.wait_for(lambda: answers(port, path))
    except BenchError:
        process.stop()
        raise
    return process, port


def answers(port: int, path: str) -> bool:
    """Say whether a GET on this machine is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
