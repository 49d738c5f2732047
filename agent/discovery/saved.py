"""What outlives a restart: contacts and bootstrap endpoints, in msgpack (no pickle). A core."""

from __future__ import annotations

import msgspec

from agent.discovery.contact import Contact
from agent.errors import StateError

_VERSION = 1


class _Saved(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    contacts: list[bytes]
    endpoints: list[str]


def dump(contacts: list[Contact], endpoints: list[str]) -> bytes:
    """Return the bytes to keep; they hold no secret."""
    packed = [contact.packed for contact in contacts]
    return msgspec.msgpack.encode(_Saved(_VERSION, packed, endpoints))


def parse(mesh_id: bytes, saved: bytes) -> tuple[list[Contact], list[str]]:
    """Return contacts and endpoints. Raises StateError for bytes that `dump` did not make."""
    try:
        state = msgspec.msgpack.decode(saved, type=_Saved)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _damaged(str(error)) from None
    if state.version != _VERSION:
        raise _damaged(f"version {state.version}")
    contacts = [Contact.unpack(mesh_id, packed) for packed in state.contacts]
    whole = [contact for contact in contacts if contact is not None]
    if len(whole) < len(contacts):
        raise _damaged("a contact is not one")
    return whole, state.endpoints


def _damaged(why: str) -> StateError:
    return StateError(
        f"the saved discovery contacts are damaged ({why})",
        hint="Remove them: the agent then finds the mesh through its bootstrap addresses.",
    )
