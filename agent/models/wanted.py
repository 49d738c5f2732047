"""What an operator asks for with `agent pull`, and which URLs are asked at all. A core.

    /path/to/model.gguf        a file on this node
    https://host/model.gguf    a URL; http for loopback and overlay addresses alone
    hf:org/repo/file.gguf      a file of the hub (models.hub)
    …/NAME-00002-of-00003.gguf any of the three: all files of the split model NAME
    llama-3.2-3b, 1f6a3e0c…    a model that a member has, by its name, its id or the file's SHA-256

Used by `pull.py`, `origins.py`, `service.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Annotated, Literal
from urllib.parse import quote, unquote, urlsplit

import msgspec

from agent.engine import splits
from agent.errors import UsageError, one_line
from agent.models.manifest import is_hash

Kind = Literal["file", "url", "mesh"]
Networks = Sequence[IPv4Network | IPv6Network]

MAX_NAME_CHARACTERS = 100
MAX_SOURCE_CHARACTERS = 4000
# A name is that of a file here, and it stands in URLs.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB = re.compile(r"[\w.-]+/[\w.-]+/.+")
# Fewer digits of a hash are taken for a name.
MIN_HASH_CHARACTERS = 8


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that shall come: from where, under which name, and its SHA-256 if that is known.

    `location` is the path, the URL, or what a member calls it. `repairs` says that the file is
    there already and some of it is wrong.
    """

    source: str
    kind: Kind
    location: str
    name: str
    sha256: str = ""
    pinned: bool = False
    repairs: bool = False
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1

    @property
    def shown(self) -> str:
        """The source for people and logs: no password, nothing that a query signs."""
        return shown(self.source) if "://" in self.source else self.source

    def locations(self) -> tuple[str, ...]:
        """Return where the model's files are, in order; one where it is not split."""
        return _siblings(self.location) if self.kind != "mesh" else (self.location,)


def parse(source: str, name: str, sha256: str, hub: str, networks: Networks) -> Wanted:
    """Return what is asked for; `hub` is models.hub, `networks` are the overlay's.

    Raises UsageError for what makes no sense.
    """
    sha256 = sha256.lower().removeprefix("sha256:")
    if sha256 and not is_hash(sha256):
        raise UsageError(
            f"{one_line(sha256)[:80]!r} is no SHA-256", hint="It has 64 hexadecimal digits."
        )
    if not source or len(source) > MAX_SOURCE_CHARACTERS or not source.isprintable():
        raise UsageError(
            f"{one_line(source)[:80]!r} names no model",
            hint="Give a file, an https URL, hf:ORG/REPO/FILE, or the name of a member's model.",
        )
    if source.startswith(("hf:", "/")) or "://" in source:
        source = _siblings(source)[0]  # whichever file was named, it is the same model
    kind, location = _located(source, hub, networks)
    if not name:
        name = source if kind == "mesh" else _name_of(location)
    if kind != "mesh" or not is_hash_start(name):
        check_name(name)
    return Wanted(source, kind, location, name, sha256)


def _located(source: str, hub: str, networks: Networks) -> tuple[Kind, str]:
    if source.startswith("hf:"):
        path = source.removeprefix("hf:")
        if not _HUB.fullmatch(path) or ".." in path.split("/"):
            raise UsageError(
                f"{one_line(source)[:80]!r} names no file of the hub",
                hint="Write hf:ORG/REPO/FILE, as the hub's page shows them.",
            )
        organisation, repository, file = path.split("/", 2)
        url = f"{hub.rstrip('/')}/{organisation}/{repository}/resolve/main/{quote(file)}"
        return "url", check_url(url, networks)
    if "://" in source:
        return "url", check_url(source, networks)
    if source.startswith("/"):
        return "file", source
    if "/" in source:
        raise UsageError(
            f"{one_line(source)[:80]!r} is no file on this node",
            hint="A URL begins with https://, a file of the hub with hf:.",
        )
    return "mesh", source


def check_url(url: str, networks: Networks) -> str:
    """Return a URL that may be asked; raises UsageError for any other."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{shown(url)} is no URL: {error}") from None
    if not host or parts.scheme not in ("https", "http"):
        raise UsageError(
            f"{shown(url)} is no URL that models come from", hint="It begins with https://."
        )
    if parts.scheme == "http" and not _is_near(host, networks):
        raise UsageError(
            f"{shown(url)} is not encrypted",
            hint="Give an https URL; http is for loopback and overlay addresses.",
        )
    return url


def check_redirect(url: str, target: str, networks: Networks) -> str:
    """Return where an asked URL leads on to, if it may; raises UsageError."""
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise UsageError(f"{shown(url)} leads on to {shown(target)}, which is not encrypted")
    check_url(target, networks)
    asked, led = urlsplit(url).hostname or "", urlsplit(target).hostname or ""
    # Whoever is asked may not have this node ask its own services, or members', in its name.
    for is_nearer in (_is_here, lambda host: _is_near(host, networks)):
        if is_nearer(led) and not is_nearer(asked):
            raise UsageError(
                f"{shown(url)} leads on to {shown(target)}, which is not for it to say"
            )
    return target


def shown(url: str) -> str:
    """Return a URL for people and logs: without a password, and without what a query signs."""
    try:
        parts = urlsplit(url)
        place = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return one_line(url)[:80]
    if ":" in (parts.hostname or ""):
        place = f"[{parts.hostname}]{f':{parts.port}' if parts.port else ''}"
    return one_line(f"{parts.scheme}://{place}{parts.path}")


def check_name(name: str) -> None:
    """Raise UsageError for a name that no model can have here."""
    if splits.parse(name) is not None:
        raise UsageError(
            f"{name} cannot name a model: files of a split model are called like that",
            hint="Give it another name (--name).",
        )
    if is_no_name(name):
        raise UsageError(
            f"{one_line(name)[:80]!r} cannot name a model",
            hint=f"Give it a name (--name) of 1 to {MAX_NAME_CHARACTERS} letters, digits, dots, "
            "dashes and underscores.",
        )


def is_no_name(name: str) -> bool:
    """Whether no model here can have that name."""
    return len(name) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(name)


def is_hash_start(text: str) -> bool:
    """Whether a text may be the beginning of a hash."""
    return MIN_HASH_CHARACTERS <= len(text) <= 64 and not set(text) - set("0123456789abcdef")


def _siblings(location: str) -> tuple[str, ...]:
    """Return all files of the model of which one lies there, in order; itself where it is whole."""
    try:
        url = urlsplit(location) if "://" in location else None
    except ValueError:  # no URL, which is said elsewhere
        return (location,)
    folder, slash, file = (url.path if url else location).rpartition("/")
    if (split := splits.parse(file)) is None:
        return (location,)
    paths = [folder + slash + name for name in split.names()]
    return tuple(url._replace(path=path).geturl() if url else path for path in paths)


def _name_of(location: str) -> str:
    """Return the name that a file's own suggests: without .gguf, odd characters as dashes."""
    file = unquote(urlsplit(location).path if "://" in location else location).rsplit("/", 1)[-1]
    if (split := splits.parse(file)) is not None:
        file = split.whole
    stem = file[: -len(".gguf")] if file.lower().endswith(".gguf") else file
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:MAX_NAME_CHARACTERS]


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_near(host: str, networks: Networks) -> bool:
    if _is_here(host):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return any(address.version == network.version and address in network for network in networks)
