"""The keys that make a mesh silent to outsiders, at one moment. A core.

A mesh has one network key, and two while a new one replaces it: what is sent is under the newest
that every member has by then, and what comes is taken under any that is not retired. Discovery,
the control plane and the LAN beacon use it; membership says which keys these are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

KEY_BYTES = 32


@dataclass(frozen=True)
class NetworkKeys:
    """`sending` (32 bytes) and all that are accepted, newest first; `sending` is one of these."""

    sending: bytes = field(repr=False)
    accepting: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError for a key of another length, or a sending key that is not accepted."""
        if any(len(key) != KEY_BYTES for key in self.accepting):
            raise ValueError(f"a network key holds {KEY_BYTES} bytes")
        if self.sending not in self.accepting:
            raise ValueError("the sending key must be accepted as well")

    @classmethod
    def single(cls, key: bytes) -> NetworkKeys:
        """Return the keys of a mesh that has just one."""
        return cls(key, (key,))
