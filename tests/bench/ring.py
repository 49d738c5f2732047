"""The ring measured, beside llama.cpp whole on one node and llama.cpp's RPC on the same nodes.

    python tests/bench/ring.py [--quick] [--json FILE]

A random-weight Q8_0 model of 16 layers and about 270 MB. Each node is one process with one thread,
pinned to a CPU of its own, so there are as many nodes as CPUs; each link is delayed in user space.
Streams decode together: tokens/s of all from when each has its first token until one ends. Two CPUs
that are threads of one core have less than twice its speed: how much they have is what two separate
processes of llama.cpp do there at once, and no ring of two can do more.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import Row, conditions, finish, parser, row

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "engine"))

from ringlab import ask, nodes
from tiny_models import Shape, write_model

SHAPE = Shape(
    layers=16, n_embd=1024, heads=16, kv_heads=8, feed_forward=2816, vocabulary=32000, context=8192
)
PROMPT = 16
# Goals of two nodes without delay, as a multiple of one node: by streams.
GOALS = {1: 0.93, 8: 1.4, 16: 1.55}
LONG_GOAL = 1.7


def both(
    model: Path, cases: list[tuple[int, int, int]], alone: list[tuple[float, float]]
) -> list[float]:
    """Return what two processes of llama.cpp do at once on two CPUs, as a multiple of one."""
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda cpu: nodes.peer(model, cases, cpu=cpu), (0, 1))
    return [(a[0] + b[0]) / c[0] for a, b, c in zip(one, other, alone, strict=True)]


async def measured(
    model: Path, folder: Path, count: int, delay_s: float, streams: list[int], prompts: list[int],
    answer: int,
) -> tuple[dict[int, float], dict[int, float]]:  # fmt: skip
    """Return a ring's tokens/s by streams, and s to the first token by prompt length."""
    context = max(16 * (PROMPT + answer), max(prompts) + answer) + 512
    async with nodes.ring(model, folder, count, delay_s, context) as base:
        await ask.run(base, 1, PROMPT, 4, SHAPE.vocabulary)
        rates = {n: (await ask.run(base, n, PROMPT, answer, SHAPE.vocabulary))[0] for n in streams}
        firsts = {n: (await ask.run(base, 1, n, 4, SHAPE.vocabulary))[1] for n in prompts}
        return rates, firsts


def main() -> int:
    """Parse flags, measure, print a table and write JSON."""
    arguments = parser(__doc__).parse_args()
    quick = arguments.quick
    streams, answer = ([1, 8], 24) if quick else ([1, 4, 8, 16], 64)
    delays = [0.0, 0.02] if quick else [0.0, 0.005, 0.02]
    prompts = [512] if quick else [16, 512, 4096]
    cases = [(n, PROMPT, answer) for n in streams] + [(1, n, 4) for n in prompts]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model.gguf", weight_type="Q8_0", shape=SHAPE)
        alone = nodes.peer(model, cases)
        capacity = both(model, cases[: len(streams)], alone[: len(streams)])
        one, one_first = asyncio.run(measured(model, folder, 1, 0.0, streams, prompts, answer))
        for n, times in zip(streams, capacity, strict=True):
            rows.append(row(f"two processes of llama.cpp at once, {n} streams each, of one", times,
                            "×", limit="what these two CPUs have for two nodes"))  # fmt: skip
        for at, n in enumerate(streams):
            rows.append(row(f"1 node, {n} streams", one[n], "tokens/s", peer=alone[at][0],
                            limit="peer: llama.cpp whole in one process"))  # fmt: skip
        for at, n in enumerate(prompts, len(streams)):
            rows.append(row(f"1 node, first token after {n}", one_first[n], "s",
                            peer=alone[at][1]))  # fmt: skip
        for delay_s in delays:
            rpc = nodes.peer(model, cases, 2, delay_s, SHAPE.layers)
            two, first = asyncio.run(measured(model, folder, 2, delay_s, streams, prompts, answer))
            label = f"2 nodes, {delay_s * 1000:g} ms"
            for at, n in enumerate(streams):
                rows.append(row(f"{label}, {n} streams", two[n], "tokens/s", peer=rpc[at][0],
                                limit="peer: llama.cpp's RPC, two nodes"))  # fmt: skip
                goal = GOALS.get(n) if not delay_s else None
                limit = f"two processes of llama.cpp on these CPUs together: {capacity[at]:.2f} ×"
                rows.append(row(f"{label}, {n} streams, of llama.cpp on one node",
                                two[n] / alone[at][0], "×", goal=goal, higher=True,
                                peer=rpc[at][0] / alone[at][0], limit=limit))  # fmt: skip
            for at, n in enumerate(prompts, len(streams)):
                rows.append(row(f"{label}, first token after {n}", first[n], "s",
                                peer=rpc[at][1]))  # fmt: skip
                if n == max(prompts):
                    goal = LONG_GOAL if n >= 4096 and not delay_s else None
                    rows.append(row(f"{label}, first token after {n}, faster than one node by",
                                    alone[at][1] / first[n], "×", goal=goal, higher=True,
                                    peer=alone[at][1] / rpc[at][1]))  # fmt: skip
    found = conditions(
        quick=quick, model_layers=SHAPE.layers, n_embd=SHAPE.n_embd, weights="Q8_0", frames="f32",
        threads_per_node=1, prompt=PROMPT, answer=answer,
    )  # fmt: skip
    finish("ring", found, rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
