"""The chats that covey-mini is trained on, and the held-out items it is measured with.

Pure and seeded: the caller gives the random generator. `held_out(key)` is true for a fixed
tenth of all keys of items (by SHA-256, so for ever the same ones). Training chats contain no
item whose key is held out; held-out items contain no others. By what keys are made of
(items.py), that means:

* a held-out pair of numbers is added or compared in no order and in no phrasing in training, but
  pairs of single digits are always trained on: they are the tables that all else rests on;
* a held-out word is spelled in no phrasing and no case in training (or reversed, likewise), but
  words that are one token are always trained on: nothing else could teach their letters;
* all days, months and glossary terms are trained on, but some phrasings of each are not.

Not for tokens: tokenizer.py. Not for scoring: evaluate.py.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from agent.models.bundled import phrases as p
from agent.models.bundled import tokenizer, words
from agent.models.bundled.items import DRAWS, Item

TASKS: Final = (*DRAWS, "limits")  # "limits": numbers too large, words too long


@dataclass(frozen=True)
class Chat:
    """A chat of one or more turns; every answer is trained on."""

    system: str | None
    items: tuple[Item, ...]

    def messages(self) -> list[dict[str, str]]:
        """Return the chat as OpenAI-style messages."""
        out = [] if self.system is None else [{"role": "system", "content": self.system}]
        for item in self.items:
            out.append({"role": "user", "content": item.question})
            out.append({"role": "assistant", "content": item.answer})
        return out


@lru_cache(maxsize=200_000)
def held_out(key: str) -> bool:
    """Tell whether items with this key are kept away from training (a tenth of all keys)."""
    return hashlib.sha256(key.encode()).digest()[0] < 26


def _trainable(item: Item) -> bool:
    """Tell the side of an item. What all else rests on is always trained on, never measured."""
    task, *about = item.key.split()
    if task in ("spell", "reverse") and about[0] in tokenizer.word_tokens():
        return True
    if task in ("add", "compare") and max(map(int, about)) < 10:
        return True
    return not held_out(item.key)


def draw(rng: random.Random, task: str | None = None, *, held: bool = False) -> Item:
    """Draw one item of a task (or of any), from the training or the held-out side."""
    wanted = task
    if task is None:
        names = tuple(DRAWS)
        wanted = rng.choices(names, weights=[DRAWS[n][0] for n in names])[0]
    while True:
        origin = (
            rng.choice(("add", "compare", "spell", "reverse")) if wanted == "limits" else wanted
        )
        assert origin is not None  # noqa: S101 - narrows the type
        item = DRAWS[origin][1](rng)
        if (task is None or item.task == task) and _trainable(item) != held:
            return item


def training_chat(rng: random.Random) -> Chat:
    """Draw a training chat: mostly one turn, at times up to five, at times with a system text."""
    turns = rng.choices((1, 2, 3, 5), weights=(80, 15, 4, 1))[0]
    return Chat(_system(rng), tuple(draw(rng) for _ in range(turns)))


def _system(rng: random.Random) -> str | None:
    roll = rng.random()
    if roll < 0.8:
        return None
    if roll < 0.95:
        return rng.choice(p.SYSTEMS)
    # Words in any order: what matters is that an unknown system text does no harm.
    pool = (*words.WORDS, *tokenizer.word_tokens())
    return " ".join(rng.choices(pool, k=rng.randint(3, 14))).capitalize() + "."


def held_out_items(task: str, count: int, seed: int = 1) -> list[Item]:
    """Return `count` different held-out items of a task, always the same for a seed."""
    rng = random.Random(f"{seed} {task}")  # noqa: S311 - no secret
    items: dict[str, Item] = {}
    for _ in range(count * 200):
        item = draw(rng, task, held=True)
        items.setdefault(item.question, item)
        if len(items) == count:
            break
    return list(items.values())
