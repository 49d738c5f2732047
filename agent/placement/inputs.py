"""What a placement is computed from: nodes, links, the model, and what is asked of the ring.

A core. `plan.py` takes these; `agent.deploy` fills them in from what nodes tell and what was
measured. Times are seconds, sizes bytes, rates per second. What nobody measured is None, and is
then taken as the constants here say: they are on the slow side, and the same for all, so that
guesses favour nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Objective = Literal["latency", "throughput", "auto"]

# Memory of a laptop with one channel of DDR4 gives about this to one reader.
DECODE_BYTES_S = 8e9
# Four cores with AVX2 and llama.cpp's quantised matrix products.
PREFILL_FLOP_S = 8e10
# What a stage does beside arithmetic for a frame: Python, sockets, copies (docs/benchmarks.md).
STAGE_S = 0.0005
# What a head does for a token: it chooses it, decides on the next batch and tells the client.
ROW_S = 0.0008
# Linux waits two round trips and this long before it probes for a lost segment that flies alone.
LOST_S = 0.2
# What a loaded stage needs beside weights and KV cache (compute buffers, the process), as a share
# of them: an estimate on the safe side for large models.
OVERHEAD = 1.25


@dataclass(frozen=True)
class Node:
    """A node that could hold a stage: its id as text, its name, and the memory it has free.

    `decode_bytes_s`: weights read when one token is decoded; `prefill_flop_s`: arithmetic of many
    rows; `stage_s`: its own time for each frame; `row_s`: as a head, for each token besides.
    `batches`: what batches of a few rows take, those of `agent.engine.pace.BATCHES`, in times of
    one row; empty: as if all arithmetic were that of many rows. `attended_s`: multiplications of
    attention a second, of rows that decode; None: as fast as it reads what is cached.
    `head_allowed`: it could be the head. `held`: layers whose weights it has already; the head of a
    new ring cuts them from its own file, so a node with that file has them all.
    """

    node: str
    name: str
    free_bytes: int
    tags: frozenset[str] = frozenset()
    decode_bytes_s: float | None = None
    prefill_flop_s: float | None = None
    stage_s: float = STAGE_S
    row_s: float = ROW_S
    head_allowed: bool = True
    held: frozenset[int] = frozenset()
    batches: tuple[float, ...] = ()
    attended_s: float | None = None

    @property
    def measured(self) -> bool:
        """Whether its speed is known; a prefill speed alone does not count."""
        return self.decode_bytes_s is not None


@dataclass(frozen=True)
class Link:
    """One direction between two nodes: round trip, its jitter, loss as a share, bytes a second."""

    rtt_s: float
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_s: float = 12.5e6

    def hop_s(self, payload: float) -> float:
        """Return what a frame of so many bytes takes one way, on the mean.

        Half a round trip, the bytes; a lost frame is sent again after two round trips and `LOST_S`,
        and may be lost again. Infinite where nothing passes. The round trip is a mean, in which
        jitter is already.
        """
        if self.bytes_s <= 0 or self.loss >= 1:
            return math.inf
        again = self.loss / (1 - self.loss)
        sent = payload / self.bytes_s
        return self.rtt_s / 2 + sent + again * (2 * self.rtt_s + LOST_S + sent)


# Two homes in one country, with an uplink of 20 Mbit/s.
UNMEASURED = Link(rtt_s=0.040, bytes_s=2.5e6)


@dataclass(frozen=True)
class Links:
    """The links by (from, to) node ids; one that was measured the other way round is taken too."""

    measured: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    otherwise: Link = UNMEASURED

    def known(self, one: str, other: str) -> bool:
        """Say whether either direction was measured."""
        return (one, other) in self.measured or (other, one) in self.measured

    def between(self, one: str, other: str) -> Link:
        """Return the link from one node to another."""
        backwards = self.measured.get((other, one), self.otherwise)
        return self.measured.get((one, other), backwards)


@dataclass(frozen=True)
class Model:
    """What placement needs to know of a model: bytes a layer, and bytes that only the head holds.

    `uncut` says why it has to stay in one piece, as a clause; empty where it may be cut. `hint`
    says what else could be done then. `in_line`: llama.cpp's RPC spreads it, and the head does
    not have the last layers too.
    """

    layer_bytes: tuple[int, ...]  # weights
    head_bytes: int  # embedding, output matrix, draft model, …
    period: int = 1  # the model may be cut at multiples of so many layers
    allows: Callable[[int, int], bool] = lambda _start, _stop: True  # layers [start, stop) a part?
    uncut: str = ""
    hint: str = ""
    in_line: bool = False
    nodes_max: int = 10_000
    kv_bytes: int = 0  # of one layer's KV cache, for one token
    output_bytes: int = 0  # of `head_bytes`, what each token reads: the output matrix
    row_bytes: int = 0  # of one row of a frame
    layer_flops: tuple[float, ...] = ()  # for one token; empty: two for each byte of weights
    attended: int = 0  # multiplications of one layer's attention, for each token behind a row
    buffer_bytes: int = 0  # each stage needs so much beside, whatever its layers

    @property
    def rounds(self) -> int:
        """How many rounds of `period` layers there are; the last one may be shorter."""
        return -(-len(self.layer_bytes) // self.period)

    @property
    def flops(self) -> tuple[float, ...]:
        """Arithmetic of each layer for one token.

        A weight is a multiplication and an addition; quantised ones take about a byte or less.
        """
        return self.layer_flops or tuple(2.0 * size for size in self.layer_bytes)


@dataclass(frozen=True)
class Aims:
    """What is asked of a placement. `context`: tokens that the KV caches hold for all streams.

    `streams`: answers that are made at once; `prompt`: tokens of the prompt whose first answer is
    predicted. `nodes` (exactly), `least` and `most` count them, the head included. `head` is the
    only node that may be head, `through` must be in the ring, `without` must not. A node needs a
    tag of `only` (if any) and none of `never`; the head one of `head_tags` (if any).
    `horizon_tokens`: how many tokens shall pay for fetching weights; None: fetching is free.
    """

    objective: Objective = "auto"
    context: int = 0
    streams: int = 1
    prompt: int = 512
    kept: int | None = None  # tokens that a stream has behind it; None: half of its share
    nodes: int | None = None
    least: int = 1
    most: int | None = None
    head: str = ""
    head_tags: frozenset[str] = frozenset()
    only: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    through: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    horizon_tokens: float | None = None

    @property
    def behind(self) -> float:
        """Tokens that a stream has behind it, on the mean, and reads for each new one."""
        return self.context / (2 * self.streams) if self.kept is None else self.kept

    @property
    def counts(self) -> tuple[int, int | None]:
        """The fewest and the most nodes; None: any number."""
        return (self.nodes, self.nodes) if self.nodes is not None else (self.least, self.most)
