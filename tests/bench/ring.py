"""The ring measured, beside llama.cpp whole on one node and llama.cpp's RPC on the same nodes.

    python tests/bench/ring.py [--quick] [--json FILE] [--nodes N …] [--delays MS …]
        [--streams N …] [--prompts TOKENS …] [--larger]

The whole takes more than an hour; the other flags choose a part of it. A random-weight Q8_0 model
of 16 layers and about 270 MB, or a larger one of 28 layers and about 870 MB. Each node is one
process with one thread, pinned to a CPU; where there are more nodes than CPUs all have the same
quota of one, the single node too. Each link is delayed in user space, one way. Streams decode
together: tokens/s of all from when each has its first token until one ends. One node is measured
again after each ring without delays, and the mean counts there: shared machines get faster and
slower. What a random model says hardly repeats itself; in the rows with guesses it may say 16
words, the mean of three texts, the same ones in every case; four of five guesses come true. In the
rows with a draft model the model's first layer is that, and the others add little.

The limit beside a figure is arithmetic: what batches of each size take llama.cpp on one node, in
equal parts over the nodes, with the links' delays, split as is fastest. Quick, with one CPU a node:
two CPUs that are threads of one core have less than twice its speed, and no ring of two can do more
than two separate processes of llama.cpp at once.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from report import Row, conditions, finish, parser, row

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "engine"))

from ringlab import ask, nodes
from tiny_models import Shape, write_model

VOCABULARY = 32000
SMALL = Shape(
    layers=16, n_embd=1024, heads=16, kv_heads=8, feed_forward=2816, vocabulary=VOCABULARY,
    context=8192,
)  # fmt: skip
LARGE = Shape(
    layers=28, n_embd=1536, heads=12, kv_heads=4, feed_forward=4224, vocabulary=VOCABULARY,
    context=8192,
)  # fmt: skip
PROMPT = 16
# Of one node, without delay, by (nodes, streams).
OF_ONE = {(2, 1): 0.93, (2, 8): 1.4, (2, 16): 1.55}
LONG_PROMPT, LONG_OF_ONE = 4096, {2: 1.7}
# Of llama.cpp's RPC on the same nodes, 20 ms one way, by (nodes, streams); the last with guesses.
OF_RPC = {(3, 1): 1.15, (4, 1): 1.3, (3, 8): 1.6, (3, 16): 2.0}
GUESSING_OF_RPC = 3.0
# From so many nodes on: with two RPC waits for one round trip a token, as a ring does.
GUESSING_NODES = 3
TEXTS = (1, 2, 3)
FAR_S = 0.02
# Of the CPUs, where nodes have quotas: what is no node must not take their time.
ROOM = 0.1


@dataclass(frozen=True)
class Cases:
    """What is measured."""

    nodes: tuple[int, ...]
    delays: tuple[float, ...]
    streams: tuple[int, ...]
    prompts: tuple[int, ...]
    answer: int
    shape: Shape = SMALL

    @property
    def share(self) -> float:
        """The part of a CPU that each node has; quotas leave room for the client and the delays."""
        given = len(nodes.CPUS) / max(self.nodes)
        return 1.0 if given >= 1.0 else (1.0 - ROOM) * given

    @property
    def context(self) -> int:
        """How many tokens the caches hold: 16 answers, or the longest prompt."""
        longest = max(self.prompts, default=0)
        return max(16 * (PROMPT + self.answer), longest, PROMPT + 4 * self.answer) + 512

    @property
    def of_peer(self) -> list[tuple[int, int, int]]:
        """The same for `ringlab/peer.py`."""
        return [
            *((n, PROMPT, self.answer) for n in self.streams),
            *((1, n, 4) for n in self.prompts),
        ]


QUICK = Cases((2,), (0.0, FAR_S), (1, 8), (512,), 24)
WHOLE = Cases((2, 3, 4), (0.0, 0.005, FAR_S), (1, 4, 8, 16), (16, 512, LONG_PROMPT), 64)


class Models(NamedTuple):
    """The files: a model, one whose later layers add little, and that one's first layer alone."""

    plain: Path
    faint: Path
    draft: Path

    @classmethod
    def write(cls, folder: Path, shape: Shape) -> Models:
        """Write all three."""
        return cls(
            write_model(folder / "model.gguf", weight_type="Q8_0", shape=shape),
            write_model(folder / "faint.gguf", weight_type="Q8_0", shape=shape, faint_from=1),
            write_model(folder / "draft.gguf", weight_type="Q8_0", shape=replace(shape, layers=1)),
        )


