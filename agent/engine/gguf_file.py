"""Open a model's GGUF file or files, check that they are whole, and say what is in them.

For whoever must know a model before it runs: the cut, placement, the engine process and the
command line. Not for inference (llama.cpp reads the files itself) and not for writing (`cut.py`).
Tensor data is never read.

A split model is opened by its first file; the others lie beside it and are called by the rule of
`splits.py`, for llama.cpp looks for them there too. Its metadata is in the first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from agent.engine import splits
from agent.engine.gguf_header import MAX_TENSORS, GgufHeader, Tensor
from agent.engine.purpose import Purpose, purpose
from agent.errors import ModelError

# What each file of a split model says: its number from 0, how many there are, and all tensors.
SPLIT_NUMBER = "split.no"
SPLIT_COUNT = "split.count"
SPLIT_TENSORS = "split.tensors.count"


@dataclass(frozen=True)
class ModelFacts:
    """What placement and the command line want to know of a model; sizes are in bytes.

    `layer_bytes` has one figure a layer. `output_bytes` is the output matrix with its norm (the
    matrix is the embedding itself when `tied`); `shared_bytes` is what every part needs.
    `kv_bytes_per_token` is one layer's KV cache for one token, in f16 as llama.cpp keeps it, and
    `attended_per_token` the multiplications of one layer's attention for each token behind a row.
    """

    name: str
    architecture: str
    purpose: Purpose
    layers: int
    n_embd: int
    n_vocab: int
    context: int
    tied: bool
    chat_template: str | None
    layer_bytes: tuple[int, ...]
    embedding_bytes: int
    output_bytes: int
    shared_bytes: int
    kv_bytes_per_token: int
    attended_per_token: int


class GgufFile(GgufHeader):
    """An opened model: its first file's `fields`, and the `tensors` of all its `parts` in order.

    Raises ModelError when a file is missing, not a GGUF, of another version, absurd or cut short,
    or when the files are not those of one model.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.parts: list[GgufHeader] = [self]
        try:
            if (count := self.number(SPLIT_COUNT) or 1) > 1:
                self._open_others(count)
            self._by_name = {tensor.name: tensor for tensor in self.tensors}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmap all files; harmless when done twice."""
        for part in self.parts[1:]:
            part.close()
        super().close()

    @cached_property
    def header_sha256(self) -> str:
        """SHA-256 (hex) of all that is before tensor data: tells models and their cuts apart."""
        found = hashlib.sha256()
        for part in self.parts:
            with memoryview(part.data) as view:
                found.update(view[: part.data_start])
        return found.hexdigest()

    def _open_others(self, count: int) -> None:
        """Open the other files of a split model, and take in their tensors."""
        own = splits.parse(self.name)
        if own is None or own.count != count:
            raise ModelError(
                f"{self.name} is one of the {count} files of a split model, and not called so",
                hint=f"Call them NAME-00001-of-{count:05d}.gguf and so on, in one folder.",
            )
        if self.number(SPLIT_NUMBER) != 0 or own.number != 1:
            raise ModelError(
                f"{self.name} is not the first of the {count} files of a split model",
                hint=f"Name the first: {own.names()[0]}.",
            )
        for number, path in enumerate(splits.siblings(self.path)[1:], 1):
            if not path.exists():
                raise ModelError(
                    f"{self.name} is one of {count} files, and {path.name} is not beside it",
                    hint="All files of a split model must lie in one folder.",
                )
            part = GgufHeader(path)
            self.parts.append(part)
            said = part.number(SPLIT_NUMBER), part.number(SPLIT_COUNT)
            if said != (number, count):
                raise self._mismatch(path, f"it does not say that it is file {number + 1}")
            self.tensors += [replace(tensor, file=number) for tensor in part.tensors]
            if len({tensor.name for tensor in self.tensors}) != len(self.tensors):
                raise self._mismatch(path, "a tensor of it is in a file before it too")
        announced = self.number(SPLIT_TENSORS)
        if announced is not None and announced != len(self.tensors):
            raise ModelError(
                f"the {count} files of {self.name} have {len(self.tensors)} tensors, and it "
                f"announces {announced}",
                hint="Get all of them again, from one place.",
            )

    def _mismatch(self, path: Path, why: str) -> ModelError:
        return ModelError(
            f"{path.name} does not belong to {self.name}: {why}",
            hint="Get all files of the model again, from one place.",
        )

    def tensor(self, name: str) -> Tensor | None:
        """Return a tensor by its name, None where there is none."""
        return self._by_name.get(name)

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the kind of model; ModelError where the file does not say."""
        found = self.text("general.architecture")
        if not found:
            raise self._damaged("it does not say its architecture")
        return found

    @property
    def pooling(self) -> int | None:
        """How the rows of a text become one, by llama.cpp's number; None where it is not said."""
        return self.number(f"{self.architecture}.pooling_type")

    @property
    def purpose(self) -> Purpose:
        """What the model is for."""
        return purpose(self.architecture, self.pooling)

    @property
    def layers(self) -> int:
        """How many layers the model has; ModelError where the file does not say."""
        return self._needed("block_count")

    def facts(self) -> ModelFacts:
        """Return what the file says of the model; raises ModelError where it lacks the basics."""
        layers = self.layers
        if not 0 < layers <= MAX_TENSORS:
            raise self._damaged(f"it claims {layers} layers")
        sizes = [0] * layers
        embedding = output = shared = 0
        for tensor in self.tensors:
            if tensor.layer is not None:
                if tensor.layer >= layers:
                    raise self._damaged(f"{tensor.name} is beyond its {layers} layers")
                sizes[tensor.layer] += tensor.size
            elif tensor.name == "token_embd.weight":
                embedding += tensor.size
            elif tensor.name.startswith("output"):
                output += tensor.size
            else:
                shared += tensor.size
        tied = self.tensor("output.weight") is None
        kv_bytes, attended = self._attention()
        return ModelFacts(
            name=self.text("general.name") or splits.whole(self.path).stem,
            architecture=self.architecture,
            purpose=self.purpose,
            layers=layers,
            n_embd=self._needed("embedding_length"),
            n_vocab=self.vocabulary_size(),
            context=self._needed("context_length"),
            tied=tied,
            chat_template=self.text("tokenizer.chat_template"),
            layer_bytes=tuple(sizes),
            embedding_bytes=embedding,
            output_bytes=output + (embedding if tied else 0),
            shared_bytes=shared,
            kv_bytes_per_token=kv_bytes,
            attended_per_token=attended,
        )

    def vocabulary_size(self) -> int:
        """Return how many tokens the model knows, by its embedding matrix."""
        embedding = self.tensor("token_embd.weight")
        if embedding is None or len(embedding.dimensions) != 2:
            raise self._damaged("it has no token_embd.weight")
        return embedding.dimensions[1]

    def _attention(self) -> tuple[int, int]:
        """Return what one layer keeps of a token (bytes), and multiplies for each token behind."""
        heads = self.number(f"{self.architecture}.attention.head_count") or 1
        kv_field = self.fields.get(f"{self.architecture}.attention.head_count_kv")
        kv_heads = heads
        if kv_field is not None and not kv_field.is_array:
            kv_heads = self.number(kv_field.key) or heads
        head = self._needed("embedding_length") // heads
        key = self.number(f"{self.architecture}.attention.key_length") or head
        value = self.number(f"{self.architecture}.attention.value_length") or head
        attended = heads * (key + value)
        if self.number(f"{self.architecture}.attention.key_length_mla"):
            value = 0  # latent attention: llama.cpp takes values from the cached keys
        return kv_heads * (key + value) * 2, attended

    def _needed(self, key: str) -> int:
        found = self.number(f"{self.architecture}.{key}")
        if found is None or found < 0:
            raise self._damaged(f"it does not say {self.architecture}.{key}")
        return found
