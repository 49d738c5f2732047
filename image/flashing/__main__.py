"""`image/flash`: the command line that writes the appliance's image to a disk. A shell."""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from agent.errors import CoveyError, EnvironmentFault, UsageError
from image.flashing import filled, options, progress, source, targets, writing
from image.flashing.targets import System

# A line of progress where there is no terminal, that is, in a log.
_LINE_INTERVAL_S = 10.0
_REDRAW_INTERVAL_S = 0.2
_INTERRUPTED = 130


def main() -> int:
    """Write what the command line says; the exit status is that of the error, if there is one."""
    arguments = options.parse()
    try:
        _flash(arguments)
    except CoveyError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            f"\nInterrupted; {arguments.device} may hold half of it. Start again.", file=sys.stderr
        )
        return _INTERRUPTED
    return 0


def _flash(arguments: argparse.Namespace) -> None:
    covey_toml = filled.covey_toml(options.values(arguments), time.time())
    path: Path = arguments.image
    checked = not arguments.unchecked or arguments.sha256
    sha256 = source.wanted_hash(path, arguments.sha256) if checked else ""
    device = Path(arguments.device)
    is_disk = _is_disk(device, path)
    print(f"Reading {path}", file=sys.stderr)
    image = source.inspect(path, sha256)
    chunks = image.chunks(covey_toml)
    opened: AbstractContextManager[int] = writing.file(device)
    lines = _file_lines(device)
    if is_disk:
        disk = System().disk(device, _number(device))
        targets.check(disk, image.size)
        opened, lines = writing.disk(str(device)), disk.lines()
    if lines and not arguments.yes:
        _ask(lines)
    with opened as target:
        writing.write(target, device.name, image.size, chunks, _Progress(image.size).say)
    print(f"{device} holds the image, and was read back. Put it into the machine, and start that.")


def _is_disk(device: Path, image: Path) -> bool:
    """Say whether it is a disk and not a file; raises UsageError where it is neither."""
    try:
        found = device.stat()
    except FileNotFoundError:
        if device.absolute().is_relative_to("/dev"):
            there = [f"{disk.device} ({disk.model or 'no model'}, {targets.size_text(disk.size)})"
                     for disk in System().disks()]  # fmt: skip
            raise UsageError(
                f"there is no {device}",
                hint=f"Disks that could be taken: {', '.join(there) or 'none'}.",
            ) from None
        if not device.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {device.absolute().parent}") from None
        return False
    except OSError as error:
        raise EnvironmentFault(f"{device} cannot be looked at: {error.strerror}") from None
    if stat.S_ISBLK(found.st_mode):
        return True
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{device} is no disk and no file", hint="Name one, like /dev/sdb.")
    if image.exists() and device.samefile(image):
        raise UsageError(f"{device} is the image itself", hint="Name another file.")
    return False


def _number(device: Path) -> str:
    number = device.stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def _file_lines(device: Path) -> list[str]:
    if not device.exists():
        return []
    return [f"{device}: a file of {targets.size_text(device.stat().st_size)}"]


def _ask(lines: list[str]) -> None:
    """Show what is there, and go on only for a yes. Raises UsageError."""
    print("\n".join(lines), file=sys.stderr)
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", hint="Give --yes if all of it may go.")
    print("All of it will be lost. Write yes to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != "yes":
        raise UsageError("nothing was written", hint="Only yes goes on.")


class _Progress:
    """Shows how far it is: in one line of a terminal, or as some lines of a log."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._what = ""
        self._began = self._shown = 0.0

    def say(self, what: str, done: int) -> None:
        """Show that so many bytes are done."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._shown = what, now, 0.0
        interval = _REDRAW_INTERVAL_S if sys.stderr.isatty() else _LINE_INTERVAL_S
        if now - self._shown < interval and done < self._total:
            return
        self._shown = now
        text = progress.line(what, done, self._total, now - self._began)
        end = "\n" if done >= self._total else ""
        print(f"\r\x1b[K{text}{end}" if sys.stderr.isatty() else f"{text}\n",
              end="", file=sys.stderr, flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
