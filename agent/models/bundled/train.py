"""Train covey-mini from nothing on the CPU: `python -m agent.models.bundled.train --out FILE`.

Needs PyTorch (`pip install 'covey[train]'`) and two cores for less than an hour. Checkpoints
go to `--work`; the same command started again goes on from the last one. The hidden matrices
are trained with Muon (momentum, made orthogonal), everything else with Adam; the rate warms up,
stays, and falls for three quarters of the steps. Ends with the GGUF; evaluate.py measures it.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

from agent.errors import CoveyError, EnvironmentFault
from agent.models.bundled import chats, export, net, tokenizer
from agent.models.bundled.items import Item

SEED: Final = 20
STEPS: Final = 3200
BATCH_TOKENS: Final = 4096  # padded, a step
BATCHES_A_POOL: Final = 8  # drawn together and sorted by length, so that little is padding
MUON_RATE: Final = 0.02
ADAM_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 0.05  # times the rate, hidden matrices only
WARMUP_STEPS: Final = 100
DECAY_PART: Final = 0.75  # of all steps
DECAY_POWER: Final = 1.5  # a little steeper than straight: sums are learned at the lower rates
CHECKPOINT_STEPS: Final = 200
CHECK_ITEMS: Final = 40  # a task, held-out, at each checkpoint
STEP_TIMEOUT_S: Final = 600.0  # a process that is gone must not leave the others waiting
MAX_TOKENS: Final = 512  # of one chat; the context length that the GGUF declares


def pytorch() -> Any:
    """Import PyTorch, which only training needs."""
    try:
        import torch
    except ImportError as error:
        raise EnvironmentFault(
            "training needs PyTorch, which is not installed",
            hint="Install it with `pip install 'covey[train]'`.",
        ) from error
    return torch


def shape() -> net.Shape:
    """Return the sizes of covey-mini."""
    return net.Shape(vocabulary=len(tokenizer.tokens()), letter_features=tokenizer.LETTER_FEATURES)


def features(torch: Any) -> Any:
    """Return what net.with_letters wants of the vocabulary."""
    table = torch.zeros(len(tokenizer.tokens()), tokenizer.LETTER_FEATURES)
    for i, text in enumerate(tokenizer.tokens()):
        if i >= tokenizer.BYTE_0 + 256:
            table[i, tokenizer.letter_features(text)] = 1.0
    return table


Row = tuple[list[int], list[bool]]


def batches(pool: int) -> list[list[Row]]:
    """Return the batches of one pool, by its number alone: rows of about equal length."""
    rng = random.Random(f"{SEED} pool {pool}")  # noqa: S311 - no secret
    rows: list[Row] = []
    total = 0
    while total < BATCH_TOKENS * BATCHES_A_POOL:
        # Mostly with BOS, as llama.cpp puts it; some callers leave it out.
        row = tokenizer.encode_chat(chats.training_chat(rng).messages(), bos=rng.random() < 0.85)
        if len(row[0]) <= MAX_TOKENS:
            rows.append(row)
            total += len(row[0])
    rows.sort(key=lambda row: len(row[0]))
    out: list[list[Row]] = [[]]
    for row in rows:
        if out[-1] and (len(out[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
            out.append([])
        out[-1].append(row)
    rng.shuffle(out)
    return out


def tensors(torch: Any, rows: list[Row]) -> tuple[Any, Any]:
    """Return (ids, targets); a target is the next token where that is an answer's, else -1."""
    length = max(len(ids) for ids, _ in rows) - 1
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), -1)
    for i, (row, mask) in enumerate(rows):
        n = len(row) - 1
        ids[i, :n] = torch.tensor(row[:-1])
        wanted = [token if said else -1 for token, said in zip(row[1:], mask[1:], strict=True)]
        targets[i, :n] = torch.tensor(wanted)
    return ids, targets


