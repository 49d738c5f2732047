"""The client: streams at once through a gateway, what each said, and when.

    python streams.py BASE_URL MODEL COUNT TOKENS

Every answer is as long as it may be. Prints "begun" once each stream has a token, then a JSON list
of {"text", "gap_s", "end", "error"}: `gap_s` is the longest time between two pieces, `end` the
finish reason, "" where the stream was cut.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp

# Prompts of different lengths, so that the streams are not in step. In what covey-mini answers, up
# to 120 tokens, the likeliest token is ahead by 0.1 in logits at least: less, and another sharing
# of the rows in batches could turn it.
QUESTIONS = (
    "Spell river.", "What day comes after Monday?", "Define path.", "What is garden backwards?",
    "45 + 9 =", "1 + 2 =", "stage?", "Explain ring.",
)  # fmt: skip


async def main() -> None:
    """Ask all questions at once."""
    base, model, count, tokens = sys.argv[1:]
    begun = asyncio.Semaphore(0)

    async def one(session: aiohttp.ClientSession, question: str) -> dict[str, Any]:
        body = {"model": model, "prompt": question, "max_tokens": int(tokens), "temperature": 0,
                "stream": True, "ignore_eos": True}  # fmt: skip
        found: dict[str, Any] = {"text": "", "gap_s": 0.0, "end": "", "error": ""}
        last = 0.0
        try:
            async with session.post(f"{base}/v1/completions", json=body) as response:
                if response.status != 200:
                    found["error"] = (await response.text())[:300]
                    return found
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        found["error"] = event["error"]["message"]
                        continue
                    (choice,) = event["choices"]
                    now = time.perf_counter()
                    if choice["text"]:
                        if last:
                            found["gap_s"] = max(found["gap_s"], now - last)
                        else:
                            begun.release()
                        last = now
                        found["text"] += choice["text"]
                    found["end"] = choice["finish_reason"] or found["end"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            found["error"] = found["error"] or repr(error)
        finally:
            begun.release()
        return found

    timeout = aiohttp.ClientTimeout(total=240)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        asked = [
            asyncio.create_task(one(session, QUESTIONS[n % len(QUESTIONS)]))
            for n in range(int(count))
        ]
        for _ in asked:
            await begun.acquire()
        print("begun", flush=True)
        print(json.dumps(await asyncio.gather(*asked)))


if __name__ == "__main__":
    asyncio.run(main())
