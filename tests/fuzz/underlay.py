"""What comes from the network below the overlay, and from this machine's own network.

Targets for `decoders.py`: probes and signals of paths, relays and tunnels, home routers, raw
packets, WireGuard's own texts. What lies behind a seal is changed inside and sealed again.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from ipaddress import ip_interface, ip_network
from pathlib import Path

import msgspec
import nacl.bindings
from target import Target

from agent.engine import rpc_wire
from agent.identity.keys import NodeKey
from agent.membership.networkkeys import NetworkKeys
from agent.overlay import alias, uapi, wgquick
from agent.overlay.device import DeviceConfig, PeerConfig
from agent.paths import messages as paths
from agent.paths.wire import PathSeal
from agent.portmap import igd, natpmp, pcp, ssdp
from agent.portmap.igdchild import Reply
from agent.portmap.words import Kind, Request
from agent.probing import header
from agent.probing.port import MAGIC
from agent.relay import hello as hellos
from agent.relay import messages as relays
from agent.relay import tunnel, wire
from agent.rtnetlink import attributes, messages
from agent.traversal.relayticket import RelayTicket
from agent.unreadable import UNREADABLE
from image.node import setupdns

NOW = 1_800_000_000
KEY, OWN = (NodeKey(bytes([n]) * 32) for n in (1, 3))
MESH_ID = bytes(range(32))
KEYS = NetworkKeys.single(bytes(32))
PLACE = ("192.0.2.1", 51820)
PAIR = bytes(8)


def targets() -> list[Target]:
    """Return them, with samples."""
    sealed = PathSeal(KEY, MESH_ID, KEYS, 7)
    sealed.set_members([OWN.id])
    own = PathSeal(OWN, MESH_ID, KEYS, 8)
    own.set_members([KEY.id])
    return [
        Target("probe", lambda raw: own.open_probe(raw),
               (sealed.seal_probe(OWN.id, paths.Ping(1), bytes(24)),)),
        Target("signal", lambda raw: own.open_signal(raw),
               (sealed.seal_signal(OWN.id, signal(), bytes(24)),)),
        *inside_paths(sealed, own),
        Target("relay request", relays.decode_request, (
            relays.encode(relays.Allocate(KEY.id.ed25519)), relays.encode(relays.Refresh(PAIR)))),
        Target("relay answer", lambda raw: relays.decode_answer(raw, relays.Allocated),
               (relays.encode(relays.Allocated(PAIR, 4000, 4001, 60.0, 1 << 30, 443)),)),
        Target("relay ticket", RelayTicket.decode, (RelayTicket(PAIR, 4000, 443).encode(),)),
        Target("relay datagram, sealed", opened_by_relay(), relay_samples(), ()),
        *tunnelled(),
        Target("tunnel message", lambda raw: list(tunnel.datagrams(raw)),
               (b"\0\x03abc\0\x01x",), (ValueError,)),
        Target("NAT-PMP answer", natpmp.NatPmp(51820).read, (
            b"\0\x80\0\0\0\0\0\x09\xc0\0\x02\x01",
            b"\0\x81\0\0\0\0\0\x09\xca\x6c\xca\x6c\0\0\x0e\x10"), ()),
        *router(),
        Target("UPnP reply", lambda raw: igd._read(msgspec.json.decode(raw, type=Reply)), (
            b'{"outcome":"granted","port":51820,"lifetime_s":3600,"address":"192.0.2.1"}',),
            UNREADABLE),
        Target("UPnP discovery", lambda raw: ssdp.description_url(raw, "192.168.1.1"), (SSDP,), ()),
        Target("raw packet", header.read_ipv4, (packet(),), ()),
        Target("kernel's event", lambda raw: [attributes(m.body) for m in messages(raw)],
               (netlink(),), ()),
        Target("WireGuard's answer", lambda raw: uapi.complete(raw) and uapi.decode(raw),
               (UAPI,), (ValueError,)),
        Target("wg-quick file", file_reader(wgquick.read), (wg_quick(),)),
        Target("interface's alias", lambda raw: alias.parse(raw.decode(errors="replace")),
               (alias.of(bytes(32), alias.NOT_KEPT, 9).text().encode(),), ()),
        Target("set-up question", lambda raw: setupdns.read(raw, setupdns.Setup("shed", "waits")),
               (setup_question(),), ()),
        Target("RPC hello", lambda raw: rpc_wire.kind_of(raw, bytes(16), 3, 1),
               (rpc_wire.encode_hello(bytes(16), 3, 1, rpc_wire.BEAT),), ()),
    ]  # fmt: skip


def signal() -> paths.Signal:
    """Return one with all there is."""
    candidate = paths.Candidate.of(paths.Kind(1), PLACE)
    offer = paths.RelayOffer(KEY.id.ed25519, paths.pack(PLACE), RelayTicket(PAIR, 9, 443).encode())
    return paths.Signal(5, 6, 3, 4, paths.NatKind.HARD, True, False, True, (candidate,), (offer,))


def inside_paths(sealed: PathSeal, own: PathSeal) -> list[Target]:
    """Return targets for what a member seals: a probe's and a signal's insides."""

    def inner(raw: bytes, what: bytes) -> bytes:
        plain = own._open(raw, what)
        return plain[1]

    def probe(raw: bytes) -> object:
        raw = raw[: paths.DATAGRAM_MAX_BYTES - 100]
        size = max(paths.PROBE_BYTES, len(raw) + 64) - 54
        return own.open_probe(MAGIC + sealed._seal(OWN.id, MAGIC, raw, size, bytes(24)))

    def told(raw: bytes) -> object:
        return own.open_signal(sealed._seal(OWN.id, b"signal", raw[:900], 0, bytes(24)))

    said = (
        paths.Ping(1, wants=True), paths.Pong(1, paths.pack(PLACE)), paths.Observe(2),
        paths.Observed(2, paths.pack(("2001:db8::1", 9))), paths.MtuProbe(3, paths.PROBE_BYTES),
        paths.MtuAnswer(3, 1400),
    )  # fmt: skip
    probes = [sealed.seal_probe(OWN.id, each, bytes(24))[len(MAGIC) :] for each in said]
    return [
        Target("probe, sealed", probe, tuple(inner(raw, MAGIC) for raw in probes)),
        Target("signal, sealed", told,
               (inner(sealed.seal_signal(OWN.id, signal(), bytes(24)), b"signal"),)),
    ]  # fmt: skip


def opened_by_relay() -> Callable[[bytes], object]:
    """Return what seals a plain text of a pair's and opens it at the relay."""
    side = wire.PairSeal(KEY, OWN.id, MESH_ID, KEYS)
    relay = wire.PairSeal(OWN, KEY.id, MESH_ID, KEYS)

    def take(raw: bytes) -> object:
        plain = raw[: wire._PLAIN_BYTES].ljust(wire._PLAIN_BYTES, b"\0")
        sealed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            plain, side._out, bytes(24), side._sending
        )
        return relay.open(MAGIC + bytes(24) + sealed)

    return take


