"""Which models the mesh has and could run, for the dashboard's form and table. A core.

Asked for when somebody opens that part of the page: every worker is asked for its free memory, and
every member for the models in its store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

Told = Mapping[str, Any]


class Kept(msgspec.Struct, frozen=True):
    """A model in a store: this node's (`here`), and other members' (`elsewhere`, names)."""

    name: str
    here: bool
    phase: str
    size: int
    quantisation: str
    layers: int | None
    elsewhere: list[str]
    used_by: str


class File(msgspec.Struct, frozen=True):
    """One of a known model's files: bytes, and how it fits. `missing`: so much memory more."""

    quantisation: str
    size: int
    nodes: list[str]
    fit: str
    missing: int


class Known(msgspec.Struct, frozen=True):
    """A model that the catalogue knows. `uncut`: why it cannot be cut, "" if it can."""

    name: str
    title: str
    parameters: int
    layers: int
    context: int
    uncut: str
    files: list[File]


class Room(msgspec.Struct, frozen=True):
    """A worker's free memory, in bytes."""

    name: str
    free: int


class Shelf(msgspec.Struct, frozen=True):
    """Both, and the memory that it was held against."""

    kept: list[Kept]
    known: list[Known]
    workers: list[Room]


def shelf(models: Iterable[Told], catalogue: Told) -> Shelf:
    """Return what `/v1/models` and `/v1/catalogue` come to."""
    return Shelf(
        kept=[
            Kept(
                name=model["name"], here=model["here"], phase=model["phase"], size=model["size"],
                quantisation=model["quantisation"], layers=model["layers"],
                elsewhere=list(model["elsewhere"]), used_by=model["used_by"] or "",
            )
            for model in models
        ],
        known=[_known(model) for model in catalogue["models"]],
        workers=[Room(one["name"], one["free_bytes"]) for one in catalogue["workers"]],
    )  # fmt: skip


def _known(model: Told) -> Known:
    files = [
        File(one["quantisation"], one["bytes"], list(one["nodes"]), one["fit"],
             one["missing_bytes"])
        for one in model["files"]
    ]  # fmt: skip
    return Known(
        name=model["name"], title=model["title"], parameters=model["parameters"],
        layers=model["shape"]["layers"], context=model["shape"]["context"],
        uncut=model["uncut"], files=files,
    )  # fmt: skip
