"""The models of this node on its disk: NAME.gguf, and beside it what is known of it.

    NAME.gguf     the model, whole and checked
    NAME.json     its record: the manifest, where it came from, when, and why that was believed
    NAME.used     its time is when a deployment used it last
    NAME.pull     what is being fetched, so that it goes on after a restart
    NAME.part, NAME.journal    what came of it so far (`partfile.py`)

A split model has NAME-00001-of-00003.gguf and so on, as llama.cpp wants them, and one record.

Knows files alone; `service.py` has the wishes, `pull.py` fetches. `find` is for deployments, which
know a model by its name.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from agent.engine import splits
from agent.errors import EnvironmentFault, StateError
from agent.identity import privatefile
from agent.models import partfile, pieces
from agent.models.manifest import Manifest, fault_of, identity
from agent.models.room import Stored
from agent.models.wanted import MAX_NAME_CHARACTERS, Wanted
from agent.unreadable import UNREADABLE

_log = logging.getLogger(__name__)
_S = TypeVar("_S", bound=msgspec.Struct)


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a model here; `fetched_at` in unix seconds.

    `trust` says why its bytes were believed: the operator's hash, the hub's, a member's manifest,
    or that nothing was known of it before.
    """

    wanted: Wanted
    manifest: Manifest
    fetched_at: float
    trust: str
    architecture: str
    quantisation: str
    layers: int
    pinned: bool = False
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1


def find(folder: Path, name: str) -> Path | None:
    """Return a stored model's (first) file, None where there is none; it counts as used now."""
    if not name or "/" in name or len(name) > MAX_NAME_CHARACTERS:
        return None
    files = [path for path in partfile.present(folder / f"{name}.gguf") if path.is_file()]
    first = next((path for path in files if path == splits.siblings(path)[0]), None)
    if first is None:
        return None
    mark_used(folder, name)
    return place_of(first)


def place_of(path: Path) -> Path:
    """Return a model's file by its full path; one of a split model keeps the name that it has.

    A link's name fits those of the other files, and what it leads to may be called anything.
    """
    return path.resolve() if splits.parse(path.name) is None else path.parent.resolve() / path.name


def mark_used(folder: Path, name: str) -> None:
    """Note that a stored model is used now."""
    with contextlib.suppress(OSError):  # a full or read-only disk is no reason not to run it
        (folder / f"{name}.used").touch()


def id_of(folder: Path, path: Path) -> str:
    """Return the id of the stored model whose first file this is; "" for any other file."""
    if path.parent != folder.resolve():
        return ""
    path = splits.whole(path)
    try:
        record = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Record)
    except (OSError, *UNREADABLE):
        return ""
    return "" if fault_of(record.manifest) else identity(record.manifest)


