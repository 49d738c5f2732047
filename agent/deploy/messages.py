"""What a head asks of the nodes in its ring, over the control plane. A core: msgpack structs.

The control plane authenticates the asking node; `stages.py` checks that it is a member and that
it owns the ring that it names.
"""

from __future__ import annotations

from typing import Literal

import msgspec

PROTOCOL = "/covey/deploy/1"

Phase = Literal["fetching", "loading", "listening", "ready", "broken", "unknown"]
FrameType = Literal["f32", "f16", "q8"]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One request or answer; the struct's name is its tag."""


class AskFacts(_Message, frozen=True):
    """What can this node hold?"""


class Facts(_Message, frozen=True):
    """A node's answer: memory that is free now (bytes), and cores."""

    free_bytes: int
    cores: int


class LoadStage(_Message, frozen=True):
    """Fetch this stage's file, start an engine on it, and listen for the predecessor."""

    ring: str
    epoch: int
    index: int
    stages: int
    sha256: str
    size: int
    source: str  # http URL on the head's overlay address
    predecessor: str  # node id
    context: int
    frames: FrameType


class ConnectStage(_Message, frozen=True):
    """Connect the stage to its successor at a port of that node's overlay address."""

    ring: str
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


class StageState(_Message, frozen=True):
    """A stage's answer: its phase, bytes fetched of all, its port, and why it broke."""

    phase: Phase
    done: int = 0
    total: int = 0
    port: int = 0
    message: str = ""
    hint: str = ""


Request = AskFacts | LoadStage | ConnectStage | AskStage | StopRing
Answer = Facts | StageState

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
decode_request = _request_decoder.decode
decode_answer = _answer_decoder.decode


def encode(message: Request | Answer) -> bytes:
    """Return the message as it crosses the control plane."""
    return _encoder.encode(message)
