"""How fast one device decodes and reads prompts, measured with llama.cpp: `probe.py speed`.

In a process of its own, a few seconds at most. The model has a layer in each of the two weight
types that most models come in, and is larger than most caches, so that a token's weights come from
memory, as those of a real model do. The fastest of a few attempts counts, since whatever else runs
here only slows them. Where a container has a quota of the CPUs, bursts within it are faster than
what goes on: there an attempt takes no less than its CPU time at the quota's rate. Kept and asked
for by `speeds.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent.engine import cpus, trial
from agent.engine.llama import CPU_GRAPH_ROWS, Context, ContextLimits, Weights
from agent.engine.pace import BATCHES
from agent.engine.speeds import Speed, Task
from agent.engine.synthetic import Shape, decode, written

_TYPES = ("Q8_0", "Q4_K")  # a round of layers: 112 MB
_WIDE, _DEEP = 2048, 8192
_CONTEXT = 1024
_DECODE_S = 0.8
# The first of a size has llama.cpp set up its work.
_OF_A_BATCH, _BATCH_S = 4, 0.3
# Prompts grow until one takes so long, or the next would take more than the last figure.
_PROMPTS = (32, 128, 512)
_PROMPT_S, _PROMPT_MAX_S = 0.25, 1.2
# A share of the time in which threads could have run and waited for a CPU: others were at work.
_BUSY = 0.1
_SPLIT_NONE = 0  # llama.cpp's: all on one GPU
# What attention takes shows in a model that has little else: a token with so many behind it, beside
# one with next to none, the fastest of some each.
_BEHIND, _TIMES = 1024, 24
_ATTENTIVE = Shape(("Q8_0", "Q8_0"), 1024, 256, _BEHIND + _TIMES)


def measure(task: Task) -> Speed:
    """Return the speed of a device: the CPU with so many threads, or one of the usable GPUs."""
    shape = Shape(_TYPES * task.rounds, _WIDE, _DEEP, _CONTEXT)
    with _loaded(task, shape) as (context, size):
        began, waited = time.perf_counter(), sum(trial.waits_s())
        decode_s = _token_s(context)
        batches = tuple(max(1.0, _batch_s(context, rows) / decode_s) for rows in BATCHES)
        flop_s = _prompt_flop_s(context, 2 * shape.layer_weights * len(shape.types))
        spent = (time.perf_counter() - began) * task.threads
        busy = task.gpu is None and (sum(trial.waits_s()) - waited) / spent > _BUSY
    with _loaded(task, _ATTENTIVE) as (context, _):
        attended_s = _attended_s(context)
    return Speed(task.device, size / decode_s, flop_s, busy, batches, attended_s)


@contextmanager
def _loaded(task: Task, shape: Shape) -> Iterator[tuple[Context, int]]:
    """Give a context as engines have it over a model of such a shape, and the model's bytes."""
    graph_rows = 0 if task.gpu is not None else CPU_GRAPH_ROWS

    def alone(parameters: Any) -> None:
        if task.gpu is not None:
            parameters.split_mode, parameters.main_gpu = _SPLIT_NONE, task.gpu

    with written(shape) as path:
        weights = Weights(
            path, use_extra_bufts=task.use_extra_bufts, gpu_layers=0 if task.gpu is None else -1,
            arrange=alone,
        )  # fmt: skip
        limits = ContextLimits(
            shape.context, max(_PROMPTS), 1, task.threads, flash_attention=True,
            graph_rows=graph_rows,
        )  # fmt: skip
        context = Context(weights, limits, keeps_rows=False)
        _took_s(context, 0, 1)  # maps the weights, starts threads and drivers
        yield context, path.stat().st_size
        context.close()
        weights.close()


def _attended_s(context: Context) -> float:
    """Return the multiplications of attention a second; 0 where they take no time that shows."""
    context.clear()
    near_s = min(_took_s(context, position, 1) for position in range(_TIMES))
    context.clear()
    for position in range(0, _BEHIND, max(_PROMPTS)):
        decode(context, position, max(_PROMPTS))
    far_s = min(_took_s(context, _BEHIND + position, 1) for position in range(_TIMES))
    values = 2 * _ATTENTIVE.width * len(_ATTENTIVE.types) * _BEHIND
    return values / (far_s - near_s) if far_s > near_s else 0.0


def _token_s(context: Context) -> float:
    """Return what the fastest token took."""
    context.clear()
    began, took = time.perf_counter(), []
    for position in range(_CONTEXT):
        took.append(_took_s(context, position, 1))
        if time.perf_counter() - began > _DECODE_S:
            break
    return min(took)


def _batch_s(context: Context, rows: int) -> float:
    """Return what the fastest of a few batches of so many rows took."""
    context.clear()
    began, took = time.perf_counter(), [_took_s(context, 0, rows)]
    for number in range(1, _OF_A_BATCH):
        if time.perf_counter() - began > _BATCH_S:
            break
        took.append(_took_s(context, number * rows, rows))
    return min(took)


def _prompt_flop_s(context: Context, flops: int) -> float:
    """Return the arithmetic a second of the best prompt, where a token needs `flops`."""
    best = 0.0
    for count in _PROMPTS:
        took_s = float("inf")
        for _ in range(2):
            context.clear()
            took_s = min(took_s, _took_s(context, 0, count))
            if took_s > _PROMPT_S:
                break
        best = max(best, flops * count / took_s)
        if took_s > _PROMPT_S or 4 * took_s > _PROMPT_MAX_S:
            break
    return best


def _took_s(context: Context, position: int, count: int) -> float:
    began, computed = time.perf_counter(), time.process_time()
    decode(context, position, count)
    context.logits()  # a GPU's work is waited for here
    return lasting_s(time.perf_counter() - began, time.process_time() - computed, cpus.quota())


def lasting_s(took_s: float, cpu_s: float, quota: float | None) -> float:
    """Return what such work takes where it goes on: a quota (CPUs' time, None: no bound) is kept.

    A quota is handed out by periods of 100 ms, so a token of 20 ms is computed as if there were
    none, and after some of them nothing until the next period.
    """
    least = cpu_s / quota if quota else 0.0
    return max(took_s, least, 1e-9)
