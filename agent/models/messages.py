"""What members ask of each other about models, over the control plane. A core.

    AskModels  →  Models: those that are whole at the asked node

The control plane authenticates the asking node. The models themselves go over the overlay
(`sharing.py`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from agent.membership import wire
from agent.models.manifest import Sha256

PROTOCOL = "/covey/models/1"
# A node with more tells the first ones by name.
MAX_MODELS = 1000


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One request or answer; the struct's name is its tag."""


class AskModels(_Message, frozen=True):
    """Which models do you have?"""


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model at a member: its id, the SHA-256 of its file, its name there, its size in bytes.

    `complete` is whether all of it can be fetched there.
    """

    id: Sha256
    sha256: Sha256
    name: Annotated[str, msgspec.Meta(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    size: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    complete: bool = True


class Models(_Message, frozen=True):
    """What is here, by name."""

    models: Annotated[tuple[Held, ...], msgspec.Meta(max_length=MAX_MODELS)]


_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[AskModels] = msgspec.msgpack.Decoder(AskModels)
_answer_decoder: msgspec.msgpack.Decoder[Models] = msgspec.msgpack.Decoder(Models)


def encode(message: AskModels | Models) -> bytes:
    """Return the message as it crosses the control plane."""
    return _encoder.encode(message)


def decode_request(raw: bytes) -> AskModels:
    """Read a request; raises PeerError for anything else."""
    return wire.read(_request_decoder, raw, "a message about models")


def decode_answer(raw: bytes) -> Models:
    """Read an answer; raises PeerError for anything else."""
    return wire.read(_answer_decoder, raw, "an answer about models")
