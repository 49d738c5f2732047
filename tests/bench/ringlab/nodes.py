"""A ring of engine processes on this machine, each pinned to one CPU, with delays between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Literal

from agent.engine.cut import write_part
from agent.engine.gguf_file import GgufFile
from agent.engine.spec import EngineSpec
from agent.engine.supervisor import Engine

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
# The client, the proxies and the bench itself run where the scheduler puts them.
CPUS = sorted(os.sched_getaffinity(0))


# Nodes that share a CPU have a quota of it: a part of each period, which is short beside a batch.
# Not shorter: the kernel hands a quota out in slices of 5 ms, so a process with two threads, of
# which one serves HTTP, would not get all of its own.
PERIOD_US = 6000
CGROUPS = Path("/sys/fs/cgroup/cpu")
# A head measures what batches take before its first request, and less of it where that one waits.
MEASURES_S = 4.0


@contextmanager
def pinned(number: int, share: float = 1.0) -> Iterator[None]:
    """Have the processes that are started meanwhile run on the CPU of this node alone.

    They get this share of it, whatever the others leave idle.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPUS[number % len(CPUS)]})
    try:
        with _limited(share):
            yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _limited(share: float) -> Iterator[None]:
    if share >= 1.0:
        yield
        return
    if not os.access(CGROUPS / "cpu.cfs_quota_us", os.R_OK) and not CGROUPS.is_dir():
        raise SystemExit(
            f"nodes that share a CPU need the cpu controller of cgroup v1 at {CGROUPS}"
        )
    group = Path(tempfile.mkdtemp(prefix="covey-bench-", dir=CGROUPS))
    (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
    (group / "cpu.cfs_quota_us").write_text(str(int(share * PERIOD_US)))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        # What was started stays in it, and has ended before `leave`.
        (CGROUPS / "cgroup.procs").write_text(str(os.getpid()))
        _GROUPS.append(group)


_GROUPS: list[Path] = []


def leave() -> None:
    """Remove the groups of those that have ended."""
    while _GROUPS:
        _GROUPS.pop().rmdir()


@contextmanager
def delayed(port: int, one_way_s: float) -> Iterator[int]:
    """Give a port that leads to `port`, later."""
    if not one_way_s:
        yield port
        return
    proxy = subprocess.Popen(
        [sys.executable, str(HERE / "delay.py"), str(port), str(one_way_s)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert proxy.stdout is not None
        yield int(proxy.stdout.readline())
    finally:
        proxy.kill()
        proxy.wait()


def boundaries(layers: int, nodes: int) -> list[int]:
    """Return where to cut: all nodes get the same, where the output matrix counts two layers.

    The head has the first and the last layers and the output matrix.
    """
    share = (layers + 2) / nodes
    own = max(2, round(share) - 2)
    first = own - own // 2
    middle = layers - own
    edges = [first + round(middle * n / (nodes - 1)) for n in range(nodes)]
    return [0, *edges, layers]


@asynccontextmanager
async def ring(
    model: Path, folder: Path, nodes: int, one_way_s: float, context: int, *,
    share: float = 1.0, drafts: Literal["ngrams", "none"] = "none", draft: Path | None = None,
) -> AsyncIterator[str]:  # fmt: skip
    """Give the address of the head's HTTP server; one node is the whole model in one process."""
    async with AsyncExitStack() as stack:

        async def start(number: int, **more: object) -> Engine:
            spec = EngineSpec(
                n_ctx=context, threads=1, cache=str(folder), model_name="ring", row_type="f32",
                drafts=drafts, draft_file=str(draft or "") if number == 0 else "",
                **more,  # type: ignore[arg-type]
            )  # fmt: skip
            with pinned(number, share):
                engine = await Engine.start(spec)
            stack.push_async_callback(engine.stop)
            return engine

        if nodes == 1:
            engine = await start(0, role="whole", files=(str(model),), http_address=LOOPBACK)
            await asyncio.sleep(MEASURES_S)
            yield f"{LOOPBACK}:{engine.http_port}"
            return
        parts = _parts(model, folder, nodes)
        common = {"ring": "ab" * 16, "stages": nodes, "listen": LOOPBACK, "predecessor": LOOPBACK}
        head = await start(
            0, role="head", files=(str(parts[0]), str(parts[-1])), stage=0, http_address=LOOPBACK,
            **common,
        )  # fmt: skip
        engines = [head]
        for number, part in enumerate(parts[1:-1], 1):
            engines.append(await start(number, role="stage", files=(str(part),), stage=number,
                                       **common))  # fmt: skip
        for engine, successor in pairwise([*engines, head]):
            port = stack.enter_context(delayed(successor.port, one_way_s))
            await engine.connect(LOOPBACK, port)
        await asyncio.gather(*(engine.wait_ready() for engine in engines))
        await asyncio.sleep(MEASURES_S)
        yield f"{LOOPBACK}:{head.http_port}"


def _parts(model: Path, folder: Path, nodes: int) -> list[Path]:
    with GgufFile(model) as file:
        found = []
        for start, stop in pairwise(boundaries(file.layers, nodes)):
            path = folder / f"{model.stem}-{start}-{stop}.gguf"
            if not path.exists():
                write_part(file, start, stop, path)
            found.append(path)
        return found


@contextmanager
def rpc_server(number: int, one_way_s: float, share: float) -> Iterator[str]:
    """Give the place of a server of llama.cpp's RPC that is this node, behind a delay."""
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    with pinned(number, share):
        server = subprocess.Popen(
            [sys.executable, str(HERE / "rpc_server.py"), f"{LOOPBACK}:{port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port)):
                break
            if time.monotonic() > deadline:
                raise SystemExit("llama.cpp's RPC server did not start")
            time.sleep(0.1)
        with delayed(port, one_way_s) as delayed_port:
            yield f"{LOOPBACK}:{delayed_port}"
    finally:
        server.kill()
        server.wait()


def peer(
    model: Path, cases: Sequence[tuple[int, int, int]], nodes: int = 1, one_way_s: float = 0.0,
    layers: int = 0, number: int = 0, share: float = 1.0,
) -> list[tuple[float, float]]:  # fmt: skip
    """Run llama.cpp itself, whole, or over RPC with the other nodes as servers; see `peer.py`."""
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(rpc_server(n, one_way_s, share)) for n in range(1, nodes)]
        remote = layers * (nodes - 1) // nodes
        command = [sys.executable, str(HERE / "peer.py"), str(model), json.dumps(list(cases)),
                   "--servers", ",".join(places), "--remote-layers", str(remote)]  # fmt: skip
        with pinned(number, share):
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        out, said = process.communicate(timeout=900)
        if process.returncode != 0:
            raise SystemExit(f"llama.cpp alone failed: {said[-800:]}")
        found: list[tuple[float, float]] = json.loads(out.splitlines()[-1])
        return found
