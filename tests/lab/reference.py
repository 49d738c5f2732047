"""What llama.cpp says when the whole model runs in one process: the measure for every ring.

Run by the lab tests: python reference.py MODEL.gguf QUESTION … prints a JSON list, for each
question the pieces of its greedy answer, token by token. Uses nothing of Covey.
"""

from __future__ import annotations

import json
import sys

import llama_cpp
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_TOKENS = 48


def main() -> None:
    """Answer each question from an empty context."""
    path, *questions = sys.argv[1:]
    llama = llama_cpp.Llama(path, n_ctx=0, n_threads=1, verbose=False)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(llama.metadata["tokenizer.chat_template"])
    bos = llama._model.token_get_text(llama.token_bos())
    answers = []
    for question in questions:
        prompt = template.render(
            messages=[{"role": "user", "content": question}],
            add_generation_prompt=True, bos_token=bos, eos_token="",
        )  # fmt: skip
        tokens = llama.tokenize(prompt.encode(), add_bos=not prompt.startswith(bos), special=True)
        pieces: list[str] = []
        for token in llama.generate(tokens, temp=0.0, repeat_penalty=1.0):
            if llama_cpp.llama_vocab_is_eog(llama._model.vocab, token):
                break
            pieces.append(llama.detokenize([token], prev_tokens=tokens).decode())
            if len(pieces) == MOST_TOKENS:
                break
        answers.append(pieces)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
