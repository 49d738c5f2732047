"""What members ask of each other about deployments, over the control plane. A core.

    to                 requests                                          answers
    --                 --------                                          -------
    a stage's host     AskFacts, MeasureLinks                            Facts
                       FetchAhead, LoadStage, StartServer, ConnectStage, StageState
                       AskStage, StopRing (from the ring's head,
                       which has to be one that may deploy)
    a head             Keep, Drop (from the owner), AskHead              HeadState
    any worker         AskLogs                                           EngineTails
    an owner           AskStatus                                         Statuses
    anyone             CompareBook, ExchangeBook                         BookSummary, BookWishes

The control plane authenticates the asking node. Whatever changes a ring carries the owner's token,
and is refused when a later one is known.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.deploy.book import Summary
from agent.deploy.ringkey import MOST_RINGS
from agent.engine.tail import LINE_CHARACTERS
from agent.engine.tail import LINES as LOG_LINES
from agent.membership import wire
from agent.ownership.lease import Token

PROTOCOL = "/covey/deployments/1"
# 64 engines of 50 lines are 1.6 MB at most.
TAILS_MAX = 64

Phase = Literal["fetching", "loading", "listening", "ready", "broken", "unknown"]
FrameType = Literal["auto", "f32", "f16", "q8"]
# Links that one answer tells; a mesh of more nodes plans with those that were measured.
LINKS_MAX = 256
_NodeText = Annotated[str, msgspec.Meta(max_length=80)]
# Finite ones: no number that is none gets into a plan.
_Rate = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One request or answer; the struct's name is its tag."""


# ---------------------------------------------------------------------- head ↔ stage host


class AskFacts(_Message, frozen=True, omit_defaults=True):
    """What can this node hold? If `ring` is named, as if no stage of that one were there.

    `deployment`: say also which rings of that one are here.
    """

    ring: str = ""
    deployment: Annotated[str, msgspec.Meta(max_length=64)] = ""


class MeasureLinks(_Message, frozen=True):
    """Measure your links to these nodes (ids) where that is due, and tell your facts then."""

    to: Annotated[tuple[_NodeText, ...], msgspec.Meta(max_length=LINKS_MAX)]


class LinkFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The link from the node that tells to another: round trip and jitter (s), loss one way.

    `bytes_s`: what it carries, in bytes a second; 0: that is not known.
    """

    node: _NodeText
    rtt_s: _Seconds
    jitter_s: _Seconds = 0.0
    loss: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    bytes_s: _Rate = 0.0


class RingHere(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A ring of the deployment that was asked about has its head here, or a stage.

    `nodes` (ids) are those that it is planned over, as far as is known here: none while its head
    has no plan.
    """

    number: Annotated[int, msgspec.Meta(ge=1, le=MOST_RINGS)]
    head: bool = False
    nodes: Annotated[tuple[_NodeText, ...], msgspec.Meta(max_length=LINKS_MAX)] = ()


class Facts(_Message, frozen=True, omit_defaults=True):
    """A node's answer: memory that is free now (bytes), cores, and what was measured of it.

    `decode_bytes_s`: weights that it reads a second while one stream decodes; `prefill_flop_s`:
    arithmetic of prompts; 0: not measured. `measured_at`: when (unix s); `busy`: on a busy machine,
    so that it may be faster. `links`: to the members that it is connected to, as far as known.
    `draining`: it shall hold nothing new. `batches`: what batches of `BATCHES` rows take
    (`agent.engine.pace`), in times of one row; empty: not measured. `attended_s`: multiplications
    of attention a second, 0: not known. `cpu_share`: of one CPU, what a quota leaves a thread that
    goes on; 1 where there is none. `rings`: those of the deployment that was asked about.
    """

    free_bytes: int
    cores: int
    decode_bytes_s: _Rate = 0.0
    prefill_flop_s: _Rate = 0.0
    measured_at: _Rate = 0.0
    busy: bool = False
    links: Annotated[tuple[LinkFacts, ...], msgspec.Meta(max_length=LINKS_MAX)] = ()
    draining: bool = False
    batches: Annotated[tuple[_Rate, ...], msgspec.Meta(max_length=16)] = ()
    attended_s: _Rate = 0.0
    cpu_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    rings: Annotated[tuple[RingHere, ...], msgspec.Meta(max_length=MOST_RINGS)] = ()


class CutFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A stage's file as the head has cut it: its hash and bytes, and where the head offers it."""

    sha256: str
    size: int
    source: str  # http URL on the head's overlay address


class StoredLayers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Layers [first, last) of a stored model, by its id (hex): of whoever has it.

    `size` is about how many bytes they are.
    """

    model: str
    first: Annotated[int, msgspec.Meta(ge=0, le=100_000)]
    last: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    size: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class FetchAhead(_Message, frozen=True):
    """Get these weights, for a stage that may come; asked again, say how far that is.

    Its answer's phase is "fetching", "ready" once they are there, or "broken".
    """

    ring: str
    token: Token
    weights: CutFile | StoredLayers


class LoadStage(_Message, frozen=True, omit_defaults=True):
    """Get this stage's weights, start an engine on them, and listen for the predecessor.

    `key` names the ring where its deployment has several: a node has part in one of them alone.
    """

    ring: str
    token: Token
    epoch: int
    index: int
    stages: int
    weights: CutFile | StoredLayers
    predecessor: str  # node id
    context: int
    frames: FrameType
    key: Annotated[str, msgspec.Meta(max_length=64)] = ""


class StartServer(_Message, frozen=True):
    """Be a stage as one of llama.cpp's RPC servers, for the asking head alone."""

    ring: str
    token: Token
    epoch: int
    index: int
    stages: int


