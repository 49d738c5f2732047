"""The client: so many streams at once, and when each token came."""

from __future__ import annotations

import asyncio
import json
import re
import selectors
import socket
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

import aiohttp
import numpy as np

# The tokens that end an answer are biased away, so that every answer is long.
NEVER = {"2": -100}
# A random model that may say so few words goes round in circles, with a way out now and then.
FEW_WORDS = 16
TIMEOUT_S = 900.0
_EVENT = re.compile(rb"data: (\{.*\})\n\n")


async def run(
    base: str,
    streams: int,
    prompt: int,
    answer: int,
    vocabulary: int,
    *,
    repeats: bool = False,
    model: str = "ring",
    seed: int | None = None,
) -> tuple[float, float]:
    """Return tokens/s of all streams while all of them decode, and s to the first one's token.

    `repeats`: the answers are texts that repeat themselves. `seed`: the same one asks the same.
    """
    random = np.random.default_rng(seed)
    asked = []
    for _ in range(streams):
        words = random.integers(300, vocabulary, FEW_WORDS if repeats else 0).tolist()
        asked.append({
            "model": model, "prompt": random.integers(300, vocabulary, prompt).tolist(),
            "max_tokens": answer, "temperature": 0, "stream": True,
            "logit_bias": NEVER | {str(word): 100 for word in words},
        })  # fmt: skip
    found = await asyncio.to_thread(_streamed, base, asked)
    began, ended = max(s[1] for s in found), min(s[-1] for s in found)
    tokens = sum(sum(began < at <= ended for at in stamps) for stamps in found)
    return tokens / (ended - began), min(s[1] - s[0] for s in found)


def _streamed(base: str, asked: list[dict[str, object]]) -> list[list[float]]:
    """Ask all at once; return for each when it was asked, and when each of its tokens came.

    The nodes' CPUs are the client's too, so it does nothing but read while answers come.
    """
    host, _, port = base.rpartition(":")
    said = [_Said() for _ in asked]
    with selectors.DefaultSelector() as ready:
        for one, body in zip(said, asked, strict=True):
            connection = socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S)
            ready.register(connection, selectors.EVENT_READ, one)
            content = json.dumps(body).encode()
            one.asked = time.perf_counter()
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (base.encode(), len(content), content)
            )
        while ready.get_map():
            found = ready.select(TIMEOUT_S)
            if not found:
                raise SystemExit(f"the head at {base} says nothing for {TIMEOUT_S:.0f} s")
            for key, _ in found:
                if data := key.fileobj.recv(1 << 16):  # type: ignore[union-attr]
                    key.data.parts.append((time.perf_counter(), data))
                else:
                    ready.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
    return [one.stamps() for one in said]


@dataclass
class _Said:
    """What came in a stream, and when."""

    asked: float = 0.0
    parts: list[tuple[float, bytes]] = field(default_factory=list)

    def stamps(self) -> list[float]:
        """Return when it was asked, then when each token came; SystemExit for an error."""
        whole = b"".join(data for _, data in self.parts)
        if not whole.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"the head did not answer: {whole[:800]!r}")
        ends = list(accumulate(len(data) for _, data in self.parts))
        return [self.asked] + [
            self.parts[bisect_left(ends, event.end())][0]
            for event in _EVENT.finditer(whole)
            if json.loads(event[1])["choices"][0]["text"]
        ]


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
