"""What rings are called: one key for each, none for two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.deploy.ringkey import MOST_RINGS, key_of, keys_of, split

NAMES = st.text(st.characters(blacklist_characters="/"), min_size=1, max_size=20)


@given(NAMES, st.integers(1, MOST_RINGS))
def test_a_key_is_read_as_it_was_made(name: str, number: int) -> None:
    assert split(key_of(name, number)) == (name, number)


@given(st.text(max_size=20))
def test_no_two_keys_are_one_ring(key: str) -> None:
    name, number = split(key)
    assert key_of(name, number) == key


def test_the_first_ring_has_the_name() -> None:
    assert keys_of("m", 3) == ("m", "m/2", "m/3")
    for odd in ("m/0", "m/1", "m/02", "m/x", "m/²", "/2", "m/"):
        assert split(odd) == (odd, 1)
