"""The models of this node on its disk: NAME.gguf, and beside it what is known of it.

    NAME.gguf     the model, whole and checked
    NAME.json     its record: the manifest, where it came from, when, and why that was believed
    NAME.used     its time is when a deployment used it last
    NAME.pull     what is being fetched, so that it goes on after a restart
    NAME.part, NAME.journal    what came of it so far (`partfile.py`)

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

from agent.errors import EnvironmentFault, StateError
from agent.identity import privatefile
from agent.models import partfile, pieces
from agent.models.manifest import Manifest, fault_of, identity
from agent.models.room import Stored
from agent.models.wanted import MAX_NAME_CHARACTERS, Wanted

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
    """Return the file of a stored model, None where there is none; it counts as used now."""
    if not name or "/" in name or len(name) > MAX_NAME_CHARACTERS:
        return None
    path = folder / f"{name}.gguf"
    if not path.is_file():
        return None
    mark_used(path)
    return path.resolve()


def mark_used(path: Path) -> None:
    """Note that a stored model (its file) is used now."""
    with contextlib.suppress(OSError):  # a full or read-only disk is no reason not to run it
        path.with_suffix(".used").touch()


def id_of(folder: Path, path: Path) -> str:
    """Return the id of the stored model whose file this is; "" for any other file."""
    if path.parent != folder.resolve():
        return ""
    try:
        record = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
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
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.faults.append(f"{path} cannot be read: {error}")
            _log.warning("%s", self.faults[-1])
            return None

    # ------------------------------------------------------------------ whole models

    def file(self, name: str) -> Path:
        """Return where the model of that name lies, or would."""
        return self.folder / f"{name}.gguf"

    def part(self, name: str) -> Path:
        """Return where it is fetched to."""
        return self.folder / f"{name}.part"

    def whole(self, name: str) -> Record | None:
        """Return the record of a model that is here and whole, else None."""
        record = self.records.get(name)
        return record if record is not None and self.file(name).is_file() else None

    def foreign(self, name: str) -> Path | None:
        """Return a file in the way of a model of that name: one that `agent pull` did not leave."""
        if name in self.records:
            return None
        ways = (self.file(name), self.folder / f"{name}.json")
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
            self.part(name).rename(self.file(name))
            _sync(self.folder)
        except OSError as error:
            raise StateError(f"cannot keep {self.file(name)}: {error.strerror}") from None
        partfile.discard(self.part(name))
        self.drop_wish(name)

    def begin_repair(self, name: str, wanted: Wanted, good: list[int]) -> None:
        """Make a model a part again, of which the pieces `good` are right. Raises StateError."""
        plan = pieces.of_manifest(self.records[name].manifest)
        try:
            partfile.begin_with(self.part(name), plan, good)
            self.keep_wish(wanted)
            self.file(name).rename(self.part(name))
            _sync(self.folder)
        except OSError as error:
            raise StateError(f"cannot repair {self.file(name)}: {error.strerror}") from None

    def end_repair(self, name: str) -> None:
        """Make it the model that it was, damaged as it is."""
        if self.part(name).exists():
            self.part(name).rename(self.file(name))
        partfile.discard(self.part(name))
        self.drop_wish(name)

    def remove(self, name: str) -> None:
        """Remove a model and all that is known of it. Raises StateError."""
        try:
            # The record goes last: what a crash leaves can be removed again.
            for suffix in ("pull", "journal", "part", "gguf", "used", "json"):
                (self.folder / f"{name}.{suffix}").unlink(missing_ok=True)
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
        for path in (*self.folder.glob("*.gguf"), *self.folder.glob("*.part")):
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
                found.append(Stored(name, path.stat().st_size, used_at, why))
        return found

    def promised(self, name: str) -> int:
        """Return how many bytes the other parts still take when they are whole."""
        found = 0
        for path in self.folder.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):
                if path.stem != name:
                    found += max(0, path.stat().st_size - partfile.allocated(path))
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
