"""How long until the head says that a stage is lost: killed, frozen, or cut off.

Rings of three engine processes over loopback, a new one for each time. From the signal to the
head's word to its agent, which then builds the ring again.

    python tests/bench/lost.py [--quick] [--json FILE]
    python tests/bench/lost.py --alive S     rings that nobody harms, each for S seconds with a
                                             stream: how many broke, on whatever links there are
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import aiohttp
import numpy as np
from report import Row, conditions, finish, parser, row
from ringlab.nodes import LOOPBACK

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "engine"))
from tiny_models import Shape, write_model

from agent.engine.cut import write_part
from agent.engine.gguf_file import GgufFile
from agent.engine.spec import EngineSpec
from agent.engine.supervisor import Engine

# A stage's six layers take some seconds for a prompt's batch of 512 on one slow core.
MODEL = Shape(layers=16, n_embd=1024, heads=16, kv_heads=16, feed_forward=2816, vocabulary=4096,
              context=2048)  # fmt: skip
EDGES = (0, 2, 8, 14, 16)
CONTEXT = 2048
# The head measures its ring first, and links show how regular they are.
SETTLE_S = 8.0
WAIT_S = 60.0
KINDS = ("killed", "frozen", "frozen in 4 streams", "frozen in a long prompt", "cut off")


class Silent:
    """A proxy before a port, which passes nothing on any more, nor ends, once it is cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._cut = threading.Event()
        self._server = socket.create_server((LOOPBACK, 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Be silent from now on, both ways."""
        self._cut.set()

    def _accept(self) -> None:
        near, _ = self._server.accept()
        far = socket.create_connection((LOOPBACK, self._to))
        for ends in ((near, far), (far, near)):
            ends[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                if self._cut.is_set():
                    threading.Event().wait(WAIT_S)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@asynccontextmanager
async def ring(
    parts: list[Path], cache: str, kind: str
) -> AsyncIterator[tuple[list[Engine], list[Silent]]]:
    """Give three engines of a joined ring, and the proxies around the second if it is cut off."""
    engines: list[Engine] = []
    proxies: list[Silent] = []
    common = {"n_ctx": CONTEXT, "threads": 1, "ring": "ab" * 16, "stages": 3, "cache": cache,
              "listen": LOOPBACK, "predecessor": LOOPBACK, "row_type": "f32"}  # fmt: skip
    try:
        head = EngineSpec(role="head", files=(str(parts[0]), str(parts[3])), http_address=LOOPBACK,
                          model_name="ring", **common)  # type: ignore[arg-type] # fmt: skip
        engines.append(await Engine.start(head))
        for stage in (1, 2):
            spec = EngineSpec(role="stage", files=(str(parts[stage]),), stage=stage, **common)  # type: ignore[arg-type]
            engines.append(await Engine.start(spec))
        ports = [engines[1].port, engines[2].port, engines[0].port]
        if kind == "cut off":
            proxies = [Silent(port) for port in ports[:2]]
            ports[:2] = [proxy.port for proxy in proxies]
        for engine, port in zip(engines, ports, strict=True):
            await engine.connect(LOOPBACK, port)
        await asyncio.gather(*(engine.wait_ready() for engine in engines))
        yield engines, proxies
    finally:
        await asyncio.gather(*(engine.stop(grace_s=0.0) for engine in engines))


async def answer(head: Engine, prompt: int) -> None:
    """Ask for a long answer until the ring breaks."""
    words = np.random.default_rng().integers(300, MODEL.vocabulary, prompt).tolist()
    body = {"model": "ring", "prompt": words, "max_tokens": 400, "temperature": 0, "stream": True,
            "logit_bias": {"2": -100}}  # fmt: skip
    url = f"http://{LOOPBACK}:{head.http_port}/v1/completions"
    with suppress(aiohttp.ClientError):
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as reply:
            await reply.read()


async def once(parts: list[Path], cache: str, kind: str, victim: int) -> float:
    """Return the seconds until the head says that the ring is broken by that stage."""
    async with ring(parts, cache, kind) as (engines, proxies):
        await asyncio.sleep(SETTLE_S)
        head, lost = engines[0], engines[victim]
        asking: list[asyncio.Task[None]] = []
        if kind == "frozen in 4 streams":
            asking = [asyncio.create_task(answer(head, 16)) for _ in range(4)]
            await asyncio.sleep(4.0)
        elif kind == "frozen in a long prompt":
            asking = [asyncio.create_task(answer(head, 1800))]
            await asyncio.sleep(3.0)
        # At any moment between two pings.
        await asyncio.sleep(random.uniform(0.0, 0.3))
        assert not head.ended, await head.wait_ended()
        began = time.perf_counter()
        if kind == "cut off":
            for proxy in proxies:
                proxy.cut()
        else:
            os.kill(lost.pid, signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
        async with asyncio.timeout(WAIT_S):
            reason = await head.wait_ended()
        took_s = time.perf_counter() - began
        print(f"{kind}, stage {victim}: {took_s:.3f} s: {reason}", flush=True)
        if f"stage {victim}" not in str(reason):
            raise SystemExit(f"the head names another one: {reason}")
        await asyncio.gather(*asking)
        return took_s


async def alive(parts: list[Path], cache: str, seconds: float) -> float | None:
    """Return after how many seconds a ring broke that nobody harmed; None if it did not."""
    async with ring(parts, cache, "alive") as (engines, _):
        began = time.perf_counter()
        asking = asyncio.create_task(_ask_on(engines[0]))
        try:
            async with asyncio.timeout(seconds):
                reason = await engines[0].wait_ended()
        except TimeoutError:
            return None
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        took_s = time.perf_counter() - began
        print(f"broke after {took_s:.1f} s: {reason}", flush=True)
        return took_s


async def _ask_on(head: Engine) -> None:
    while True:
        await answer(head, 16)


def cut(model: Path, folder: Path) -> list[Path]:
    """Cut the model in four."""
    with GgufFile(model) as file:
        return [
            write_part(file, *ends, folder / f"{ends[0]}.gguf").path for ends in pairwise(EDGES)
        ]


def main() -> int:
    """Parse flags, measure, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--alive", type=float, metavar="S", help="only see whether rings stay whole")
    arguments = flags.parse_args()
    times = 2 if arguments.quick else 10
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = cut(write_model(folder / "model.gguf", weight_type="Q8_0", shape=MODEL), folder)
        if arguments.alive:
            ended = [asyncio.run(alive(parts, name, arguments.alive)) for _ in range(times)]
            broke = sum(took_s is not None for took_s in ended)
            rows.append(row(f"broken, of {times} that nobody harmed", broke, "rings", goal=0))
        for kind in KINDS if not arguments.alive else ():
            # Who is cut off lies between the proxies.
            victims = [1 if kind == "cut off" else 1 + number % 2 for number in range(times)]
            found = sorted(asyncio.run(once(parts, name, kind, victim)) for victim in victims)
            goal = 0.1 if kind == "killed" else 2.0
            rows.append(row(f"{kind}: median", found[len(found) // 2], "s", goal=goal))
            rows.append(row(f"{kind}: longest", found[-1], "s", goal=goal))
    finish("lost", conditions(quick=arguments.quick, times=times), rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
