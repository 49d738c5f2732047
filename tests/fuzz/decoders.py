"""Everything that is decoded from others, fed with random bytes and with mutated genuine ones.

    fuzz(count, seed) → how many of each were refused; raises for an exception that escapes

A decoder may refuse with the errors that its docstring names, and with nothing else. What lies
behind a seal, a checksum or a signature is changed inside and sealed, summed or signed again: the
right key is in the hands of whoever means harm, too. `guided.py` feeds the same targets.
"""

from __future__ import annotations

import base64
import contextlib
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import bounds
import disks
import msgspec
import nacl.bindings
import numpy as np
import serving
import shapes
import underlay
import weights
from growth import nobody
from target import Target

from agent.acl import policy
from agent.authority import messages as authority
from agent.control import envelope, frames, rpc
from agent.deploy import heads
from agent.deploy import messages as deployments
from agent.deploy.heads import Head
from agent.deploy.wish import Wish
from agent.discovery import messages as discovery
from agent.discovery import record as records
from agent.discovery import saved
from agent.discovery import seal as seals
from agent.discovery.seal import Seal
from agent.engine import frames as ring
from agent.engine import rows
from agent.engine.serve import schema, vectors
from agent.errors import CoveyError, MembershipError
from agent.identity.keys import NodeId, NodeKey
from agent.lan import dns, peers
from agent.lan.announcement import Announcement, AnnouncementSeal, Ports
from agent.lan.peers import PeerBook
from agent.membership import certificate as certificates
from agent.membership import keyring
from agent.membership import ticket as tickets
from agent.membership.certificate import Certificate
from agent.membership.grant import Signer
from agent.membership.join import JoinReply, JoinRequest
from agent.membership.keyring import KeyChange, KeyRing
from agent.membership.networkkeys import NetworkKeys
from agent.membership.revocation import Revocation, RevocationList, Revocations, farewell
from agent.membership.revocation import sign as sign_list
from agent.membership.ticket import Ticket
from agent.models import manifest
from agent.models import messages as models
from agent.models.manifest import File, Manifest, Span
from agent.ownership import messages as ownership
from agent.presence import report

