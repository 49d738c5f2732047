"""The models that Covey knows by name: where their files are, what they need, where they are cut.

Used by `agent catalogue` (`agent/deploy/offers.py`) and by whoever wants a model's needs before its
file is there. What is known stands in catalogue.toml, sizes follow from shapes (`shapes.py`). Not
for files that are here: `GgufFile` reads those.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Annotated

import msgspec

from agent.engine import splits
from agent.engine.architectures import ARCHITECTURES
from agent.engine.cuttable import CutRule, cut_rule
from agent.engine.gguf_file import ModelFacts
from agent.engine.gguf_header import Field, Scalar
from agent.errors import UsageError
from agent.models import shapes
from agent.models.shapes import Architecture, Quantisation, Shape


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One quantisation of a model: `source` is hf:organisation/repository/file, or a bundled name.

    `bytes`: of all its parts, where that is known; 0 where it is computed. `seen`: a file of this
    name was found mentioned.
    """

    quantisation: Quantisation
    source: str
    bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    seen: bool = True

    @property
    def parts(self) -> int:
        """How many files it is split into; `source` names the first."""
        found = splits.parse(self.source)
        return found.count if found else 1


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model; `parameters` as its makers publish them, `architecture` as llama.cpp calls it."""

    name: str
    title: str
    architecture: Architecture
    parameters: Annotated[int, msgspec.Meta(ge=1)]
    shape: Shape
    files: Annotated[tuple[File, ...], msgspec.Meta(min_length=1)]


class _Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[Entry, ...]


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Return all models, in the order of the file."""
    raw = (resources.files("agent.models") / "catalogue.toml").read_bytes()
    return msgspec.toml.decode(raw, type=_Catalogue).model


def find(name: str) -> Entry:
    """Return a model by its name in any case; UsageError, with those that are alike, for none."""
    wanted = name.casefold()
    for entry in entries():
        if entry.name == wanted:
            return entry
    alike = [entry.name for entry in entries() if wanted and wanted in entry.name]
    hint = f"There are {', '.join(alike)}." if alike else "`agent catalogue` lists all."
    raise UsageError(f"the catalogue has no model {name[:80]!r}", hint=hint)


def choose(name: str) -> tuple[Entry, File]:
    """Return a model and one of its files, by NAME or NAME:QUANTISATION; the first for NAME.

    Raises UsageError, with those that there are, for none.
    """
    wanted, _, quantisation = name.partition(":")
    entry = find(wanted)
    for file in entry.files:
        if quantisation.casefold() in ("", file.quantisation.casefold()):
            return entry, file
    there = ", ".join(file.quantisation for file in entry.files)
    raise UsageError(
        f"the catalogue has no {quantisation[:40]!r} of {entry.name}", hint=f"There are {there}."
    )


def source_of(name: str) -> tuple[str, str]:
    """Return where a model of the catalogue comes from, and what it is called in a store.

    What is none of its names is returned as it is, and no name. Raises UsageError for a
    quantisation that is not there.
    """
    if name.partition(":")[0].casefold() not in {entry.name for entry in entries()}:
        return name, ""
    entry, file = choose(name)
    if not file.source.startswith("hf:"):
        return name, ""  # the bundled one
    return file.source, f"{entry.name}-{file.quantisation}".lower()


def file_bytes(entry: Entry, file: File) -> int:
    """Return the size of a model's file or files: known, or computed to about a per cent."""
    return file.bytes or shapes.file_bytes(entry.architecture, entry.shape, file.quantisation)


def facts(entry: Entry, file: File) -> ModelFacts:
    """Return what the file would say of the model, but its chat template."""
    shape = entry.shape
    sizes = shapes.sizes(entry.architecture, shape, file.quantisation)
    return ModelFacts(
        name=entry.name, architecture=entry.architecture, purpose="text", layers=shape.layers,
        n_embd=shape.n_embd, n_vocab=shape.vocabulary, context=shape.context, tied=shape.tied,
        chat_template=None, layer_bytes=sizes.layers, embedding_bytes=sizes.embedding,
        output_bytes=sizes.output + (sizes.embedding if shape.tied else 0),
        shared_bytes=sizes.shared, kv_bytes_per_token=shape.kv_bytes_per_token(),
        attended_per_token=shape.attended_per_token(),
    )  # fmt: skip


def cuts(entry: Entry) -> CutRule | str:
    """Return where Covey may cut a model, or why it has to stay in one piece, as a clause.

    By what its makers publish; the file itself has the last word when it is deployed.
    """
    known = ARCHITECTURES.get(entry.architecture)
    if known is None:
        return f"the architecture {entry.architecture} is not proved exact"
    described = Described(entry)
    return known.obstacle(described) or cut_rule(described)


class Described:
    """An entry as the metadata of its file: what decides where a model may be cut."""

    def __init__(self, entry: Entry) -> None:
        shape = entry.shape
        self.architecture: str = entry.architecture
        self.layers = shape.layers
        self.fields: Mapping[str, Field] = {}  # arrays, of which published models have none
        self._vocabulary = shape.vocabulary
        latent = shape.kv_rank > 0
        found = {
            "vocab_size": shape.vocabulary,
            "context_length": shape.context,
            "embedding_length": shape.n_embd,
            "block_count": shape.layers,
            "feed_forward_length": shape.feed_forward,
            "attention.head_count": shape.heads,
            "attention.head_count_kv": shape.kv_heads,
            "attention.key_length": shape.kv_rank + shape.rope_size if latent else shape.key,
            "attention.value_length": shape.kv_rank if latent else shape.value,
            "attention.key_length_mla": shape.key if latent else 0,
            "attention.value_length_mla": shape.value if latent else 0,
            "attention.q_lora_rank": shape.q_rank,
            "attention.kv_lora_rank": shape.kv_rank,
            "attention.sliding_window": shape.window,
            "rope.dimension_count": shape.rope_size or shape.key,
            "expert_count": shape.experts,
            "expert_used_count": shape.experts_used,
            "expert_feed_forward_length": shape.expert_feed_forward,
            "expert_shared_count": shape.shared_experts,
            "leading_dense_block_count": shape.dense_layers,
        }
        self.values = {f"{entry.architecture}.{key}": v for key, v in found.items() if v}

    def get(self, key: str) -> Scalar | None:
        """Return a value by its key; None where the file would not have it."""
        return self.values.get(key)

    def number(self, key: str) -> int | None:
        """Return a whole number by its key; None where the file would not have it."""
        return self.values.get(key)

    def numbers(self, field: Field) -> tuple[float, ...]:
        """Return the values of an array; there is none."""
        raise KeyError(field.key)

    def vocabulary_size(self) -> int:
        """Return how many tokens the model knows."""
        return self._vocabulary
