"""Train covey-mini from nothing on the CPU: `python -m agent.models.bundled.train --out FILE`.

Needs PyTorch (`pip install 'covey[train]'`) and two cores for less than an hour. Checkpoints
go to `--work`; the same command started again goes on from the last one. The hidden matrices
are trained with Muon (momentum, made orthogonal), everything else with Adam; the rate warms up,
stays, and falls over the last third. Ends with the GGUF; evaluate.py measures it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

from agent.errors import CoveyError, EnvironmentFault
from agent.models.bundled import chats, export, net, tokenizer

SEED: Final = 20
STEPS: Final = 4000
BATCH_TOKENS: Final = 4096  # padded, a step
BATCHES_A_POOL: Final = 8  # drawn together and sorted by length, so that little is padding
MUON_RATE: Final = 0.02
ADAM_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 0.05  # times the rate, hidden matrices only
WARMUP_STEPS: Final = 150
DECAY_PART: Final = 0.35  # of all steps
CHECKPOINT_STEPS: Final = 200
CHECK_ITEMS: Final = 40  # a task, held-out, at each checkpoint
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
    return net.Shape(vocabulary=len(tokenizer.tokens()))


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


def exact(torch: Any, weights: dict[str, Any], items: list[chats.Item]) -> float:
    """Return the part of the items whose whole answer is the network's first choice."""
    rows = [tokenizer.encode_chat(chats.Chat(None, (item,)).messages()) for item in items]
    ids, targets = tensors(torch, rows)
    with torch.no_grad():
        x = net.hidden_states(torch, shape(), weights, ids)
        chosen = (x @ weights["output"].T).argmax(-1)
    return float(((chosen == targets) | (targets < 0)).all(-1).float().mean())


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

    def step(self, number: int, part: float) -> None:
        """Apply the gradients at `part` of the full rates; `number` counts from 1."""
        for name, w in self.weights.items():
            momentum, square = self.state[name]
            if w.ndim == 3:
                momentum.lerp_(w.grad, 0.05)
                update = self._orthogonal(w.grad.lerp(momentum, 0.95))
                stretch = max(1.0, w.shape[-2] / w.shape[-1]) ** 0.5
                w.mul_(1 - part * MUON_RATE * WEIGHT_DECAY)
                w.add_(update, alpha=-part * MUON_RATE * stretch)
            else:
                momentum.lerp_(w.grad, 0.1)
                square.lerp_(w.grad * w.grad, 0.02)
                mean = momentum / (1 - 0.9**number)
                deviation = (square / (1 - 0.98**number)).sqrt() + 1e-10
                w.addcdiv_(mean, deviation, value=-part * ADAM_RATE)
            w.grad = None


def rate_part(step: int, steps: int) -> float:
    """Return the part of the full rate at a step: warm-up, plateau, straight fall to zero."""
    decay = int(steps * DECAY_PART)
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (steps - step) / decay))


def train(work: Path, steps: int, threads: int) -> dict[str, Any]:
    """Train, or go on training, and return the weights; checkpoints go to `work`."""
    torch = pytorch()
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    weights = net.initial_weights(torch, shape(), SEED)
    optimizer = Optimizer(torch, weights)
    step = pool = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        step, pool = saved["step"], saved["pool"]
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(saved["weights"][name])
        optimizer.state = saved["optimizer"]
        print(f"going on from step {step} of {steps}", flush=True)
    items = {task: chats.held_out_items(task, CHECK_ITEMS, seed=0) for task in chats.TASKS}
    started, first, last_saved = time.monotonic(), step, step
    while step < steps:
        total, count = 0.0, 0
        for rows in batches(pool):
            ids, targets = tensors(torch, rows)
            with torch.autocast("cpu", torch.bfloat16):
                loss, n = net.answer_loss(torch, shape(), weights, ids, targets)
            (loss / n).backward()
            with torch.no_grad():
                optimizer.step(step + 1, rate_part(step, steps))
            total, count, step = total + loss.item(), count + n, step + 1
        pool += 1
        left_s = (time.monotonic() - started) / (step - first) * max(0, steps - step)
        print(
            f"step {step}/{steps}  loss {total / count:.4f}  {left_s / 60:.0f} min left", flush=True
        )
        if step - last_saved >= CHECKPOINT_STEPS or step >= steps:
            last_saved = step
            state = {"step": step, "pool": pool, "optimizer": optimizer.state}
            part = checkpoint.with_suffix(".part")
            torch.save(state | {"weights": {n: w.detach() for n, w in weights.items()}}, part)
            part.replace(checkpoint)
            scores = {task: exact(torch, weights, items[task]) for task in chats.TASKS}
            print("  ".join(f"{task} {score:.0%}" for task, score in scores.items()), flush=True)
    return weights


def main(arguments: list[str]) -> int:
    """Parse the command line, train, and write the GGUF."""
    parser = argparse.ArgumentParser(prog="python -m agent.models.bundled.train")
    parser.add_argument("--out", type=Path, default=Path("covey-mini.gguf"))
    parser.add_argument("--work", type=Path, default=Path("covey-mini.work"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    try:
        weights = train(options.work, options.steps, options.threads)
    except CoveyError as error:
        print(f"error: {error.line()}", file=sys.stderr)
        return error.exit_code
    arrays = {name: w.detach().numpy() for name, w in weights.items()}
    export.write(options.out, shape(), arrays)
    print(f"wrote {options.out} ({options.out.stat().st_size} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