def relay_samples() -> tuple[bytes, ...]:
    """Return each message in the clear."""
    said = (wire.Open(PAIR, 5), wire.Challenge(PAIR, 5, bytes(16)),
            wire.Opened(PAIR, 5, PLACE, True))  # fmt: skip
    return tuple(map(wire._encode, said))


def tunnelled() -> list[Target]:
    """Return targets for the header by which a caller and a relay prove themselves."""
    seal = hellos.HelloSeal(MESH_ID, KEYS)
    hello = hellos.Hello(KEY.id, PAIR, NOW * 1_000_000, bytes(16))
    plain = hello.encode() + KEY.sign(
        hellos._HELLO + OWN.id.ed25519 + bytes(32) + hello.encode()
    )  # fmt: skip
    header_ = seal.hello(hello, KEY, OWN.id, bytes(32), bytes(24))

    def inner(raw: bytes) -> object:
        sealed = hellos._text(seal._seal.seal(raw[: len(plain)].ljust(len(plain)), bytes(24)))
        return seal.read_hello(hellos._SCHEME + sealed, OWN.id, bytes(32), NOW)

    return [
        Target("tunnel's hello", lambda raw: seal.read_hello(
            raw.decode(errors="surrogateescape"), OWN.id, bytes(32), NOW), (header_.encode(),), ()),
        Target("tunnel's hello, sealed", inner, (plain,), ()),
    ]  # fmt: skip


