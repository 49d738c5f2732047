"""llama.cpp through the low-level API of llama-cpp-python: a loaded file and its decoding context.

For the engine process alone (the agent never loads llama.cpp: it may crash). Nothing here knows of
rings or sockets. Everything must be called from one thread at a time; llama.cpp's own threads do
the arithmetic, and the GIL is free meanwhile. No Python work is done per value: the arrays of a
batch are numpy arrays that llama.cpp reads in place.

A part that is not the last stops its graph at its last layer's output (`l_out-<last>`): an
evaluation callback copies those rows out and cancels the rest, so no output head is computed.
Where llama.cpp would scale a batch of rows as if they were embeddings (or refuses it), the part is
given tokens, and the callback puts the rows in the place of what was made of them.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from agent.engine import backends
from agent.engine.apart import ROWS_MAX, Apart
from agent.engine.cut import ROWS_ENTER
from agent.engine.frames import Copy, Ints, Marks, Operation, Remove
from agent.engine.purpose import POOLING_NONE
from agent.errors import EngineError, ModelError

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.float32]

_LOG_ERROR = 4
_LOG_CONTINUES = 5
_MEMORY_FULL = 1
_KEPT_ERRORS = 8
_FLOATS = ctypes.POINTER(ctypes.c_float)

_library: Any = backends.library()
_tensor_name = _library.ggml_get_name
_tensor_name.restype = ctypes.c_char_p
_tensor_name.argtypes = [ctypes.c_void_p]
_tensor_bytes = _library.ggml_nbytes
_tensor_bytes.restype = ctypes.c_size_t
_tensor_bytes.argtypes = [ctypes.c_void_p]
_tensor_read = _library.ggml_backend_tensor_get
_tensor_read.restype = None
_tensor_read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
_tensor_write = _library.ggml_backend_tensor_set
_tensor_write.restype = None
_tensor_write.argtypes = _tensor_read.argtypes

_errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
_level = 0


def _on_log(level: int, text: bytes, _user: object) -> None:
    global _level
    if level != _LOG_CONTINUES:
        _level = level
    line = text.decode("utf-8", "replace").strip()
    if not line or line.strip(".") == "":
        return
    log.debug("llama.cpp: %s", line)
    if _level == _LOG_ERROR:
        _errors.append(line)


# Both must outlive every call into llama.cpp.
_log_callback = llama_cpp.llama_log_callback(_on_log)
llama_cpp.llama_backend_init()


def _listen() -> None:
    """Forget old errors, and hear llama.cpp: its log has one listener, which others replace too."""
    llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
    _errors.clear()


def _reason(fallback: str) -> str:
    """Return llama.cpp's own last words on an error, shortened to one line."""
    for line in _errors:
        _, _, said = line.partition(": ")
        if said and "error" in line.lower():
            return said
    return _errors[-1] if _errors else fallback


class Weights:
    """A model file (or a part) that llama.cpp has loaded.

    Raises ModelError with llama.cpp's reason when it cannot load the file. `n_vocab` counts tokens,
    `gpu_layers`: how many of its layers go to the GPUs, -1: all, 0: nothing is computed on one.
    `n_embd` is the width of a row, `n_embd_out` that of an embedding, `n_ranks` how many values a
    model for ranks gives, `layers` those in this file. `arrange` may change llama.cpp's parameters.
    With `only_texts` there are no weights at all: the vocabulary and the templates alone.
    """

    def __init__(
        self, path: Path, *, use_extra_bufts: bool = True, gpu_layers: int = 0,
        arrange: Callable[[Any], None] = lambda _: None, only_texts: bool = False,
    ) -> None:  # fmt: skip
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        no_devices = (ctypes.c_void_p * 1)()
        if not gpu_layers:
            # Otherwise llama.cpp would copy weights to a GPU for large batches.
            parameters.devices = ctypes.addressof(no_devices)
        parameters.use_extra_bufts = use_extra_bufts
        parameters.vocab_only = only_texts
        arrange(parameters)
        _listen()
        self.path = path
        self.handle: Any = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.handle:
            raise ModelError(f"llama.cpp cannot load {path.name}: {_reason('no reason given')}.")
        self.n_embd: int = llama_cpp.llama_model_n_embd(self.handle)
        self.n_embd_out: int = llama_cpp.llama_model_n_embd_out(self.handle)
        self.n_ranks: int = llama_cpp.llama_model_n_cls_out(self.handle)
        self.layers: int = llama_cpp.llama_model_n_layer(self.handle)
        self.train_context: int = llama_cpp.llama_model_n_ctx_train(self.handle)
        self.vocabulary: Any = llama_cpp.llama_model_get_vocab(self.handle)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.rows_enter: bytes | None = self._metadata(ROWS_ENTER)

    @property
    def layer_weights(self) -> float:
        """How many weights a layer of this file has, about: all but one for each word and value."""
        count: int = llama_cpp.llama_model_n_params(self.handle)
        return max(0, count - self.n_vocab * self.n_embd) / max(1, self.layers)

    def _metadata(self, key: str) -> bytes | None:
        value = ctypes.create_string_buffer(256)
        size = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), value, len(value))
        return None if size < 0 else value.value

    @property
    def shares_prefixes(self) -> bool:
        """Whether a sequence can begin with a part of another: a recurrent state has no parts."""
        recurrent = llama_cpp.llama_model_is_recurrent(self.handle)
        return not recurrent and not llama_cpp.llama_model_is_hybrid(self.handle)

    @property
    def only_encodes(self) -> bool:
        """Whether it is the encoder of a model that had a decoder too (T5's): it cannot decode."""
        return not llama_cpp.llama_model_has_decoder(self.handle)

    @property
    def chat_template(self) -> str | None:
        """The chat template in the file, if there is one."""
        return self.template(None)

    def template(self, name: bytes | None) -> str | None:
        """Return the template of this name in the file, the unnamed one for None."""
        found: bytes | None = llama_cpp.llama_model_chat_template(self.handle, name)
        return None if found is None else found.decode("utf-8", "replace")

    def close(self) -> None:
        """Free the weights; every context made from them must be closed before."""
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None


