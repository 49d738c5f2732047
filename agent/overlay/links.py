"""Network interfaces by rtnetlink: find, claim, give addresses, remove; and the UDP port check.

Shell; used by `kernel.py` and `userspace.py`, from a worker thread only (pyroute2's synchronous
classes raise inside a running event loop). Each call opens and closes its own netlink socket
(3 ms): pyroute2 ties a socket to the thread that made it, so a kept one could leak.

An interface is ours when its alias says so (`alias.py`). What lacks that is never touched.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import nacl.bindings

from agent import rtnetlink
from agent.errors import EnvironmentFault
from agent.overlay import alias, routes
from agent.overlay.alias import Alias
from agent.overlay.device import DEFAULT_MTU, Interface, Network
from agent.overlay.netlink import IPRoute, NetlinkError

# How long a removed interface, or the port of a process that is ending, may take to be free.
SETTLE_S = 3.0
# A wireguard-go that ends with its killed agent may already be out of sight, but not off its port.
_PORT_PATIENCE_S = 0.3
_POLL_S = 0.01
# linux/if_addr.h and rtnetlink.h.
_NO_PREFIX_ROUTE, _SCOPE_LINK = 0x200, 253
_ROOT_HINT = (
    "Run the agent as root, or give its service AmbientCapabilities=CAP_NET_ADMIN,"
    " or its container `--cap-add NET_ADMIN`, or start it in a user and network namespace."
)


@dataclass(frozen=True)
class Link:
    """An interface: its index, its kind as the kernel says (`wireguard`, `tun`, …), its alias."""

    index: int
    kind: str
    alias: str


def public_key(private_key: bytes) -> bytes:
    """Return the X25519 public key (32 bytes) of a WireGuard private key."""
    return nacl.bindings.crypto_scalarmult_base(private_key)


class AddressChanges:
    """Tells whether an address of this machine came or went, without reading which."""

    def __init__(self) -> None:
        self._events = rtnetlink.RouteEvents(rtnetlink.IPV4_ADDRESSES | rtnetlink.IPV6_ADDRESSES)

    def since_last(self) -> bool:
        """Say whether anything changed since the last call (or since we were made)."""
        return self._events.read() != []

    def close(self) -> None:
        """Close the socket."""
        self._events.close()


def find(name: str) -> Link | None:
    """Return the interface of that name, or None."""
    with _netlink(name, "look for") as netlink:
        try:
            answer = netlink.link("get", ifname=name)[0]
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise
        info = answer.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
        return Link(answer["index"], kind or "hardware", answer.get_attr("IFLA_IFALIAS") or "")


def ours(name: str, own: Alias) -> Link | None:
    """Return the interface of that name, None if there is none.

    EnvironmentFault if it is not that of the node and the state directory that `own` names.
    """
    link = find(name)
    if link is None:
        return None
    found = alias.parse(link.alias)
    if found is not None and found.same_owner(own):
        return link
    if found is None:
        owner = "something else"
    elif found.key == own.key:
        owner = "this node with another state directory"
    else:
        owner = "another Covey node"
    raise EnvironmentFault(
        f"interface {name} exists already and belongs to {owner} (kind {link.kind})",
        hint=f"Give this node another interface name, or remove it with `ip link del {name}`.",
    )


def take_over(name: str, own: Alias) -> bool:
    """Remove a left-over interface of ours; say whether there was one.

    EnvironmentFault, and nothing touched, if the interface is not ours.
    """
    if ours(name, own) is None:
        return False
    delete(name)
    return True


def add_wireguard(name: str) -> bool:
    """Make a kernel WireGuard interface; False if this kernel has no WireGuard."""
    with _netlink(name, "create") as netlink:
        try:
            netlink.link("add", ifname=name, kind="wireguard")
        except NetlinkError as error:
            if error.code in {errno.EOPNOTSUPP, errno.ENODEV}:
                return False
            raise
    return True


def claim(name: str, own: Alias, mtu: int) -> None:
    """Give the interface its alias and its MTU (bytes)."""
    with _netlink(name, "set up") as netlink:
        index = _index(name)
        netlink.link("set", index=index, ifalias=own.text(), mtu=mtu)


def address_and_raise(name: str, addresses: Sequence[Interface]) -> None:
    """Give the interface its addresses and bring it up, with routes to their networks.

    The kernel's own routes to them would have the interface's MTU.
    """
    with _netlink(name, "set up") as netlink:
        index = _index(name)
        for address in addresses:
            _add_address(netlink, name, index, address)
        netlink.link("set", index=index, state="up")
        for address in addresses:
            _add_route(netlink, index, address.network, DEFAULT_MTU)


def readdress(name: str, addresses: Sequence[Interface]) -> None:
    """Make these the addresses of an interface at work, with no routes but to their networks.

    What is right already is not touched. Of the routes only ours are taken away.
    """
    with _netlink(name, "set up") as netlink:
        index = _index(name)
        has = _addresses(netlink, index)
        for address in has.difference(addresses):
            netlink.addr("del", index=index, address=str(address.ip),
                         prefixlen=address.network.prefixlen)  # fmt: skip
        for address in addresses:
            if address not in has:
                _add_address(netlink, name, index, address)
        netlink.link("set", index=index, state="up")
        stand, wanted = _routes(netlink, index), {address.network for address in addresses}
        for network in wanted - stand:
            _add_route(netlink, index, network, DEFAULT_MTU)
        for network in stand - wanted:
            _delete_route(netlink, index, network)


def route(name: str, applied: MutableMapping[Network, int], mtus: Mapping[Network, int]) -> None:
    """Turn the routes of ours that stand, `applied`, into those of `mtus`; keep account in it.

    While one is exchanged, the network's route carries on with its 1280.
    """
    changes = routes.differences(applied, mtus)
    if not changes:
        return
    with _netlink(name, "set the routes of") as netlink:
        index = _index(name)
        for change in changes:
            if change.present:
                _delete_route(netlink, index, change.network)
                del applied[change.network]
            if change.mtu is not None:
                _add_route(netlink, index, change.network, change.mtu)
                applied[change.network] = change.mtu


def delete(name: str) -> None:
    """Remove the interface if it is there, and wait until it is gone."""
    with _netlink(name, "remove") as netlink:
        try:
            netlink.link("del", index=_index(name))
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise
    wait_gone(name)


def wait_gone(name: str) -> None:
    """Wait until the interface is gone; EnvironmentFault after SETTLE_S."""
    deadline = time.monotonic() + SETTLE_S
    while exists(name):
        if time.monotonic() > deadline:
            raise EnvironmentFault(
                f"interface {name} is still there {SETTLE_S:.0f} s after it was removed",
                hint=f"See what holds it with `ip -d link show {name}`.",
            )
        time.sleep(_POLL_S)


def exists(name: str) -> bool:
    """Say whether an interface of that name exists."""
    try:
        _index(name)
    except NetlinkError:
        return False
    return True


def port_in_use(port: int) -> EnvironmentFault:
    """Return the fault for a UDP port that something else holds."""
    return EnvironmentFault(
        f"UDP port {port} is in use",
        hint=f"See who has it with `ss -lunp sport = :{port}`, or choose another listen port.",
    )


def check_port(port: int, *, left_over: bool) -> None:
    """Raise EnvironmentFault unless the UDP port becomes free soon; 0 always is.

    `left_over`: a device of ours was just removed, and its port takes longer to be free.
    """
    deadline = time.monotonic() + (SETTLE_S if left_over else _PORT_PATIENCE_S)
    while port and (problem := _bind_error(port)) is not None:
        if problem != errno.EADDRINUSE:
            raise EnvironmentFault(
                f"cannot use UDP port {port}: {os.strerror(problem)}",
                hint="Choose another listen port.",
            )
        if time.monotonic() >= deadline:
            raise port_in_use(port)
        time.sleep(_POLL_S)


def _bind_error(port: int) -> int | None:
    for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 WireGuard itself listens on every address
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((wildcard, port))
        except OSError as error:
            if error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                continue  # this machine has only one of the two families
            return error.errno
    return None


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:  # it comes without an errno
        raise NetlinkError(errno.ENODEV) from None


def _addresses(netlink: IPRoute, index: int) -> set[Interface]:
    return {
        ip_interface((found.get_attr("IFA_ADDRESS"), found["prefixlen"]))
        for found in netlink.get_addr(index=index)
        if found["scope"] == 0
    }


def _routes(netlink: IPRoute, index: int) -> set[Network]:
    """Return the networks to which routes of ours go by an interface."""
    return {
        ip_network((found.get_attr("RTA_DST"), found["dst_len"]))
        for family in (socket.AF_INET, socket.AF_INET6)
        for found in netlink.get_routes(family=family, oif=index)
        if (found.get_attr("RTA_OIF"), found.get_attr("RTA_PRIORITY")) == (index, routes.METRIC)
    }


def _add_address(netlink: IPRoute, name: str, index: int, address: Interface) -> None:
    def add() -> None:
        prefix = address.network.prefixlen
        netlink.addr(
            "add", index=index, address=str(address.ip), prefixlen=prefix, flags=_NO_PREFIX_ROUTE
        )

    try:
        add()
    except NetlinkError as error:
        if address.version != 6 or error.code not in {errno.EACCES, errno.EOPNOTSUPP}:
            raise
        # IPv6 is switched off by default here (containers): switch it on for our interface only.
        try:
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")
            add()
        except (OSError, NetlinkError) as second:
            raise EnvironmentFault(
                f"cannot give {name} its address {address}: IPv6 is switched off",
                hint="Set the sysctl net.ipv6.conf.all.disable_ipv6 to 0 (a container: --sysctl).",
            ) from second


def _add_route(netlink: IPRoute, index: int, network: Network, mtu: int) -> None:
    # Appended: two nodes on one machine may have a route to the same place, and neither replaces
    # the other's.
    netlink.route("append", **_route(index, network), metrics={"mtu": mtu})


def _delete_route(netlink: IPRoute, index: int, network: Network) -> None:
    try:
        netlink.route("del", **_route(index, network))
    except NetlinkError as error:
        if error.code != errno.ESRCH:  # somebody was there before us
            raise


def _route(index: int, network: Network) -> dict[str, Any]:
    route = {"dst": str(network), "oif": index, "priority": routes.METRIC}
    if network.version == 6:
        return route | {"family": socket.AF_INET6}
    return route | {"family": socket.AF_INET, "scope": _SCOPE_LINK}


@contextmanager
def _netlink(name: str, doing: str) -> Iterator[IPRoute]:
    """Open rtnetlink; the kernel's refusals become EnvironmentFault."""
    with kernel_faults(name, doing), IPRoute() as netlink:
        yield netlink


@contextmanager
def kernel_faults(name: str, doing: str) -> Iterator[None]:
    """Turn the kernel's refusals to `doing` something with interface `name` into faults."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        if code in {errno.EPERM, errno.EACCES}:
            raise no_capability(name, doing) from error
        raise EnvironmentFault(
            f"cannot {doing} the WireGuard interface {name}: {os.strerror(code or 0)}",
            hint="Look at the kernel's log with `dmesg`.",
        ) from error


def no_capability(name: str, doing: str = "create") -> EnvironmentFault:
    """Return the fault for a missing CAP_NET_ADMIN."""
    return EnvironmentFault(
        f"cannot {doing} the WireGuard interface {name}: this needs CAP_NET_ADMIN", hint=_ROOT_HINT
    )
