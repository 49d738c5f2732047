"""How many tokens an answer cost, read off its bytes as they pass.

A core: keys pay by it, metrics count it, and the router learns from it. The bytes are not parsed
while they pass: the first and the last kilobytes are kept, and at the end the counts are looked for
there. It knows the forms of OpenAI (`usage`, also the last chunk of a stream that asked for it), of
Anthropic and of OpenAI's responses (`input_tokens`, `output_tokens`), of Ollama
(`prompt_eval_count`, `eval_count`), and llama.cpp's `timings`, which its streams end with unasked.
Inside a JSON string a quote is escaped, so no text that a model writes looks like a field's name.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# llama.cpp's embeddings have their usage before the vectors, everything else has it last.
HEAD_BYTES = 4096
TAIL_BYTES = 8192
# English has four characters a token; where nothing is counted, this is what is charged.
BYTES_PER_TOKEN = 4
_COUNT = re.compile(
    rb'"(prompt_tokens|input_tokens|prompt_eval_count|completion_tokens|output_tokens|eval_count'
    rb'|cache_creation_input_tokens|cache_read_input_tokens|cached_tokens)"\s*:\s*(\d{1,12})\b'
)
# Where an object or, in Ollama's, a line with counts is to be found.
_OBJECT, _OLLAMA = b'"usage"', b'eval_count"'
# The last object may be null, or one that counts a part: so many are looked at.
_LOOKS = 8
_TIMING = re.compile(rb'"(cache_n|prompt_n|predicted_n)"\s*:\s*(\d{1,12})\b')
_UNFINISHED = re.compile(rb'"finish_reason"\s*:\s*null')
_PROMPT = ("prompt_tokens", "input_tokens", "prompt_eval_count")
_COMPLETION = ("completion_tokens", "output_tokens", "eval_count")
_CACHED = ("cached_tokens", "cache_read_input_tokens")
# Anthropic's input_tokens are those that no cache had.
_ASIDE = ("cache_creation_input_tokens", "cache_read_input_tokens")


class Tokens(NamedTuple):
    """What a request cost; `cached` are those of the prompt that a cache had, None: it is not said.

    0 where only the other is said, as for embeddings.
    """

    prompt: int
    completion: int
    cached: int | None = None


class _Counts(NamedTuple):
    prompt: int | None
    completion: int | None
    cached: int | None


class Meter:
    """Fed with the bytes of one answer; `encoding` is its Content-Encoding.

    `fed` is how many bytes they are, `events` how many events of a stream ended in them.
    """

    def __init__(self) -> None:
        self.fed = 0
        self.events = 0
        self._head = b""
        self._tail = bytearray()
        self._inflate: zlib._Decompress | None = None
        self._read_at = -1
        self._read: Tokens | None = None

    def begin(self, encoding: str) -> None:
        """Take note of the answer's Content-Encoding before its first byte."""
        if encoding.lower() in ("gzip", "deflate"):
            self._inflate = zlib.decompressobj(wbits=47 if encoding.lower() == "gzip" else 15)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the answer."""
        self.fed += len(chunk)
        if self._inflate is None:
            self._take(chunk)
            return
        try:
            # In pieces, so that a few bytes of zeros do not become gigabytes in memory.
            while chunk:
                self._take(self._inflate.decompress(chunk, 2**18))
                chunk = self._inflate.unconsumed_tail
        except zlib.error:
            self._inflate = None  # it is not what it says; the estimate remains

    def _take(self, data: bytes) -> None:
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
        self.events += data.count(b"\n\n")
        self._tail += data if len(data) <= TAIL_BYTES else data[-TAIL_BYTES:]
        if len(self._tail) > 2 * TAIL_BYTES:  # cut seldom, not with each small chunk
            del self._tail[:-TAIL_BYTES]

    def ends_with(self, end: bytes) -> bool:
        """Say whether the answer, as far as it has come, ends so; `end` is a few bytes."""
        return self._tail.endswith(end)

    def tokens(self) -> Tokens | None:
        """Return what the answer says that it cost, or None if it does not say.

        Several ask, and it is looked for once.
        """
        if self._read_at != self.fed:
            self._read_at, self._read = self.fed, self._look()
        return self._read

    def _look(self) -> Tokens | None:
        found = _counts(self._tail)
        if found.prompt is None or found.completion is None:
            # In a stream of Anthropic's the prompt is counted in the first event, the rest last.
            first = _counts(self._head)
            found = _Counts(*(a if a is not None else b for a, b in zip(found, first, strict=True)))
        if found.prompt is None and found.completion is None:
            return _timed(self._tail)
        return Tokens(found.prompt or 0, found.completion or 0, found.cached)

    def estimate(self) -> int:
        """Return about how many tokens were written: events of a stream, else bytes."""
        return self.events if self.events > 1 else -(-self.fed // BYTES_PER_TOKEN)


def of_prompt(body_bytes: int) -> int:
    """Return about how many tokens a request's body of so many bytes is; 1 at least."""
    return max(1, body_bytes // BYTES_PER_TOKEN)


def _counts(data: bytes | bytearray) -> _Counts:
    """Return the last counts in `data`, going back from its end: most of it is never looked at."""
    prompt = completion = cached = None
    end = len(data)
    line = data.rfind(_OLLAMA)
    begin = data.rfind(b"\n", 0, line) + 1 if line >= 0 else data.rfind(_OBJECT)
    for _ in range(_LOOKS):
        if begin < 0 or (prompt is not None and completion is not None):
            break
        found = {name.decode(): int(number) for name, number in _COUNT.findall(data, begin, end)}
        if prompt is None:
            prompt = _first(found, _PROMPT)
            if prompt is not None:
                for name in _ASIDE:
                    prompt += found.get(name, 0)
                cached = _first(found, _CACHED)
        if completion is None:
            completion = _first(found, _COMPLETION)
        end, begin = begin, data.rfind(_OBJECT, 0, begin)
    return _Counts(prompt, completion, cached)


def _first(found: Mapping[str, int], names: Iterable[str]) -> int | None:
    for name in names:
        if name in found:
            return found[name]
    return None


def _timed(data: bytes | bytearray) -> Tokens | None:
    """Return the sum over the answers (`n`) whose last event, with its timings, is in `data`."""
    at = data.find(b'"predicted_n"')
    if at < 0:
        return None
    prompt = completion = cached = 0
    seen = False
    for event in data[max(0, data.rfind(b"\n\n", 0, at)) :].split(b"\n\n"):
        found = {name: int(number) for name, number in _TIMING.findall(event)}
        # With timings_per_token every event has them, and only the last has them all.
        if b"predicted_n" in found and not _UNFINISHED.search(event):
            seen = True
            had = found.get(b"cache_n", 0)
            prompt = max(prompt, found.get(b"prompt_n", 0) + had)
            cached = max(cached, had)
            completion += found[b"predicted_n"]
    return Tokens(prompt, completion, cached) if seen else None
