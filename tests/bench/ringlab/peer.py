"""llama.cpp by itself: the whole model in one process, or over its own RPC servers.

    python peer.py MODEL CASES [--servers HOST:PORT,…] [--remote-layers N]

CASES is JSON: [[streams, prompt tokens, answer tokens], …]. Prints a JSON list of
[tokens/s of all streams together, s to the first token]. One thread; greedy; prompts of random
tokens in batches of 512; the streams decode together, as llama.cpp batches them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from typing import Any

import llama_cpp
import numpy as np

N_BATCH = 512


def servers(places: list[str]) -> None:
    """Register RPC servers as devices."""
    from rpc_server import library

    add = library("libggml-rpc.so.0").ggml_backend_rpc_add_server
    add.restype, add.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    register = library("libggml.so.0").ggml_backend_register
    register.argtypes = [ctypes.c_void_p]
    for place in places:
        register(add(place.encode()))


class Whole:
    """A model and its context."""

    def __init__(
        self, path: str, context: int, streams: int, places: list[str], layers: int
    ) -> None:
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = layers
        parameters.use_extra_bufts = False
        if places:
            share = [1.0] * len(places) + [0.0] * (128 - len(places))
            self._split = (ctypes.c_float * 128)(*share)
            parameters.tensor_split = ctypes.cast(self._split, type(parameters.tensor_split))
        self.model: Any = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        limits = llama_cpp.llama_context_default_params()
        limits.n_ctx, limits.n_batch, limits.n_ubatch = context, N_BATCH, N_BATCH
        limits.n_seq_max, limits.n_threads, limits.n_threads_batch = streams, 1, 1
        self.context: Any = llama_cpp.llama_init_from_model(self.model, limits)
        self.size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Decode (token, sequence, position, whether its logits are wanted) rows."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for at, (token, sequence, position, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama.cpp could not decode")

    def likeliest(self, row: int) -> int:
        """Return the greedy choice after a row."""
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.size,)).argmax())

    def run(self, streams: int, prompt: int, answer: int) -> tuple[float, float]:
        """Return tokens/s and s to the first token of one stream."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        random = np.random.default_rng(1)
        last, first_s = [], 0.0
        for stream in range(streams):
            tokens = random.integers(300, self.size, prompt).tolist()
            began = time.perf_counter()
            for start in range(0, prompt, N_BATCH):
                chunk = tokens[start : start + N_BATCH]
                ends = start + len(chunk) == prompt
                self.decode([(t, stream, start + n, ends and n == len(chunk) - 1)
                             for n, t in enumerate(chunk)])  # fmt: skip
            last.append(self.likeliest(len(chunk) - 1))
            first_s = first_s or time.perf_counter() - began
        began = time.perf_counter()
        for step in range(answer):
            self.decode([(token, n, prompt + step, True) for n, token in enumerate(last)])
            last = [self.likeliest(n) for n in range(streams)]
        return streams * answer / (time.perf_counter() - began), first_s


def main() -> None:
    """Run the cases."""
    flags = argparse.ArgumentParser()
    flags.add_argument("model")
    flags.add_argument("cases", type=json.loads)
    flags.add_argument("--servers", default="")
    flags.add_argument("--remote-layers", type=int, default=0)
    arguments = flags.parse_args()
    places = arguments.servers.split(",") if arguments.servers else []
    servers(places)
    # Its caches are as it has them by default: each stream has one of its own.
    longest = max(prompt + answer for _, prompt, answer in arguments.cases)
    most = max(streams for streams, _, _ in arguments.cases)
    whole = Whole(arguments.model, most * longest, most, places, arguments.remote_layers)
    whole.run(1, 8, 4)  # the first time all pages are touched
    print(json.dumps([whole.run(*case) for case in arguments.cases]))


if __name__ == "__main__":
    main()
