"""The packages that a list of names takes, and why there are none."""

from __future__ import annotations

import pytest

from agent.errors import EnvironmentFault
from image.make.alpine.index import Entry, need
from image.make.alpine.resolve import resolve


def entry(
    name: str, version: str = "1.0-r0", needs: str = "", provides: str = "", priority: int = 0,
    arch: str = "x86_64",
) -> Entry:  # fmt: skip
    provided = tuple((found.name, found.version) for found in map(need, provides.split()))
    return Entry(
        name, version, arch, 1, "sha1", bytes(20), tuple(map(need, needs.split())), provided,
        priority, "/mirror",
    )  # fmt: skip


def found(entries: list[Entry], *wanted: str, without: str = "") -> list[str]:
    chosen = resolve(entries, map(need, wanted), "x86_64", frozenset(without.split()))
    return [f"{entry.name}-{entry.version}" for entry in chosen]


def test_all_that_it_needs_by_name_library_command_and_path() -> None:
    entries = [
        entry("python3", needs="so:libc.so cmd:tool>=2 /bin/sh musl"),
        entry("musl", provides="so:libc.so=1"),
        entry("tool", "2.1", provides="cmd:tool=2.1"),
        entry("busybox-binsh", provides="/bin/sh", priority=60),
        entry("dash-binsh", provides="/bin/sh", priority=50),
        entry("unrelated"),
    ]
    assert found(entries, "python3") == [
        "busybox-binsh-1.0-r0", "musl-1.0-r0", "python3-1.0-r0", "tool-2.1",
    ]  # fmt: skip


def test_the_newest_version_that_does() -> None:
    entries = [entry("a", version) for version in ("1.0-r0", "1.10-r0", "1.9-r0", "2.0-r0")]
    assert found(entries, "a<2") == ["a-1.10-r0"]


def test_a_name_of_its_own_comes_before_one_that_is_provided() -> None:
    entries = [entry("other", "9.0", provides="a=9.0"), entry("a")]
    assert found(entries, "a") == ["a-1.0-r0"]


def test_circles_end() -> None:
    assert len(found([entry("a", needs="b"), entry("b", needs="a")], "a")) == 2


def test_a_later_need_makes_an_earlier_choice_anew() -> None:
    entries = [entry("a", "1.0"), entry("a", "2.0"), entry("b", needs="a<2")]
    assert found(entries, "a", "b") == ["a-1.0", "b-1.0-r0"]


def test_needs_that_the_image_meets_itself_are_left_out() -> None:
    assert found([entry("linux", needs="initramfs")], "linux", without="initramfs") == [
        "linux-1.0-r0"
    ]


@pytest.mark.parametrize(
    ("entries", "wanted", "words"),
    [
        ([entry("a", needs="so:lost.so")], ["a"], "no package provides so:lost.so, which a needs"),
        ([], ["a"], "no package provides a, which the image needs"),
        ([entry("a", arch="s390x")], ["a"], "no package for x86_64 provides a"),
        (
            [entry("a", needs="b>3"), entry("b", "2.0")], ["a"],
            "the mirror has b 2.0, and a needs b>3",
        ),
        (
            [entry("a", needs="c<2"), entry("b", needs="c>=2"), entry("c", "1"), entry("c", "2")],
            ["a", "b"], "cannot be there with the others",
        ),
        (
            [entry("a", needs="!b"), entry("b")], ["a", "b"],
            "b 1.0-r0 cannot be there with the others: the image says b",
        ),
        (
            [entry("a", needs="!b"), entry("b")], ["b", "a"],
            "a 1.0-r0 cannot be there with the others",
        ),
        (
            [entry("x", provides="mta"), entry("y", provides="mta")], ["mta"],
            "x, y all provide mta, which the image needs, and none before the others",
        ),
        (
            [entry("x", provides="so:a=1"), entry("y", provides="so:a=1 so:b=1")],
            ["x", "so:b"], "y 1.0-r0 cannot be there with the others",
        ),
    ],
)  # fmt: skip
def test_why_there_are_none(entries: list[Entry], wanted: list[str], words: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        found(entries, *wanted)
    assert words in caught.value.line()


def test_one_of_equals_can_be_named() -> None:
    entries = [entry("x", provides="mta"), entry("y", provides="mta")]
    assert found(entries, "y", "mta") == ["y-1.0-r0"]
