"""Everything that is decoded from others, fed with random bytes and with mutated genuine ones.

    fuzz(count, seed) → how many of each were refused; raises for an exception that escapes

A decoder may refuse with the errors that its docstring names, and with nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.authority import messages as authority
from agent.control import envelope, frames
from agent.deploy import heads
from agent.deploy import messages as deployments
from agent.deploy.heads import Head
from agent.deploy.wish import Wish
from agent.discovery import messages as discovery
from agent.errors import CoveyError
from agent.identity.keys import NodeKey
from agent.lan import dns
from agent.membership import certificate as certificates
from agent.membership import ticket as tickets
from agent.membership.certificate import Certificate
from agent.membership.grant import Signer
from agent.membership.join import JoinReply, JoinRequest
from agent.membership.keyring import KeyChange, KeyRing
from agent.membership.revocation import RevocationList, farewell
from agent.membership.ticket import Ticket
from agent.ownership import messages as ownership
from agent.presence import report

NOW = 1_800_000_000
KEY, ROOT = NodeKey(bytes([1]) * 32), NodeKey(bytes([2]) * 32)


@dataclass(frozen=True)
class Target:
    """A decoder, genuine inputs for it, and what it may raise."""

    name: str
    decode: Callable[[bytes], Any]
    samples: tuple[bytes, ...]
    refuses_with: tuple[type[Exception], ...] = (CoveyError,)


def targets() -> list[Target]:
    """Return every decoder with samples."""
    signer = Signer.of_root(ROOT)
    member = certificates.sign(
        signer, node=KEY.id, name="box", roles=("worker",), tags=("gpu",), ipv4_counter=3,
        not_before=NOW, not_after=NOW + 9999,
    )  # fmt: skip
    _, change = KeyRing.founding(bytes(32)).rotate(
        signer, bytes(range(32)), NOW, 9999.0, shortest_s=2.0
    )
    ticket = Ticket(
        version=tickets.VERSION, mesh_id=member.mesh_id, mesh_name="home", network_key=bytes(32),
        issuer=KEY.id.ed25519, invite_id=bytes(8), secret=bytes(16),
        addresses=("192.0.2.1:4001", "[2001:db8::1]:4001"), not_after=NOW + 60,
    )  # fmt: skip
    reply = JoinReply(
        certificate=member.encode(), root=ROOT.id.ed25519, ipv4_network="10.77.0.0/16", keys=(),
        revocations=(), members=(),
    )  # fmt: skip
    question = discovery.Message(
        bytes(8), discovery.Asked(discovery.Ping(), True, True, member.encode())
    )
    join = JoinRequest.to(ticket, "box", KEY)
    left = farewell(KEY, member, NOW)
    load = report.Load(1 << 30, 4, 0.5, 1)
    wish = Wish(name="m", model="covey-mini", author=bytes(32), generation=1, at=NOW)
    return [
        Target("ticket", lambda raw: Ticket.parse(raw.decode(errors="replace")),
               (ticket.encode().encode(),)),
        Target("certificate", Certificate.decode, (member.encode(),)),
        Target("certificate, verified", lambda raw: certificates.verify(
            Certificate.decode(raw), ROOT.id, member.mesh_id, NOW), (member.encode(),)),
        Target("join request", JoinRequest.decode, (join.encode(),)),
        Target("join reply", JoinReply.decode, (reply.encode(),)),
        Target("revocation list", RevocationList.decode, (left.encode(),)),
        Target("key change", KeyChange.decode, (change.encode(),)),
        Target("authority request", authority.decode_request, (
            authority.encode(authority.GetKeys()),
            authority.encode(authority.Revoke(KEY.id.ed25519, "lost")),
            authority.encode(authority.Push(member.encode())))),
        Target("authority answer", lambda raw: authority.decode_answer(raw, authority.Done),
               (authority.encode(authority.Done()),)),
        Target("authority news", authority.decode_news,
               (authority.encode(authority.NewCertificates((member.encode(),))),
                authority.encode(authority.NewList(left.encode())))),
        *(Target(f"gossip {topic}", lambda raw, topic=topic: report.decode(topic, raw),
                 (report.encode(sample),))
          for topic, sample in (
              (report.HEALTH, report.Beat(load, (report.Item("disk", "error"),))),
              (report.MODELS, report.Models((report.Model("m", "head", "ready"),))),
              (report.EVENTS, report.Event(1.5, "node.up", "box", "its agent is up")))),
        Target("envelope", envelope.decode, (envelope.seal(KEY, "health", b"x", 1, 2),)),
        Target("reply", frames.decode_reply, (b"\0payload", b"\1\x80"),
               (CoveyError, frames.FrameError)),
        Target("frame", lambda raw: frames.FrameDecoder(4096).feed(raw),
               (frames.encode_frame(b"payload"),), (frames.FrameError,)),
        Target("deployment message", deployments.decode_request,
               (deployments.encode(deployments.AskFacts()),),
               (msgspec.DecodeError, ValueError)),
        Target("deployment answer", deployments.decode_answer,
               (deployments.encode(deployments.Facts(1, 2)),),
               (msgspec.DecodeError, ValueError)),
        Target("wish", Wish.decode, (wish.signed_by(KEY, member.mesh_id).encode(),)),
        Target("heads", heads.decode, (heads.encode([Head("m", 7100, 512, "ab")]),)),
        Target("beat", ownership.decode,
               tuple(ownership.encode([ownership.Claim("m", 1, 2, 3)]))),
        Target("discovery message", discovery.decode, (discovery.encode(question),), ()),
        Target("mDNS packet", dns.read, (dns.question(), dns.question(7)), ()),
    ]  # fmt: skip


def fuzz(count: int, seed: int) -> dict[str, int]:
    """Feed `count` inputs, evenly over all decoders; return how many each refused."""
    rng = random.Random(seed)
    refused: dict[str, int] = {}
    found = targets()
    for number in range(count):
        target = found[number % len(found)]
        raw = mutated(rng, rng.choice(target.samples)) if rng.random() < 0.8 else junk(rng)
        try:
            target.decode(raw)
        except target.refuses_with:
            refused[target.name] = refused.get(target.name, 0) + 1
        except Exception as error:
            raise AssertionError(f"{target.name} let {error!r} escape for {raw.hex()}") from error
    return refused


def junk(rng: random.Random) -> bytes:
    """Return random bytes, now and then very many or none."""
    return rng.randbytes(rng.choice([0, 1, 2, 7, 32, 100, 431, 1201, 5000]))


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """Return `raw` with a few bytes changed, taken away, doubled or cut off."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                data[at:at] = data[at : at + rng.randint(1, 40)]
    return bytes(data)
