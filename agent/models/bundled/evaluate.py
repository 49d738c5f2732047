"""Measure covey-mini through llama.cpp: `python -m agent.models.bundled.evaluate`.

Asks held-out items, each in its own chat, and picks the likeliest token each time. An answer
counts only if every character is right and the model then ends it by itself. Prints a table,
one line a task; exits with 1 if a task is below the bar. Used by people, by tests, and for the
figures in docs/model-card.md. Not for training: train.py.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import jinja2.sandbox
import llama_cpp
import numpy as np

from agent.errors import CoveyError, ModelError
from agent.models.bundled import NAME, chats, path
from agent.models.bundled.items import Item

BAR: Final = 0.95  # of the items of every task must be exact
ITEMS: Final = 400  # a task
AT_ONCE: Final = 16  # chats that llama.cpp decodes side by side
ROOM_TOKENS: Final = 256  # of context for each of them; the longest item needs about 100
# For as long as the process lives: llama.cpp keeps calling it.
_SILENCE: Final = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)


class Runner:
    """llama.cpp with several chats side by side, greedy. Close it after use."""

    def __init__(self, file: Path, *, at_once: int = AT_ONCE, threads: int = 1) -> None:
        llama_cpp.llama_log_set(_SILENCE, ctypes.c_void_p(0))
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.n_gpu_layers = 0
        self.at_once = at_once
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), model_parameters)
        if not self.model:
            raise ModelError(f"llama.cpp cannot load {file}", hint="Train or fetch it again.")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = ROOM_TOKENS * at_once
        parameters.n_ubatch = 512
        parameters.n_seq_max = at_once
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            llama_cpp.llama_model_free(self.model)
            raise ModelError(f"llama.cpp cannot make a context for {file}")
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = int(llama_cpp.llama_vocab_n_tokens(self.vocabulary))
        template = llama_cpp.llama_model_chat_template(self.model, None)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
        self.template = environment.from_string(template.decode())

    def close(self) -> None:
        """Free the model and its context."""
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """Return llama.cpp's ids of a text; `special` reads control tokens in it."""
        data = text.encode()
        room = len(data) + 2
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), ids, room, bos, special)
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token stands for; control tokens give none."""
        buffer = ctypes.create_string_buffer(64)
        count = llama_cpp.llama_token_to_piece(self.vocabulary, token, buffer, 64, 0, False)
        return buffer.raw[:count]

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the ids of a chat by the file's own template, up to where the answer starts."""
        text = self.template.render(messages=messages, add_generation_prompt=True)
        return self.tokenize(text, special=True, bos=True)

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return the logits after the last of `ids`, as (vocabulary size,) float32."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        return self._decode([(0, at, token) for at, token in enumerate(ids)], {0: len(ids) - 1})[0]

    def answers(
        self, chats_: Iterable[Sequence[dict[str, str]]], max_tokens: int = 128
    ) -> list[str | None]:
        """Return the greedy answer to each chat, None where the model did not end it."""
        prompts = [self.prompt(messages) for messages in chats_]
        found: list[str | None] = []
        for start in range(0, len(prompts), self.at_once):
            found += self._group(prompts[start : start + self.at_once], max_tokens)
        return found

    def _group(self, prompts: Sequence[list[int]], max_tokens: int) -> list[str | None]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        tokens = [(i, at, t) for i, ids in enumerate(prompts) for at, t in enumerate(ids)]
        texts = [bytearray() for _ in prompts]
        ended = [False] * len(prompts)
        lengths = [len(ids) for ids in prompts]
        open_ = list(range(len(prompts)))
        for _ in range(max_tokens):
            last = {i: lengths[i] - 1 for i in open_}
            chosen = {i: int(row.argmax()) for i, row in self._decode(tokens, last).items()}
            for i, token in chosen.items():
                ended[i] = bool(llama_cpp.llama_vocab_is_eog(self.vocabulary, token))
                texts[i] += self.piece(token)
            open_ = [i for i in open_ if not ended[i] and lengths[i] + 1 < ROOM_TOKENS]
            if not open_:
                break
            tokens = [(i, lengths[i], chosen[i]) for i in open_]
            for i in open_:
                lengths[i] += 1
        return [
            text.decode(errors="replace") if done else None
            for text, done in zip(texts, ended, strict=True)
        ]

    def _decode(
        self, tokens: Sequence[tuple[int, int, int]], last: dict[int, int]
    ) -> dict[int, np.ndarray[Any, Any]]:
        """Run (chat, position, id) through the model; return logits at each chat's last one."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        rows = {}
        try:
            batch.n_tokens = len(tokens)
            for at, (chat, position, token) in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, position
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, chat
                batch.logits[at] = last[chat] == position
                if last[chat] == position:
                    rows[chat] = at
            code = llama_cpp.llama_decode(self.context, batch)
            if code:
                raise ModelError(f"llama.cpp could not decode a batch (code {code})")
        finally:
            llama_cpp.llama_batch_free(batch)
        return {
            chat: np.ctypeslib.as_array(
                llama_cpp.llama_get_logits_ith(self.context, at), shape=(self.size,)
            ).copy()
            for chat, at in rows.items()
        }


@dataclass(frozen=True)
class Score:
    """How one task went; `wrong` holds the items missed with what was said instead."""

    task: str
    items: int
    exact: int
    wrong: tuple[tuple[Item, str | None], ...]

    @property
    def part(self) -> float:
        """Return the exact part, 0 to 1."""
        return self.exact / self.items


def score(runner: Runner, task: str, items: Sequence[Item]) -> Score:
    """Ask the items, one chat each, and count the exact answers."""
    answers = runner.answers([{"role": "user", "content": item.question}] for item in items)
    wrong = tuple(
        (item, said) for item, said in zip(items, answers, strict=True) if said != item.answer
    )
    return Score(task, len(items), len(items) - len(wrong), wrong)


def main(arguments: list[str]) -> int:
    """Parse the command line, measure every task and print the table."""
    parser = argparse.ArgumentParser(prog="python -m agent.models.bundled.evaluate")
    parser.add_argument("--model", type=Path, default=path())
    parser.add_argument("--items", type=int, default=ITEMS, help="held-out items a task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--wrong", action="store_true", help="show every wrong answer")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        with Runner(options.model, threads=options.threads) as runner:
            scores = [
                score(runner, task, chats.held_out_items(task, options.items))
                for task in chats.TASKS
            ]
    except CoveyError as error:
        print(f"error: {error.line()}", file=sys.stderr)
        return error.exit_code
    print(f"{NAME}, greedy, llama-cpp-python {llama_cpp.__version__}, held-out items")
    print(f"{'task':10}{'items':>7}{'exact':>7}{'':4}%")
    for one in scores:
        print(f"{one.task:10}{one.items:7}{one.exact:7}{one.part:8.1%}")
        if options.wrong:
            for item, said in one.wrong:
                print(f"    {item.question!r}: {said!r}, not {item.answer!r}")
    print(f"{time.monotonic() - started:.1f} s")
    if options.json:
        table = {one.task: {"items": one.items, "exact": one.exact} for one in scores}
        options.json.write_text(json.dumps(table, indent=2) + "\n")
    return 0 if all(one.part >= BAR for one in scores) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