NOW = 1_800_000_000
KEY, ROOT, OWN = (NodeKey(bytes([n]) * 32) for n in (1, 2, 3))
NETWORK_KEYS = NetworkKeys.single(bytes(range(32)))
MANIFEST = Manifest(99, "0" * 64, (Span("", 0, 9, "1" * 64), Span("a", 32, 9, "2" * 64)))
SPLIT = Manifest(
    99, manifest.whole_sha256(["3" * 64, "4" * 64]),
    (*MANIFEST.spans, Span("@50", 50, 9, "5" * 64)),
    files=(File(50, "3" * 64), File(49, "4" * 64)),
)  # fmt: skip
POLICY = b"""
[[rule]]
from = ["tag:ops", "name:laptop", "role:admin"]  # or "*"
to = "*"
ports = ["tcp:22", "tcp:8000-8010", "icmp"]
action = "allow"
"""
LIMITS = {seals: ("SENDERS_MAX",), peers: ("NODES_MAX",), records: ("REMEMBERED_MAX",)}
# What begins one more level in msgpack (arrays, maps of nothing) or in JSON, and digits.
NESTED = (b"\x91", b"\x81\x00", b"[", b'{"a":', b"9")
CHAT = (
    b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],'
    b'"max_tokens":3,"stop":["a"],"temperature":0.5,"stream":true,'
    b'"stream_options":{"include_usage":true},"logit_bias":{"5":-1}}'
)


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
    announced = dns.answer(dns.Names(b"abc", b"host"), bytes(300))
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
              (report.HEALTH, report.Beat(1.5, load, (report.Item("disk", "error"),))),
              (report.MODELS, report.Models(1.5, (report.Model("m", "head", "ready"),))),
              (report.EVENTS, report.Event(1.5, "node.up", "box", "its agent is up")))),
        Target("envelope", envelope.decode, (envelope.seal(KEY, "health", b"x", 1, 2),)),
        Target("reply", frames.decode_reply, (b"\0payload", b"\1\x80"),
               (CoveyError, frames.FrameError)),
        Target("gossip RPC", rpc.decode, (rpc.encode(some_rpc()),), (rpc.RpcError,)),
        Target("frame", lambda raw: frames.FrameDecoder(4096).feed(raw),
               (frames.encode_frame(b"payload"),), (frames.FrameError,)),
        Target("deployment message", deployments.decode_request,
               (deployments.encode(deployments.AskFacts()),
                deployments.encode(deployments.AskLogs("m", 5)),
                deployments.encode(deployments.MeasureLinks(("b",))))),
        Target("deployment answer", deployments.decode_answer,
               (deployments.encode(deployments.Facts(1, 2)), deployments.encode(deployments.Facts(
                   1, 2, 2e10, 3e11, 1.7e9, links=(deployments.LinkFacts("b", 0.04, bytes_s=1e6),)
               )))),
        Target("wish", Wish.decode, (wish.signed_by(KEY, member.mesh_id).encode(),)),
        Target("models request", models.decode_request, (models.encode(models.AskModels()),)),
        Target("models answer", models.decode_answer, (
            models.encode(models.Models((models.Held("0" * 64, "1" * 64, "m", 9),))),)),
        Target("manifest", lambda raw: manifest.decode(raw, manifest.identity(MANIFEST)),
               (manifest.encode(MANIFEST),)),
        Target("manifest of a split model",
               lambda raw: manifest.decode(raw, manifest.identity(SPLIT)),
               (manifest.encode(SPLIT),)),
        Target("heads", heads.decode, (heads.encode([Head("m", 7100, 512, "ab")]),)),
        Target("beat", ownership.decode,
               tuple(ownership.encode([ownership.Claim("m", 1, 2, 3)]))),
        Target("discovery message", discovery.decode, (discovery.encode(question),), ()),
        Target("mDNS packet", dns.read, (dns.question(), dns.question(7), announced), ()),
        Target("authority announcement", authority.decode_have, (authority.encode(left.what),)),
        Target("ACL policy", lambda raw: policy.parse(raw, "policy.toml"), (POLICY,)),
        Target("chat request", schema.parse_chat, (CHAT,)),
        Target("completion request", schema.parse_completion,
               (b'{"model":"m","prompt":[1,2],"echo":true}',
                b'{"model":"m","prompt":"a","stop":"b"}')),
        Target("embedding request", lambda raw: vectors.parse_embedding(raw, 4),
               (b'{"model":"m","input":[[1,2],[3]],"encoding_format":"base64"}',
                b'{"model":"m","input":["a","b"],"dimensions":4}')),
        Target("rank request", vectors.parse_rank,
               (b'{"model":"m","query":"q","documents":["a",{"text":"b"}],"top_n":1}',)),
        Target("saved contacts", lambda raw: saved.parse(bytes(32), raw),
               (saved.dump([], ["192.0.2.1:4001"]),)),
        Target("ring message", ring_reader(), ring_samples(), (CoveyError,)),
        *inside(signer, member, ticket, change),
        *underlay.targets(),
        *weights.targets(),
        *serving.targets(),
        *disks.targets(member),
    ]  # fmt: skip


