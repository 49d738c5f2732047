"""What only holders of a mesh's network key can read, and nobody else can tell from noise. A core.

XChaCha20-Poly1305 under a key derived from the network key, the mesh id and a purpose, so that what
is sealed for one part of Covey never opens in another. The nonce has 24 bytes since many nodes
share a key and choose nonces at random. It proves that the sender holds the key, never which node
it is: what is inside has to say and prove that. Used by the LAN beacon.
"""

from __future__ import annotations

import nacl.bindings
import nacl.exceptions
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.membership.networkkeys import NetworkKeys

NONCE_BYTES = 24
_TAG_BYTES = 16
OVERHEAD_BYTES = NONCE_BYTES + _TAG_BYTES
_MESH_ID_BYTES = 32


class NetworkSeal:
    """Seals under the network key that is sent with; opens under each that is accepted."""

    def __init__(self, mesh_id: bytes, keys: NetworkKeys, purpose: bytes) -> None:
        """Take the mesh id (32 bytes), the keys, and a constant that names the one use."""
        if len(mesh_id) != _MESH_ID_BYTES:
            raise ValueError(f"a mesh id holds {_MESH_ID_BYTES} bytes")
        self._sending = _derive(mesh_id, keys.sending, purpose)
        self._accepting = tuple(_derive(mesh_id, key, purpose) for key in keys.accepting)

    def seal(self, plain: bytes, nonce: bytes) -> bytes:
        """Return the nonce (24 random bytes) and the sealed bytes: OVERHEAD_BYTES longer."""
        return nonce + nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
            plain, None, nonce, self._sending
        )

    def open(self, sealed: bytes) -> bytes | None:
        """Return what is inside, or None when no accepted key opens it. Never raises."""
        if len(sealed) < OVERHEAD_BYTES:
            return None
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        for key in self._accepting:
            try:
                return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                    rest, None, nonce, key
                )
            except nacl.exceptions.CryptoError:
                continue
        return None


def _derive(mesh_id: bytes, network_key: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=mesh_id, info=purpose).derive(network_key)
