"""All wishes of the mesh, the same on every node after a while. A core.

A wish replaces one of the same name that ranks lower; one that was removed stays as a mark for 30
days, so that a node that slept does not bring it back. Nodes compare digests, then summaries, and
exchange what differs. Members that may deploy are those with the role worker or admin; what the
book took in stays when its author leaves, and the owner signs it anew so that newcomers take it in
too (`adopt`). Times are unix seconds. Used by `keeper.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import msgspec

from agent.deploy.wish import Wish
from agent.errors import MembershipError, PeerError, UsageError
from agent.identity.keys import NodeId, NodeKey

REMOVED_KEPT_S = 30 * 86400
# Clocks of machines that have not reached a time server yet are off by less.
_MAX_AHEAD_S = 86400
# Of one author; a member that goes mad must not fill everyone's memory.
MAX_BY_AUTHOR = 200

Summary = tuple[tuple[str, int, bytes], ...]
"""Name, generation and author of each wish, by name."""


class DeploymentBook:
    """Wishes by name. What is in it is signed; who may sign is asked when it comes in."""

    def __init__(self, mesh_id: bytes, wishes: Iterable[Wish] = ()) -> None:
        self._mesh_id = mesh_id
        self._wishes = {wish.name: wish for wish in wishes}

    def entries(self) -> tuple[Wish, ...]:
        """Return every wish by name, the removed ones too."""
        return tuple(wish for _, wish in sorted(self._wishes.items()))

    def wishes(self) -> tuple[Wish, ...]:
        """Return what shall run, by name."""
        return tuple(wish for wish in self.entries() if not wish.removed)

    def find(self, name: str) -> Wish | None:
        """Return what is known of a name; it may be removed."""
        return self._wishes.get(name)

    # ------------------------------------------------------------------ this node's own word

    def add(self, key: NodeKey, now: float, wish: Wish) -> Wish:
        """Sign and take in a new wish as of `now`; raises UsageError when the name is taken."""
        known = self._wishes.get(wish.name)
        if known is not None and not known.removed:
            raise UsageError(
                f"{wish.name} is already deployed", hint=f"`agent undeploy {wish.name}` ends it."
            )
        generation = known.generation + 1 if known else 1
        return self._sign(msgspec.structs.replace(wish, generation=generation, at=int(now)), key)

    def remove(self, key: NodeKey, now: float, name: str) -> Wish:
        """Sign and take in that a deployment shall end; raises UsageError when there is none."""
        known = self._wishes.get(name)
        if known is None or known.removed:
            raise UsageError(
                f"{name} is not deployed in this mesh", hint="`agent ps` shows what is."
            )
        return self._again(known, key, now, removed=True)

    def adopt(self, key: NodeKey, now: float, name: str) -> Wish:
        """Sign a wish anew as this node's own, because its author may not speak any more."""
        return self._again(self._wishes[name], key, now, removed=self._wishes[name].removed)

    # ------------------------------------------------------------------ others' word

    def merge(self, wish: Wish, may_deploy: Callable[[NodeId], bool], now: float) -> bool:
        """Take in a wish if it is news; returns whether it was.

        Raises PeerError for a wish that is not signed or makes no sense, MembershipError for an
        author who may not deploy, or has too many.
        """
        known = self._wishes.get(wish.name)
        if known is not None and known.rank >= wish.rank:
            return False
        if wish.removed and now - wish.at > REMOVED_KEPT_S:
            return False
        wish.check(self._mesh_id)
        if wish.at - now > _MAX_AHEAD_S:
            raise PeerError(f"the deployment {wish.name!r} was signed in the future")
        if not may_deploy(wish.author_id):
            raise MembershipError(f"…{wish.author_id.short} may not deploy")
        others = (w for w in self._wishes.values() if w.name != wish.name)
        if sum(w.author == wish.author for w in others) >= MAX_BY_AUTHOR:
            raise MembershipError(f"…{wish.author_id.short} has too many deployments")
        self._wishes[wish.name] = wish
        return True

    def digest(self) -> bytes:
        """Return 32 bytes that are the same for the same wishes."""
        return hashlib.sha256(msgspec.msgpack.encode([w.rank for w in self.entries()])).digest()

    def summary(self) -> Summary:
        """Return what is here, for another node to compare."""
        return tuple((wish.name, wish.generation, wish.author) for wish in self.entries())

    def compare(self, summary: Summary) -> tuple[list[Wish], list[str]]:
        """Return the wishes that the summary's node lacks, and the names that this one lacks."""
        theirs = {name: (generation, author) for name, generation, author in summary}
        newer = [
            w for w in self.entries() if theirs.get(w.name, (0, b"")) < (w.generation, w.author)
        ]
        wanted = [
            name for name, rank in theirs.items()
            if name not in self._wishes or self._wishes[name].rank[:2] < rank
        ]  # fmt: skip
        return newer, wanted

    def prune(self, now: float) -> bool:
        """Drop the marks of what was removed long ago; returns whether there were any."""
        old = [w.name for w in self._wishes.values() if w.removed and now - w.at > REMOVED_KEPT_S]
        for name in old:
            del self._wishes[name]
        return bool(old)

    def _again(self, known: Wish, key: NodeKey, now: float, *, removed: bool) -> Wish:
        return self._sign(
            msgspec.structs.replace(
                known, author=key.id.ed25519, generation=known.generation + 1, at=int(now),
                removed=removed,
            ),
            key,
        )  # fmt: skip

    def _sign(self, wish: Wish, key: NodeKey) -> Wish:
        signed = wish.signed_by(key, self._mesh_id)
        self._wishes[wish.name] = signed
        return signed
