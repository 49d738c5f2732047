"""The client: so many streams at once, and when each token came."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import numpy as np

# The tokens that end an answer are biased away, so that every answer is long.
NEVER = {"2": -100}
# A random model that may say so few words goes round in circles, with a way out now and then.
FEW_WORDS = 16


async def run(
    base: str,
    streams: int,
    prompt: int,
    answer: int,
    vocabulary: int,
    *,
    repeats: bool = False,
    model: str = "ring",
) -> tuple[float, float]:
    """Return tokens/s of all streams while all of them decode, and s to the first one's token.

    `repeats`: the answers are texts that repeat themselves.
    """
    random = np.random.default_rng(int(time.time() * 1000) % 2**32)
    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def one() -> list[float]:
            words = random.integers(300, vocabulary, FEW_WORDS if repeats else 0).tolist()
            body = {
                "model": model, "prompt": random.integers(300, vocabulary, prompt).tolist(),
                "max_tokens": answer, "temperature": 0, "stream": True,
                "logit_bias": NEVER | {str(word): 100 for word in words},
            }  # fmt: skip
            stamps = [time.perf_counter()]
            async with session.post(f"http://{base}/v1/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.content:
                    if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["text"]:
                        stamps.append(time.perf_counter())
            return stamps

        found = await asyncio.gather(*(one() for _ in range(streams)))
    began, ended = max(s[1] for s in found), min(s[-1] for s in found)
    tokens = sum(sum(began < at <= ended for at in stamps) for stamps in found)
    return tokens / (ended - began), min(s[1] - s[0] for s in found)


async def came_true(base: str, prompt: int, answer: int, vocabulary: int) -> float:
    """Return which share of the guesses with a row came true in one answer; 0 if there was none."""
    words = np.random.default_rng().integers(300, vocabulary, prompt).tolist()
    body = {"model": "ring", "prompt": words, "max_tokens": answer, "temperature": 0,
            "logit_bias": NEVER}  # fmt: skip
    timeout = aiohttp.ClientTimeout(total=900)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"http://{base}/v1/completions", json=body) as response,
    ):
        response.raise_for_status()
        timings = (await response.json()).get("timings", {})
    return timings.get("draft_n_accepted", 0) / max(1, timings.get("draft_n", 0))
