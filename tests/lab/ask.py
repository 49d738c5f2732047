"""Ask a model through an OpenAI endpoint with the official client; print what came, as JSON.

Run by the lab tests on a machine of the mesh: python ask.py BASE_URL MODEL QUESTION.
Prints {"pieces": […], "finish": …, "tokens": …, "text": …}: `pieces` is the streamed answer as it
came, `text` the same request without streaming.
"""

from __future__ import annotations

import json
import sys

from openai import OpenAI


def main() -> None:
    """Ask twice: streamed and not."""
    base, model, question = sys.argv[1:]
    client = OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=60)
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
    print(json.dumps({"pieces": pieces, "finish": finish, "tokens": tokens, "text": text}))


if __name__ == "__main__":
    main()
