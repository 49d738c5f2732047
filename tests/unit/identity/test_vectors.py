"""The chain seed → node id → WireGuard key → addresses, from published vectors.

Each step has the value that was published or written down once, and is computed a second time here
with plain integers, hashlib and OpenSSL, none of which the code under test uses.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from agent.identity import addresses
from agent.identity.keys import NodeId, NodeKey

# RFC 8032 §7.1, test 1.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNATURE_OF_NOTHING = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)
# RFC 8032 §7.1, test 2: the root key of the mesh below.
ROOT_SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
ROOT_PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")

P = 2**255 - 19
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def montgomery(ed25519: bytes) -> bytes:
    """The birational map of RFC 7748 §4.1, u = (1 + y) / (1 - y), with plain integers."""
    y = int.from_bytes(ed25519, "little") & (2**255 - 1)
    u = (1 + y) * pow(1 - y, -1, P) % P
    return u.to_bytes(32, "little")


def base58(raw: bytes) -> str:
    digits, number = "", int.from_bytes(raw, "big")
    while number:
        digits, number = BASE58[number % 58] + digits, number // 58
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + digits


def test_rfc_8032_test_1_gives_the_public_key_and_signature() -> None:
    key = NodeKey(SEED)
    assert key.id.ed25519 == PUBLIC
    assert key.sign(b"") == SIGNATURE_OF_NOTHING
    assert key.id.verify(SIGNATURE_OF_NOTHING, b"")
    assert not key.id.verify(SIGNATURE_OF_NOTHING, b"x")


@pytest.mark.parametrize(
    ("seed", "public", "peer_id"),
    [
        # libp2p specs, peer-ids/peer-ids.md, "Test vectors": private key 08011240 ‖ seed ‖ public,
        # public key 08011220 ‖ public. The PeerId is the one go-, js- and rust-libp2p give it.
        (
            "7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d",
            "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e",
            "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq",
        ),
    ],
)
def test_libp2p_peer_id_vector(seed: str, public: str, peer_id: str) -> None:
    node = NodeKey(bytes.fromhex(seed)).id
    assert node.ed25519.hex() == public
    assert str(node) == peer_id
    assert NodeId.parse(peer_id) == node


def test_the_wireguard_key_is_libsodiums_published_conversion() -> None:
    # libsodium test/default/ed25519_convert.c and its .exp
    key = NodeKey(bytes.fromhex("421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee"))
    assert key.id.wireguard_public.hex() == (
        "f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50"
    )
    assert key.wireguard_private.hex() == (
        "8052030376d47112be7f73ed7a019293dd12ad910b654455798b4667d73de166"
    )


@pytest.mark.parametrize("seed", [SEED, ROOT_SEED, bytes(32), b"\xff" * 32])
def test_the_wireguard_key_is_the_birational_map(seed: bytes) -> None:
    key = NodeKey(seed)
    assert key.id.wireguard_public == montgomery(key.id.ed25519)
    scalar = bytearray(hashlib.sha512(seed).digest()[:32])  # RFC 8032 §5.1.5
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    assert key.wireguard_private == bytes(scalar)
    openssl = X25519PrivateKey.from_private_bytes(key.wireguard_private)
    assert openssl.public_key().public_bytes_raw() == key.id.wireguard_public


def test_two_nodes_agree_on_a_secret_with_their_wireguard_keys() -> None:
    one, two = NodeKey(SEED), NodeKey(ROOT_SEED)

    def exchange(mine: NodeKey, theirs: NodeId) -> bytes:
        private = X25519PrivateKey.from_private_bytes(mine.wireguard_private)
        return private.exchange(X25519PublicKey.from_public_bytes(theirs.wireguard_public))

    assert exchange(one, two.id) == exchange(two, one.id) != bytes(32)


def test_the_whole_chain_to_the_addresses() -> None:
    node, root = NodeKey(SEED).id, NodeKey(ROOT_SEED).id
    assert root.ed25519 == ROOT_PUBLIC
    network = IPv4Network("10.77.0.0/16")

    # The values as written down once: a change here changes every mesh's addresses.
    mesh = addresses.mesh_id(root)
    assert str(node) == "12D3KooWQK1wnefoLrcVHbbnf5tLzbopUd3K3bFAoJpA7YJgL5pV"
    assert node.wireguard_public_base64 == "2F4H7CKwrYgVN8L0TWYtGhQ8+DDFespDBdhcepD2ti4="
    assert mesh.hex() == "39f713d0a644253f04529421b9f51b9b08979d08295959c4f3990ee617f5139f"
    assert addresses.mesh_prefix(mesh) == IPv6Network("fdcf:155a:c433::/48")
    assert addresses.overlay_ipv6(mesh, node) == IPv6Address("fdcf:155a:c433:0:e178:e9ae:16e7:4776")
    assert addresses.overlay_ipv4(network, node, 0) == IPv4Address("10.77.55.108")
    assert addresses.overlay_ipv4(network, node, 1) == IPv4Address("10.77.40.132")
    assert addresses.overlay_ipv4(network, node, 65535) == IPv4Address("10.77.66.183")

    # The same from first principles.
    assert str(node) == base58(bytes.fromhex("002408011220") + PUBLIC)
    wireguard = montgomery(PUBLIC)
    assert mesh == hashlib.sha256(ROOT_PUBLIC).digest()
    prefix = b"\xfd" + hashlib.sha256(mesh).digest()[:5]
    interface = hashlib.sha256(wireguard).digest()[:8]
    assert addresses.overlay_ipv6(mesh, node).packed == prefix + bytes(2) + interface
    assert addresses.mesh_prefix(mesh).network_address.packed == prefix + bytes(10)
    for counter in (0, 1, 65535):
        digest = hashlib.sha256(wireguard + counter.to_bytes(2, "big")).digest()
        host = 1 + int.from_bytes(digest[:8], "big") % 65534
        expected = IPv4Address(int(IPv4Address("10.77.0.0")) + host)
        assert addresses.overlay_ipv4(network, node, counter) == expected
