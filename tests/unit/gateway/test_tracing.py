"""W3C trace context: what is valid, what is passed on, and whose span is exported."""

from __future__ import annotations

import pytest

from gateway.tracing import context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


def entropy(count: int) -> bytes:
    return b"\xab" * count


def test_a_sampled_trace_goes_on_with_the_span_that_is_exported() -> None:
    found = context([VALID], ["a=1"], export=True, entropy=entropy)
    assert found.traceparent == f"00-{TRACE}-{'ab' * 8}-01"
    assert (found.parent, found.state, found.exported) == (SPAN, "a=1", True)


@pytest.mark.parametrize(
    ("flags", "export"), [("01", False), ("00", True), ("00", False), ("02", True)]
)
def test_what_is_not_exported_leaves_the_clients_trace_in_one_piece(
    flags: str, export: bool
) -> None:
    given = f"00-{TRACE}-{SPAN}-{flags}"
    found = context([given], [], export=export, entropy=entropy)
    assert found.traceparent == given
    assert not found.exported


@pytest.mark.parametrize(("export", "flags"), [(True, "03"), (False, "02")])
def test_one_is_made_where_there_is_none(export: bool, flags: str) -> None:
    found = context([], ["a=1"], export=export, entropy=entropy)
    assert found.traceparent == f"00-{'ab' * 16}-{'ab' * 8}-{flags}"
    assert (found.parent, found.state, found.exported) == ("", "", export)


@pytest.mark.parametrize(
    "parents",
    [
        [""], ["x"], [VALID.upper()], [VALID, VALID], [f"{VALID}-more"],
        [f"ff-{TRACE}-{SPAN}-01"], [f"00-{'0' * 32}-{SPAN}-01"], [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE}-{SPAN}-1"], [f"00-{TRACE}-{SPAN[:-1]}-01"], [f"00-{TRACE[:-1]}g-{SPAN}-01"],
        [f"01-{TRACE}-{SPAN}-01more"], [f"{VALID}\n"[:-1] + "\u0660"],
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_as_none(parents: list[str]) -> None:
    found = context(parents, ["a=1"], export=False, entropy=entropy)
    assert (found.trace, found.state) == ("ab" * 16, "")


def test_a_later_version_may_say_more_and_unknown_flags_are_reset() -> None:
    found = context([f"01-{TRACE}-{SPAN}-ff-more"], [], export=False, entropy=entropy)
    assert found.traceparent == f"00-{TRACE}-{SPAN}-03"


@pytest.mark.parametrize(
    ("states", "passed"),
    [
        (["a=1,b=2"], "a=1,b=2"),
        (["a=1", " b=2\t, "], "a=1,b=2"),
        (["t1@v=x y,foo/*_-=!"], "t1@v=x y,foo/*_-=!"),
        (["a=1,a=2"], ""),
        (["A=1"], ""),
        (["a"], ""),
        (["a=1=2"], ""),
        (["a=é"], ""),
        ([f"{'a' * 257}=1"], ""),
        ([",".join(f"a{n}=1" for n in range(32))], ",".join(f"a{n}=1" for n in range(32))),
        ([",".join(f"a{n}=1" for n in range(33))], ""),
        ([], ""),
    ],
)
def test_a_tracestate_is_passed_on_if_it_is_one(states: list[str], passed: str) -> None:
    assert context([VALID], states, export=False, entropy=entropy).state == passed
