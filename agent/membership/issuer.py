"""The issuer's decisions: which name and which IPv4 address a node gets (design §3). A core.

Nothing is stored here; the caller keeps the certificate among the members before it hands it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError

from agent.errors import MembershipError, UsageError
from agent.identity import addresses
from agent.identity.keys import NodeId
from agent.membership import certificate as certificates
from agent.membership import grant as grants
from agent.membership import naming
from agent.membership.certificate import Certificate
from agent.membership.grant import Signer

_COUNTERS = range(0x10000)
# Networks that nobody has on the public internet (RFC 1918) or behind it (RFC 6598).
_PRIVATE = tuple(
    map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))
)
_SMALLEST_PREFIX_LENGTH = 28  # 14 nodes; smaller would be full before it is of use


def issue(
    signer: Signer,
    members: Iterable[Certificate],
    node: NodeId,
    name: str,
    roles: Iterable[str],
    tags: Iterable[str],
    network: IPv4Network,
    now: float,
    lifetime_s: float | None = None,
) -> Certificate:
    """Return a certificate for `node`, valid from `now` (unix seconds) for `lifetime_s`.

    Without a lifetime it is `lifetime(roles)`; a granted signer's grant may end it earlier. A node
    among the members keeps its IPv4 counter, unless one with a lower key has that address; another
    gets the smallest whose address none of them has. A name that is taken gets a number; its own is
    taken only from a node with a lower key. Raises UsageError for a name, role or tag that cannot
    be, MembershipError when the key is unusable, the signer may not, or all addresses are taken.
    """
    naming.check_name(name)
    roles = naming.check_roles(roles)
    known, others = _apart(members, node)
    return certificates.sign(
        signer,
        node=node,
        name=_free_name(name, node, known, others),
        roles=roles,
        tags=tags,
        ipv4_counter=_free_counter(node, known, others, network),
        **_times(signer, known, now, lifetime(roles) if lifetime_s is None else lifetime_s),
    )


def lifetime(roles: Iterable[str]) -> int:
    """Return how long a certificate with these roles lasts, in seconds.

    What only the root key renews lasts as long as a grant, for the root key may lie in a safe.
    """
    return grants.LIFETIME_S if certificates.privileged(roles) else certificates.LIFETIME_S


def collision(
    certificate: Certificate, members: Iterable[Certificate], network: IPv4Network
) -> Certificate | None:
    """Return a member with a lower key that has the same name or IPv4 address, or None.

    Two issuers that did not know of each other's newcomers may have given both the same.
    """
    address = certificate.ipv4(network)
    for member in members:
        if member.node < certificate.node and (
            member.name == certificate.name or member.ipv4(network) == address
        ):
            return member
    return None


def _apart(
    members: Iterable[Certificate], node: NodeId
) -> tuple[Certificate | None, list[Certificate]]:
    """Return the node's own certificate, if there is one, and those of the others."""
    public = _usable_key(node)
    known, others = None, []
    for member in members:
        if member.node == node.ed25519:
            known = member
        elif member.node_id.wireguard_public == public:
            # A key and its negative share one X25519 form, and so one overlay address.
            raise MembershipError(f"{member.name} already has the WireGuard key of {node.short}")
        else:
            others.append(member)
    return known, others


def _free_name(
    name: str, node: NodeId, known: Certificate | None, others: list[Certificate]
) -> str:
    keeps = known is not None and known.name == name
    if keeps and not any(o.node < node.ed25519 and o.name == name for o in others):
        return name
    return naming.unique_name(name, {other.name for other in others})


def _free_counter(
    node: NodeId, known: Certificate | None, others: list[Certificate], network: IPv4Network
) -> int:
    if known is not None and not any(
        o.node < node.ed25519 and o.ipv4(network) == known.ipv4(network) for o in others
    ):
        return known.ipv4_counter
    taken = {other.ipv4(network) for other in others}
    for counter in _COUNTERS:
        if addresses.overlay_ipv4(network, node, counter) not in taken:
            return counter
    raise MembershipError(
        f"every address of {network} is taken", hint="Make a mesh with a larger network."
    )


def _times(
    signer: Signer, known: Certificate | None, now: float, lifetime_s: float
) -> dict[str, int]:
    """Return both times: newer than what the node has, and within the signer's grant."""
    not_before = int(now)
    if known is not None and known.valid_at(now):
        not_before = max(not_before, known.not_before + 1)
    not_after = int(now + lifetime_s)
    if signer.grant is not None:
        not_before = max(not_before, signer.grant.not_before)
        not_after = min(not_after, signer.grant.not_after)
    if not_after < not_before:
        raise MembershipError(
            "this node's right to issue has ended",
            hint="Extend it where the root key is: `agent grant NODE --root-key FILE`.",
        )
    return {"not_before": not_before, "not_after": not_after}


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
