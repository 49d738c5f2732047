"""Ask models through an OpenAI endpoint with the official client; print what came, as JSON.

Run by the lab tests on a machine of the mesh: python ask.py BASE_URL {MODEL QUESTION}…
Prints a list with {"pieces": […], "finish": …, "tokens": …, "text": …} for each pair: `pieces` is
the streamed answer as it came, `text` the same request without streaming.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from openai import OpenAI


def ask(client: OpenAI, model: str, question: str) -> dict[str, Any]:
    """Ask twice: streamed and not."""
    messages = [{"role": "user", "content": question}]
    pieces, finish, tokens = [], None, None
    for chunk in client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=48, stream=True,
        stream_options={"include_usage": True},
    ):  # fmt: skip
        for choice in chunk.choices:
            if choice.delta.content:
                pieces.append(choice.delta.content)
            finish = choice.finish_reason or finish
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    whole = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=48
    )
    text = whole.choices[0].message.content
    return {"pieces": pieces, "finish": finish, "tokens": tokens, "text": text}


def main() -> None:
    """Ask every pair in turn."""
    base, *pairs = sys.argv[1:]
    client = OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=60)
    answers = [ask(client, *pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
