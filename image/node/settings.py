"""covey.toml as one value, or all that is wrong with it at once. A core.

    covey.toml ─▶ filetext ─▶ statements ─▶ here, by the table in `fields` ─▶ Settings | mistakes

A secret that `scrub.py` took from the file is on the machine's own disk; `Settings.with_kept`
joins both again.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import Any

from agent.errors import UsageError
from image.node import statements
from image.node.fields import FIELDS, Address, Field, Interface
from image.node.filetext import FileText
from image.node.statements import Bare, Mistake, Statement

# A filled-in sample has 3 KiB; a file of more than this is not ours.
MAX_FILE_BYTES = 64 * 1024
# What people write, and what difflib would not find.
_MEANT = {
    "hostname": "name", "host_name": "name", "host": "name", "token": "ticket", "join": "ticket",
    "ssid": "wifi", "password": "wifi_password", "psk": "wifi_password", "country": "wifi_country",
    "ip": "address", "router": "gateway", "nameserver": "dns", "nameservers": "dns",
    "http_proxy": "proxy", "https_proxy": "proxy", "authorized_keys": "ssh_key",
}  # fmt: skip


@dataclass(frozen=True)
class Wifi:
    """A wifi network. `password` None: the one that is kept, if any; "": the network is open."""

    network: str
    password: str | None = field(default=None, repr=False)
    country: str = ""


@dataclass(frozen=True)
class StaticAddress:
    """An address by hand; `interface` "" is the first wired one."""

    address: Interface
    gateway: Address | None = None
    dns: tuple[Address, ...] = ()
    interface: str = ""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy: http://HOST:PORT. `password` None: the one that is kept, if any."""

    url: str
    user: str = ""
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Settings:
    """What to do from the file; what is empty or None was not set.

    `roles` and `tags` are wishes: the ticket's issuer decides.
    """

    ticket: str = field(default="", repr=False)
    name: str = ""
    roles: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ssh_keys: tuple[str, ...] = ()
    wifi: Wifi | None = None
    address: StaticAddress | None = None
    proxy: Proxy | None = None

    def with_kept(self, kept: Settings) -> Settings:
        """Return these settings with the passwords of `kept`, where they are for the same thing."""
        wifi, proxy = self.wifi, self.proxy
        if wifi and kept.wifi and wifi.password is None and wifi.network == kept.wifi.network:
            wifi = replace(wifi, password=kept.wifi.password)
        if proxy and kept.proxy and proxy.password is None:
            same = (proxy.url, proxy.user) == (kept.proxy.url, kept.proxy.user)
            proxy = replace(proxy, password=kept.proxy.password) if same else proxy
        return replace(self, wifi=wifi, proxy=proxy)


@dataclass(frozen=True)
class Reading:
    """What a file says: settings, or what is wrong with it, in the lines' order."""

    settings: Settings | None
    mistakes: tuple[Mistake, ...] = ()


def read(raw: bytes) -> Reading:
    """Return what the bytes of covey.toml say; never raises. An empty file is no mistake."""
    if len(raw) > MAX_FILE_BYTES:
        return _refused(1, f"is larger than {MAX_FILE_BYTES} bytes", "Begin with a new file.")
    lines = FileText.decode(raw).lines
    binary = next((number for number, line in enumerate(lines, start=1) if "\0" in line), 0)
    if binary:
        return _refused(binary, "is no text", "Save the file as plain text in UTF-8.")
    scan = statements.scan(lines)
    reader = _Reader()
    for statement in scan.statements:
        reader.take(statement)
    reader.check_together({mistake.key for mistake in scan.mistakes})
    mistakes = sorted((*scan.mistakes, *reader.mistakes), key=lambda mistake: mistake.line)
    return Reading(None, tuple(mistakes)) if mistakes else Reading(reader.settings())


def sample() -> str:
    """Return the commented covey.toml that sets nothing."""
    lines = [
        "# Covey reads this file when the machine starts. Remove the # in front of what you set.",
        "# Write values between quotes. Passwords and the ticket leave the file after joining.",
    ]
    for known in FIELDS.values():
        several = ' Several: ["…", "…"].' if known.many else ""
        lines += ["", f"# {known.what}{several}", f'# {known.key} = "{known.example}"']
    return "\n".join(lines) + "\n"


