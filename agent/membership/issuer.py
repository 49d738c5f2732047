"""The issuer's decisions: which name and which IPv4 address a node gets (design §3). A core.

Nothing is stored here; the caller keeps the certificate among the members before it hands it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError

from agent.errors import MembershipError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId, NodeKey
from agent.membership import certificate as certificates
from agent.membership import naming
from agent.membership.certificate import Certificate

_COUNTERS = range(0x10000)
# Networks that nobody has on the public internet (RFC 1918) or behind it (RFC 6598).
_PRIVATE = tuple(
    map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))
)
_SMALLEST_PREFIX_LENGTH = 28  # 14 nodes; smaller would be full before it is of use


def issue(
    root_key: NodeKey,
    members: Iterable[Certificate],
    node: NodeId,
    name: str,
    roles: Iterable[str],
    tags: Iterable[str],
    network: IPv4Network,
    now: float,
    lifetime_s: float = certificates.LIFETIME_S,
) -> Certificate:
    """Return a certificate for `node`, valid from `now` (unix seconds) for `lifetime_s`.

    A node among the members keeps its IPv4 counter; another gets the smallest whose address none
    of them has. A name that another member has gets a number. Raises UsageError for a name, role
    or tag that cannot be, MembershipError when the key is unusable or all addresses are taken.
    """
    naming.check_name(name)
    public = _usable_key(node)
    counter: int | None = None
    taken_names, taken_addresses = set(), set()
    for member in members:
        if member.node == node.ed25519:
            counter = member.ipv4_counter
            continue
        if member.node_id.wireguard_public == public:
            # A key and its negative share one X25519 form, and so one overlay address.
            raise MembershipError(f"{member.name} already has the WireGuard key of {node.short}")
        taken_names.add(member.name)
        taken_addresses.add(member.ipv4(network))
    if counter is None or addresses.overlay_ipv4(network, node, counter) in taken_addresses:
        counter = next(
            (
                c
                for c in _COUNTERS
                if addresses.overlay_ipv4(network, node, c) not in taken_addresses
            ),
            None,
        )
    if counter is None:
        raise MembershipError(
            f"every address of {network} is taken", hint="Make a mesh with a larger network."
        )
    return certificates.sign(
        root_key,
        mesh_id=addresses.mesh_id(root_key.id),
        node=node,
        name=naming.unique_name(name, taken_names),
        roles=roles,
        tags=tags,
        ipv4_counter=counter,
        not_before=int(now),
        not_after=int(now + lifetime_s),
    )


def check_network(text: str) -> IPv4Network:
    """Return an overlay network; raises UsageError unless it is private and a /28 or larger."""
    try:
        network = IPv4Network(text)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise UsageError(
            f"{text[:80]!r} is not an IPv4 network", hint="Write it as 10.77.0.0/16."
        ) from None
    if not any(network.subnet_of(private) for private in _PRIVATE):
        raise UsageError(
            f"{network} is not a private network",
            hint="Take one from 10.0.0.0/8, as 10.77.0.0/16.",
        )
    if network.prefixlen > _SMALLEST_PREFIX_LENGTH:
        raise UsageError(f"{network} is too small for a mesh", hint="Take a /28 or larger.")
    return network


def _usable_key(node: NodeId) -> bytes:
    try:
        return node.wireguard_public
    except UsageError as error:
        raise MembershipError(error.message) from None
