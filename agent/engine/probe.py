"""What is asked of llama.cpp in a process that may die: devices, and small synthetic models.

    python -m agent.engine.probe devices                    lists them (devices.py)
                                 cpu [--without-extra-bufts] [--threads=1,2]    (selftest.py)
                                 gpu                                            (gpu.py)
                                 speed TASK                                     (speeds.py)

`sane` decodes a layer of each common weight type, `differs` compares the same on the GPU with the
CPU, `thread_speeds` times tokens with different numbers of threads. The agent never imports this.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from agent.engine import devices, gpu, selftest, speeds, trial
from agent.engine.synthetic import Shape, decode, written

if TYPE_CHECKING:
    from agent.engine.llama import Context, Rows, Weights

# Types whose matrix products have kernels of their own.
_WEIGHT_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
_CONTEXT = 256
_BATCH = 64
# By which share of their length a GPU's rows may differ from those of the CPU. That they do is
# due to the CPU, which rounds rows to 8 bits before it multiplies: some hundredths in this model.
_MOST_APART = 0.15

# A layer as wide as those of a model of some 3 billion weights, so that what threads gain and what
# their barriers cost are in the same proportion: 38 MB, more than most caches.
_WIDE, _DEEP, _WIDE_LAYERS = 2048, 8192, 1
_ROUNDS, _OF_A_ROUND_S, _MEASURE_S = 3, 0.02, 1.5
# A share of the time in which threads could have run and waited for a CPU: others were at work.
_BUSY = 0.1

_SMALL = Shape(_WEIGHT_TYPES, 256, 256, _CONTEXT)
_LARGE = Shape(("Q4_K",) * _WIDE_LAYERS, _WIDE, _DEEP, _CONTEXT)


def sane(use_extra_bufts: bool) -> str:
    """Decode a batch and a single token; empty when the logits are numbers, else what is wrong."""
    from agent.engine.llama import Context, ContextLimits, Weights

    with written(_SMALL) as path:
        weights = Weights(path, use_extra_bufts=use_extra_bufts)
        context = Context(weights, ContextLimits(_CONTEXT, _BATCH, 1, 1), keeps_rows=False)
        position = 0
        for count in (_BATCH, 1):
            decode(context, position, count)
            if not np.isfinite(context.logits()).all():
                return f"a batch of {count} gave logits that are not finite"
            position += count
        context.close()
        weights.close()
    return ""


def differs() -> str:
    """Compare what the GPU computes with the CPU; empty when it is the same but for rounding.

    As stages do: tokens become rows of the last layer, and rows become logits.
    """
    from agent.engine.llama import Weights

    with written(_SMALL) as path:
        own = Weights(path, use_extra_bufts=False)
        expected = [*_through(own)]
        own.close()
        other = Weights(path, use_extra_bufts=False, gpu_layers=-1)
        for what, right, found in zip(_WHAT, expected, _through(other), strict=True):
            if not np.isfinite(found).all():
                return f"{what} are not finite"
            apart = np.linalg.norm(found - right) / np.linalg.norm(right)
            if apart > _MOST_APART:
                return f"{what} differ from the CPU's by {100 * apart:.0f} %"
        other.close()
    return ""


_WHAT = ("the rows of a batch", "the rows of a token", "logits")


def _through(weights: Weights) -> Iterator[Rows]:
    from agent.engine.llama import Context, ContextLimits

    limits = ContextLimits(_CONTEXT, _BATCH, 1, 1)
    first, last = (Context(weights, limits, keeps_rows=keeps) for keeps in (True, False))
    batch = decode(first, 0, _BATCH).copy()
    yield batch
    yield decode(first, _BATCH, 1).copy()
    # The same rows for both: only what this half makes of them is compared.
    rows = np.random.default_rng(2).normal(0.0, 1.0, batch.shape).astype(np.float32)
    numbers, zeros = np.arange(_BATCH, dtype=np.int32), np.zeros(_BATCH, np.int32)
    last.decode_rows(rows, zeros, numbers, np.ones(_BATCH, np.int8))
    yield np.stack([last.logits(index) for index in range(_BATCH)])
    first.close()
    last.close()


def thread_speeds(counts: Sequence[int], use_extra_bufts: bool) -> tuple[dict[int, float], bool]:
    """Return tokens a second by number of threads, and whether the machine was busy meanwhile.

    All numbers take turns, so that what else runs here slows them alike, and of each the fastest
    token counts. Ends within some seconds: after the first round when time is short.
    """
    from agent.engine.llama import Context, ContextLimits, Weights

    best = dict.fromkeys(counts, 0.0)
    waited = dict.fromkeys(counts, 1.0)
    with written(_LARGE) as path:
        weights = Weights(path, use_extra_bufts=use_extra_bufts)
        context = Context(weights, ContextLimits(_CONTEXT, 1, 1, max(counts)), keeps_rows=False)
        decode(context, 0, 1)  # maps the weights
        began = time.perf_counter()
        for turn in range(_ROUNDS):
            for count in counts:
                if turn and time.perf_counter() - began > _MEASURE_S:
                    break
                speed, share = _tokens(context, count)
                best[count] = max(best[count], speed)
                waited[count] = min(waited[count], share)
        context.close()
        weights.close()
    return best, max(waited.values()) > _BUSY


def _tokens(context: Context, threads: int) -> tuple[float, float]:
    """Return the speed of the fastest of a few tokens, and what share its threads waited."""
    context.use_threads(threads)
    context.clear()
    decode(context, 0, 1)  # starts the threads
    began, waited = time.perf_counter(), sum(trial.waits_s())
    took: list[float] = []
    position = 1
    while not took or time.perf_counter() - began < _OF_A_ROUND_S:
        before = time.perf_counter()
        decode(context, position, 1)
        took.append(time.perf_counter() - before)
        position += 1
        if position == _CONTEXT:
            break
    share = (sum(trial.waits_s()) - waited) / ((time.perf_counter() - began) * threads)
    return 1 / min(took), share


def _features() -> tuple[str, ...]:
    """Return the instruction sets that this build uses on this CPU, as llama.cpp names them."""
    import llama_cpp

    # "CPU : SSE3 = 1 | AVX2 = 1 | OPENMP = 1 | "; other backends say theirs before or behind.
    _, _, said = llama_cpp.llama_print_system_info().decode("utf-8", "replace").partition("CPU : ")
    pairs = (part.split("=") for part in said.split("|") if part.count("=") == 1)
    return tuple(name.strip() for name, value in pairs if value.strip() == "1")


def _list() -> bytes:
    trial.bound(devices.TIMEOUT_S)
    from agent.engine import backends

    return msgspec.json.encode(devices.listed(backends.library()))


def _try_cpu(words: Sequence[str]) -> bytes:
    """Return what was found; exits with what is wrong."""
    trial.bound(selftest.PROBE_TIMEOUT_S)
    extra = selftest.WITHOUT not in words
    wrong = sane(extra)
    if wrong:
        sys.exit(wrong)
    found = selftest.Found(_features())
    for word in words:
        if word.startswith(selftest.MEASURE):
            counts = [int(count) for count in word.removeprefix(selftest.MEASURE).split(",")]
            measured, busy = thread_speeds(counts, extra)
            found = selftest.Found(found.features, tuple(measured.items()), busy)
    return msgspec.json.encode(found)


def main() -> None:
    """Do what the first argument says, and write what came out as JSON."""
    output = b""
    match sys.argv[1:]:
        case ["devices"]:
            output = _list()
        case ["cpu", *words]:
            output = _try_cpu(words)
        case ["gpu"]:
            trial.bound(gpu.PROOF_TIMEOUT_S)
            wrong = differs()
            if wrong:
                sys.exit(wrong)
        case ["speed", task]:
            trial.bound(speeds.PROBE_TIMEOUT_S)
            from agent.engine import speed_probe

            found = speed_probe.measure(msgspec.json.decode(task, type=speeds.Task))
            output = msgspec.json.encode(found)
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