def inside(signer: Signer, member: Certificate, ticket: Ticket, change: KeyChange) -> list[Target]:
    """Return the targets that seal, sum up or sign what they are fed."""
    read_record = record_reader(member)
    seal = AnnouncementSeal(member.mesh_id, NETWORK_KEYS)
    book = PeerBook(seal, OWN.id, loopback=False)
    said = Announcement(
        version=1, node=KEY.id.ed25519, sent_us=NOW * 1_000_000, link=2,
        ports=Ports(4001, 4001, 51820), leaving=False, packed=(bytes([192, 0, 2, 1]), bytes(16)),
    )  # fmt: skip
    body = msgspec.msgpack.encode(said)
    plain = KEY.sign(seal._signed(body)) + len(body).to_bytes(2, "big") + body
    network = seal._seal

    def announcement(raw: bytes) -> object:
        return book.take(network.seal(raw[:256].ljust(256, b"\0"), bytes(24)), NOW)

    def summed(raw: bytes) -> Ticket:
        whole = raw + zlib.crc32(raw).to_bytes(4, "big")
        return Ticket.parse("covey1" + base64.b32encode(whole).decode().rstrip("=").lower())

    own_seal = Seal(OWN, member.mesh_id, NETWORK_KEYS)
    outer = own_seal._generations[0].outer

    def datagram(raw: bytes) -> object:
        return own_seal.open(
            bytes(24)
            + nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(raw, None, bytes(24), outer),
            NOW,
        )

    def record(raw: bytes) -> object:
        kind, body = raw[:1], raw[65:]
        signature = KEY.sign(records._DOMAIN + member.mesh_id + kind + body)
        return read_record(kind + signature + body)

    def announced(raw: bytes) -> object:
        signed = KEY.sign(seal._signed(raw)) + len(raw[:190]).to_bytes(2, "big")
        return announcement(signed + raw[:190])

    def certified(raw: bytes) -> None:
        made = signed_again(Certificate.decode(raw))
        certificates.verify(made, ROOT.id, member.mesh_id, NOW)
        assert Certificate.decode(made.encode()) == made

    def changed(raw: bytes) -> None:
        made = signed_again(KeyChange.decode(raw))
        founding = KeyRing.founding(bytes(32))
        found = founding.announce(made, ROOT.id, NOW).pruned(NOW)
        found.at(NOW), found.next_step(NOW), found.offer(NOW)
        offered = keyring.OfferedKey(bytes(range(32)), made.encode())
        KeyRing.of_offer([*founding.offer(NOW), offered], ROOT.id, NOW).at(NOW)

    def listed(raw: bytes) -> None:
        found = Revocations().take(signed_again(RevocationList.decode(raw)), ROOT.id, NOW)
        found.pruned(NOW), found.have(), found.orphaned(KEY.id.ed25519, (), NOW)

    out = sign_list(signer, 3, [Revocation(KEY.id.ed25519, NOW - 5, "lost")])
    sealed = Seal(KEY, member.mesh_id, NETWORK_KEYS)
    opened = [
        nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
            sealed.seal(b"B", to, NOW, bytes(24))[24:], None, bytes(24), outer
        )
        for to in (None, OWN.id)
    ]
    return [
        Target("LAN announcement, sealed", announcement, (plain,), ()),
        Target("LAN announcement, signed", announced, (body,), ()),
        Target(
            "record, signed",
            record,
            tuple(records.sign(KEY, member.mesh_id, made).raw for made in some_records(member)),
            (),
        ),
        Target("ticket, summed", summed, (msgspec.msgpack.encode(ticket),)),
        Target("datagram, sealed", datagram, tuple(opened), ()),
        Target("certificate, signed", certified, (member.encode(),)),
        Target("key change, signed", changed, (change.encode(),)),
        Target("revocation list, signed", listed, (out.encode(),)),
    ]


def signed_again(made: Any) -> Any:
    """Return a certificate, key change or list with the root's own signature."""
    return msgspec.structs.replace(made, signature=ROOT.sign(made.signed_bytes()))


def some_rpc() -> rpc.Rpc:
    """Return one with all there is."""
    ids = [bytes([n]) * 20 for n in range(3)]
    return rpc.Rpc(
        subscriptions=[("health", True)], published=[("health", b"data")],
        ihave=[("health", ids)], iwant=ids, graft=["health"], prune=["load"],
    )  # fmt: skip


def some_records(member: Certificate) -> tuple[records.Record, ...]:
    """Return one of each kind."""
    common: dict[str, Any] = {
        "node": KEY.id.ed25519, "certificate": member.encode(), "seq": NOW * 1000,
        "expiry": NOW + 60,
    }  # fmt: skip
    endpoints = ("192.0.2.1:4001", "[2001:db8::1]:4001")
    return (
        records.ServiceRecord(service="heads", payload=b"x", **common),
        records.MemberRecord(
            wireguard_endpoints=endpoints, control_addresses=endpoints,
            discovery_endpoints=endpoints, **common,
        ),
    )  # fmt: skip


