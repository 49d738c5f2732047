"""A full covey.toml, line by line, and ways to break a line of it."""

from __future__ import annotations

import base64

from agent.membership.ticket import Ticket

TICKET = Ticket(
    1, b"m" * 32, "home", b"n" * 32, b"i" * 32, b"v" * 8, b"s" * 16, ("192.0.2.1:4001",), 2_000_000
).encode()
_BLOB = len(b"ssh-ed25519").to_bytes(4, "big") + b"ssh-ed25519" + b"\0\0\0 " + b"k" * 32
SSH_KEY = f"ssh-ed25519 {base64.b64encode(_BLOB).decode()} me@laptop"
WIFI_PASSWORD = "correct horse"
PROXY_PASSWORD = "swordfish#1"
SECRETS = (TICKET, WIFI_PASSWORD, PROXY_PASSWORD)

LINES = (
    "# for the shed",
    f'ticket = "{TICKET}"  # from Anna',
    'name = "shed-1"',
    'role = ["worker", "relay"]',
    'tags = ["gpu", "site:home"]  # both',
    f'ssh_key = "{SSH_KEY}"',
    "",
    'wifi = "Our network"',
    f"wifi_password = '{WIFI_PASSWORD}'",
    'wifi_country = "DE"',
    'address = "192.168.1.20/24"',
    'gateway = "192.168.1.1"',
    'dns = "9.9.9.9"',
    'interface = "eth0"',
    'proxy = "http://proxy.lan:3128"',
    'proxy_user = "shed"',
    f'proxy_password = "{PROXY_PASSWORD}"',
)
SETTING_LINES = tuple(
    number for number, line in enumerate(LINES, start=1) if line and not line.startswith("#")
)


def file(*lines: str, end: str = "\n") -> bytes:
    """Return lines as a file's bytes."""
    return "".join(line + end for line in lines).encode()


def changed(number: int, line: str) -> bytes:
    """Return the full file with another line `number` (from 1)."""
    return file(*LINES[: number - 1], line, *LINES[number:])
