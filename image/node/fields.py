"""What each key of covey.toml may be: how it is read, what is told, what the sample says. A core.

A reader takes one text and returns what it means, or raises UsageError with what is wrong and what
to write. It never repeats a secret: what is told is shown on the console and on the LAN.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)

from agent import endpoint
from agent.errors import TicketError, UsageError
from agent.membership import naming
from agent.membership.ticket import Ticket

Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address

# What a machine can be told to be; issuers and admins are made by the mesh's root key alone.
ROLES = ("worker", "gateway", "relay")
_SSH_KINDS = frozenset(
    (
        "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
    )
)  # fmt: skip
_SSH_HINT = "Copy the whole line of a .pub file; it begins like ssh-ed25519 AAAA."
_PROXY_HINT = 'Write it as "http://HOST:PORT".'
_IP_HINT = 'Write it like "192.168.1.20/24".'
_MAX_SSID_BYTES = 32  # IEEE 802.11
_PASSPHRASE = re.compile(r"[ -~]{8,63}|[0-9A-Fa-f]{64}")  # IEEE 802.11, annex J.4
_COUNTRY = re.compile(r"[A-Z]{2}")
_INTERFACE = re.compile(r"[A-Za-z0-9._-]{1,15}")  # IFNAMSIZ less one
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Field:
    """One key: what it is, an example for the sample file, and how a text of it is read.

    `secret` ones leave the file after joining. `only_with` names the key without which it means
    nothing. `many` may be a list.
    """

    key: str
    what: str
    example: str
    read: Callable[[str], object]
    many: bool = False
    secret: bool = False
    only_with: str = ""


def shown(text: str) -> str:
    """Return a text of the file for a message: short, printable, and never a ticket."""
    if "covey1" in text.lower():
        return "what stands there"
    clean = "".join(c if c.isprintable() else "?" for c in text[: _SHOWN_CHARACTERS + 1])
    return f"“{clean if len(clean) <= _SHOWN_CHARACTERS else clean[:_SHOWN_CHARACTERS] + '…'}”"


def ticket(text: str) -> str:
    """Read a ticket; returns it as one word."""
    try:
        return Ticket.parse(text).encode()
    except TicketError as error:
        hint = error.hint or "Make a new one with the same version of Covey."
        raise UsageError(error.message, hint=hint) from None


def name(text: str) -> str:
    """Read a node's name, which is its host name as well."""
    try:
        return naming.check_name(text)
    except UsageError as error:
        usable = naming.name_from_hostname(text)
        raise UsageError(
            f"{shown(text)} cannot be a name",
            hint=f'{error.hint} Write "{usable}", for example.',
        ) from None


def role(text: str) -> str:
    """Read a role."""
    if text not in ROLES:
        raise UsageError(
            f"{shown(text)} is no role that a file can give",
            hint=f"Write one of {', '.join(ROLES)}.",
        )
    return text


def tag(text: str) -> str:
    """Read a tag."""
    try:
        return naming.check_tags([text])[0]
    except UsageError as error:
        raise UsageError(f"{shown(text)} cannot be a tag", hint=error.hint) from None


def ssh_key(text: str) -> str:
    """Read a public key as authorized_keys has it, without options."""
    if "PRIVATE KEY" in text:
        raise UsageError(
            "is a private key, which must never leave its machine",
            hint="Make a new pair, and copy the line of its .pub file.",
        )
    kind, _, rest = text.strip().partition(" ")
    if kind not in _SSH_KINDS:
        raise UsageError("is no public ssh key of a kind that is taken", hint=_SSH_HINT)
    body, _, comment = rest.strip().partition(" ")
    try:
        raw = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    size = int.from_bytes(raw[:4], "big")
    # RFC 4253 §6.6: the kind's name with its length comes first, then the numbers of the key.
    if raw[4 : 4 + size] != kind.encode() or len(raw) <= 4 + size:
        raise UsageError("is cut short or garbled", hint=_SSH_HINT)
    if not comment.isprintable():
        raise UsageError("has a character that cannot be seen", hint=_SSH_HINT)
    return f"{kind} {body} {comment.strip()}".strip()


def ssid(text: str) -> str:
    """Read a wifi network's name."""
    if not 1 <= len(text.encode()) <= _MAX_SSID_BYTES or not text.isprintable():
        raise UsageError(
            f"{shown(text)} cannot be a wifi network's name",
            hint=f"Names have 1 to {_MAX_SSID_BYTES} bytes; write it as the router shows it.",
        )
    return text


def wifi_password(text: str) -> str:
    """Read a WPA passphrase or key; "" is an open network."""
    if text and not _PASSPHRASE.fullmatch(text):
        raise UsageError(
            f"cannot be a wifi password ({len(text)} characters)",
            hint='It has 8 to 63 ASCII letters, digits and signs; "" is for an open network.',
        )
    return text


