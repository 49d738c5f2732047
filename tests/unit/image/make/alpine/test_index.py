"""An index is read: entries, what they need and what they provide."""

from __future__ import annotations

import pytest

from agent.errors import EnvironmentFault
from image.make.alpine.index import Need, need, parse

TEXT = """\
C:Q1FYXvHvuMf6SHUEzYUgiNc7SFDhk=
P:openrc
V:0.55.1-r2
A:x86_64
S:170
D:ifupdown-any /sbin/init busybox>=1.34.1-r5 !old-openrc<0.5 so:libc.musl-x86_64.so.1
p:cmd:openrc=0.55.1-r2 so:librc.so.1=1 service-manager
k:100

C:Q2AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
P:musl
V:1.2.5-r9
A:x86_64
S:12
"""


def test_what_an_entry_says() -> None:
    openrc, musl = parse(TEXT, "/mirror/main/x86_64")
    assert openrc.file == "openrc-0.55.1-r2.apk"
    assert [str(found) for found in openrc.needs] == TEXT.splitlines()[5][2:].split()
    assert openrc.needs[3] == Need("old-openrc", "<", "0.5", unwanted=True)
    assert ("service-manager", "") in openrc.provides
    assert ("so:librc.so.1", "1") in openrc.provides
    assert (openrc.priority, openrc.size, openrc.algorithm) == (100, 170, "sha1")
    assert (musl.algorithm, len(musl.checksum), musl.needs) == ("sha256", 32, ())


@pytest.mark.parametrize(
    ("text", "version", "does"),
    [
        ("a", "1.0", True), ("a=1.0", "1.0", True), ("a=1.0", "1.0-r0", False),
        ("a>=1.2", "1.2", True), ("a>1.2", "1.2", False), ("a<2", "1.9", True),
        ("a~3.12", "3.12.4-r1", True), ("a=~3.12", "3.13", False), ("a>~3.12", "3.13", True),
        ("a>=1", "", False),
    ],
)  # fmt: skip
def test_which_versions_do(text: str, version: str, does: bool) -> None:
    assert need(text).allows(version) == does


@pytest.mark.parametrize(
    "block",
    [
        "P:a\nV:1.0\nS:1\n", "C:Q1AAAA\nP:a\nV:1.0\nS:1\n", "C:Q9AAAA\nP:a\nV:1.0\nS:1\n",
        TEXT.split("\n\n")[0].replace("openrc\nV", "../openrc\nV"),
        TEXT.split("\n\n")[0].replace("S:170", "S:many"),
        TEXT.split("\n\n")[0].replace("V:0.55.1-r2", "V:new"),
    ],
)  # fmt: skip
def test_a_damaged_entry_is_told_with_the_mirror(block: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        parse(block, "/mirror/main/x86_64")
    assert "/mirror/main/x86_64" in caught.value.line() or "is no version" in caught.value.line()


@pytest.mark.parametrize("text", ["a>=", "=1.0", "a=1=2@"])
def test_what_is_no_dependency(text: str) -> None:
    with pytest.raises(EnvironmentFault, match="is no dependency"):
        need(text).allows("1.0")
