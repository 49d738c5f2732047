"""Lists of nodes that are members no more: signed, numbered, never taking back. A core.

    signer            entries               proof that the signer may
    ------            -------               -------------------------
    the root          any nodes             its key
    a granted issuer  any nodes             the grant in the list
    a node itself     itself: it has left   its certificate in the list

A higher number of one signer replaces a lower one, and holds all of it that is not outdated. An
entry is outdated once no certificate that it voids can still be valid. The union of all lists
counts; `Revocations` is that union. A list is msgpack (see `wire.py`), signed as a certificate is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import msgspec

from agent.errors import MembershipError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId, NodeKey
from agent.membership import grant as grants
from agent.membership import wire
from agent.membership.certificate import LONGEST_LIFETIME_S, MAX_BYTES, Certificate
from agent.membership.grant import Grant, Signer
from agent.membership.wire import CLOCK_SKEW_S, Key, Signature, Time

VERSION = 1
# Certificates signed before an entry have expired by then, and the clocks' difference as well.
KEEP_S = LONGEST_LIFETIME_S + 2 * CLOCK_SKEW_S
# With all reasons at their longest 700 KiB; a mesh that revokes more in a year is under attack.
MAX_ENTRIES = 4096
MAX_REASON_CHARACTERS = 100
# Before an issuer's grant ends, the other issuers take its entries over into their own lists.
ADOPT_BEFORE_S = 30 * 86400
DIGEST_BYTES = 16
LEFT = "left"
_PREFIX = b"covey-revocations-v1\0"

_Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=2**32)]
_Proof = Annotated[bytes, msgspec.Meta(max_length=MAX_BYTES)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class Revocation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One node's exclusion since `at` (unix seconds), and why: one printable line."""

    node: Key
    at: Time
    reason: _Reason


