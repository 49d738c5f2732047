"""What a stage costs beside llama.cpp: our own time, bytes, memory, and what smaller rows lose.

    python tests/bench/stage.py [--quick] [--json FILE]

Our own code of one stage, from a frame on its socket to the next one's: CPU time, with all caches
as cold as llama.cpp leaves them, least and median of many. One token's life on two nodes of the
model of `ring.py`, by stamps: medians. A stage's memory above its tensors and KV cache. And how far
f16 and q8 rows move the bundled model's answers on held-out questions, cut in three, against f32.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

# As every engine is started: numpy's own threads are never used.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from report import Row, conditions, finish, parser, row

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "engine"))

from ringlab import life, nodes
from tiny_models import Shape, write_model

from agent.engine.cut import write_part
from agent.engine.frames import HEADER, PAIR_BYTES, Frame, Limits, Remove, RowType
from agent.engine.gguf_file import GgufFile
from agent.engine.link import Inlet, Lost, Membership, Outlet
from agent.engine.llama import Context, ContextLimits, Weights
from agent.engine.rows import pack, unpack
from agent.engine.stage import Stage
from agent.models import bundled
from agent.models.bundled import chats
from agent.models.bundled.evaluate import Runner

RING = Shape(
    layers=16, n_embd=1024, heads=16, kv_heads=8, feed_forward=2816, vocabulary=32000, context=8192
)
# As wide as a model of 7 billion weights; llama.cpp itself is left out there.
WIDE = Shape(layers=1, n_embd=4096, heads=32, kv_heads=8, feed_forward=32, vocabulary=300)
ROWS = (1, 16)
GOAL_MS = 0.5
GOAL_MB = 100
# More than any cache of one core.
COLD_BYTES = 64 << 20


@contextmanager
def neighbours(n_embd: int, row_type: RowType, count: int, frames: int) -> Iterator[Any]:
    """Give a stage's ends, whose neighbours send it frames and take what it sends."""
    limits = Limits(n_embd, 512, 32)
    member = Membership(b"r" * 16, 1, 1, 2, limits, row_type, b"m" * 32, 60.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = []
        for _ in range(2):
            ours = socket.create_connection(server.getsockname())
            pairs.append((ours, server.accept()[0]))
    for end in (*pairs[0], *pairs[1]):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sender = Outlet(pairs[0][0], member, "")
    back = Inlet(pairs[1][1], member, "")
    rows = np.random.default_rng(1).standard_normal((count, n_embd), np.float32)

    def play() -> None:
        for position in range(frames):
            pairs_ = np.stack([np.arange(count), np.full(count, position)], axis=1)
            sender.send((), pairs_.astype(np.int32), rows)
            while back.frame() is None:
                time.sleep(0.0005)
                back.pump()
        sender.close()

    thread = threading.Thread(target=play)
    thread.start()
    yield member, Inlet(pairs[0][1], member, ""), Outlet(pairs[1][0], member, "")
    thread.join()
    for end in (pairs[0][1], *pairs[1]):
        end.close()


def own_ms(part: Path, count: int, row_type: RowType, frames: int) -> tuple[float, float]:
    """Return CPU ms of our code for a frame of `count` rows: least and median."""
    context = Context(Weights(part), ContextLimits(512, 512, 32, 1), keeps_rows=True)
    n_embd = context.weights.n_embd
    memory = np.ones(COLD_BYTES, np.uint8)
    context._rows[:] = np.random.default_rng(2).standard_normal(n_embd, np.float32)
    totals: list[float] = []
    with neighbours(n_embd, row_type, count, frames) as (member, inlet, outlet):
        worker = Stage(context, member, inlet, outlet)

        def decode(_handle: object, batch: Any) -> int:
            totals.append(worker.stats.own_s)
            memory.sum()
            context._captured = batch.n_tokens * n_embd * 4
            return 0

        control = os.pipe()
        context._compute = decode
        with suppress(Lost):
            worker.run(control[0], lambda: True)
        for end in control:
            os.close(end)
    context.close()
    found = np.diff(totals)[5:] * 1000
    return float(found.min()), float(np.median(found))


def best_us(call: Callable[[], object], repeats: int = 50) -> float:
    """Return the shortest time of a call, in µs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e6 * min(times)


def callback_ms(part: Path, repeats: int) -> float:
    """Return what keeping a part's rows adds to llama.cpp's time for one row, in ms."""
    weights = Weights(part)
    one = np.zeros(1, np.int32)
    rows = np.zeros((1, weights.n_embd), np.float32)
    contexts = [
        Context(weights, ContextLimits(4096, 32, 1, 1), keeps_rows=k) for k in (True, False)
    ]
    found: list[list[float]] = [[], []]
    for position in range(repeats):
        for context, times in zip(contexts, found, strict=True):
            started = time.perf_counter()
            context.decode_rows(rows, one, one + position, np.ones(1, np.int8))
            times.append(1000 * (time.perf_counter() - started))
    return min(found[0]) - min(found[1])


CHILD = """
import sys, os
from pathlib import Path
import numpy as np
import agent.engine.process, agent.engine.stage
from agent.engine.llama import CPU_GRAPH_ROWS, Context, ContextLimits, Weights
def memory():
    with open("/proc/self/smaps_rollup") as file:
        return int(next(line for line in file if line.startswith("Rss:")).split()[1]) * 1024
print(memory())
limits = ContextLimits(8192, 512, 32, 1, flash_attention=True, graph_rows=CPU_GRAPH_ROWS)
context = Context(Weights(Path(sys.argv[1])), limits, keeps_rows=True)
width, start = context.weights.n_embd, 0
for n in (16, 512, 512):
    rows = np.random.default_rng(1).standard_normal((n, width), np.float32)
    context.decode_rows(rows, np.zeros(n, np.int32), np.arange(start, start + n, dtype=np.int32))
    start += n
    print(memory())
"""


def memory_mb(part: Path, kv_bytes: float) -> tuple[float, float, float]:
    """Return the RSS of a stage process: before it loads, and above its tensors and KV cache.

    That is after a batch of 16 rows, and after two more of 512. Pages that it shares with other
    processes count whole.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(part)], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )  # fmt: skip
    bare, decoded, _, prompted = (int(word) for word in done.stdout.split()[-4:])
    own = part.stat().st_size + kv_bytes
    return bare / 1e6, (decoded - own) / 1e6, (prompted - own) / 1e6