def country(text: str) -> str:
    """Read a country, which decides the channels that may be used."""
    if not _COUNTRY.fullmatch(text):
        raise UsageError(
            f"{shown(text)} is no country", hint='Write its two capitals, as "DE" or "US".'
        )
    return text


def interface_address(text: str) -> Interface:
    """Read this machine's address with the length of its network's prefix."""
    _, slash, length = text.partition("/")
    try:
        found = ip_interface(text)
    except ValueError:
        raise UsageError(f"{shown(text)} is no address", hint=_IP_HINT) from None
    if not slash:
        raise UsageError(
            f"{shown(text)} does not say how large its network is",
            hint=f"{_IP_HINT} In most homes it is /24.",
        )
    if not length.isdecimal():
        raise UsageError(
            f"{shown(text)} has a mask behind the /", hint=f'Write "{found.with_prefixlen}".'
        )
    network = found.network
    # Networks of one or two addresses have none for themselves (RFC 3021, RFC 6164).
    ends = (network[0], network[-1]) if network.num_addresses > 2 else ()
    ip = found.ip
    special = ip.is_loopback or ip.is_multicast or ip.is_unspecified or ip.is_link_local
    if special or ip in ends or "%" in text:
        raise UsageError(
            f"{shown(text)} cannot be one machine's address",
            hint=f"{_IP_HINT} The first and the last of a network are taken.",
        )
    return found


def address(text: str) -> Address:
    """Read an address without a network, of a gateway or a name server."""
    try:
        found = ip_address(text)
    except ValueError:
        raise UsageError(
            f"{shown(text)} is no address", hint='Write it like "192.168.1.1".'
        ) from None
    if found.is_multicast or found.is_unspecified or "%" in text:
        raise UsageError(
            f"{shown(text)} is no machine's address", hint='Write it like "192.168.1.1".'
        )
    return found


def interface(text: str) -> str:
    """Read a network interface's name."""
    if not _INTERFACE.fullmatch(text) or text in (".", ".."):
        raise UsageError(
            f"{shown(text)} is no network interface", hint='Write it like "eth0" or "enp3s0".'
        )
    return text


def proxy(text: str) -> str:
    """Read an HTTP proxy; returns http://HOST:PORT."""
    scheme, separator, rest = text.partition("://")
    if "@" in text:
        raise UsageError(
            "has a user or a password in it",
            hint='Write "http://HOST:PORT", and both in lines of their own: proxy_user, '
            "proxy_password.",
        )
    if not separator or scheme.lower() != "http":
        raise UsageError(f"{shown(text)} is no HTTP proxy", hint=_PROXY_HINT)
    try:
        return f"http://{endpoint.join(*endpoint.split(rest.removesuffix('/')))}"
    except UsageError:
        raise UsageError(f"{shown(text)} does not end in a HOST:PORT", hint=_PROXY_HINT) from None


def user(text: str) -> str:
    """Read a user's name at the proxy."""
    if not text or not text.isprintable() or ":" in text:
        raise UsageError(f"{shown(text)} cannot be a user", hint="Write a name without a colon.")
    return text


def password(text: str) -> str:
    """Read a password that only has to be typable."""
    if not text or not text.isprintable():
        raise UsageError("is empty or has a character that cannot be seen", hint="Type it anew.")
    return text


FIELDS = {
    field.key: field
    for field in (
        Field("ticket", "The ticket to join with, from `agent invite`.", "covey1…", ticket,
              secret=True),
        Field("name", "This machine's name in the mesh and on the LAN.", "shed-1", name),
        Field("role", "What it shall be; what it may be is in its ticket.", "worker", role,
              many=True),
        Field("tags", "The tags that its ticket is thought to give.", "gpu", tag, many=True),
        Field("ssh_key", "Who may log in by ssh, which is off without it.",
              "ssh-ed25519 AAAA… me@laptop", ssh_key, many=True),
        Field("wifi", "The wifi network's name; cables need no setting.", "Our network", ssid),
        Field("wifi_password", 'Its password; "" for an open network.', "long and secret",
              wifi_password, secret=True, only_with="wifi"),
        Field("wifi_country", "The country that the machine is in.", "DE", country,
              only_with="wifi"),
        Field("address", "Its address, where the router shall not give one.", "192.168.1.20/24",
              interface_address),
        Field("gateway", "With an address: the router's.", "192.168.1.1", address,
              only_with="address"),
        Field("dns", "With an address: the name servers; the gateway if there are none.",
              "192.168.1.1", address, many=True, only_with="address"),
        Field("interface", "With an address: of which port; the first wired one if none is named.",
              "eth0", interface, only_with="address"),
        Field("proxy", "The HTTP proxy for updates and models.", "http://proxy.lan:3128", proxy),
        Field("proxy_user", "The user at the proxy.", "shed", user, only_with="proxy"),
        Field("proxy_password", "That user's password.", "secret", password, secret=True,
              only_with="proxy_user"),
    )
}  # fmt: skip
