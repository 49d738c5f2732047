"""Rows in the types in which they travel, written and read by llama.cpp's own conversions.

For `link.py`. A conversion is one call for a whole frame, and twenty times faster than numpy's for
f16. f32 rows are neither converted nor copied: what a socket wrote is what llama.cpp reads.

f16 ends at 65,504. A frame with a larger value goes as f32: to clip it would change an answer, and
bf16 has an eighth of f16's precision. That nothing is too large, or not finite, one product of all
values with themselves shows nearly always; where it does not, each is looked at.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import numpy as np

from agent.engine import backends
from agent.engine.frames import Q8_BLOCK, Frame, Rows, RowType

F16_MAX = 65_504.0
# A Q8_0 block's scale is f16 too: its largest value is 127 times that.
Q8_MAX = 127 * F16_MAX

# Of each, the first that this build of llama.cpp has; the first uses the CPU's vector instructions.
_TO_F16 = ("ggml_cpu_fp32_to_fp16", "ggml_fp32_to_fp16_row")
_FROM_F16 = ("ggml_cpu_fp16_to_fp32", "ggml_fp16_to_fp32_row")
_TO_Q8 = ("quantize_row_q8_0", "quantize_row_q8_0_ref")
_FROM_Q8 = ("dequantize_row_q8_0",)


@functools.cache
def _conversion(names: tuple[str, ...]) -> Any:
    """Return a function of llama.cpp's that converts (from, to, count of values)."""
    # Called late: an engine proves llama.cpp in another process first.
    found = backends.function(*names)
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    found.restype = None
    return found


def _convert(names: tuple[str, ...], source: Rows, target: Rows, count: int) -> None:
    # Three times as fast as an array's own ways to tell its address; wants writable ones.
    where = ctypes.c_char.from_buffer
    _conversion(names)(ctypes.byref(where(source.data)), ctypes.byref(where(target.data)), count)


def pack(frame: Frame, row_type: RowType) -> Frame:
    """Return a frame of f32 rows as one of another type, or as it is where that cannot hold it."""
    rows = np.ascontiguousarray(frame.rows, np.float32)
    count, n_embd = rows.shape
    if not count or row_type is RowType.F32:
        return frame
    if row_type is RowType.Q8 and n_embd % Q8_BLOCK:
        row_type = RowType.F16
    largest = F16_MAX if row_type is RowType.F16 else Q8_MAX
    if not np.vdot(rows, rows) <= largest**2 and np.abs(rows).max() > largest:
        return frame
    packed = np.empty((count, row_type.row_bytes(n_embd)), np.uint8)
    _convert(_TO_F16 if row_type is RowType.F16 else _TO_Q8, rows, packed, rows.size)
    return Frame(frame.epoch, frame.operations, frame.pairs, packed, row_type)


def unpack(frame: Frame, n_embd: int) -> Frame:
    """Return a received frame with rows (n, n_embd) in f32; ValueError if they are not finite."""
    rows = frame.rows
    if frame.row_type is not RowType.F32:
        rows = np.empty((len(frame.pairs), n_embd), np.float32)
        names = _FROM_F16 if frame.row_type is RowType.F16 else _FROM_Q8
        _convert(names, frame.rows, rows, rows.size)
        frame = Frame(frame.epoch, frame.operations, frame.pairs, rows)
    if not math.isfinite(np.vdot(rows, rows)) and not np.isfinite(rows).all():
        raise ValueError("rows that are not finite")
    return frame
