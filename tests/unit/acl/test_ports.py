"""Ports as rules and questions name them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from acl_worlds import COVEY
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.acl.ports import PortRange, merged, parse_port
from agent.errors import UsageError


@pytest.mark.parametrize(
    "text", ["tcp:22", "tcp:8000-8010", "udp:53", "udp:1-65535", "icmp", "*", "tcp:65535"]
)
def test_ports_are_written_as_they_are_read(text: str) -> None:
    assert str(PortRange.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "22", "tcp", "tcp:", "tcp:0", "tcp:65536", "tcp:-5", "tcp:5-", "tcp:9-8", "tcp:1-2-3",
     "TCP:22", "icmp:8", "sctp:22", "tcp:٣", "tcp: 22", "tcp:+1", "tcp:000022", "**"],
)  # fmt: skip
def test_what_names_no_port(text: str) -> None:
    with pytest.raises(UsageError):
        PortRange.parse(text)


@pytest.mark.parametrize(
    ("text", "port"),
    [("22", ("tcp", 22)), ("tcp:22", ("tcp", 22)), ("udp:53", ("udp", 53)), ("icmp", ("icmp", 0)),
     ("tcp:7-7", ("tcp", 7))],
)  # fmt: skip
def test_a_port_that_is_asked_about(text: str, port: tuple[str, int]) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize("text", ["*", "tcp:1-2", "ssh", "", "0", "٣"])
def test_what_is_no_single_port(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_port(text)
    assert "tcp:22" in caught.value.hint


_range = st.builds(
    lambda a, b: PortRange("tcp", min(a, b), max(a, b)), st.integers(1, 40), st.integers(1, 40)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_range, max_size=8))
def test_merged_ranges_hold_the_same_ports_apart(ranges: list[PortRange]) -> None:
    found = merged([*ranges, PortRange("udp", 50, 60), PortRange("icmp")], "tcp")
    ports = {port for r in ranges for port in range(r.first, r.last + 1)}
    assert {port for first, last in found for port in range(first, last + 1)} == ports
    assert all(one[1] + 1 < other[0] for one, other in pairwise(found))


def test_what_covey_serves() -> None:
    assert [str(service.ports) for service in COVEY.services] == [
        "tcp:4001", "tcp:7070", "tcp:7100-7109", "udp:4001", "udp:7071", "icmp",
    ]  # fmt: skip
    assert COVEY.find("tcp", 7110) is None
    assert COVEY.find("udp", 7070) is None
    stages = COVEY.find("tcp", 7105)
    assert stages is not None
    assert stages.what == "stages and heads"