def answers(folder: Path, items: int) -> dict[RowType, np.ndarray[Any, Any]]:
    """Return the bundled model's log probabilities of every answer's tokens, by row type."""
    path = bundled.path()
    with Runner(path) as runner:
        asked = [item for task in chats.TASKS for item in chats.held_out_items(task, items)]
        prompts = [runner.prompt([{"role": "user", "content": item.question}]) for item in asked]
        ids = [
            (len(prompt), prompt + runner.tokenize(item.answer, special=False, bos=False))
            for prompt, item in zip(prompts, asked, strict=True)
        ]
    contexts = []
    for index, part in enumerate(cut(path, folder, (4, 8))):
        limits = ContextLimits(512, 512, 1, 1)
        contexts.append(Context(Weights(part), limits, keeps_rows=index < 2))
    return {kind: np.concatenate([logs(contexts, *one, kind) for one in ids]) for kind in RowType}


def logs(
    contexts: list[Context], start: int, tokens: list[int], kind: RowType
) -> np.ndarray[Any, Any]:
    """Return the log probabilities (tokens after `start`, vocabulary) with such frames."""
    count = len(tokens)
    sequences, positions = np.zeros(count, np.int32), np.arange(count, dtype=np.int32)
    marks = np.ones(count, np.int8)
    first, *others = contexts
    for context in contexts:
        context.apply([Remove(0)])
    rows = first.decode_tokens(np.array(tokens, np.int32), sequences, positions, marks)
    for context in others:
        frame = Frame(1, (), np.stack([sequences, positions], axis=1), rows)
        rows = unpack(pack(frame, kind), rows.shape[1]).rows
        rows = context.decode_rows(rows, sequences, positions, marks)
    logits = np.stack([others[-1].logits(at) for at in range(start - 1, count)]).astype(float)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def cut(path: Path, folder: Path, edges: tuple[int, ...]) -> list[Path]:
    """Cut a model at these layers."""
    with GgufFile(path) as file:
        return [
            write_part(file, start, stop, folder / f"{path.stem}-{start}.gguf").path
            for start, stop in pairwise((0, *edges, file.layers))
        ]


