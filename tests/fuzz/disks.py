"""What is read from disks: configuration, state, updates, partition tables.

Targets for `decoders.py`. A disk's files are damaged by power cuts and by people; covey.toml and an
update come on whatever somebody plugs in; an update's manifest is changed inside and signed again.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from target import Target
from underlay import file_reader

from agent import config, distributed
from agent.deploy.drain import Drain
from agent.errors import ConfigError
from agent.identity import keyfile
from agent.identity.keys import NodeKey
from agent.membership import statefiles
from agent.membership.certificate import Certificate
from agent.membership.join import MemberInfo
from agent.traversal.memory import PathMemory
from agent.unreadable import UNREADABLE
from image.disk import gpt
from image.make.alpine import index
from image.node import (
    envblock,
    filetext,
    kept,
    manifest,
    partial,
    release,
    settings,
    slotblocks,
    trials,
)
from image.node.manifest import Manifest, Part
from image.node.slots import State

SEED = bytes(range(32))
PUBLIC = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
MANIFEST = Manifest("0.2.0", "x86_64", "0.1.0", (Part("root", 99, "0" * 64),))
SETTINGS = b"""
# for the shed
name = "shed-1"
role = ["worker", "relay"]  # both
tags = ["gpu"]
wifi = "Our network"
wifi_password = 'long and secret'
wifi_country = "DE"
address = "192.168.1.20/24"
gateway = "192.168.1.1"
dns = ["9.9.9.9", "2620:fe::fe"]
interface = "eth0"
proxy = "http://proxy.lan:3128"
proxy_user = "shed"
ssh_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s= me"
"""
AGENT = b"""
[node]
log_level = "debug"
[network]
relay = true
bootstrap = ["192.0.2.1:4001"]
"""
THEIRS = b"""
node: {log_level: warn, id: shed}
p2p:
  listen_addrs: [/ip4/0.0.0.0/tcp/4001]
  bootstrap_peers: /ip4/192.0.2.1/tcp/4001
