"""The clients: streams of requests through a gateway, each answer compared with what it has to be.

    python clients.py learn BASE_URL MODEL FILE
    python clients.py ask BASE_URL MODEL FILE RESULTS STREAMS SEED [ROUNDS]

`learn` asks each question alone and writes FILE, a JSON list of {"prompt", "tokens", "text"}. `ask`
asks them again and again, so many at a time, and appends a line of JSON (`answers.Seen`) to RESULTS
for each; it ends after ROUNDS of the whole list, or on SIGTERM with the last answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaoslab.answers import LIMIT_S, Seen, Work, error_of, sure_tokens

QUESTIONS = (
    "What is a mesh?", "Count from one to forty.", "What is 27 + 15?", "Name the days of a week.",
    "What is a certificate?", "Spell the word network.", "What is a relay for?", "Say hello twice.",
    "What is a head?", "What is a stage?", "What is 81 - 36?", "What is a gateway?",
    "Name the months.", "What is a ticket?", "Spell the word llama.", "What is a ring?",
)  # fmt: skip
# A prompt for which stages compute a chunk of many rows.
LONG = "A mesh is a private network of machines that know each other by their keys. " * 8
MOST_TOKENS, LEAST_TOKENS = 160, 8
PAUSE_S = 0.5
# After an error without a word of when to come again.
AGAIN_S = 0.5
PLAIN_SHARE = 0.25


def body_of(model: str, work: Work, **more: Any) -> dict[str, Any]:
    """Return the body that asks for an answer of exactly so many tokens."""
    return {"model": model, "prompt": work.prompt, "max_tokens": work.tokens, "temperature": 0,
            "ignore_eos": True, **more}  # fmt: skip


async def learn(session: aiohttp.ClientSession, url: str, model: str) -> list[Work]:
    """Return each question's answers, a short and a long one, as far as no token was a near tie."""
    found = []
    for question in (*QUESTIONS, *(LONG + question for question in QUESTIONS[:4])):
        body = body_of(model, Work(question, MOST_TOKENS), logprobs=5)
        async with session.post(url, json=body) as response:
            (choice,) = (await response.json())["choices"]
        said = choice["logprobs"]
        sure = sure_tokens(said["token_logprobs"], said["top_logprobs"])
        for tokens in sorted({min(sure, MOST_TOKENS // 4), sure}):
            if tokens < LEAST_TOKENS:
                continue
            async with session.post(url, json=body_of(model, Work(question, tokens))) as response:
                (choice,) = (await response.json())["choices"]
            if choice["finish_reason"] == "length":
                found.append(Work(question, tokens, choice["text"]))
    return found


async def ask(
    session: aiohttp.ClientSession, url: str, model: str, work: Work, *, streamed: bool
) -> Seen:
    """Ask once and judge what came."""
    seen = Seen(streamed, time.monotonic())
    try:
        async with session.post(url, json=body_of(model, work, stream=streamed)) as response:
            seen.status = response.status
            seen.retry_after_s = float(response.headers.get("Retry-After", 0))
            if streamed and response.status == 200:
                await _follow(response, seen)
            else:
                _whole(await response.text(), seen)
    except TimeoutError:
        seen.timed_out = True
    except (aiohttp.ClientError, OSError, LookupError, ValueError, TypeError) as error:
        seen.error, seen.is_object = seen.error or repr(error), False
    seen.ended = time.monotonic()
    seen.judge(work)
    return seen


async def _follow(response: aiohttp.ClientResponse, seen: Seen) -> None:
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            seen.done = True
            continue
        try:
            event = json.loads(line[6:])
        except ValueError:
            seen.error = f"no JSON: {line[:200]!r}"
            return
        if message := error_of(event):
            seen.error, seen.is_object = message, True
            continue
        (choice,) = event["choices"]
        if choice["text"]:
            seen.take(choice["text"], time.monotonic())
        seen.finish = choice["finish_reason"] or seen.finish


def _whole(text: str, seen: Seen) -> None:
    try:
        body = json.loads(text)
    except ValueError:
        seen.error = f"no JSON: {text[:200]}"
        return
    if seen.status == 200:
        (choice,) = body["choices"]
        seen.text, seen.finish = choice["text"], choice["finish_reason"]
        seen.first = time.monotonic()
    else:
        seen.error = error_of(body)
        seen.is_object = bool(seen.error)


async def go_on(
    session: aiohttp.ClientSession, url: str, model: str, works: list[Work], results: Path,
    streams: int, chance: random.Random, rounds: int,
) -> None:  # fmt: skip
    """Ask until it is enough; a line for each answer."""
    ends = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ends.set)
    left = [work for _ in range(rounds) for work in works]

    def next_work() -> Work | None:
        if ends.is_set():
            return None
        if not rounds:
            return chance.choice(works)
        return left.pop() if left else None

    async def one(out: Any) -> None:
        while (work := next_work()) is not None:
            streamed = chance.random() >= PLAIN_SHARE
            seen = await ask(session, url, model, work, streamed=streamed)
            out.write(seen.line() + "\n")
            pause_s = chance.uniform(0, 2 * PAUSE_S)
            if seen.end != "ok":
                pause_s += min(seen.retry_after_s, 5.0) or AGAIN_S
            await asyncio.sleep(pause_s)

    with results.open("a", buffering=1) as out:
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(one(out))


async def main() -> None:
    """Learn or ask."""
    what, base, model, name, *more = sys.argv[1:]
    file, url = Path(name), f"{base}/v1/completions"
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        if what == "learn":
            found = await learn(session, url, model)
            file.write_text(json.dumps([vars(work) for work in found]))
            return
        works = [Work(**one) for one in json.loads(file.read_text())]
        results, streams, seed, *rounds = more
        await go_on(session, url, model, works, Path(results), int(streams), random.Random(seed),
                    int(rounds[0]) if rounds else 0)  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