@dataclass(frozen=True)
class Found:
    """Tokens/s by streams, seconds to the first token by the prompt's length."""

    rates: dict[int, float]
    firsts: dict[int, float]


def of_peer(cases: Cases, found: list[tuple[float, float]]) -> Found:
    """Return what `ringlab/peer.py` measured."""
    count = len(cases.streams)
    rates = {n: rate for n, (rate, _) in zip(cases.streams, found[:count], strict=True)}
    firsts = {n: first for n, (_, first) in zip(cases.prompts, found[count:], strict=True)}
    return Found(rates, firsts)


def mean(one: Found, other: Found) -> Found:
    """Return the means of what was measured twice."""
    return Found(
        {n: (rate + other.rates[n]) / 2 for n, rate in one.rates.items()},
        {n: (first + other.firsts[n]) / 2 for n, first in one.firsts.items()},
    )


def both(model: Path, cases: Cases) -> dict[int, float]:
    """Return what two processes of llama.cpp do at once on two CPUs, together, by streams each."""
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda number: nodes.peer(model, cases.of_peer, number=number), (0, 1))
        one, other = (of_peer(cases, found) for found in made)
    return {n: one.rates[n] + other.rates[n] for n in cases.streams}


async def ring(model: Path, folder: Path, cases: Cases, count: int, delay_s: float) -> Found:
    """Measure a ring without guesses."""
    async with nodes.ring(model, folder, count, delay_s, cases.context, share=cases.share) as base:
        await ask.run(base, 1, PROMPT, 4, VOCABULARY)
        return Found(
            {n: (await ask.run(base, n, PROMPT, cases.answer, VOCABULARY))[0]
             for n in cases.streams},
            {n: (await ask.run(base, 1, n, 4, VOCABULARY))[1] for n in cases.prompts},
        )  # fmt: skip


class Guessed(NamedTuple):
    """Tokens/s of one stream: of a text that repeats itself, and with a draft model of another.

    `right` is the share of the draft model's guesses that came true.
    """

    ngrams: float
    draft: float
    right: float


async def guessing(
    models: Models, folder: Path, cases: Cases, count: int, delay_s: float
) -> Guessed:
    """Measure a ring with guesses, of which each kind is asked for in a ring of its own."""
    rates, right = [], 0.0
    for model, draft in ((models.plain, None), (models.faint, models.draft)):
        async with nodes.ring(
            model, folder, count, delay_s, cases.context, share=cases.share, drafts="ngrams",
            draft=draft,
        ) as base:  # fmt: skip
            await ask.run(base, 1, PROMPT, 4, VOCABULARY)
            found = [
                (await ask.run(base, 1, PROMPT, 4 * cases.answer, VOCABULARY,
                               repeats=draft is None, seed=seed))[0]
                for seed in (TEXTS if draft is None else TEXTS[:1])
            ]  # fmt: skip
            rates.append(sum(found) / len(found))
            if draft is not None:
                right = await ask.came_true(base, PROMPT, cases.answer, VOCABULARY)
    return Guessed(*rates, right)


