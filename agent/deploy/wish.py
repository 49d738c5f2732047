"""A wish: one deployment as its author signed it, or that it shall be no more. A core.

The signature covers the mesh's id and the exact bytes of the array without the signature, behind a
prefix that no other signed thing has. Which of two wishes of the same name counts is decided by the
higher generation, then the higher author id: the same on every node. Used by `book.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.deploy.ringkey import MOST_RINGS, key_of, keys_of
from agent.errors import PeerError, UsageError
from agent.identity.keys import NodeId, NodeKey
from agent.membership import wire
from agent.ownership.lease import NodeBytes
from agent.placement.inputs import Objective

VERSION = 1
MAX_NAME_CHARACTERS = 64
_PREFIX = b"covey-deployment-v1\0"
_MAX_NUMBER = 2**53
# Of a wish, up to the signature.
_FIRST_FIELDS = 12

EngineKind = Literal["ring", "rpc"]
_Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_NUMBER)]
_Tags = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=64)], ...],
    msgspec.Meta(max_length=16),
]
# A node id, or nothing.
_Node = Annotated[bytes, msgspec.Meta(max_length=32)]
# The id of a stored model (hex), or nothing.
_Model = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]


class Wish(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What shall run, or not (`removed`). Made by `sign`; counts once `check` has passed.

    `model` is a bundled name, the name of a stored model with that `model_id` (any node may have
    it, or get it), or an absolute path on the node `source` (empty: neither file is named so).
    `nodes` None: as few as it fits on; `context` 0: the model's own. `prefer` is the node that had
    best be its head (empty: any). `at` is unix seconds, `signature` 64 bytes. `engine` says what
    spreads it over nodes: our ring, or llama.cpp's RPC. `draft` is a draft model, named as `model`
    is, with `draft_id` (empty: none). `objective` says what the ring shall be good for, `least` on
    how many nodes it shall be at least; its nodes have a tag of `only`, where there are any, and
    none of `never`.
    """

    version: int = VERSION
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARACTERS)]
    model: Annotated[str, msgspec.Meta(max_length=1024)]
    source: _Node = b""
    nodes: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    context: _Count = 0
    prefer: _Node = b""
    author: NodeBytes
    generation: Annotated[int, msgspec.Meta(ge=1, le=_MAX_NUMBER)]
    at: _Count
    removed: bool = False
    signature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
    engine: EngineKind = "ring"
    draft: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    objective: Objective = "auto"
    least: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    only: _Tags = ()
    never: _Tags = ()
    model_id: _Model = ""
    draft_id: _Model = ""
    rings: Annotated[int, msgspec.Meta(ge=1, le=MOST_RINGS)] = 1
    heads: Annotated[tuple[_Node, ...], msgspec.Meta(max_length=MOST_RINGS - 1)] = ()

    @property
    def author_id(self) -> NodeId:
        """Who signed it."""
        return NodeId(self.author)

    @property
    def source_id(self) -> NodeId | None:
        """The only node that has the models' files; None where all are bundled or stored."""
        return NodeId(self.source) if self.source else None

    @property
    def stored_ids(self) -> tuple[str, ...]:
        """The ids of its stored models: any node that has them, or gets them, may be its head."""
        return tuple(dict.fromkeys(one for one in (self.model_id, self.draft_id) if one))

    @property
    def prefer_id(self) -> NodeId | None:
        """The node that had best be the head."""
        return NodeId(self.prefer) if self.prefer else None

    @property
    def keys(self) -> tuple[str, ...]:
        """What each of its rings is called."""
        return keys_of(self.name, self.rings)

    def head_of(self, number: int) -> NodeId | None:
        """Return the node that had best be the head of ring `number`, from 1."""
        if number == 1:
            return self.prefer_id
        raw = self.heads[number - 2] if number - 2 < len(self.heads) else b""
        return NodeId(raw) if raw else None

    @property
    def rank(self) -> tuple[int, bytes, bytes]:
        """What decides between two wishes of one name; the higher counts."""
        return self.generation, self.author, self.signature

    def signed_by(self, key: NodeKey, mesh_id: bytes) -> Wish:
        """Return it with the signature of `key`, whose node is the author."""
        blank = msgspec.structs.replace(self, author=key.id.ed25519, signature=b"")
        signature = key.sign(blank._signed_bytes(mesh_id))
        return msgspec.structs.replace(blank, signature=signature)

    def check(self, mesh_id: bytes) -> None:
        """Raise PeerError unless its author signed it for this mesh and it makes sense."""
        if any(len(node) not in (0, 32) for node in (self.source, self.prefer, *self.heads)):
            raise PeerError(f"the deployment {self.name!r} names a node that is none")
        check_name(self.name, PeerError, self.rings)
        if not self.author_id.verify(self.signature, self._signed_bytes(mesh_id)):
            raise PeerError(f"the deployment {self.name!r} is not signed by its author")

    def encode(self) -> bytes:
        """Return its bytes."""
        fields = msgspec.structs.astuple(self)[:_FIRST_FIELDS]
        return msgspec.msgpack.encode((*fields, *self._later()))

    @classmethod
    def decode(cls, raw: bytes) -> Wish:
        """Read the bytes of `encode`, unchecked; raises PeerError for anything else."""
        return wire.decode(raw, cls, "the deployment", VERSION, PeerError, encode=cls.encode)

    def _signed_bytes(self, mesh_id: bytes) -> bytes:
        fields = msgspec.structs.astuple(self)[: _FIRST_FIELDS - 1]
        return _PREFIX + mesh_id + msgspec.msgpack.encode((*fields, *self._later()))

    def _later(self) -> tuple[object, ...]:
        """Return the fields behind the signature, up to the last one that says anything.

        They came later; a wish without them has the bytes that it had before there were any.
        """
        later = msgspec.structs.astuple(self)[_FIRST_FIELDS:]
        defaults = self.__struct_defaults__[-len(later) :]
        said = [number for number, value in enumerate(later) if value != defaults[number]]
        return later[: said[-1] + 1] if said else ()


def check_name(
    name: str, error: type[PeerError] | type[UsageError] = UsageError, rings: int = 1
) -> None:
    """Raise `error` for a name that could not stand in a URL's path or a table.

    Of several rings, each one's key has to fit.
    """
    most = MAX_NAME_CHARACTERS - len(key_of("", rings))
    if not 1 <= len(name) <= most or "/" in name or not name.isprintable():
        raise error(
            f"{name[:80]!r} cannot name a deployment" + (f" of {rings} rings" * (rings > 1)),
            hint=f"Give it a name (--name) of 1 to {most} characters without a /.",
        )
