"""One question to a UPnP gateway, carried out by miniupnpc in a process of its own. A shell.

Started by `igd.py`, which ends it at its deadline: a gateway that answers without end, or with
something that C code trips over, costs this process and not the agent. Reads one order as JSON
from its input and writes one answer as JSON.
"""

from __future__ import annotations

import importlib
import resource
import sys
from typing import Any

import msgspec

from agent.portmap import ssdp

DESCRIPTION = "Covey"
_MEMORY_MAX_BYTES = 512 * 2**20
_CPU_MAX_S = 10
_UDP = "UDP"
_PERMANENT_ONLY = "OnlyPermanentLeasesSupported"
_TAKEN = frozenset({"ConflictInMappingEntry", "ConflictWithOtherMechanisms"})
# miniupnpc's words for the gateway's error codes, and ours.
_WHY = {
    "Action not authorized": "it does not allow this machine mappings",
    "Action Failed": "it failed to map the port",
    "NoPortMapsAvailable": "it has no room for another mapping",
    "Out of Memory": "it has no room for another mapping",
    "Invalid Action": "it cannot map ports",
}


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do: a kind of request by its value, and at which gateway."""

    kind: str
    url: str
    gateway: str
    client: str
    internal_port: int
    ports: list[int]
    lifetime_s: int


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What came of it: `granted` has a port; `refused` says why."""

    outcome: str
    why: str = ""
    port: int = 0
    lifetime_s: int | None = None
    address: str | None = None


def carry_out(order: Order, igd: Any) -> Reply:
    """Do what is ordered with `igd`, a miniupnpc.UPnP; raises its plain Exceptions."""
    control = igd.selectigd(order.url)
    if not ssdp.is_on(control, order.gateway):
        return Reply("refused", "its description does not lead to itself")
    if igd.lanaddr != order.client:
        return Reply("refused", "this machine has another address now")
    match order.kind:
        case "probe":
            return Reply("alive", address=igd.externalipaddress())
        case "check":
            if not _is_ours(_entry(igd, order.ports[0]), igd, order):
                return Reply("gone")
            return Reply("alive", address=igd.externalipaddress())
        case "release":
            for port in order.ports:
                if _is_ours(_entry(igd, port), igd, order):
                    igd.deleteportmapping(port, _UDP)
            return Reply("released")
        case _:
            return _ask(order, igd)


def _ask(order: Order, igd: Any) -> Reply:
    for port in order.ports:
        before = _entry(igd, port)
        if before is not None and not _is_ours(before, igd, order):
            continue  # another machine's: some gateways would overwrite it
        try:
            lifetime = _add(order, igd, port)
        except _Taken:
            continue
        after = _entry(igd, port)
        if after is not None and not _is_ours(after, igd, order):
            return Reply("refused", "it mapped the port to another machine")
        if after is not None and lifetime is not None and after[4] > 0:
            lifetime = min(lifetime, after[4])
        return Reply("granted", port=port, lifetime_s=lifetime, address=igd.externalipaddress())
    return Reply("refused", "the ports that we asked for are taken by others")


def _add(order: Order, igd: Any, port: int) -> int | None:
    """Map the port and return for how long (s); None: until it is released."""
    for lifetime in (order.lifetime_s, 0):
        try:
            igd.addportmapping(
                port, _UDP, igd.lanaddr, order.internal_port, DESCRIPTION, "", lifetime
            )
        except Exception as error:  # miniupnpc raises nothing more special
            if lifetime and str(error) == _PERMANENT_ONLY:
                continue
            if str(error) in _TAKEN:
                raise _Taken from error
            raise
        return lifetime or None
    raise AssertionError  # the second turn of the loop returns or raises


class _Taken(Exception):
    """Another machine has this port."""


def _entry(igd: Any, port: int) -> tuple[str, int, str, bool, int] | None:
    found: tuple[str, int, str, bool, int] | None = igd.getspecificportmapping(port, _UDP)
    return found


def _is_ours(entry: tuple[str, int, str, bool, int] | None, igd: Any, order: Order) -> bool:
    return entry is not None and entry[:2] == (igd.lanaddr, order.internal_port)


def why(error: Exception) -> str:
    """Return an exception of miniupnpc's as the end of a sentence."""
    text = str(error)
    return _WHY.get(text, f"it answered “{text[:80]}”")


def main() -> None:
    """Carry out the order on the standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_MAX_BYTES, _MEMORY_MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_MAX_S, _CPU_MAX_S))
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    # By name: the package is a bare C module without types.
    igd = importlib.import_module("miniupnpc").UPnP()
    try:
        reply = carry_out(order, igd)
    except Exception as error:  # miniupnpc raises nothing more special
        reply = Reply("refused", why(error))
    sys.stdout.buffer.write(msgspec.json.encode(reply))


if __name__ == "__main__":
    main()
