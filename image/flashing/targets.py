"""What an image would be written over, and why it may not be. A shell around /sys and /proc.

The kernel refuses to open a disk for itself alone that is in use, and `writing.py` asks for that;
this says before, and in words, what is there and what uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import UsageError

_SECTOR_BYTES = 512  # of sysfs, whatever the disk's own are
_SYSTEM = frozenset(("/", "/boot", "/boot/efi", "/usr", "/var", "/home"))
_OCTAL = re.compile(r"\\([0-7]{3})")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Part:
    """A partition that is on a disk: its device, its name in the table ("" for none), its bytes."""

    device: str
    name: str
    size: int


@dataclass(frozen=True)
class Disk:
    """A disk: what people know it by, and `uses`, what it is in use for, as sentences' ends."""

    device: str
    model: str
    size: int
    removable: bool
    read_only: bool
    parts: tuple[Part, ...]
    uses: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return what is there, for who has to say whether it may go."""
        kind = "removable" if self.removable else "built in"
        shown = [f"{self.device}: {self.model or 'no model'}, {size_text(self.size)}, {kind}"]
        for part in self.parts:
            name = f" ({part.name})" if part.name else ""
            shown.append(f"  {part.device}{name}: {size_text(part.size)}")
        return shown if self.parts else [*shown, "  no partitions"]


@dataclass(frozen=True)
class System:
    """Where the kernel tells of disks."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")

    def disk(self, device: Path, number: str) -> Disk:
        """Return the disk that has a device's number ("8:16").

        Raises UsageError for a partition, and for what is no disk.
        """
        try:
            folder = (self.sys / "dev/block" / number).resolve(strict=True)
        except OSError:
            raise UsageError(f"{device} is not a disk that this machine has now") from None
        if (folder / "partition").exists():
            raise UsageError(
                f"{device} is a partition", hint=f"Name the whole disk: /dev/{folder.parent.name}."
            )
        parts = tuple(self._parts(folder))
        model = f"{_word(folder / 'device/vendor')} {_word(folder / 'device/model')}"
        return Disk(
            f"/dev/{folder.name}",
            model.strip(),
            _number(folder / "size") * _SECTOR_BYTES,
            bool(_number(folder / "removable")),
            bool(_number(folder / "ro")),
            parts,
            tuple(self._uses(folder)),
        )

    def disks(self) -> list[Disk]:
        """Return the disks that an image could be written to."""
        found = []
        for path in sorted((self.sys / "block").glob("*")):
            if not (path / "device").exists():
                continue  # one of memory, of a file, or of other disks
            disk = self.disk(path, _word(path / "dev"))
            if disk.size and not disk.uses and not disk.read_only:
                found.append(disk)
        return found

    def _parts(self, folder: Path) -> Iterator[Part]:
        inside = (path.parent for path in folder.glob("*/partition"))
        for path in sorted(inside, key=lambda path: _number(path / "partition")):
            name = re.search(r"^PARTNAME=(.*)$", _text(path / "uevent"), re.MULTILINE)
            yield Part(
                f"/dev/{path.name}", name[1] if name else "", _number(path / "size") * _SECTOR_BYTES
            )

    def _uses(self, folder: Path) -> Iterator[str]:
        """Say what a disk, its partitions and what is made of them are used for."""
        named = {}
        for path in self._above(folder):
            named[_word(path / "dev")] = named[f"/dev/{path.name}"] = f"/dev/{path.name}"
        for line in _text(self.proc / "self/mountinfo").splitlines():
            words = line.split(" ")
            source = words[words.index("-") + 2]
            # Some file systems (btrfs) have a number of their own, and only name their device.
            known = named.get(words[2]) or named.get(source) or named.get(_resolved(source))
            if known:
                where = _plain(words[4])
                system = ", which runs this computer" if where in _SYSTEM else ""
                yield f"{known} is mounted on {where}{system}"
        for line in _text(self.proc / "swaps").splitlines()[1:]:
            source = _plain(line.split()[0])
            if known := named.get(source) or named.get(_resolved(source)):
                yield f"{known} is swap space"
        for path in (folder, *(inside.parent for inside in folder.glob("*/partition"))):
            for holder in sorted((path / "holders").glob("*")):
                name = _word(holder / "dm/name")
                yield f"/dev/{path.name} is a part of {name or holder.name}"

    def _above(self, folder: Path) -> Iterator[Path]:
        """Yield a disk, its partitions, and all that holds one of them."""
        yield folder
        for inside in folder.glob("*/partition"):
            yield from self._above(inside.parent)
        for holder in (folder / "holders").glob("*"):
            yield from self._above(holder.resolve())


def check(disk: Disk, size: int) -> None:
    """Raise UsageError, with the reason, for a disk that `size` bytes must not be written to."""
    if disk.uses:
        raise UsageError(
            f"{disk.device} is in use: {disk.uses[0]}",
            hint="Check that it is the right disk; then unmount it, or end what uses it.",
        )
    if disk.read_only:
        raise UsageError(
            f"{disk.device} cannot be written to", hint="Look for a slide on the card."
        )
    if not disk.size:
        raise UsageError(f"{disk.device} has no medium", hint="Put a card or a disk in.")
    if disk.size < size:
        raise UsageError(
            f"{disk.device} is too small: it has {size_text(disk.size)}, "
            f"and the image {size_text(size)}",
            hint="Take a larger one.",
        )


def size_text(size: int) -> str:
    """Return bytes as people write sizes."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size} bytes"


def _resolved(source: str) -> str:
    return str(Path(source).resolve()) if source.startswith("/dev/") else ""


def _plain(text: str) -> str:
    """Return a path of /proc with its spaces."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _word(path: Path) -> str:
    return " ".join(_text(path).split())


def _number(path: Path) -> int:
    text = _word(path)
    return int(text) if text.isdecimal() else 0
