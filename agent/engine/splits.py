"""How the files of a split model are called, by llama.cpp's rule: NAME-00002-of-00003.gguf. A core.

llama.cpp loads a split model by its first file and looks for the others beside it, so wherever the
files of one lie they have these names: .gguf in a store, .part while they are fetched. Used by
`gguf_file.py`, and by whoever handles a model's files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Files of 50 GB make up the largest models; this many of them would be 50 TB.
MAX_FILES: Final = 1000
_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.\w+)?")


@dataclass(frozen=True)
class SplitName:
    """The name of file `number` (from 1) of `count`, at least 2; `suffix` has its dot."""

    prefix: str
    number: int
    count: int
    suffix: str

    @property
    def whole(self) -> str:
        """What the file would be called if there were just one."""
        return self.prefix + self.suffix

    def names(self) -> tuple[str, ...]:
        """Return the names of all files, in order."""
        return tuple(
            f"{self.prefix}-{number:05d}-of-{self.count:05d}{self.suffix}"
            for number in range(1, self.count + 1)
        )


def parse(name: str) -> SplitName | None:
    """Read a file's name; None for one that is not of a model in several files."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    number, count = int(found["number"]), int(found["count"])
    if not (1 <= number <= count and 2 <= count <= MAX_FILES):
        return None
    return SplitName(found["prefix"], number, count, found["suffix"] or "")


def files(path: Path, count: int) -> tuple[Path, ...]:
    """Return where the `count` files of the model lie that would be `path` if there were one."""
    if count == 1:
        return (path,)
    return tuple(map(path.with_name, SplitName(path.stem, 1, count, path.suffix).names()))


def siblings(path: Path) -> tuple[Path, ...]:
    """Return all files of the model of which this is one, in order; itself where it is whole."""
    name = parse(path.name)
    return (path,) if name is None else tuple(map(path.with_name, name.names()))


def whole(path: Path) -> Path:
    """Return what the file would be called if the model were one file; itself where it is."""
    name = parse(path.name)
    return path if name is None else path.with_name(name.whole)