class ConnectStage(_Message, frozen=True):
    """Connect the stage to its successor at a port of that node's overlay address."""

    ring: str
    token: Token
    epoch: int
    index: int
    successor: str  # node id
    port: int


class AskStage(_Message, frozen=True):
    """How far is this stage?"""

    ring: str
    epoch: int
    index: int


class StopRing(_Message, frozen=True):
    """End every stage of this ring that runs here."""

    ring: str
    token: Token


class StageState(_Message, frozen=True):
    """A stage's answer: its phase, bytes fetched of all, its port, and why it broke.

    `rows` says in which type rows leave it once it is ready, `runs_on` what computes it.
    """

    phase: Phase
    done: int = 0
    total: int = 0
    port: int = 0
    rows: str = ""
    runs_on: str = ""
    message: str = ""
    hint: str = ""


# ---------------------------------------------------------------------- owner ↔ head


class Keep(_Message, frozen=True, omit_defaults=True):
    """Run this wish (a `Wish`'s bytes), or go on running it, by this token.

    `proven`: it was possible before, so that what is wrong now may pass. `number`: of its rings,
    this one. A node that has part in another of them answers with the phase "taken".
    """

    wish: bytes
    token: Token
    proven: bool
    number: Annotated[int, msgspec.Meta(ge=1, le=MOST_RINGS)] = 1


class Drop(_Message, frozen=True):
    """End this deployment here: it shall run elsewhere, or nowhere."""

    name: str
    token: Token


class AskHead(_Message, frozen=True):
    """How is this deployment, if this node is its head?"""

    name: str


class Placed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Layers [first, last) on a node (its id and its name), and what computes them once loaded."""

    node: str
    name: str
    first: int
    last: int
    runs_on: str = ""


class HeadState(_Message, frozen=True, omit_defaults=True):
    """How a deployment is at its head; `phase` is "" where it does not run.

    `revision` grows with each change; `wish` is the author and generation that it runs, `token` the
    last one that commanded it, `error` the fields of `agent.errors.to_wire`. `stays` says why it
    does not leave nodes of it that are draining, `gain` whether a better ring is known, and why it
    has not moved there, or that it has.
    """

    name: str
    phase: str = ""
    progress: str = ""
    revision: int = 0
    wish: tuple[str, int] = ("", 0)
    token: Token | None = None
    ring: str = ""
    epoch: int = 0
    context: int = 0
    stages: tuple[Placed, ...] = ()
    reasons: tuple[str, ...] = ()
    url: str = ""
    error: dict[str, str] | None = None
    stays: str = ""
    gain: str = ""


# ---------------------------------------------------------------------- anyone ↔ any worker


class AskLogs(_Message, frozen=True):
    """What did your engines of this deployment say last, or all of them (no name)?

    `lines`: of each, at most.
    """

    name: Annotated[str, msgspec.Meta(max_length=64)] = ""
    lines: Annotated[int, msgspec.Meta(ge=1, le=LOG_LINES)] = LOG_LINES


class LogTail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last lines of one engine: what it is, its process, and what has become of it.

    `first` is how many lines came before these.
    """

    title: Annotated[str, msgspec.Meta(max_length=80)]
    pid: int
    first: int
    lines: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=LINE_CHARACTERS)], ...],
        msgspec.Meta(max_length=LOG_LINES),
    ]
    state: Annotated[str, msgspec.Meta(max_length=LINE_CHARACTERS)]


class EngineTails(_Message, frozen=True):
    """The engines, the oldest first."""

    tails: Annotated[tuple[LogTail, ...], msgspec.Meta(max_length=TAILS_MAX)]


# ---------------------------------------------------------------------- anyone ↔ owner


class AskStatus(_Message, frozen=True):
    """What do you know of these deployments?"""

    names: Annotated[tuple[str, ...], msgspec.Meta(max_length=1000)]


class Status(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A deployment as its owner sees it; nodes are ids, "" where there is none.

    `epoch` is that of the owner's lease at the head, 0 while it has none.
    """

    name: str
    owner: str = ""
    head: str = ""
    epoch: int = 0
    state: HeadState | None = None


class Statuses(_Message, frozen=True):
    """One for each name that was asked for."""

    statuses: tuple[Status, ...]


# ---------------------------------------------------------------------- book ↔ book


class CompareBook(_Message, frozen=True):
    """Is your book of wishes the same as mine? Mine has this digest."""

    digest: bytes


class BookSummary(_Message, frozen=True):
    """`same`, or else what is in it."""

    same: bool
    entries: Summary = ()


class ExchangeBook(_Message, frozen=True):
    """Take these wishes (bytes), and give me those."""

    wishes: tuple[bytes, ...]
    wanted: tuple[str, ...]


class BookWishes(_Message, frozen=True):
    """The wishes that were asked for (bytes)."""

    wishes: tuple[bytes, ...]


StageRequest = AskFacts | FetchAhead | LoadStage | StartServer | ConnectStage | AskStage | StopRing
HeadRequest = Keep | Drop | AskHead
Request = (
    MeasureLinks | StageRequest | HeadRequest | AskLogs | AskStatus | CompareBook | ExchangeBook
)
Answer = Facts | StageState | HeadState | EngineTails | Statuses | BookSummary | BookWishes

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """Return the message as it crosses the control plane."""
    return _encoder.encode(message)


def decode_request(raw: bytes) -> Request:
    """Read a request; raises PeerError for anything else."""
    return wire.read(_request_decoder, raw, "a deployment message")


def decode_answer(raw: bytes) -> Answer:
    """Read an answer; raises PeerError for anything else."""
    return wire.read(_answer_decoder, raw, "a deployment answer")
