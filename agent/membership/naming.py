"""What names, roles and tags may look like, and how a name is made unique. A core.

Used wherever a certificate or an invite is made or read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from agent.errors import UsageError

# In the order in which certificates list them.
ROLES = ("worker", "gateway", "relay", "issuer", "admin")
DEFAULT_ROLES = ("worker",)
# Only the mesh's root key gives these.
ROOT_ROLES = frozenset(("issuer", "admin"))

MAX_NAME_CHARACTERS = 63  # a DNS label, RFC 1035 §2.3.4
NAME_PATTERN = r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"
MAX_TAG_CHARACTERS = 32
MAX_TAGS = 8
TAG_PATTERN = r"\A[a-z0-9][a-z0-9._:=/-]{0,31}\Z"
_NAME = re.compile(NAME_PATTERN)
_TAG = re.compile(TAG_PATTERN)


def check_name(name: str) -> str:
    """Return the name of a node or mesh; raises UsageError unless it is a lower-case DNS label."""
    if not _NAME.match(name):
        raise UsageError(
            f"{name[:80]!r} cannot be a name",
            hint="Names have 1 to 63 of a-z, 0-9 and '-', with no '-' at either end.",
        )
    return name


def name_from_hostname(hostname: str) -> str:
    """Return the name that a machine's host name suggests; "node" when nothing of it is usable."""
    label = re.sub(r"[^a-z0-9]+", "-", hostname.split(".")[0].lower())
    return label[:MAX_NAME_CHARACTERS].strip("-") or "node"


def unique_name(name: str, taken: Collection[str]) -> str:
    """Return `name`, or the first of name-2, name-3, … that is not taken."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        suffix = f"-{number}"
        candidate = name[: MAX_NAME_CHARACTERS - len(suffix)].rstrip("-") + suffix
    return candidate


def check_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Return the roles once each, in their order; raises UsageError for an unknown one."""
    wanted = set(roles)
    unknown = sorted(wanted.difference(ROLES))
    if unknown:
        raise UsageError(
            f"{unknown[0][:80]!r} is not a role", hint=f"Roles are {', '.join(ROLES)}."
        )
    return tuple(role for role in ROLES if role in wanted)


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags once each, sorted; raises UsageError for one too odd, or too many."""
    wanted = sorted(set(tags))
    for tag in wanted:
        if not _TAG.match(tag):
            raise UsageError(
                f"{tag[:80]!r} cannot be a tag",
                hint="Tags have 1 to 32 of a-z, 0-9 and '._:=/-', and begin with none of these.",
            )
    if len(wanted) > MAX_TAGS:
        raise UsageError(f"{len(wanted)} tags are too many", hint=f"Give at most {MAX_TAGS}.")
    return tuple(wanted)