def quality(folder: Path, items: int) -> list[Row]:
    """Return what f16 and q8 rows change."""
    found = answers(folder, items)
    exact = found[RowType.F32]
    rows = []
    for kind in (RowType.F16, RowType.Q8):
        other, name = found[kind], kind.name.lower()
        divergence = (np.exp(exact) * (exact - other)).sum(axis=1)
        same = float((exact.argmax(axis=1) == other.argmax(axis=1)).mean())
        note = f"{len(exact)} answer tokens of the bundled model, cut in three, against f32 rows"
        rows += [
            row(f"{name}: KL divergence, mean", 1e6 * float(divergence.mean()), "µnat", limit=note),
            row(f"{name}: KL divergence, largest", 1e6 * float(divergence.max()), "µnat"),
            row(f"{name}: same likeliest token", 100 * same, "%"),
        ]
    return rows


def profile(parts: list[Path], tokens: int) -> list[Row]:
    """Return the median of each step of a token's life, in ms, and how often."""
    steps, head, stage = life.measure(parts, nodes.CPUS[:2] * 2, RING.n_embd, tokens)
    rows = [
        row(f"life: {name}", 1000 * median(values), "ms")
        for name, values in zip(life.STEPS, steps.T, strict=True)
    ]
    computing = steps[:, [1, 5, 9]].sum(axis=1)
    between = 1000 * (steps.sum(axis=1) - computing) / 2
    note = "a token's time less that in llama.cpp, halved"
    return [
        *rows,
        row("life: a hop, beside llama.cpp, median", median(between), "ms", limit=note),
        row("life: a hop, beside llama.cpp, least", float(between.min()), "ms"),
        row("life: own CPU of the head, mean", 1000 * head, "ms"),
        row("life: own CPU of the stage, mean", 1000 * stage, "ms"),
    ]


def main() -> int:
    """Parse flags, measure, print a table and write JSON."""
    arguments = parser(__doc__).parse_args()
    quick = arguments.quick
    frames, tokens, items = (60, 40, 10) if quick else (200, 200, 40)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wide = write_model(folder / "wide.gguf", shape=WIDE)
        for count in ROWS:
            for kind in RowType:
                least, usual = own_ms(wide, count, kind, frames)
                label = f"own code of a stage, {count} rows, {kind.name.lower()}"
                rows.append(row(label, usual, "ms", goal=GOAL_MS))
                rows.append(row(f"{label}, least", least, "ms"))
        for kind in RowType:
            size = HEADER.size + PAIR_BYTES + kind.row_bytes(WIDE.n_embd)
            rows.append(row(f"a token of {WIDE.n_embd} values over a hop, {kind.name.lower()}",
                            size, "bytes", limit="one token a frame"))  # fmt: skip
        frame = Frame(1, (), np.zeros((16, 2), np.int32), np.ones((16, WIDE.n_embd), np.float32))
        rows.append(row("check of 16 rows: all finite",
                        best_us(lambda: unpack(frame, WIDE.n_embd)), "µs"))  # fmt: skip
        model = write_model(folder / "model.gguf", weight_type="Q8_0", shape=RING)
        parts = cut(model, folder, (3, 12))
        nine = cut(write_model(folder / "nine.gguf", layers=11), folder, (1, 10))[1]
        rows.append(row("keeping the rows of nine layers", callback_ms(nine, 5 * frames), "ms"))
        rows += profile(parts, tokens)
        with GgufFile(model) as file:
            kv = file.facts().kv_bytes_per_token * 8192 * 9
        bare, decoded, prompted = memory_mb(parts[1], kv)
        rows.append(row("a stage's memory above tensors and KV, 16 rows", decoded, "MB",
                        goal=GOAL_MB, limit="RSS, what others share counted whole"))  # fmt: skip
        rows.append(row("the same after a prompt of 1,024", prompted, "MB", goal=GOAL_MB))
        rows.append(row("the same before it loads anything", bare, "MB"))
        rows += quality(folder, items)
    found = conditions(quick=quick, wide=WIDE.n_embd, n_embd=RING.n_embd, frames=frames)
    finish("stage", found, rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
