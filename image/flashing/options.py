"""The command line of `image/flash`, and what it sets in covey.toml. A shell: it reads secrets.

What is in covey.toml has an option each, by the table that reads it on the appliance. Secrets are
read from files or asked for, since what stands in a command line others on this computer can see.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import NoReturn

from agent.errors import UsageError
from image.flashing.filled import option
from image.node.fields import FIELDS

_ASKED = {
    "wifi_password": ("wifi", "The wifi network's password (nothing for an open one): "),
    "proxy_password": ("proxy_user", "The password at the proxy: "),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        self.exit(2, f"{message}. See image/flash --help.\n")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line says; ends the program where it says nothing useful."""
    parser = _Parser(
        prog="image/flash",
        description="Write the appliance's image to a disk, with a covey.toml of what is set here.",
        epilog="A FILE that is - is a line of the standard input.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--device", required=True, metavar="DISK",
        help="what to overwrite: a whole disk, like /dev/sdb, or a file")  # fmt: skip
    add("--image", type=Path, default=Path("covey.img"), metavar="FILE",
        help="the image, also packed by xz or gzip; covey.img if none is named")  # fmt: skip
    add("--sha256", default="", metavar="HEX",
        help="the SHA-256 of that file; if none is given, FILE.sha256 has it")  # fmt: skip
    add("--unchecked", action="store_true", help="take an image without a SHA-256")
    add("--yes", action="store_true", help="overwrite without asking")
    add("--ticket", dest="ticket_text", metavar="TICKET",
        help="the ticket to join with; - for a line of the standard input")  # fmt: skip
    settings = parser.add_argument_group("what covey.toml sets")
    for field in FIELDS.values():
        action = "append" if field.many and not field.secret else "store"
        metavar = "FILE" if field.secret else "KEY|FILE" if field.key == "ssh_key" else "TEXT"
        what = f"the file with it: {field.what}" if field.secret else field.what
        settings.add_argument(option(field.key), dest=field.key, action=action, metavar=metavar,
                              help=f"{what} May be repeated." if field.many else what)  # fmt: skip
    return parser.parse_args(words)


def values(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Return what is set, by the keys of covey.toml.

    A password that is needed and was not given is asked for, where somebody is there. Raises
    UsageError for a file that cannot be read.
    """
    found: dict[str, list[str]] = {}
    for field in FIELDS.values():
        given = getattr(arguments, field.key)
        if given is None:
            continue
        if field.secret:
            found[field.key] = [_first_line(given)]
        elif field.key == "ssh_key":
            found[field.key] = [line for text in given for line in _ssh_keys(text)]
        else:
            found[field.key] = given if isinstance(given, list) else [given]
    if arguments.ticket_text is not None:
        written = arguments.ticket_text
        found["ticket"] = [_first_line(written) if written == "-" else written]
    for key, (needed, question) in _ASKED.items():
        if needed in found and key not in found and sys.stdin.isatty():
            found[key] = [getpass.getpass(question)]
    return found


def _first_line(file: str) -> str:
    if file == "-":
        return sys.stdin.readline().rstrip("\r\n")
    return next(iter(_text(file).splitlines()), "")


def _ssh_keys(given: str) -> list[str]:
    """Return the keys of a .pub file, or the one that stands there itself."""
    if " " in given and not Path(given).exists():
        return [given]
    lines = [line.strip() for line in _text(given).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _text(file: str) -> str:
    try:
        return Path(file).read_text(errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from None