def record_reader(member: Certificate) -> Callable[[bytes], object]:
    """Return what judges a record, of a mesh in which everybody is a member."""

    def verify(certificate: bytes, now: float) -> NodeId:
        if certificate != member.encode():
            raise MembershipError("not it")
        return member.node_id

    verifier = records.Verifier(member.mesh_id, verify)

    def read(raw: bytes) -> object:
        signed = verifier._judge(raw, NOW)
        return signed and [verifier.record(raw, key, NOW) for key in signed.keys]

    return read


def ring_reader() -> Callable[[bytes], object]:
    """Return what takes a stage's messages, in pieces."""
    limits = ring.Limits(n_embd=64, max_rows=8, n_seq=4)

    def read(raw: bytes) -> object:
        decoder = ring.Decoder(limits, "stage 1")
        found = [m for at in range(0, len(raw), 50) for m in decoder.feed(raw[at : at + 50])]
        for message in found:
            if isinstance(message, ring.Frame):
                with contextlib.suppress(ValueError):  # not finite
                    rows.unpack(message, limits.n_embd)
        return found

    return read


def ring_samples() -> tuple[bytes, ...]:
    """Return one message of each kind, and a frame with each type of rows."""
    values = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    pairs = np.array([[0, 5], [1, 6]], np.int32)
    frame = ring.Frame(7, (ring.Remove(1, 0, 3), ring.Copy(0, 1)), pairs, values)
    hello = ring.Hello(bytes(16), 7, 1, 4, 64, bytes(32))
    return (
        ring.encode_hello(hello), ring.encode_ping(ring.Ping(7)),
        ring.encode_fault(ring.Fault(7, 1, "lost")), ring.encode_echo(ring.Echo(7)),
        b"".join(ring.encode_probe(ring.Probe(7), 100)),
        *(b"".join(ring.encode_frame(rows.pack(frame, kind))) for kind in ring.RowType),
    )  # fmt: skip


def fuzz(count: int, seed: int, pulse: Callable[[int], None] = nobody) -> dict[str, int]:
    """Feed `count` inputs, evenly over all decoders; return how many each refused.

    `pulse` is called with the number of each.
    """
    with bounds.small(LIMITS):
        return _fuzz(count, seed, pulse)


def _fuzz(count: int, seed: int, pulse: Callable[[int], None]) -> dict[str, int]:
    rng = random.Random(seed)
    refused: dict[str, int] = {}
    found = targets()
    # What is remembered by function is full from the start, as what has LIMITS soon is.
    for _ in range(certificates._node_id.cache_info().maxsize or 0):
        certificates._node_id(rng.randbytes(32))
    for number in range(count):
        pulse(number)
        target = found[number % len(found)]
        raw = made(rng, rng.choice(target.samples))
        if not target.takes(raw):
            refused[target.name] = refused.get(target.name, 0) + 1
    return refused


def made(rng: random.Random, sample: bytes) -> bytes:
    """Return hostile bytes: random, a sample with some changed, or hostile values in its form."""
    chance = rng.random()
    if chance < 0.15:
        return junk(rng)
    found = shapes.reshaped(rng, sample) if chance < 0.6 else None
    return mutated(rng, sample) if found is None else found


def junk(rng: random.Random) -> bytes:
    """Return random bytes, now and then very many or none."""
    return rng.randbytes(rng.choice([0, 1, 2, 7, 32, 100, 431, 1201, 5000]))


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """Return `raw` with a few bytes changed, taken away, doubled or cut off."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(50):
            case 0:
                data[at:at] = rng.choice(NESTED) * rng.choice((30, 300, 3000))
            case n if n < 10 and data:
                data[at % len(data)] = rng.randrange(256)
            case n if n < 20 and data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case n if n < 30:
                del data[at : at + rng.randint(1, 8)]
            case n if n < 40:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                data[at:at] = data[at : at + rng.randint(1, 40)]
    return bytes(data)
