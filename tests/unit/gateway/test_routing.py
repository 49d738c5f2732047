"""Choices and what is learned, on a clock that the test holds."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing import (
    COOL_MOST_S,
    FADE_S,
    LATELY_S,
    STRATEGIES,
    Candidate,
    Fault,
    NoneUsable,
    Replica,
    Router,
    UnknownModel,
)


def replica(name: str, *models: str, source: str = "mesh") -> Replica:
    return Replica(name, f"http://{name}", source, models or ("m",), 100)


def router(*names: str, strategy: str = "latency_aware") -> Router:
    made = Router(strategy, Random(1))
    made.update("mesh", [replica(name) for name in names], 0.0)
    return made


def choice(made: Router, now: float = 0.0, *, without: tuple[str, ...] = ()) -> str:
    chosen = made.choose(
        "m", streamed=True, now=now, without=frozenset(f"http://{name}" for name in without)
    )
    assert isinstance(chosen, Replica), chosen
    return chosen.name


def refusal(made: Router, now: float = 0.0) -> NoneUsable:
    chosen = made.choose("m", streamed=True, now=now)
    assert isinstance(chosen, NoneUsable), chosen
    return chosen


def measured(made: Router, name: str, seconds: float, now: float = 0.0) -> None:
    made.first_byte(f"http://{name}", seconds, streamed=True, now=now)


def test_an_unknown_model_names_the_known_ones() -> None:
    made = router("a")
    made.update("named", [replica("b", "z", "y", source="named")], 0.0)
    assert made.choose("x", streamed=False, now=0.0) == UnknownModel(("m", "y", "z"))


def test_only_replicas_of_the_model_are_chosen() -> None:
    made = router("a")
    made.update("named", [replica("b", "other", source="named")], 0.0)
    assert {choice(made) for _ in range(20)} == {"a"}


def test_the_faster_of_two_is_chosen() -> None:
    made = router("slow", "fast")
    measured(made, "slow", 2.0)
    measured(made, "fast", 0.2)
    assert {choice(made, 1.0) for _ in range(20)} == {"fast"}


def test_streams_and_whole_answers_are_measured_apart() -> None:
    made = router("a", "b")
    measured(made, "a", 0.2)
    made.first_byte("http://a", 30.0, streamed=False, now=0.0)  # a long answer in one piece
    measured(made, "b", 0.4)
    assert choice(made, 1.0) == "a"
    whole = made.choose("m", streamed=False, now=1.0)
    assert isinstance(whole, Replica) and whole.name == "b"


def test_requests_in_flight_count() -> None:
    made = router("a", "b")
    measured(made, "a", 0.2)
    measured(made, "b", 0.3)
    made.begin("http://a")
    assert choice(made) == "b"
    made.end("http://a")
    assert choice(made) == "a"


def test_unmeasured_replicas_share_the_load() -> None:
    made = router("a", "b", "c", "d")
    for _ in range(40):
        made.begin(f"http://{choice(made)}")
    loads = [entry["in_flight"] for entry in made.view(0.0)]
    assert sum(loads) == 40
    assert max(loads) - min(loads) <= 4


def test_one_that_was_slow_is_tried_again() -> None:
    made = router("was_slow", "fast")
    measured(made, "was_slow", 1.0)
    measured(made, "fast", 0.2)
    late = FADE_S * 3
    measured(made, "fast", 0.2, late)
    assert choice(made, late) == "was_slow"


def test_a_failing_replica_never_looks_fast() -> None:
    made = router("sick", "well")
    measured(made, "well", 5.0)
    now, served = 0.0, Counter[str]()
    for _ in range(200):  # a request each 0.1 s; the sick one fails at once
        name = choice(made, now)
        served[name] += 1
        if name == "sick":
            made.fault("http://sick", Fault.REFUSED, "503", now)
        else:
            measured(made, "well", 5.0, now)
        now += 0.1
    assert served["sick"] <= 6  # tries after 0, 1, 3, 7, 15 s


def test_cooling_down_doubles_and_is_bounded_and_a_served_request_ends_it() -> None:
    made = router("a")
    waits = []
    for _ in range(8):
        made.fault("http://a", Fault.REFUSED, "answered with status 503", 0.0)
        waits.append(refusal(made).retry_after_s)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert refusal(made, COOL_MOST_S - 0.1).reasons == ("a: answered with status 503",)
    assert choice(made, COOL_MOST_S) == "a"
    measured(made, "a", 0.1)
    assert choice(made) == "a"
    made.fault("http://a", Fault.REFUSED, "503", 0.0)
    assert refusal(made).retry_after_s == 1


def test_what_the_replica_asks_for_is_respected_within_bounds() -> None:
    made = router("a")
    made.fault("http://a", Fault.REFUSED, "503", 0.0, retry_after_s=5)
    assert refusal(made).retry_after_s == 5
    made.fault("http://a", Fault.REFUSED, "503", 0.0, retry_after_s=9999)
    assert refusal(made).retry_after_s == COOL_MOST_S


def test_one_bad_request_does_not_take_a_replica_away() -> None:
    made = router("a")
    made.fault("http://a", Fault.ERROR, "500", 0.0)
    made.fault("http://a", Fault.ERROR, "500", 0.0)
    assert choice(made) == "a"
    made.fault("http://a", Fault.ERROR, "500", 0.0)
    assert refusal(made).retry_after_s == 4


@pytest.mark.parametrize(("fault", "ended"), [(Fault.UNREACHABLE, True), (Fault.REFUSED, False)])
def test_a_passed_check_proves_reach_and_no_more(fault: Fault, ended: bool) -> None:
    made = router("a")
    made.fault("http://a", fault, "no", 0.0)
    made.check_passed("http://a", None, 0.1)
    assert isinstance(made.choose("m", streamed=True, now=0.1), Replica) is ended


def test_checks_decide_and_only_news_is_news() -> None:
    made = router("a", "b")
    assert made.check_failed("http://a", "loading") is True
    assert made.check_failed("http://a", "loading") is False
    assert made.check_failed("http://a", "loading: 5 of 9") is True
    assert {choice(made) for _ in range(20)} == {"b"}
    assert made.check_passed("http://a", None, 0.0) is True
    assert made.check_passed("http://a", None, 0.0) is False
    assert {choice(made) for _ in range(20)} == {"a", "b"}
    assert made.check_failed("http://gone", "x") is False
    assert made.check_passed("http://gone", None, 0.0) is False


def test_all_failed_says_why_each() -> None:
    made = router("a", "b")
    made.check_failed("http://a", "loading")
    made.check_failed("http://b", "broken")
    assert refusal(made) == NoneUsable(1.0, ("a: loading", "b: broken"))


def test_replicas_tried_already_are_left_out() -> None:
    made = router("a", "b")
    assert {choice(made, without=("a",)) for _ in range(20)} == {"b"}
    none = made.choose("m", streamed=True, now=0.0, without=frozenset({"http://a", "http://b"}))
    assert isinstance(none, NoneUsable)


def test_an_outside_server_has_the_models_of_its_last_check() -> None:
    made = Router("latency_aware", Random(1))
    made.update("named", [Replica("o", "http://o", "named")], 0.0)
    assert made.choose("m", streamed=True, now=0.0) == UnknownModel(())
    made.check_passed("http://o", ("m",), 1.0)
    assert choice(made) == "o"
    made.update("named", [Replica("o", "http://o", "named")], 2.0)
    assert choice(made) == "o"
    made.check_passed("http://o", ("x",), 3.0)
    assert made.choose("m", streamed=True, now=3.0) == UnknownModel(("x",))


def test_an_update_keeps_what_was_learned_and_drops_what_is_gone() -> None:
    made = router("a", "b")
    made.begin("http://a")
    measured(made, "a", 0.5)
    assert made.update("mesh", [replica("a"), replica("c")], 1.0) == [
        "gone replica=b url=http://b",
        "new replica=c url=http://c",
    ]
    first = made.view(1.0)[0]
    assert (first["name"], first["in_flight"], first["first_byte_s"]) == ("a", 1, {"stream": 0.5})
    # An update of one source says nothing about another's.
    made.update("named", [replica("o", source="named")], 1.0)
    made.update("mesh", [], 2.0)
    assert [r.name for r in made.replicas()] == ["o"]
    made.end("http://a")  # it ended after its replica was gone
    made.fault("http://a", Fault.ERROR, "x", 2.0)
    measured(made, "a", 1.0)


def lost(made: Router, now: float) -> bool:
    """Say whether a lost model is worth waiting for."""
    return refusal(made, now).awaited


def test_a_model_whose_only_head_was_well_of_late_is_awaited() -> None:
    made = router("a")
    made.deployed(["m"])
    made.check_failed("http://a", "loading")
    assert not lost(made, 0.0)  # it never answered
    made.check_passed("http://a", None, 10.0)
    made.check_failed("http://a", "broken")
    assert lost(made, 10.0 + LATELY_S - 1)
    assert not lost(made, 10.0 + LATELY_S)
    made.first_byte("http://a", 0.1, streamed=True, now=80.0)
    made.fault("http://a", Fault.UNREACHABLE, "gone", 80.0)
    assert lost(made, 80.0)
    made.update("mesh", [], 81.0)
    assert refusal(made, 81.0).reasons == ("it is deployed, and has no head now",)
    assert lost(made, 81.0)
    made.deployed([])
    assert made.choose("m", streamed=True, now=81.0) == UnknownModel(())
    made.deployed(["m"])  # another one of the same name
    assert not lost(made, 81.0)


def test_a_head_that_is_ready_and_refuses_is_not_awaited() -> None:
    made = router("a", "b")
    made.deployed(["m"])
    for name in "ab":
        made.check_passed(f"http://{name}", None, 0.0)
    made.fault("http://a", Fault.REFUSED, "answered with status 503", 0.0)
    made.fault("http://b", Fault.UNREACHABLE, "gone", 0.0)
    assert not lost(made, 0.1)
    assert [r.name for r in refusal(made, 0.1).doubted] == ["a"]
    made.check_failed("http://a", "its ring is replaced")
    assert lost(made, 0.2)
    assert refusal(made, 0.2).doubted == ()
    made.check_passed("http://a", None, 0.3)
    assert choice(made, 0.3) == "a"  # whatever it said it would take


def test_round_robin_is_fair_also_when_replicas_come_and_go() -> None:
    made = router("a", "b", "c", strategy="round_robin")
    assert [choice(made) for _ in range(6)] == ["a", "b", "c"] * 2
    made.update("mesh", [replica("a"), replica("c"), replica("d")], 0.0)
    assert [choice(made) for _ in range(4)] == ["d", "a", "c", "d"]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_strategies_choose_one_of_the_candidates(name: str) -> None:
    candidates = [Candidate(f"http://{i}", 1.0, 0, 0) for i in range(3)]
    random = Random(2)
    assert {STRATEGIES[name](candidates, random) for _ in range(50)} <= set(candidates)
    assert STRATEGIES[name](candidates[:1], random) == candidates[0]


def test_models_are_listed_once_with_who_has_them() -> None:
    made = router("a")
    made.update("mesh", [replica("a"), Replica("b", "http://b", "mesh", ("m",), 4096)], 9.0)
    made.check_failed("http://b", "loading")
    assert made.models(9.0) == [
        {
            "id": "m",
            "first_seen": 0.0,
            "context": 4096,
            "replicas": ["a", "b"],
            "usable": 1,
            "sees": False,
        }
    ]


actions = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "byte", "fault", "pass", "fail", "gone", "back"]),
        st.sampled_from("abc"),
        st.floats(0, 5),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(actions=actions)
def test_whatever_happens_a_choice_is_usable_or_a_reason_is_given(
    actions: list[tuple[str, str, float]],
) -> None:
    made = router("a", "b", "c")
    there = {"a", "b", "c"}
    now = 0.0
    for action, name, seconds in actions:
        now += seconds
        url = f"http://{name}"
        match action:
            case "begin":
                made.begin(url)
            case "end":
                made.end(url)
            case "byte":
                made.first_byte(url, seconds, streamed=True, now=now)
            case "fault":
                made.fault(url, Fault.REFUSED, "no", now)
            case "pass":
                made.check_passed(url, None, now)
            case "fail":
                made.check_failed(url, "no")
            case _:
                there = there - {name} if action == "gone" else there | {name}
                made.update("mesh", [replica(x) for x in sorted(there)], now)
        usable = {entry["name"] for entry in made.view(now) if entry["usable"]}
        match made.choose("m", streamed=True, now=now):
            case Replica(name=chosen):
                assert chosen in usable
            case NoneUsable(retry_after_s=wait, reasons=reasons):
                assert not usable and 1 <= wait <= COOL_MOST_S and len(reasons) == len(there)
            case UnknownModel():
                assert not there
        assert all(entry["in_flight"] >= 0 for entry in made.view(now))