class _Reader:
    """Takes statements by the table of fields; keeps what they mean and what is wrong."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self._seen: dict[str, Statement] = {}
        self._values: dict[str, tuple[Any, ...]] = {}

    def take(self, statement: Statement) -> None:
        """Read one statement."""
        key, line = statement.key, statement.first
        known = FIELDS.get(key)
        if known is None:
            self._wrong(line, key, "is no setting", _meant(key))
        elif key in self._seen:
            earlier = self._seen[key].first
            self._wrong(line, key, f"was already set in line {earlier}", "Remove one of both.")
        else:
            self._seen[key] = statement
            self._read(known, statement)

    def check_together(self, unread: set[str]) -> None:
        """Tell what is wrong with settings that are right alone; `unread` keys are told already."""
        for key, statement in self._seen.items():
            needed = FIELDS[key].only_with
            there = self._seen.keys() | unread
            if needed and needed not in there and any(statement.items):
                self._wrong(
                    statement.first,
                    key,
                    f"means nothing without {needed}",
                    f'Write {needed} = "{FIELDS[needed].example}" too, or remove this line.',
                )
        own, gateway = self._one("address"), self._one("gateway")
        if own and gateway and not _reaches(own, gateway):
            self._wrong(
                self._seen["gateway"].first,
                "gateway",
                f"{gateway} is no other machine in {own.network}",
                "Write the router's address, which lies in the network of this machine's.",
            )

    def settings(self) -> Settings:
        """Return all of it; only what has no mistakes means something."""
        wifi, own, proxy = self._one("wifi"), self._one("address"), self._one("proxy")
        gateway = self._one("gateway")
        return Settings(
            ticket=self._one("ticket") or "",
            name=self._one("name") or "",
            roles=self._all("role"),
            tags=self._all("tags"),
            ssh_keys=self._all("ssh_key"),
            wifi=Wifi(wifi, self._one("wifi_password"), self._one("wifi_country") or "")
            if wifi
            else None,
            address=StaticAddress(
                own,
                gateway,
                self._all("dns") or ((gateway,) if gateway else ()),
                self._one("interface") or "",
            )
            if own
            else None,
            proxy=Proxy(proxy, self._one("proxy_user") or "", self._one("proxy_password"))
            if proxy
            else None,
        )

    def _read(self, known: Field, statement: Statement) -> None:
        if statement.is_list and not known.many:
            self._wrong(
                statement.first,
                known.key,
                "is a list, but takes one value",
                f'Write {known.key} = "{known.example}".',
            )
            return
        values: list[object] = []
        for item, line in zip(statement.items, statement.item_lines, strict=True):
            if isinstance(item, Bare):
                self._wrong(line, known.key, "has no quotes around it", _quoted(known, item))
            # Left empty is not set, but for the password that an open network has.
            elif item or known.key == "wifi_password":
                try:
                    values.append(known.read(item))
                except UsageError as error:
                    self._wrong(line, known.key, error.message, error.hint)
        # Once each, in their order.
        self._values[known.key] = tuple(dict.fromkeys(values))

    def _wrong(self, line: int, key: str, reason: str, advice: str) -> None:
        self.mistakes.append(Mistake(line, key, reason, advice))

    def _all(self, key: str) -> tuple[Any, ...]:
        return self._values.get(key, ())

    def _one(self, key: str) -> Any:
        return next(iter(self._all(key)), None)


def _refused(line: int, reason: str, advice: str) -> Reading:
    return Reading(None, (Mistake(line, "", reason, advice),))


def _reaches(own: Interface, gateway: Address) -> bool:
    """Say whether a gateway can be one for this address."""
    if gateway.version != own.version or gateway == own.ip:
        return False
    return gateway in own.network or (gateway.version == 6 and gateway.is_link_local)


def _meant(key: str) -> str:
    plain = key.lower().replace("-", "_").replace(".", "_")
    near = difflib.get_close_matches(plain, FIELDS, 1)
    meant = _MEANT.get(plain) or (near[0] if near else "")
    if not meant:
        return f"There are {', '.join(FIELDS)}."
    return f"Write {meant} if you mean this: {FIELDS[meant].what}"


def _quoted(known: Field, item: Bare) -> str:
    """Return how to write a value that has no quotes; a secret is not repeated."""
    text = item.text
    plain = text.isascii() and text.isprintable() and not set(text) & set("\"'\\[]{},")
    if known.secret or not plain or len(text) > 60 or "covey1" in text.lower():
        text = "…"
    return f'Write {known.key} = "{text}".'