wireguard: {subnet: 10.78.0.0/16, use_kernel: false}
llm: {threads: 4, gpu_layers: -1, nothing: [a, {b: c}]}
"""
INDEX = (
    b"C:Q1AAAAAAAAAAAAAAAAAAAAAAAAAAA=\nP:musl\nV:1.2.5-r1\nA:x86_64\nS:400000\nk:5\n"
    b"D:so:libc.musl-x86_64.so.1 !x<2 y~=1.2\np:so:libc.musl-x86_64.so.1=1 cmd:ldd\n\n"
)


def targets(member: Certificate) -> list[Target]:
    """Return them, with samples; `member` is a certificate that a state directory holds."""
    root = NodeKey(bytes([2]) * 32).id.ed25519
    stored = (
        statefiles.MeshFile(name="home", root=root, ipv4_network="10.77.0.0/16"),
        statefiles.NetworkKeysFile(root=root, keys=(statefiles.StoredKey(bytes(32)),)),
        statefiles.RevocationsFile(lists=(b"x",)),
        statefiles.MembersFile(members=(MemberInfo(member.encode(), ()),)),
        statefiles.InvitesFile(invites=()),
    )
    whole = slotblocks.encode(State(), 1)
    return [
        Target("covey.toml", settings.read, (SETTINGS, SETTINGS.decode().encode("utf-16")), ()),
        Target("text file", lambda raw: lossless(raw), (SETTINGS,), ()),
        Target("agent.toml", file_reader(lambda path: config.load(path, {}), "agent.toml"),
               (AGENT,)),
        *(Target(f"state: {type(each).__name__}",
                 state_reader(each),
                 (statefiles.encode(each),)) for each in stored),
        Target("distributed's file", theirs, (THEIRS,), (ConfigError, *UNREADABLE, ValueError)),
        Target("key file", file_reader(keyfile.load_if_there, "node.key"),
               (base64.b64encode(bytes(32)) + b"\n",)),
        Target("list of paths", file_reader(lambda path: PathMemory(path).load(), "paths.json"),
               (b'{"%b":"192.0.2.1:51820"}' % str(member.node_id).encode(),), ()),
        Target("drain file", file_reader(lambda path: Drain(path.parent).restore(), "drain.json"),
               (b'{"version":1,"since":5}',)),
        Target("update", lambda raw: manifest.verify(raw, [PUBLIC]),
               (manifest.sign(MANIFEST, SEED),)),
        Target("update, signed", signed, (manifest.sign(MANIFEST, SEED).partition(b"\n")[2],)),
        Target("release file", release.decode,
               (release.encode(release.Release("0.2.0", "x86_64", (PUBLIC,))),)),
        Target("public key of updates", lambda raw: release.decode_public(
            raw.decode(errors="replace")), (release.encode_public(PUBLIC).encode(),)),
        Target("kept passwords", kept.decode,
               (b'{"wifi":["n","p"],"proxy":["http://h:1","u","p"]}',)),
        Target("note of an update", file_reader(lambda path: partial.read(path.parent), "partial"),
               (b'{"etag":"x","size":5,"first":"AAAA"}',), ()),
        Target("note of a trial", file_reader(lambda path: trials.read(path.parent, 9.0), "trial"),
               (b'{"state":"x"}',), ()),
        Target("GRUB's block", envblock.decode, (whole,)),
        Target("slots' state", lambda raw: slotblocks.repair((raw, raw[::-1])), (whole,)),
        Target("slots' state, whole", state_words, (b"1aggn",)),
        Target("partition table", gpt.Table.read, (disk(),)),
        Target("partition table, summed", summed, (disk(),)),
        Target("index of packages",
               lambda raw: index.parse(raw.decode(errors="replace"), "here"), (INDEX,)),
    ]  # fmt: skip


def state_reader(sample: msgspec.Struct) -> Callable[[bytes], object]:
    """Return what reads a file of the state directory."""
    kind = type(sample)
    return lambda raw: statefiles.decode(raw, kind, "state.json", "")


def theirs(raw: bytes) -> str:
    """Make an agent.toml of a file of Foundation42/distributed."""
    lines = distributed.read(msgspec.yaml.decode(raw.decode()))
    return distributed.toml(distributed.settings_of(lines), "here")


def lossless(raw: bytes) -> None:
    """Read a text file and write it back."""
    assert filetext.FileText.decode(raw).encode() == raw


def signed(raw: bytes) -> None:
    """Sign a manifest's body, and have it verified and checked for a machine."""
    signature = Ed25519PrivateKey.from_private_bytes(SEED).sign(manifest._PREFIX + raw)
    whole = manifest._WORD + b" " + base64.b64encode(signature) + b"\n" + raw
    found = manifest.verify(whole, [PUBLIC])
    manifest.raised("0.1.0", found)
    manifest.check(
        found, arch="x86_64", flavour="virt", running="0.1.0", floor="0.1.0", slot_bytes=1 << 30
    )


def state_words(raw: bytes) -> Any:
    """Read a block of the slots' state whose check is right."""
    words = [bytes([byte]).decode("latin-1") for byte in raw[:5].ljust(5, b"?")]
    block = envblock.encode(dict(zip(slotblocks.NAMES, (*words, "".join(words)), strict=True)))
    return slotblocks.decode(block)


def disk() -> bytes:
    """Return the first sectors of a disk with two partitions."""
    parts = (
        gpt.Partition("boot", gpt.ESP, gpt.LINUX, 2048, 2048),
        gpt.Partition("slot-a", gpt.ROOTS["x86_64"], gpt.ESP, 4096, 4096, gpt.READ_ONLY),
    )
    return gpt.Table(gpt.BIOS_BOOT, 10_000, parts).head()


def summed(raw: bytes) -> object:
    """Read a partition table whose checksums are right."""
    head = bytearray(raw[: gpt.HEAD_BYTES].ljust(gpt.HEAD_BYTES, b"\0"))
    header = slice(gpt.SECTOR_BYTES, gpt.SECTOR_BYTES + gpt._HEADER_BYTES)
    at = gpt.SECTOR_BYTES
    head[at + 88 : at + 92] = struct.pack("<I", zlib.crc32(head[2 * gpt.SECTOR_BYTES :]))
    head[at + 16 : at + 20] = bytes(4)
    head[at + 16 : at + 20] = struct.pack("<I", zlib.crc32(head[header]))
    table = gpt.Table.read(bytes(head))
    return table.head(), table.tail()
