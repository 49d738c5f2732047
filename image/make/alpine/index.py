"""What a repository of Alpine has: the entries of its APKINDEX. A core.

An entry is a block of lines, each a letter, a colon and a value; apk-package(5) has the letters.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from agent.errors import EnvironmentFault
from image.make.alpine import versions

_NEED = re.compile(
    r"(?P<not>!?)(?P<name>[^@<>=~]+)(?:@\w+)?(?P<op>[<>=~]*)(?P<version>[^@]*)(?:@\w+)?"
)
# Which hash of a package's control segment an entry has.
_HASHES = {"Q1": ("sha1", 20), "Q2": ("sha256", 32)}


@dataclass(frozen=True)
class Need:
    """A package that is needed, or that must not be there, by its name and which versions do."""

    name: str
    operator: str = ""
    version: str = ""
    unwanted: bool = False

    def allows(self, version: str) -> bool:
        """Say whether a version is one of those that do; "" is that of a name without one."""
        if not self.operator:
            return True
        if not version:
            return False
        if "~" in self.operator:
            return versions.begins_with(version, self.version) or (
                self._compares(version, self.operator.replace("~", ""))
            )
        return self._compares(version, self.operator)

    def _compares(self, version: str, operators: str) -> bool:
        mine, wanted = versions.key(version), versions.key(self.version)
        return any(
            (sign == "=" and mine == wanted)
            or (sign == "<" and mine < wanted)
            or (sign == ">" and mine > wanted)
            for sign in operators
        )

    def __str__(self) -> str:
        """Return it as Alpine writes it."""
        return f"{'!' if self.unwanted else ''}{self.name}{self.operator}{self.version}"


@dataclass(frozen=True)
class Entry:
    """A package as the index has it: `checksum` (of `algorithm`) is that of its control segment.

    `size` is its file's in bytes, `place` the folder or URL that has the file. `provides` are names
    with versions ("" for those without one), of which `priority` is for those without.
    """

    name: str
    version: str
    arch: str
    size: int
    algorithm: str
    checksum: bytes
    needs: tuple[Need, ...]
    provides: tuple[tuple[str, str], ...]
    priority: int
    place: str

    @property
    def file(self) -> str:
        """The name of its file in the repository."""
        return f"{self.name}-{self.version}.apk"


def need(text: str) -> Need:
    """Return what a word of a list of dependencies means."""
    match = _NEED.fullmatch(text)
    if match is None or bool(match["op"]) != bool(match["version"]):
        raise EnvironmentFault(f"{text!r} is no dependency of an Alpine package")
    return Need(match["name"], match["op"], match["version"], unwanted=bool(match["not"]))


def parse(text: str, place: str) -> list[Entry]:
    """Return the entries of an APKINDEX that was read from `place`.

    Raises EnvironmentFault for one that lacks what every entry has.
    """
    return [_entry(block, place) for block in re.split(r"\n\n+", text.strip("\n")) if block]


def _entry(block: str, place: str) -> Entry:
    fields = {line[0]: line[2:] for line in block.splitlines() if line[1:2] == ":"}
    try:
        name, version, size = fields["P"], fields["V"], int(fields["S"])
        algorithm, length = _HASHES[fields["C"][:2]]
        checksum = base64.b64decode(fields["C"][2:], validate=True)
        priority = int(fields.get("k", "0"))
        versions.key(version)
    except (KeyError, ValueError, binascii.Error):
        raise _damaged(fields.get("P", block[:40]), place) from None
    # They become names of files.
    if len(checksum) != length or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise _damaged(name, place)
    provided = [need(word) for word in fields.get("p", "").split()]
    return Entry(
        name, version, fields.get("A", ""), size, algorithm, checksum,
        tuple(need(word) for word in fields.get("D", "").split()),
        tuple((found.name, found.version) for found in provided), priority, place,
    )  # fmt: skip


def _damaged(name: str, place: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the index of {place} has an entry that cannot be read: {name!r}",
        hint="Name another mirror.",
    )
