"""Open one GGUF file, check that it is sound, and say what is in its header; data is never read.

For `gguf_file.py`, which puts the files of a split model together. A damaged or hostile file ends
in a ModelError of one line that names the file; llama.cpp itself would abort the process on some
of these.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.engine.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from agent.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT_BYTES = 32
# Above what any model has (the largest: about 2,000 tensors), below what takes seconds to walk.
MAX_TENSORS = 65_536
MAX_FIELDS = 65_536
MAX_NAME_BYTES = 1_024
# ggml's own limit of dimensions.
MAX_DIMENSIONS = 4
_SCALARS: dict[int, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
_U32 = _SCALARS[GGUFValueType.UINT32]
_U64 = _SCALARS[GGUFValueType.UINT64]

Scalar = int | float | bool | str


@dataclass(frozen=True)
class Field:
    """One metadata entry: where it lies in the file, and its type.

    `start` is the first byte of its key, `value` of its value, `end` one past it. `count` is the
    length of an array (`element` is then its type) and 0 for anything else.
    """

    key: str
    type: int
    start: int
    value: int
    end: int
    element: int = -1
    count: int = 0

    @property
    def is_array(self) -> bool:
        """Whether the value is an array."""
        return self.type == int(GGUFValueType.ARRAY)


@dataclass(frozen=True)
class Tensor:
    """One tensor: its name, ggml type, dimensions (fastest first) and place in the file (bytes).

    `file` is the number (from 0) of its file among those of the model.
    """

    name: str
    type: GGMLQuantizationType
    dimensions: tuple[int, ...]
    start: int
    size: int
    file: int = 0

    @property
    def layer(self) -> int | None:
        """The layer that it belongs to, from its name `blk.N.…`; None for one outside of layers."""
        prefix, _, rest = self.name.partition(".")
        number = rest.partition(".")[0]
        return int(number) if prefix == "blk" and number.isdecimal() else None


class GgufHeader:
    """An opened file whose header has been checked: `fields` by key, and `tensors` in file order.

    `data` is the file, of `size` bytes; tensor data begins at `data_start`.

    Raises ModelError when the file is missing, not a GGUF, of another version, absurd or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                if self.size < len(MAGIC):
                    raise ModelError(
                        f"{path.name} is not a GGUF file: it has {self.size} bytes",
                        hint="Give a model in llama.cpp's GGUF format.",
                    )
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelError(f"cannot read the model {path}: {error.strerror}") from None
        try:
            self._read_header()
        except BaseException:
            self.data.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; harmless when done twice."""
        self.data.close()

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.path.name

    def get(self, key: str) -> Scalar | None:
        """Return a scalar or text by its key; None where it is absent or an array."""
        field = self.fields.get(key)
        if field is None or field.is_array:
            return None
        if field.type == GGUFValueType.STRING:
            return self.data[field.value + _U64.size : field.end].decode("utf-8", "replace")
        value: Scalar = _SCALARS[field.type].unpack_from(self.data, field.value)[0]
        return value

    def number(self, key: str) -> int | None:
        """Return a whole number by its key, None where it is absent; else raise ModelError."""
        value = self.get(key)
        if value is None and key not in self.fields:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self._damaged(f"its {key} is not a whole number")

    def numbers(self, field: Field) -> tuple[float, ...]:
        """Return the values of an array of numbers or truth values; ModelError for any other."""
        kind = _SCALARS.get(field.element)
        if kind is None:
            raise self._damaged(f"its {field.key} is no array of numbers")
        first = field.end - field.count * kind.size
        with memoryview(self.data) as view:
            return tuple(value for (value,) in kind.iter_unpack(view[first : field.end]))

    def text(self, key: str) -> str | None:
        """Return a text by its key; None where it is absent or something else."""
        value = self.get(key)
        return value if isinstance(value, str) else None

    def _damaged(self, why: str) -> ModelError:
        return ModelError(f"{self.name} is damaged: {why}.", hint="Get the file again.")

    def _read_header(self) -> None:
        if self.data[: len(MAGIC)] != MAGIC:
            raise ModelError(
                f"{self.name} is not a GGUF file: it begins with "
                f"{self.data[:4]!r}, not with {MAGIC!r}.",
                hint="Give a model in llama.cpp's GGUF format.",
            )
        cursor = _Cursor(self, len(MAGIC))
        version = cursor.u32("its version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = f"big-endian (version {swapped})" if swapped in VERSIONS else f"GGUF {version}"
            raise ModelError(
                f"{self.name} is {what}; this agent reads little-endian GGUF 2 and 3.",
                hint="Convert the model again with a current llama.cpp.",
            )
        tensor_count = cursor.count("tensors", MAX_TENSORS)
        field_count = cursor.count("metadata fields", MAX_FIELDS)
        self.fields: dict[str, Field] = {}
        for _ in range(field_count):
            field = cursor.field()
            if field.key in self.fields:
                raise self._damaged(f"its field {field.key} is there twice")
            self.fields[field.key] = field
        infos = [cursor.tensor() for _ in range(tensor_count)]
        self.data_start = self._aligned(cursor.at)
        self.tensors: list[Tensor] = list(self._placed(infos))
        if len({tensor.name for tensor in self.tensors}) != len(self.tensors):
            raise self._damaged("it has two tensors of the same name")

    def _aligned(self, offset: int) -> int:
        alignment = self.number("general.alignment") or DEFAULT_ALIGNMENT_BYTES
        if alignment < 8 or alignment & (alignment - 1) or alignment > mmap.PAGESIZE * 16:
            raise self._damaged(f"its alignment is {alignment} bytes")
        return -(-offset // alignment) * alignment

    def _placed(self, infos: list[_TensorInfo]) -> Iterator[Tensor]:
        for info in infos:
            block, type_size = GGML_QUANT_SIZES[info.type]
            if info.dimensions[0] % block:
                raise self._damaged(
                    f"{info.name} has rows of {info.dimensions[0]} values, "
                    f"which {info.type.name} cannot hold"
                )
            size = math.prod(info.dimensions) // block * type_size
            start = self.data_start + info.offset
            if start + size > self.size:
                raise ModelError(
                    f"{self.name} is cut short: tensor {info.name} ends at byte "
                    f"{start + size}, the file has {self.size}.",
                    hint="Get the file again; the transfer did not finish.",
                )
            yield Tensor(info.name, info.type, info.dimensions, start, size)


@dataclass(frozen=True)
class _TensorInfo:
    name: str
    type: GGMLQuantizationType
    dimensions: tuple[int, ...]
    offset: int


class _Cursor:
    """A place in the header; every step is checked against the end of the file."""

    def __init__(self, file: GgufHeader, at: int) -> None:
        self.file = file
        self.at = at

    def _step(self, size: int, what: str) -> int:
        start, self.at = self.at, self.at + size
        if self.at > self.file.size:
            raise ModelError(
                f"{self.file.name} is cut short: it ends at byte {self.file.size}, inside {what}.",
                hint="Get the file again; the transfer did not finish.",
            )
        return start

    def u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self.file.data, self._step(_U32.size, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self.file.data, self._step(_U64.size, what))[0]
        return value

    def count(self, what: str, limit: int) -> int:
        found = self.u64(f"the number of its {what}")
        if found > limit:
            raise self.file._damaged(f"it claims {found} {what} (at most {limit} make sense)")
        return found

    def name(self, what: str) -> str:
        length = self.u64(f"the length of a {what}'s name")
        if not 0 < length <= MAX_NAME_BYTES:
            raise self.file._damaged(f"a {what}'s name claims {length} bytes")
        start = self._step(length, f"a {what}'s name")
        try:
            return self.file.data[start : self.at].decode()
        except UnicodeDecodeError:
            raise self.file._damaged(f"a {what}'s name is not UTF-8") from None

    def field(self) -> Field:
        start = self.at
        key = self.name("field")
        kind = self.u32(f"field {key}")
        value = self.at
        element, count = -1, 0
        if kind == GGUFValueType.ARRAY:
            element = self.u32(f"field {key}")
            count = self.u64(f"field {key}")
            self._skip(element, count, key)
        else:
            self._skip(kind, 1, key)
        return Field(key, kind, start, value, self.at, element, count)

    def _skip(self, kind: int, count: int, key: str) -> None:
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            self._step(count * scalar.size, f"field {key}")
        elif kind == GGUFValueType.STRING:
            # A text takes its 8 bytes of length at least, so a hostile count ends here at once.
            if count * _U64.size > self.file.size - self.at:
                self._step(count * _U64.size, f"field {key}")
            data, end, at = self.file.data, self.file.size, self.at
            unpack = _U64.unpack_from
            for _ in range(count):
                if at + _U64.size > end:
                    break
                at += _U64.size + unpack(data, at)[0]
            self.at = at
            self._step(0, f"field {key}")
        else:
            raise self.file._damaged(f"its field {key} has the unknown type {kind}")

    def tensor(self) -> _TensorInfo:
        name = self.name("tensor")
        rank = self.u32(f"tensor {name}")
        if not 0 < rank <= MAX_DIMENSIONS:
            raise self.file._damaged(f"tensor {name} claims {rank} dimensions")
        dimensions = tuple(self.u64(f"tensor {name}") for _ in range(rank))
        kind = self.u32(f"tensor {name}")
        offset = self.u64(f"tensor {name}")
        if not all(dimensions):
            raise self.file._damaged(f"tensor {name} is empty")
        try:
            return _TensorInfo(name, GGMLQuantizationType(kind), dimensions, offset)
        except ValueError:
            raise ModelError(
                f"{self.file.name} holds tensor {name} in the unknown type {kind}.",
                hint="It may be from a newer llama.cpp: update the agent.",
            ) from None
