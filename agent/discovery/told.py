"""Tells the daemon of members as their records come in, each once. Used by `node.py`."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from agent.discovery.record import MemberRecord, Signed, Verifier
from agent.identity.keys import NodeId

log = logging.getLogger(__name__)

OnMember = Callable[[MemberRecord], None]


class Told:
    """What was told of each member. A record that says the same again is not told again."""

    def __init__(self, own: NodeId, verifier: Verifier, on_member: OnMember | None) -> None:
        self._own = own
        self._verifier = verifier
        self._on_member = on_member
        self._told: dict[NodeId, MemberRecord] = {}

    def __len__(self) -> int:
        return len(self._told)

    def heard(self, signed: Signed) -> None:
        """Take in a verified record, whatever it is of, and however it came."""
        record = signed.record
        if self._on_member is None or not isinstance(record, MemberRecord):
            return
        told = self._told.get(record.id)
        if record.id == self._own or (told is not None and told.seq >= record.seq):
            return
        self._told[record.id] = record
        if told is not None and _words(told) == _words(record):
            return
        try:
            self._on_member(record)
        except Exception:  # theirs, and no reason to refuse a record
            log.exception("discovery.on_member_failed node=%s", record.id)

    def purge(self, now: float) -> None:
        """Forget records that have run out, and those of nodes that are members no more."""
        self._told = {
            node: record
            for node, record in self._told.items()
            if record.expiry > now and self._verifier.member(record.certificate, now) == node
        }


def _words(record: MemberRecord) -> MemberRecord:
    """Return what a record says, without when it was said."""
    return msgspec.structs.replace(record, seq=0, expiry=0)