class Store:
    """A folder of models. `records` has what is known of each, whole or being repaired."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, Record] = {}
        self.ids: dict[str, str] = {}  # by name
        self.faults: list[str] = []  # files that cannot be read, one sentence each

    def load(self) -> None:
        """Read what is there; what is damaged is named in `faults`, and left as it is.

        Raises EnvironmentFault when the folder cannot be made.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(
                f"the models' folder {self.folder} cannot be made: {error.strerror}",
                hint="Set models.dir to a folder that this user may write.",
            ) from None
        privatefile.sweep(self.folder)
        self.faults = []
        for path in sorted(self.folder.glob("*.json")):
            record = self._read(path, Record)
            if record is not None and (fault := fault_of(record.manifest)):
                self.faults.append(f"{path} is damaged: {fault}")
            elif record is not None:
                self._know(path.stem, record)

    def _know(self, name: str, record: Record) -> None:
        self.records[name] = record
        self.ids[name] = identity(record.manifest)

    def _read(self, path: Path, kind: type[_S]) -> _S | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except (OSError, *UNREADABLE) as error:
            self.faults.append(f"{path} cannot be read: {error}")
            _log.warning("%s", self.faults[-1])
            return None

    # ------------------------------------------------------------------ whole models

    def files(self, name: str) -> tuple[Path, ...]:
        """Return where the files of the model of that name lie, or would, the first one first."""
        return splits.files(self.folder / f"{name}.gguf", self._count(name))

    def part(self, name: str) -> Path:
        """Return where it is fetched to; `partfile.py` has a split model's names."""
        return self.folder / f"{name}.part"

    def _parts(self, name: str) -> tuple[Path, ...]:
        return splits.files(self.part(name), self._count(name))

    def _count(self, name: str) -> int:
        record = self.records.get(name)
        return len(record.manifest.sizes) if record is not None else 1

    def whole(self, name: str) -> Record | None:
        """Return the record of a model that is here and whole, else None."""
        record = self.records.get(name)
        there = record is not None and all(path.is_file() for path in self.files(name))
        return record if there else None

    def foreign(self, name: str) -> Path | None:
        """Return a file in the way of a model of that name: one that `agent pull` did not leave."""
        if name in self.records:
            return None
        record = self.folder / f"{name}.json"
        ways = [*partfile.present(self.folder / f"{name}.gguf"), record]
        return next((path for path in ways if path.exists()), None)

    def by_id(self, model_id: str) -> tuple[str, Record] | None:
        """Return name and record of a whole model by its id."""
        for name, known in self.ids.items():
            if known == model_id and (record := self.whole(name)) is not None:
                return name, record
        return None

    def keep(self, name: str, record: Record) -> None:
        """Write a model's record. Raises StateError."""
        privatefile.replace(self.folder / f"{name}.json", msgspec.json.encode(record))
        self._know(name, record)

    def finish(self, name: str, record: Record) -> None:
        """Make the checked part of that name the model. Raises StateError."""
        self.keep(name, record)
        try:
            for part, file in zip(self._parts(name), self.files(name), strict=True):
                part.rename(file)
            _sync(self.folder)
        except OSError as error:
            raise StateError(f"cannot keep {self.files(name)[0]}: {error.strerror}") from None
        partfile.discard(self.part(name))
        self.drop_wish(name)

    def begin_repair(self, name: str, wanted: Wanted, good: list[int]) -> None:
        """Make a model a part again, of which the pieces `good` are right. Raises StateError."""
        plan = pieces.of_manifest(self.records[name].manifest)
        try:
            partfile.begin_with(self.part(name), plan, good)
            self.keep_wish(wanted)
            self._take_back(name)
            _sync(self.folder)
        except OSError as error:
            raise StateError(f"cannot repair {self.files(name)[0]}: {error.strerror}") from None

    def _take_back(self, name: str) -> None:
        for part, file in zip(self._parts(name), self.files(name), strict=True):
            if file.exists() and not part.exists():
                file.rename(part)

    def go_on(self, name: str) -> None:
        """Make all files of a split model parts again, where a crash came between two renames."""
        if self.part(name).with_suffix(".journal").exists():
            self._take_back(name)

    def end_repair(self, name: str) -> None:
        """Make it the model that it was, damaged as it is."""
        for part, file in zip(self._parts(name), self.files(name), strict=True):
            if part.exists():
                part.rename(file)
        partfile.discard(self.part(name))
        self.drop_wish(name)

    def remove(self, name: str) -> None:
        """Remove a model and all that is known of it. Raises StateError."""
        try:
            # The record goes last: what a crash leaves can be removed again.
            for suffix in ("pull", "journal", "part", "gguf", "used", "json"):
                path = self.folder / f"{name}.{suffix}"
                for file in partfile.present(path) if suffix in ("part", "gguf") else (path,):
                    file.unlink(missing_ok=True)
            _sync(self.folder)
        except OSError as error:
            raise StateError(f"cannot remove {name}: {error.strerror}") from None
        self.records.pop(name, None)
        self.ids.pop(name, None)

    def used_at(self, name: str) -> float | None:
        """Return when a deployment used a model last (unix s), None for never."""
        try:
            return (self.folder / f"{name}.used").stat().st_mtime
        except FileNotFoundError:
            return None

    def stored(self, kept: Mapping[str, str]) -> list[Stored]:
        """Return every model and part with its size on disk; `kept` says why some must stay."""
        found = []
        files = (*self.folder.glob("*.gguf"), *self.folder.glob("*.part"))
        for path in sorted(set(map(splits.whole, files))):
            name, record = path.stem, self.records.get(path.stem)
            used_at = self.used_at(name) or (record.fetched_at if record else 0.0)
            why = kept.get(name, "")
            if not why and path.suffix == ".part":
                why = "being fetched"
            if not why and record is None:
                why = "not Covey's"
            if not why and record is not None and record.pinned:
                why = "pinned"
            with contextlib.suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in partfile.present(path))
                found.append(Stored(name, size, used_at, why))
        return found

    def taken(self, name: str) -> int:
        """Return how many bytes of the disk a model takes."""
        return partfile.allocated(self.folder / f"{name}.gguf")

    def promised(self, name: str) -> int:
        """Return how many bytes the other parts still take when they are whole."""
        found = 0
        for path in self.folder.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):
                if splits.whole(path).stem != name:
                    status = path.stat()
                    found += max(0, status.st_size - 512 * status.st_blocks)
        return found

    def free(self) -> int:
        """Return how many bytes are free for models."""
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    # ------------------------------------------------------------------ what is being fetched

    def wishes(self) -> dict[str, Wanted]:
        """Return what is being fetched, by name."""
        found = {path.stem: self._read(path, Wanted) for path in self.folder.glob("*.pull")}
        return {name: wanted for name, wanted in sorted(found.items()) if wanted is not None}

    def keep_wish(self, wanted: Wanted) -> None:
        """Write down what is being fetched. Raises StateError."""
        privatefile.replace(self.folder / f"{wanted.name}.pull", msgspec.json.encode(wanted))

    def drop_wish(self, name: str) -> None:
        """Forget what was being fetched."""
        (self.folder / f"{name}.pull").unlink(missing_ok=True)

    def drop_part(self, name: str) -> None:
        """Throw away what came, and the wish."""
        self.drop_wish(name)
        partfile.discard(self.part(name))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