def router() -> list[Target]:
    """Return targets for the answers of PCP, of a grant and of the announcement."""
    dialect = pcp.Pcp("192.168.1.5", 51820, bytes(12))
    asked = dialect.encode(Request(Kind.ASK, 3600, 51820, "192.0.2.1"))
    granted = pcp._ANSWER_HEAD.pack(2, 129, 0, 0, 3600, 9) + asked[24:]
    announced = pcp._ANSWER_HEAD.pack(2, 128, 0, 0, 0, 9)

    def read(raw: bytes) -> object:
        return dialect.read(raw), pcp.is_announcement(raw), natpmp.is_announcement(raw)

    return [Target("PCP answer", read, (granted, announced), ())]


def packet() -> bytes:
    """Return an IPv4 packet with a datagram."""
    body = header.udp_header(bytes(4), bytes(4), 9, 51820, b"hello") + b"hello"
    length = (20 + len(body)).to_bytes(2, "big")
    return b"\x45\0" + length + bytes(5) + b"\x11\0\0" + b"\xc0\0\x02\x01" * 2 + body


def netlink() -> bytes:
    """Return a message of the kernel's about an address."""
    body = b"\x02\x18\x80\0\x01\0\0\0" + b"\x08\0\x01\0\xc0\0\x02\x01" + b"\x07\0\x03\0lo\0\0"
    return (16 + len(body)).to_bytes(4, "little") + b"\x14\0\0\0" + bytes(8) + body


SSDP = (
    b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"LOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"
)
UAPI = (
    b"private_key=%(key)s\nlisten_port=51820\npublic_key=%(key)s\nendpoint=[2001:db8::1]:9\n"
    b"allowed_ip=fd00::1/128\nallowed_ip=10.77.0.1/32\nlast_handshake_time_sec=17\n"
    b"last_handshake_time_nsec=5\nrx_bytes=3\ntx_bytes=4\npersistent_keepalive_interval=25\n"
    b"errno=0\n\n" % {b"key": b"ab" * 32}
)


def wg_quick() -> bytes:
    """Return a file as it is written."""
    peer = PeerConfig(OWN.id.wireguard_public, PLACE, (ip_network("10.77.0.2/32"),), 25)
    device = DeviceConfig(KEY.wireguard_private, 51820, (ip_interface("fd00::1/64"),), 1280)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "covey.conf")
        wgquick.write(path, wgquick.WgQuickFile(device, (peer,), {peer.node_public: "box"}))
        return path.read_bytes()


def file_reader(read: Callable[[Path], object], name: str = "file") -> Callable[[bytes], object]:
    """Return what lays bytes into a file, private as the state's are, and has it read."""
    folder = tempfile.mkdtemp(prefix="covey-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, name)

    def take(raw: bytes) -> object:
        path.write_bytes(raw)
        path.chmod(0o600)
        return read(path)

    return take


def setup_question() -> bytes:
    """Return the question that a browser of services asks."""
    name = b"\x0c_covey-setup\x04_udp\x05local\0"
    return b"\0\0\0\0\0\x01\0\0\0\0\0\0" + name + b"\0\x0c\0\x01"
