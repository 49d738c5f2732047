"""What nodes tell each other of themselves over gossip, by topic. A core: msgpack structs.

    topic     message          when
    -----     -------          ----
    health    Beat             each `beat_interval_s`, and at once when something in it changed
    health    Doubt            a member stopped answering the author: ask it yourselves
    models    Models           when they change, and each fifth beat
    events    Event            when it happens, from the node at which it happens

The control plane has checked the author and its signature; a node speaks of itself in all of these
but Doubt, which is a hint and no verdict. `at` is when it was said, by the author's clock (unix s),
and grows from each of an author's messages to the next (`words.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.membership import wire

HEALTH, MODELS, EVENTS = "health", "models", "events"
# One beat each three seconds in the whole mesh, whatever its size, but each node once in this
# range. Who is alive does not hang on it: that is asked (liveness.py), and changes are told at
# once. Every beat comes over every link, and in an idle mesh of 30 that is most of what it costs.
BEAT_EACH_S = 3.0
BEAT_MIN_S, BEAT_MAX_S = 10.0, 600.0
MAX_ITEMS = 32
MAX_MODELS = 64

_Text = Annotated[str, msgspec.Meta(max_length=80)]
_Sentence = Annotated[str, msgspec.Meta(max_length=300)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Time = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
_Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a node has to spare: free bytes, cores, load average over 1 min; engines that run."""

    free_bytes: _Count
    cores: _Count
    load: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    engines: _Count


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A health item of the author: code and severity; its words are asked for where it is."""

    code: _Text
    severity: Literal["warning", "error"]


class Beat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="beat", omit_defaults=True):
    """The author lives, and how; `leaving` says that its agent stops now.

    `draining`: nothing new shall run there. Agents that do not know the field yet understand all
    beats without it.
    """

    at: _Time
    load: Load
    items: Annotated[tuple[Item, ...], msgspec.Meta(max_length=MAX_ITEMS)] = ()
    links: _Count = 0
    software: _Text = ""
    leaving: bool = False
    draining: bool = False


class Doubt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="doubt"):
    """`node` (Ed25519, 32 bytes) stopped answering the author."""

    at: _Time
    node: _Key


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A model that the author serves (as head) or holds a stage of."""

    name: _Text
    part: _Text
    phase: _Text


class Models(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="models"):
    """Every model that runs on the author; `revision` is another when something is new in it.

    That may be what the listing does not show: where a head answers.
    """

    at: _Time
    models: Annotated[tuple[Model, ...], msgspec.Meta(max_length=MAX_MODELS)] = ()
    revision: _Count = 0


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="event"):
    """Something that happened, to whom or what, in words; `at` is unix seconds."""

    at: float
    kind: _Text
    subject: _Text
    text: _Sentence


Message = Beat | Doubt | Models | Event
_ON = {HEALTH: Beat | Doubt, MODELS: Models, EVENTS: Event}
_decoders = {topic: msgspec.msgpack.Decoder(kind) for topic, kind in _ON.items()}


def encode(message: Message) -> bytes:
    """Return the payload of a message."""
    return msgspec.msgpack.encode(message)


def decode(topic: str, payload: bytes) -> Message:
    """Read a payload of one of the topics above; raises PeerError for what makes no sense."""
    message: Message = wire.read(_decoders[topic], payload, f"a message on {topic}")
    return message


def beat_interval_s(members: int) -> float:
    """Return how often a node of a mesh with so many members sends its beat."""
    return min(BEAT_MAX_S, max(BEAT_MIN_S, BEAT_EACH_S * members))
