"""An alias says whose an interface is, and survives nothing that is not one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.overlay import alias
from agent.overlay.alias import Keeping

KEY = bytes(range(32))


@given(st.binary(min_size=32, max_size=32), st.text(max_size=40), st.integers(0, 2**32 - 1))
def test_what_is_written_is_read(key: bytes, place: str, number: int) -> None:
    own = alias.of(key, Keeping(place=place), number)
    assert alias.parse(own.text()) == own
    assert len(own.text()) < 256, "the kernel takes no more"
    claimed = own.claimed(number + 1)
    assert claimed.birth == own.birth
    assert claimed.same_owner(own)
    assert claimed != own


@given(st.text(max_size=120))
def test_noise_is_no_alias(noise: str) -> None:
    assert alias.parse(noise) is None
    assert alias.parse("covey " + noise) is None


def test_another_key_or_state_directory_is_another_owner() -> None:
    own = alias.of(KEY, Keeping(place="/var/lib/covey"), 1)
    assert not own.same_owner(alias.of(KEY, Keeping(place="/home/me"), 1))
    assert not own.same_owner(replace(own, key=bytes(32)))
    short = replace(own, key=b"short")
    assert alias.parse(short.text()) is None