class Have(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which list of a signer someone has; `departure` says that it is the signer's farewell."""

    signer: Key
    departure: bool
    number: _Number
    digest: Digest


class RevocationList(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One signer's word on who is out; it counts only once `verify` has passed.

    `certificate` is empty, or the bytes of the certificate of a node that says that it leaves.
    """

    version: int
    mesh_id: Key
    signer: Key
    number: _Number
    grant: Grant | None
    certificate: _Proof
    entries: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=MAX_ENTRIES)]
    signature: Signature

    @classmethod
    def decode(cls, raw: bytes) -> RevocationList:
        """Read the bytes of `encode`; raises MembershipError for anything else."""
        made = wire.decode(raw, cls, "the revocation list", VERSION, MembershipError)
        nodes = [entry.node for entry in made.entries]
        if sorted(set(nodes)) != nodes or not all(e.reason.isprintable() for e in made.entries):
            raise MembershipError("the revocation list is damaged")
        return made

    def encode(self) -> bytes:
        """Return the list's bytes."""
        return msgspec.msgpack.encode(self)

    @property
    def departure(self) -> bool:
        """Whether it is a node's word about itself."""
        return bool(self.certificate)

    @property
    def what(self) -> Have:
        """Which list this is."""
        digest = hashlib.sha256(self.encode()).digest()[:DIGEST_BYTES]
        return Have(self.signer, self.departure, self.number, digest)

    def signed_bytes(self) -> bytes:
        """Return what the signature covers: the prefix, and the array without its last element."""
        return _PREFIX + msgspec.msgpack.encode(msgspec.structs.astuple(self)[:-1])

    def holds(self, other: RevocationList, now: float) -> bool:
        """Say whether everything of `other` that is not outdated at `now` is in this one too."""
        mine = set(self.entries)
        return all(e in mine or outdated(e, now) for e in other.entries)


def outdated(entry: Revocation, now: float) -> bool:
    """Say whether every certificate that the entry voids has expired at `now`."""
    return now > entry.at + KEEP_S


def clean_reason(text: str) -> str:
    """Return a reason as lists carry it: one printable line; raises UsageError if it is too long.

    What cannot be printed becomes a space.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) > MAX_REASON_CHARACTERS:
        raise UsageError(
            f"the reason has {len(line)} characters", hint=f"Use {MAX_REASON_CHARACTERS} at most."
        )
    return line


def sign(signer: Signer, number: int, entries: Iterable[Revocation]) -> RevocationList:
    """Return the signer's list `number` with these entries."""
    unsigned = RevocationList(
        version=VERSION,
        mesh_id=signer.mesh_id,
        signer=signer.public,
        number=number,
        grant=signer.grant,
        certificate=b"",
        entries=tuple(sorted(entries, key=lambda entry: entry.node)),
        signature=bytes(64),
    )
    return msgspec.structs.replace(unsigned, signature=signer.key.sign(unsigned.signed_bytes()))


def farewell(key: NodeKey, certificate: Certificate, now: float) -> RevocationList:
    """Return a node's own word that it leaves the mesh of its certificate."""
    unsigned = RevocationList(
        version=VERSION,
        mesh_id=certificate.mesh_id,
        signer=key.id.ed25519,
        number=1,
        grant=None,
        certificate=certificate.encode(),
        entries=(Revocation(key.id.ed25519, int(now), LEFT),),
        signature=bytes(64),
    )
    return msgspec.structs.replace(unsigned, signature=key.sign(unsigned.signed_bytes()))


def verify(made: RevocationList, root: NodeId) -> None:
    """Return if the list's signer may say so, at whatever time.

    Raises MembershipError: another mesh, no right to sign, or a bad signature.
    """
    if made.mesh_id != addresses.mesh_id(root):
        raise MembershipError("the revocation list is for another mesh")
    if made.departure:
        certificate = Certificate.decode(made.certificate)
        alone = len(made.entries) == 1 and made.entries[0].node == made.signer
        if not alone or made.grant is not None or certificate.node != made.signer:
            raise MembershipError("a node's farewell names others than itself")
        if not certificate.chains_to(root):
            raise MembershipError("a farewell came from a node that never was a member")
    else:
        grants.check_signer("the revocation list", made.signer, made.grant, root)
    if not NodeId(made.signer).verify(made.signature, made.signed_bytes()):
        raise MembershipError("the revocation list has a bad signature")


@dataclass(frozen=True)
class Exclusion:
    """Why and since when (unix seconds) a node is out; `left`: by its own word alone."""

    at: int
    reason: str
    left: bool


_Index = tuple[bytes, bool]


@dataclass(frozen=True)
class Revocations:
    """The newest known list of each signer. A value: what changes it returns another one."""

    lists: Mapping[_Index, RevocationList] = field(default_factory=dict)

    @classmethod
    def of(cls, lists: Iterable[RevocationList]) -> Revocations:
        """Return the union of lists that were verified before."""
        return cls({(made.signer, made.departure): made for made in lists})

    @cached_property
    def excluded(self) -> Mapping[NodeId, Exclusion]:
        """Every node that is out. The earliest revocation counts before a departure."""
        found: dict[NodeId, Exclusion] = {}
        for made in self.lists.values():
            for entry in made.entries:
                new = Exclusion(entry.at, entry.reason, made.departure)
                node = NodeId(entry.node)
                old = found.get(node)
                if old is None or (new.left, new.at) < (old.left, old.at):
                    found[node] = new
        return found

    @cached_property
    def revoked_signers(self) -> Mapping[bytes, Exclusion]:
        """Those who were put out by others, by key: their signatures count no more."""
        return {n.ed25519: out for n, out in self.excluded.items() if not out.left}

    def have(self) -> tuple[Have, ...]:
        """Return which lists these are."""
        return tuple(made.what for made in self.lists.values())

    def lacking(self, have: Iterable[Have]) -> tuple[RevocationList, ...]:
        """Return those of these lists that someone who has `have` lacks, or has another form of."""
        theirs = {(h.signer, h.departure): h for h in have}
        missing = []
        for index, made in self.lists.items():
            other = theirs.get(index)
            if other is None or (other.number <= made.number and other != made.what):
                missing.append(made)
        return tuple(missing)

    def take(self, made: RevocationList, root: NodeId, now: float) -> Revocations:
        """Return these with another's list; the same object when it brings nothing new.

        Raises MembershipError when it is not to be believed: see `verify`; its signer was revoked,
        or its grant is over (its entries come in another issuer's list); it takes something back;
        or it speaks of the future.
        """
        index = (made.signer, made.departure)
        known = self.lists.get(index)
        if known is not None and known.number >= made.number:
            return self
        verify(made, root)
        if made.signer in self.revoked_signers and not made.departure:
            raise MembershipError("the revocation list is of an issuer that was itself revoked")
        if made.grant is not None and made.grant.not_after < now - CLOCK_SKEW_S:
            raise MembershipError("the revocation list is of an issuer whose grant is over")
        if known is not None and not made.holds(known, now):
            raise MembershipError("the revocation list takes back what an earlier one said")
        if any(entry.at > now + CLOCK_SKEW_S for entry in made.entries):
            raise MembershipError(
                "the revocation list speaks of the future", hint="Check the machines' clocks."
            )
        return Revocations({**self.lists, index: made})

    def with_entries(
        self, signer: Signer, new: Iterable[Revocation], now: float, *, above: int = 0
    ) -> tuple[Revocations, RevocationList | None]:
        """Return these with a new list of `signer` that holds `new` as well, and that list.

        Its number is over `above`, too. None when nothing would be new. Raises MembershipError when
        it would be too long.
        """
        index = (signer.public, False)
        known = self.lists.get(index)
        number = known.number if known else 0
        kept = {e.node: e for e in (known.entries if known else ()) if not outdated(e, now)}
        added = {e.node: e for e in new if e.node not in kept and not outdated(e, now)}
        if not added and number >= above:
            return self, None
        if len(kept) + len(added) > MAX_ENTRIES:
            raise MembershipError(f"a revocation list holds {MAX_ENTRIES} nodes at most")
        made = sign(signer, max(number, above) + 1, [*kept.values(), *added.values()])
        return Revocations({**self.lists, index: made}), made

    def orphaned(self, own: bytes, live_issuers: Iterable[bytes], now: float) -> list[Revocation]:
        """Return the entries whose list soon persuades no newcomer: its signer's time is over.

        `own` and `live_issuers` are Ed25519 keys. An issuer takes these over into its own list.
        """
        live = set(live_issuers)
        found = []
        for (signer, departure), made in self.lists.items():
            if departure or signer == own or made.grant is None:
                continue
            if signer not in live or made.grant.not_after < now + ADOPT_BEFORE_S:
                found += [entry for entry in made.entries if not outdated(entry, now)]
        return found

    def pruned(self, now: float) -> Revocations:
        """Return these without the lists that are outdated as a whole and will never grow again.

        The list of who may still sign stays, though it be outdated: others remember its number.
        """
        kept = {
            index: made
            for index, made in self.lists.items()
            if not all(outdated(entry, now) for entry in made.entries)
            or not (made.departure or (made.grant and made.grant.not_after < now - CLOCK_SKEW_S))
        }
        return self if len(kept) == len(self.lists) else Revocations(kept)
