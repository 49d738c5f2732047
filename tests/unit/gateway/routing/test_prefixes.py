"""Prompts that begin the same have hashes that begin the same, and memory is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.prefixes import (
    COARSE_BLOCKS,
    COARSE_BYTES,
    FINE_BLOCKS,
    FINE_BYTES,
    OLDEST_S,
    Prefixes,
    blocks,
    covered_bytes,
)


def text(length: int, fill: int = 0) -> bytes:
    return bytes((n * 7 + n // 256 + fill) % 256 for n in range(length))


@given(same=st.integers(0, 40_000), longer=st.integers(0, 5000))
def test_hashes_agree_as_far_as_the_prompts_do(same: int, longer: int) -> None:
    one = blocks([text(same) + b"a" * longer])
    other = blocks([text(same) + b"b" * longer])
    agreed = 0
    while agreed < min(len(one), len(other)) and one[agreed] == other[agreed]:
        agreed += 1
    assert covered_bytes(agreed) <= same
    more = FINE_BYTES if agreed < FINE_BLOCKS else COARSE_BYTES
    assert covered_bytes(agreed) + more > same or agreed == len(one)
    assert not set(one[agreed:]) & set(other[agreed:])  # what comes later is never the same again


@given(cut=st.integers(0, 3000))
def test_where_the_parts_are_cut_is_no_matter(cut: int) -> None:
    whole = text(3000)
    assert blocks([whole[:cut], memoryview(whole)[cut:]]) == blocks([whole])


def test_a_prompt_of_any_length_has_few_hashes() -> None:
    assert blocks([b"x" * (FINE_BYTES - 1)]) == ()
    assert len(blocks([text(2**20)])) == FINE_BLOCKS + COARSE_BLOCKS
    assert blocks([text(2**20), b"more"]) == blocks([text(2**20)])


def test_what_was_sent_is_found_until_it_is_old() -> None:
    known, prefix = Prefixes(), blocks([text(2000)])
    assert known.matched(prefix, 0.0) == 0
    known.sent(prefix[:4], 0.0)
    assert known.matched(prefix, 1.0) == 4
    assert known.matched(prefix, OLDEST_S + 1) == 0
    known.sent(prefix, 10.0)
    assert known.matched(prefix, OLDEST_S + 1) == len(prefix) == 7
    known.forget()
    assert known.matched(prefix, 10.0) == 0


@given(prompts=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), max_size=40))
def test_memory_is_bounded_and_keeps_the_beginnings_of_the_latest(
    prompts: list[tuple[int, int]],
) -> None:
    known = Prefixes(most=20)
    for now, (fill, count) in enumerate(prompts):
        prefix = blocks([text(count * FINE_BYTES, fill)])
        known.sent(prefix, now)
        assert len(known) <= 20
        assert known.matched(prefix, now) == min(len(prefix), 20)


def test_trust_follows_what_is_proved_within_bounds() -> None:
    known = Prefixes()
    for _ in range(50):
        known.proved(-3.0)
    assert 0 <= known.trust < 0.01
    for _ in range(50):
        known.proved(7.0)
    assert 0.99 < known.trust <= 1