def limit(alone: Found, count: int, delay_s: float, streams: int) -> float:
    """Return the tokens/s that so many nodes could do at most, in batches of a size measured."""
    rates = []
    for rows, rate in alone.rates.items():
        if rows <= streams:
            batch_s, batches = rows / rate, -(-streams // rows)
            rates.append(streams / max(batches * batch_s / count, batch_s + count * delay_s))
    return max(rates)


def compared(
    cases: Cases,
    count: int,
    delay_s: float,
    alone: Found,
    rpc: Found,
    ours: Found,
    guessed: Guessed,
) -> list[Row]:
    """Return the rows of one ring."""
    label, far = f"{count} nodes, {delay_s * 1000:g} ms", delay_s == FAR_S
    rows = []
    for n in cases.streams:
        most = limit(alone, count, delay_s, n)
        rows.append(row(f"{label}, {n} streams", ours.rates[n], "tokens/s", peer=rpc.rates[n],
                        limit=f"at most {most:.1f} by arithmetic; peer: RPC"))  # fmt: skip
        if not delay_s:
            rows.append(row(f"{label}, {n} streams, of one node", ours.rates[n] / alone.rates[n],
                            "×", goal=OF_ONE.get((count, n)), higher=True,
                            peer=rpc.rates[n] / alone.rates[n],
                            limit=f"at most {most / alone.rates[n]:.2f}"))  # fmt: skip
        if far:
            rows.append(row(f"{label}, {n} streams, of RPC", ours.rates[n] / rpc.rates[n], "×",
                            goal=OF_RPC.get((count, n)), higher=True,
                            limit=f"at most {most / rpc.rates[n]:.2f}"))  # fmt: skip
    rows += guessing_rows(label, guessed, rpc.rates[1])
    if far:
        rows.append(row(f"{label}, 1 stream with guesses, of RPC", guessed.ngrams / rpc.rates[1],
                        "×", goal=GUESSING_OF_RPC if count >= GUESSING_NODES else None,
                        higher=True))  # fmt: skip
    for n in cases.prompts:
        rows.append(row(f"{label}, first token after {n}", ours.firsts[n], "s",
                        peer=rpc.firsts[n]))  # fmt: skip
        if n == LONG_PROMPT and not delay_s:
            rows.append(row(f"{label}, first token after {n}, faster than one node by",
                            alone.firsts[n] / ours.firsts[n], "×", goal=LONG_OF_ONE.get(count),
                            higher=True, peer=alone.firsts[n] / rpc.firsts[n]))  # fmt: skip
    return rows


def guessing_rows(label: str, guessed: Guessed, peer: float) -> list[Row]:
    """Return the rows of one stream with guesses."""
    return [
        row(f"{label}, 1 stream with guesses", guessed.ngrams, "tokens/s", peer=peer),
        row(f"{label}, 1 stream with a draft model", guessed.draft, "tokens/s", peer=peer,
            limit=f"{guessed.right:.0%} of its guesses came true"),
    ]  # fmt: skip


def chosen(arguments: argparse.Namespace) -> Cases:
    """Return the cases, or the part of them that the flags name."""
    cases = QUICK if arguments.quick else WHOLE
    named = {
        name: tuple(sorted(set(values)))
        for name in ("nodes", "delays", "streams", "prompts")
        if (values := getattr(arguments, name)) is not None
    }
    if "delays" in named:
        named["delays"] = tuple(value / 1000 for value in named["delays"])
    if 1 not in named.get("streams", (1,)):
        named["streams"] = (1, *named["streams"])  # what guesses are compared with
    shape = LARGE if arguments.larger else SMALL
    return replace(cases, shape=shape, **named)


def main() -> int:
    """Parse flags, measure, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--nodes", type=int, nargs="+", choices=(2, 3, 4), metavar="N")
    flags.add_argument("--delays", type=float, nargs="+", metavar="MS", help="one way")
    flags.add_argument("--streams", type=int, nargs="+", choices=range(1, 17), metavar="N")
    flags.add_argument("--prompts", type=int, nargs="*", metavar="TOKENS")
    flags.add_argument("--larger", action="store_true", help="the larger model")
    arguments = flags.parse_args()
    cases = chosen(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = Models.write(folder, cases.shape)
        model = models.plain
        alone = of_peer(cases, nodes.peer(model, cases.of_peer, share=cases.share))
        if cases.share == 1.0:
            for n, rate in both(model, cases).items():
                rows.append(row(f"two processes of llama.cpp at once, {n} streams each, of one",
                                rate / alone.rates[n], "×",
                                limit="what these two CPUs have for two nodes"))  # fmt: skip
        one = asyncio.run(ring(model, folder, cases, 1, 0.0))
        for n in cases.streams:
            rows.append(row(f"1 node, {n} streams", one.rates[n], "tokens/s", peer=alone.rates[n],
                            limit="peer: llama.cpp whole in one process"))  # fmt: skip
        for n in cases.prompts:
            rows.append(row(f"1 node, first token after {n}", one.firsts[n], "s",
                            peer=alone.firsts[n]))  # fmt: skip
        guessed = asyncio.run(guessing(models, folder, cases, 1, 0.0))
        rows += guessing_rows("1 node", guessed, alone.rates[1])
        for count in cases.nodes:
            for delay_s in cases.delays:
                nodes.leave()
                found = nodes.peer(
                    model, cases.of_peer, count, delay_s, cases.shape.layers, share=cases.share
                )
                ours = asyncio.run(ring(model, folder, cases, count, delay_s))
                if not delay_s:
                    alone = mean(alone, of_peer(cases, nodes.peer(
                        model, cases.of_peer, share=cases.share
                    )))  # fmt: skip
                guessed = asyncio.run(guessing(models, folder, cases, count, delay_s))
                rows += compared(cases, count, delay_s, alone, of_peer(cases, found), ours, guessed)
        nodes.leave()
    found = conditions(
        quick=arguments.quick, model_layers=cases.shape.layers, n_embd=cases.shape.n_embd,
        weights="Q8_0", frames="f32", threads_per_node=1, cpu_of_a_node=cases.share,
        prompt=PROMPT, answer=cases.answer,
    )  # fmt: skip
    finish("ring", found, rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
