"""covey.toml out of the options of `image/flash`: the sample with what they set. A core.

What reads it here is what reads it on the appliance, so a mistake is told before anything is
written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from agent.errors import UsageError
from agent.membership.ticket import Ticket
from image.node import settings
from image.node.fields import FIELDS


def option(key: str) -> str:
    """Return the option that sets a key of covey.toml; that of a secret takes a file."""
    name = "tag" if key == "tags" else key.replace("_", "-")
    return f"--{name}-file" if FIELDS[key].secret else f"--{name}"


def covey_toml(values: Mapping[str, Sequence[str]], now: float) -> bytes:
    """Return the file that sets these values by their keys; b"" where there are none.

    `now` (unix seconds) is for the ticket. Raises UsageError, which names the option, for a value
    that the appliance would not take, and TicketError for a ticket that has run out.
    """
    if not values:
        return b""
    lines = settings.sample().splitlines()
    for key, texts in values.items():
        own = next(at for at, line in enumerate(lines) if line.startswith(f"# {key} = "))
        lines[own] = f"{key} = {_quoted(texts, FIELDS[key].many)}"
    # Of Windows' line ends, as the image's own: it has editors that know no others.
    raw = "".join(f"{line}\r\n" for line in lines).encode(errors="surrogateescape")
    reading = settings.read(raw)
    for mistake in reading.mistakes:
        raise UsageError(f"{option(mistake.key)}: {mistake.reason}", hint=mistake.advice)
    if reading.settings and reading.settings.ticket:
        Ticket.parse(reading.settings.ticket).check(now)
    wifi = reading.settings and reading.settings.wifi
    if wifi and wifi.password is None:
        raise UsageError(
            "--wifi: the network's password is missing",
            hint="Give --wifi-password-file; an empty file is for an open network.",
        )
    return raw


def _quoted(texts: Sequence[str], many: bool) -> str:
    # What JSON writes for a text is a text of TOML as well.
    quoted = [json.dumps(text, ensure_ascii=False) for text in texts]
    return f"[{', '.join(quoted)}]" if many and len(quoted) > 1 else quoted[-1]