# More rows at once make a CPU no faster, and take more memory (docs/benchmarks.md).
CPU_GRAPH_ROWS = 128


@dataclass(frozen=True)
class ContextLimits:
    """How large a context is: tokens kept over all sequences, rows a decode, sequences, threads.

    Flash attention is used where llama.cpp can. On CPUs a row's last bits then depend on whether
    its batch has 64 rows or more, and, alone with 512 cached tokens, on the number of threads.
    `graph_rows`: llama.cpp computes a batch in pieces of so many rows, whose attention to all
    that is cached it holds in memory at once; 0: whole. `rows_apart`: a few rows are computed one
    after the other where that is faster (`apart.py`), whose last bits then may be others.
    """

    n_ctx: int
    n_batch: int
    n_seq: int
    threads: int
    flash_attention: bool = False
    graph_rows: int = 0
    rows_apart: bool = False


class Context:
    """A KV cache over loaded weights, and the decoding of batches into it.

    `keeps_rows` makes it a part that is not the last: decoding returns rows of its last layer
    instead of leaving logits. `pooling` (llama.cpp's number) leaves one vector a sequence instead.
    Sequences are numbered from 0 to `n_seq` - 1.
    """

    def __init__(
        self, weights: Weights, limits: ContextLimits, *, keeps_rows: bool,
        pooling: int = POOLING_NONE,
    ) -> None:  # fmt: skip
        self.weights = weights
        self.limits = limits
        self.handle: Any = None
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = limits.n_ctx
        parameters.n_batch = limits.n_batch
        parameters.n_ubatch = min(limits.graph_rows or limits.n_batch, limits.n_batch)
        parameters.n_seq_max = limits.n_seq
        parameters.n_threads = limits.threads
        parameters.n_threads_batch = limits.threads
        parameters.flash_attn_type = -1 if limits.flash_attention else 0
        parameters.kv_unified = True
        parameters.no_perf = True
        self._batch = _Batch(limits.n_batch)
        self._batch.outputs[:] = 1
        self._entering, self._entered = (0, 0), 0  # an address and bytes
        self._captured = 0
        self._rows: Rows = np.empty(
            (limits.n_batch if keeps_rows else 0, weights.n_embd), np.float32
        )
        if keeps_rows:
            parameters.embeddings = True
            parameters.pooling_type = POOLING_NONE
        elif pooling:
            parameters.embeddings = True
            parameters.pooling_type = pooling
        if keeps_rows or weights.rows_enter:
            self._callback = llama_cpp.ggml_backend_sched_eval_callback(
                self._rows_callback(keeps_rows)
            )
            parameters.cb_eval = self._callback
        self._keeps_rows = keeps_rows
        self._outputs_all = keeps_rows or pooling != POOLING_NONE
        self._compute = llama_cpp.llama_encode if weights.only_encodes else llama_cpp.llama_decode
        self._apart = Apart() if limits.rows_apart else None
        # Those of rows that were computed one after the other: llama.cpp keeps the last one's.
        self._logits: Rows | None = None
        self._lone_logits: Rows = np.empty((0, 0), np.float32)
        _listen()
        self.handle = llama_cpp.llama_init_from_model(weights.handle, parameters)
        if not self.handle:
            raise EngineError(
                f"llama.cpp cannot make a context of {limits.n_ctx} tokens for "
                f"{weights.path.name}: {_reason('no reason given')}.",
                hint="A smaller context needs less memory.",
            )
        self.memory: Any = llama_cpp.llama_get_memory(self.handle)

    def _rows_callback(self, keeps_rows: bool) -> Any:
        entry = self.weights.rows_enter
        leaving = b"l_out-%d" % (self.weights.layers - 1) if keeps_rows else None
        wanted = {entry, leaving} - {None}
        target, room = self._rows.ctypes.data, self._rows.nbytes
        name = _tensor_name

        def on_tensor(tensor: int, asks: bool, _user: object) -> bool:
            if asks:
                return name(tensor) in wanted
            # A batch in several pieces: each one's rows come behind those before.
            size = _tensor_bytes(tensor)
            if name(tensor) == entry:
                source, there = self._entering
                if self._entered + size <= there:
                    _tensor_write(tensor, source + self._entered, 0, size)
                    self._entered += size
                return True
            if self._captured + size <= room:
                _tensor_read(tensor, target + self._captured, 0, size)
                self._captured += size
            return False

        return on_tensor

    def apply(self, operations: Iterable[Operation]) -> None:
        """Apply sequence operations to the KV cache, in order."""
        for operation in operations:
            match operation:
                case Remove(sequence, start, stop):
                    llama_cpp.llama_memory_seq_rm(self.memory, sequence, start, stop)
                case Copy(source, target, start, stop):
                    llama_cpp.llama_memory_seq_cp(self.memory, source, target, start, stop)

    def decode_tokens(self, tokens: Ints, sequences: Ints, positions: Ints, outputs: Marks) -> Rows:
        """Decode token ids; returns rows as `decode_rows` does."""
        batch = self._batch
        batch.tokens[: len(tokens)] = tokens
        return self._decode(batch.of_tokens, len(tokens), sequences, positions, outputs)

    def decode_rows(
        self, rows: Rows, sequences: Ints, positions: Ints, outputs: Marks | None = None
    ) -> Rows:
        """Decode writable rows (n, n_embd) of an earlier part; llama.cpp reads them in place.

        `outputs` marks the rows whose logits are wanted; only a part that keeps rows, which takes
        all, does without.
        Returns this part's rows (n, n_embd), valid until the next decode; none for a last part.
        Raises EngineError when the KV cache is full or llama.cpp fails.
        """
        if not rows.flags.c_contiguous or rows.shape[1] != self.weights.n_embd:
            raise ValueError(f"rows of shape {rows.shape} are not those of this part")
        if not self.weights.rows_enter:
            batch = self._batch.of_rows
            batch.embd = _FLOATS(ctypes.c_float.from_buffer(rows.data))
            return self._decode(batch, len(rows), sequences, positions, outputs)
        self._entering, self._entered = (rows.ctypes.data, rows.nbytes), 0
        found = self._decode(self._batch.of_tokens, len(rows), sequences, positions, outputs)
        if self._entered != rows.nbytes:
            raise EngineError(
                f"llama.cpp took {self._entered} bytes of rows into {self.weights.path.name} "
                f"for {len(rows)} rows of {self.weights.n_embd} values."
            )
        return found

    def _decode(
        self, batch: Any, count: int, sequences: Ints, positions: Ints, outputs: Marks | None
    ) -> Rows:
        arrays = self._batch
        arrays.sequences[:count] = sequences
        arrays.positions[:count] = positions
        if outputs is not None and not self._outputs_all:
            arrays.outputs[:count] = outputs
        self._captured = 0
        self._logits = None
        if self._apart is None:
            self._compute_rows(batch, count)
        else:
            apart = self._apart.wanted(count)
            began = time.perf_counter()
            if apart:
                self._one_by_one(batch, count)
            else:
                self._compute_rows(batch, count)
            self._apart.took(count, time.perf_counter() - began, apart=apart)
        if not self._keeps_rows:
            return self._rows
        if self._captured != count * self.weights.n_embd * 4:
            raise EngineError(
                f"{self.weights.path.name} gave {self._captured} bytes of rows "
                f"for {count} rows of {self.weights.n_embd} values."
            )
        return self._rows[:count]

    def _one_by_one(self, batch: Any, count: int) -> None:
        """Compute each row as a batch of its own, from the first place of the arrays."""
        arrays = self._batch
        each: tuple[Ints | Marks, ...] = (
            arrays.tokens, arrays.positions, arrays.sequences, arrays.outputs,
        )  # fmt: skip
        given = [array[:count].tolist() for array in each]
        address = ctypes.addressof(batch.embd.contents) if batch.embd else 0
        if not self._keeps_rows and not len(self._lone_logits):
            self._lone_logits = np.empty((ROWS_MAX, self.weights.n_vocab), np.float32)
        for row in range(count):
            for array, values in zip(each, given, strict=True):
                array[0] = values[row]
            if address:
                batch.embd = ctypes.cast(address + row * 4 * self.weights.n_embd, _FLOATS)
            self._compute_rows(batch, 1)
            if not self._keeps_rows and arrays.outputs[0]:
                self._lone_logits[row] = self.logits()
        if not self._keeps_rows:
            self._logits = self._lone_logits[:count]

    def _compute_rows(self, batch: Any, count: int) -> None:
        batch.n_tokens = count
        result = self._compute(self.handle, batch)
        if result == _MEMORY_FULL:
            raise EngineError(
                f"the KV cache of {self.limits.n_ctx} tokens is full.",
                hint="Ask for less at once, or give the model a larger context.",
            )
        if result != 0:
            raise EngineError(
                f"llama.cpp could not decode {count} rows with "
                f"{self.weights.path.name} (code {result}): {_reason('no reason')}."
            )

    def logits(self, index: int = -1) -> Rows:
        """Return the logits (n_vocab) of a marked row, by default the last; a view until decode."""
        if self._logits is not None:
            kept: Rows = self._logits[index]
            return kept
        found = llama_cpp.llama_get_logits_ith(self.handle, index)
        if not found:
            raise EngineError(f"row {index} of the last batch has no logits.")
        view: Rows = np.ctypeslib.as_array(found, (self.weights.n_vocab,))
        return view

    @property
    def keeps_logits(self) -> bool:
        """Whether `logits` are kept here, and llama.cpp itself has but the last row's."""
        return self._logits is not None

    def pooled(self, sequence: int, width: int) -> Rows:
        """Return the vector (width) of a sequence of the last batch; a view until the next."""
        found = llama_cpp.llama_get_embeddings_seq(self.handle, sequence)
        if not found:
            raise EngineError(f"sequence {sequence} of the last batch has no vector.")
        view: Rows = np.ctypeslib.as_array(found, (width,))
        return view

    def use_threads(self, count: int) -> None:
        """Compute with another number of threads from now on."""
        llama_cpp.llama_set_n_threads(self.handle, count, count)

    def clear(self) -> None:
        """Forget all sequences; a model without a KV cache has none."""
        if self.memory:
            llama_cpp.llama_memory_clear(self.memory, False)

    def close(self) -> None:
        """Free the context; harmless when done twice."""
        if self.handle:
            llama_cpp.llama_free(self.handle)
            self.handle = None


