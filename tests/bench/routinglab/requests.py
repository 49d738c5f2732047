"""What clients ask, and when: lengths, conversations that go on, common beginnings, bursts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

BLOCK_TOKENS = 64
# What the router sees is bytes; English has some four to a token, and not always the same.
BYTES_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Request:
    """One request: when it comes, its prompt as blocks of 64 tokens, and what it is answered."""

    at: float
    tokens: int
    answer_tokens: int
    blocks: tuple[int, ...]
    session: str
    prompt_bytes: int


@dataclass(frozen=True)
class Traffic:
    """How much and what is asked; tokens are medians of log-normal lengths."""

    rate: float
    prompt_tokens: float = 600.0
    answer_tokens: float = 100.0
    spread: float = 0.8
    # A share of the requests goes on with a conversation, or begins as others begin.
    going_on: float = 0.0
    beginnings: int = 0
    beginning_tokens: int = 1500
    burst: float = 1.0  # how many times the rate while there is one
    burst_s: float = 3.0
    every_s: float = 20.0


@dataclass
class _Talk:
    name: str
    blocks: tuple[int, ...]
    tokens: int = 0
    turns: int = field(default=0)


def requests(traffic: Traffic, seconds: float, random: Random) -> Iterator[Request]:
    """Draw the requests of so many seconds, in order of time."""
    number = 0

    def fresh(count: int) -> tuple[int, ...]:
        nonlocal number
        number += count
        return tuple(range(number - count, number))

    first = [fresh(traffic.beginning_tokens // BLOCK_TOKENS) for _ in range(traffic.beginnings)]
    talks: list[_Talk] = []
    at, named = 0.0, 0
    while True:
        bursting = traffic.burst > 1 and at % traffic.every_s >= traffic.every_s - traffic.burst_s
        at += random.expovariate(traffic.rate * (traffic.burst if bursting else 1.0))
        if at >= seconds:
            return
        new = _length(traffic.prompt_tokens, traffic.spread, random)
        if talks and random.random() < traffic.going_on:
            talk = random.choice(talks)
            new = max(new // 4, 16)
        else:
            named += 1
            shared = random.choice(first) if first else ()
            talk = _Talk(f"s{named}", shared, len(shared) * BLOCK_TOKENS)
            if traffic.going_on:
                talks.append(talk)
        tokens = talk.tokens + new
        blocks = talk.blocks + fresh(tokens // BLOCK_TOKENS - len(talk.blocks))
        answer = _length(traffic.answer_tokens, traffic.spread, random)
        talk.blocks, talk.tokens, talk.turns = blocks, tokens + answer, talk.turns + 1
        if talk.turns >= 8 and talk in talks:
            talks.remove(talk)
        if len(talks) > 60:
            del talks[0]
        ratio = BYTES_PER_TOKEN * random.uniform(0.9, 1.1)
        yield Request(at, tokens, answer, blocks, talk.name, int(tokens * ratio))


def _length(median: float, spread: float, random: Random) -> int:
    return max(int(median * math.exp(random.gauss(0.0, spread))), 4)
