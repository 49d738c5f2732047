"""covey.toml without its secrets: what stays on the boot partition after joining. A core.

That partition can be read by every computer that the card or disk is put in. Lines that set a
secret go; all others stay byte for byte, but for secrets in comments: a setting that was commented
out, an old ticket, a password that stands in a note as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.errors import ConfigError
from image.node import settings, statements
from image.node.fields import FIELDS
from image.node.filetext import FileText
from image.node.statements import Statement

_SECRETS = "|".join(known.key for known in FIELDS.values() if known.secret)
_ASIDE = re.compile(rf"(#[#\s]*(?:{_SECRETS})\s*[=:]\s*)(\S.*)", re.I)
_TICKET = re.compile(r"covey[1-9][a-z2-7]{16,}", re.I)
# A shorter password is a part of too many words, and can be guessed.
_LEAST_CHARACTERS = 4


@dataclass(frozen=True)
class Scrubbed:
    """The file's new bytes, and the lines (from 1) of the old one that went or changed."""

    raw: bytes
    lines: tuple[int, ...]


def scrub(raw: bytes) -> Scrubbed:
    """Return the file without secrets; `lines` is empty where it had none.

    Raises ConfigError for a file with mistakes: what a secret is in it cannot be known for certain.
    """
    mistakes = settings.read(raw).mistakes
    if mistakes:
        raise ConfigError(f"covey.toml, {mistakes[0]}")
    text = FileText.decode(raw)
    scan = statements.scan(text.lines)
    secret = [statement for statement in scan.statements if _is_secret(statement)]
    gone = {line for found in secret for line in range(found.first, found.last + 1)}
    values = {str(item) for found in secret for item in found.items}
    changed: dict[int, str | None] = {}
    for number, line in enumerate(text.lines, start=1):
        column = scan.comments.get(number)
        comment = "" if column is None else _without(line[column:], values)
        if number in gone:
            changed[number] = comment or None
        elif column is not None and comment != line[column:]:
            changed[number] = line[:column] + comment
    return Scrubbed(text.with_lines(changed).encode(), tuple(sorted(changed)))


def _is_secret(statement: Statement) -> bool:
    return FIELDS[statement.key].secret and any(statement.items)


def _without(comment: str, values: set[str]) -> str:
    """Return a comment without tickets, the secrets `values`, and those that it sets aside."""
    aside = _ASIDE.match(comment)
    # The lines that the sample came with stay, or nobody would know how to set them again.
    if aside and aside[2].strip().strip("\"'") not in {known.example for known in FIELDS.values()}:
        comment = f"{aside[1]}…"
    comment = _TICKET.sub("covey1…", comment)
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= _LEAST_CHARACTERS:
            comment = comment.replace(value, "…")
    return comment
