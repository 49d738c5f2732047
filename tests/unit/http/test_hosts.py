"""Which Host headers are answered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.http.hosts import answered

NAMES = frozenset({"box.example", "nas"})


@pytest.mark.parametrize(
    "host",
    """
    127.0.0.1 127.0.0.1:7074 [::1] [::1]:7074 192.0.2.7:80 [fd00::7]:7074 localhost LOCALHOST:7074
    covey.localhost:7074 box.example BOX.example.:7074 nas:7074
    """.split(),
)
def test_addresses_localhost_and_the_operators_names_are_answered(host: str) -> None:
    assert answered([host], NAMES)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:7074", "127.0.0.1.evil.example", "localhost.evil.example",
        "evillocalhost", "127.0.0.1@evil.example", "evil.example#.localhost.", "", " ", ":7074",
        "[::1", "[]", "[localhost]", "[nas]:7074", "[::1]evil.example", "::1", "a.box.example",
        "2130706433", "0x7f.1",
    ],
)  # fmt: skip
def test_other_names_are_not(host: str) -> None:
    assert not answered([host], NAMES)


def test_a_request_has_one_host() -> None:
    assert not answered([], NAMES)
    assert not answered(["127.0.0.1", "127.0.0.1"], NAMES)


@given(st.text(alphabet="abcz.-[]:0127 @", max_size=24))
def test_a_name_that_anybody_could_have_registered_is_never_answered(text: str) -> None:
    """A registered name has letters in its last label, and is not ours."""
    assert not answered([f"{text}.example"], frozenset())
    assert not answered([f"{text}.example:7074"], frozenset())
