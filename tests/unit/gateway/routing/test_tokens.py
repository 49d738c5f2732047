"""Usage at an answer's end, in the forms that servers give it, and bytes for each token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.tokens import BYTES_PER_TOKEN, BytesPerToken, Usage, usage


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        (b"", Usage()),
        (b'data: {"choices":[]}\n\ndata: [DONE]\n\n', Usage()),
        (
            b'0}],"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}',
            Usage(12, 3),
        ),
        (
            b'data: {"choices":[],"usage": {"prompt_tokens": 900, "total_tokens": 907,'
            b' "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 512}}}\n\n'
            b"data: [DONE]\n\n",
            Usage(900, 7, 512),
        ),
        (b'"usage":null}', Usage()),
        (b'"completion_tokens":5,"usage":{"prompt_tokens":12', Usage(12)),
        (b'"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}', Usage(2)),
        (b'"usage":{"prompt_tokens":12345678901234}', Usage()),
        (b"\x1f\x8b\x08\x00 compressed", Usage()),
    ],
)
def test_usage(tail: bytes, found: Usage) -> None:
    assert usage(tail) == found


@given(ratio=st.floats(1, 8), tokens=st.lists(st.integers(1, 5000), min_size=60, max_size=80))
def test_bytes_for_each_token_are_learned(ratio: float, tokens: list[int]) -> None:
    made = BytesPerToken()
    assert made.value == BYTES_PER_TOKEN
    for count in tokens + [2000] * 20:
        made.learn(int(ratio * count), count)
    assert made.value == pytest.approx(ratio, rel=0.1)


@given(samples=st.lists(st.tuples(st.integers(-5, 10**9), st.integers(-5, 10**9)), max_size=20))
def test_nonsense_stays_within_bounds(samples: list[tuple[int, int]]) -> None:
    made = BytesPerToken()
    for size, count in samples:
        made.learn(size, count)
        assert 0.5 <= made.value <= 16