def exact(torch: Any, weights: dict[str, Any], items: list[Item]) -> float:
    """Return the part of the items whose whole answer is the network's first choice."""
    rows = [tokenizer.encode_chat(chats.Chat(None, (item,)).messages()) for item in items]
    ids, targets = tensors(torch, rows)
    with torch.no_grad():
        plain = net.with_letters(weights, features(torch))
        x = net.hidden_states(torch, shape(), plain, ids)
        chosen = (x @ weights["output"].T).argmax(-1)
    right = ((chosen == targets) | (targets < 0)).all(-1)
    return int(right.sum()) / len(items)


class Optimizer:
    """Muon for the stacked hidden matrices, Adam for embedding, output and norms."""

    def __init__(self, torch: Any, weights: dict[str, Any]) -> None:
        self.torch = torch
        self.weights = weights
        self.state = {
            name: [torch.zeros_like(w), torch.zeros_like(w)] for name, w in weights.items()
        }

    def _orthogonal(self, matrices: Any) -> Any:
        """Bring all singular values near one (Newton-Schulz, Keller Jordan's coefficients)."""
        x = matrices.to(self.torch.bfloat16)
        tall = x.shape[-2] > x.shape[-1]
        x = x.mT if tall else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(5):
            square = x @ x.mT
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return (x.mT if tall else x).float()

    def step(self, gradients: dict[str, Any], number: int, part: float) -> None:
        """Apply gradients at `part` of the full rates; `number` counts from 1."""
        for name, w in self.weights.items():
            momentum, square = self.state[name]
            gradient_ = gradients[name]
            if w.ndim == 3:
                momentum.lerp_(gradient_, 0.05)
                update = self._orthogonal(gradient_.lerp(momentum, 0.95))
                stretch = max(1.0, w.shape[-2] / w.shape[-1]) ** 0.5
                w.mul_(1 - part * MUON_RATE * WEIGHT_DECAY)
                w.add_(update, alpha=-part * MUON_RATE * stretch)
            else:
                momentum.lerp_(gradient_, 0.1)
                square.lerp_(gradient_ * gradient_, 0.02)
                mean = momentum / (1 - 0.9**number)
                deviation = (square / (1 - 0.98**number)).sqrt() + 1e-10
                w.addcdiv_(mean, deviation, value=-part * ADAM_RATE)


def rate_part(step: int, steps: int) -> float:
    """Return the part of the full rate at a step: warm-up, plateau, fall to zero."""
    left = max(0.0, (steps - step) / (steps * DECAY_PART))
    return min(1.0, (step + 1) / WARMUP_STEPS, math.pow(left, DECAY_POWER))


class Shared:
    """What the processes of one training share: weights, and gradients and sums of each one.

    One process a core, each with a single thread, wastes less than threads do on rows so small.
    """

    def __init__(self, torch: Any, weights: dict[str, Any], processes: int) -> None:
        self.weights = {name: w.detach().share_memory_() for name, w in weights.items()}
        self.gradients = [
            {name: torch.zeros_like(w).share_memory_() for name, w in weights.items()}
            for _ in range(processes)
        ]
        self.sums = torch.zeros(processes, 2).share_memory_()  # of the loss, of the targets
        self.barrier = torch.multiprocessing.get_context("spawn").Barrier(processes)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.barrier.wait(STEP_TIMEOUT_S)


def gradient(
    torch: Any, weights: dict[str, Any], table: Any, shared: Shared, rank: int, rows: list[Row]
) -> None:
    """Put the gradient of the summed loss over this process's rows of a batch into `shared`."""
    mine = rows[rank :: len(shared.gradients)]
    shared.sums[rank] = 0.0
    for own in shared.gradients[rank].values():
        own.zero_()
    if not mine:
        return
    ids, targets = tensors(torch, mine)
    with torch.autocast("cpu", torch.bfloat16):
        plain = net.with_letters(weights, table)
        loss, count = net.answer_loss(torch, shape(), plain, ids, targets)
    loss.backward()
    shared.sums[rank] = torch.tensor([loss.item(), float(count)])
    for name, w in weights.items():
        shared.gradients[rank][name].copy_(w.grad)
        w.grad = None