class _Batch:
    """The arrays of a llama_batch, as numpy arrays that llama.cpp reads in place."""

    def __init__(self, size: int) -> None:
        self.tokens: Ints = np.zeros(size, np.int32)
        self.positions: Ints = np.zeros(size, np.int32)
        self.sequences: Ints = np.zeros(size, np.int32)
        self.outputs: Marks = np.zeros(size, np.int8)
        self._counts: Ints = np.ones(size, np.int32)
        # llama.cpp takes a pointer to the sequences of each row: here always to one.
        base = self.sequences.ctypes.data
        step = self.sequences.itemsize
        self._pointers = np.arange(base, base + size * step, step, dtype=np.uintp)
        self.of_tokens = self._struct(self.tokens)
        self.of_rows = self._struct(None)

    def _struct(self, tokens: Ints | None) -> Any:
        def pointer(array: npt.NDArray[Any] | None, kind: Any) -> Any:
            if array is None:
                return ctypes.POINTER(kind)()
            return array.ctypes.data_as(ctypes.POINTER(kind))

        return llama_cpp.llama_batch(
            0,
            pointer(tokens, ctypes.c_int32),
            _FLOATS(),
            pointer(self.positions, ctypes.c_int32),
            pointer(self._counts, ctypes.c_int32),
            ctypes.cast(self._pointers.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            pointer(self.outputs, ctypes.c_int8),
        )
