"""Names, roles, tags, and durations in words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.membership import naming, spell


@pytest.mark.parametrize("name", ["a", "7", "box", "box-2", "a" * 63, "x--y"])
def test_names_that_can_be(name: str) -> None:
    assert naming.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Box", "-a", "a-", "a" * 64, "a.b", "a b", "bö", "box\n", "a_b"]
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a name"):
        naming.check_name(name)


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("Box_1.lan", "box-1"),
        ("host", "host"),
        ("", "node"),
        ("...", "node"),
        ("ÄÖ", "node"),
        ("a" * 62 + "-" + "b" * 9, "a" * 62),
        ("-x-", "x"),
    ],
)
def test_names_from_host_names(hostname: str, name: str) -> None:
    assert naming.name_from_hostname(hostname) == name


@settings(max_examples=50)
@given(st.text(max_size=100))
def test_every_host_name_gives_a_name(hostname: str) -> None:
    name = naming.name_from_hostname(hostname)
    assert naming.check_name(name) == name


def test_unique_names() -> None:
    assert naming.unique_name("box", ()) == "box"
    assert naming.unique_name("box", {"box"}) == "box-2"
    assert naming.unique_name("box", {"box", "box-2", "box-3"}) == "box-4"
    assert naming.unique_name("box-2", {"box-2"}) == "box-2-2"
    long = "a" * 60 + "-bc"
    assert naming.unique_name(long, {long}) == "a" * 60 + "-2"
    assert naming.check_name(naming.unique_name("a" * 63, {"a" * 63})) == "a" * 61 + "-2"


def test_roles_come_in_their_order_and_once() -> None:
    assert naming.check_roles(["admin", "worker", "worker"]) == ("worker", "admin")
    with pytest.raises(UsageError, match="'king' is not a role") as caught:
        naming.check_roles(["worker", "king"])
    assert "worker, gateway, relay, issuer, admin" in caught.value.hint


def test_tags_come_sorted_and_once() -> None:
    assert naming.check_tags(["rack=3", "home", "home"]) == ("home", "rack=3")
    for tag in ("", "-x", "a b", "a" * 33, "GPU", "a\n"):
        with pytest.raises(UsageError, match="cannot be a tag"):
            naming.check_tags([tag])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a second"),
        (-3, "less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "1 minute"),
        (301, "5 minutes"),
        (3600, "1 hour"),
        (7200, "2 hours"),
        (86400, "1 day"),
        (400 * 86400, "400 days"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert spell.duration(seconds) == words