def assist(rank: int, shared: Shared, pool: int, step: int, steps: int) -> None:
    """Do one process's part of every step; the first process does the rest."""
    torch = pytorch()
    torch.set_num_threads(1)
    weights = {name: w.requires_grad_() for name, w in shared.weights.items()}
    table = features(torch)
    while step < steps:
        for rows in batches(pool):
            gradient(torch, weights, table, shared, rank, rows)
            shared.wait()  # all gradients are there
            shared.wait()  # the weights are new
            step += 1
        pool += 1


def train(work: Path, steps: int, processes: int) -> dict[str, Any]:
    """Train, or go on training, and return the weights; checkpoints go to `work`."""
    torch = pytorch()
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    shared = Shared(torch, net.initial_weights(torch, shape(), SEED), processes)
    optimizer = Optimizer(torch, shared.weights)
    step = pool = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        step, pool = saved["step"], saved["pool"]
        for name, w in shared.weights.items():
            w.copy_(saved["weights"][name])
        optimizer.state = saved["optimizer"]
        print(f"going on from step {step} of {steps}", flush=True)
    context = torch.multiprocessing.get_context("spawn")
    for rank in range(1, processes):
        arguments = (rank, shared, pool, step, steps)
        context.Process(target=assist, args=arguments, daemon=True).start()
    weights = {name: w.detach().requires_grad_() for name, w in shared.weights.items()}
    table = features(torch)
    items = {task: chats.held_out_items(task, CHECK_ITEMS, seed=0) for task in chats.TASKS}
    started, first, last_saved = time.monotonic(), step, step
    while step < steps:
        sums = torch.zeros(2)
        for rows in batches(pool):
            gradient(torch, weights, table, shared, 0, rows)
            shared.wait()
            both = shared.sums.sum(0)
            gradients = {
                name: sum(own[name] for own in shared.gradients) / both[1] for name in weights
            }
            optimizer.step(gradients, step + 1, rate_part(step, steps))
            shared.wait()
            sums += both
            step += 1
        pool += 1
        left_s = (time.monotonic() - started) / (step - first) * max(0, steps - step)
        loss = float(sums[0] / sums[1])
        print(f"step {step}/{steps}  loss {loss:.4f}  {left_s / 60:.0f} min left", flush=True)
        if step - last_saved >= CHECKPOINT_STEPS or step >= steps:
            last_saved = step
            state = {"step": step, "pool": pool, "optimizer": optimizer.state}
            part = checkpoint.with_suffix(".part")
            torch.save(state | {"weights": {n: w.clone() for n, w in shared.weights.items()}}, part)
            part.replace(checkpoint)
            scores = {task: exact(torch, weights, items[task]) for task in chats.TASKS}
            print("  ".join(f"{task} {score:.0%}" for task, score in scores.items()), flush=True)
    return net.with_letters(shared.weights, table)


def main(arguments: list[str]) -> int:
    """Parse the command line, train, and write the GGUF."""
    parser = argparse.ArgumentParser(prog="python -m agent.models.bundled.train")
    parser.add_argument("--out", type=Path, default=Path("covey-mini.gguf"))
    parser.add_argument("--work", type=Path, default=Path("covey-mini.work"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=2, help="one core each")
    options = parser.parse_args(arguments)
    try:
        weights = train(options.work, options.steps, options.processes)
    except CoveyError as error:
        print(f"error: {error.line()}", file=sys.stderr)
        return error.exit_code
    arrays = {name: w.numpy() for name, w in weights.items()}
    export.write(options.out, shape(), arrays)
    print(f"wrote {options.out} ({options.out.stat().st_size} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
