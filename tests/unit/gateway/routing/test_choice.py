"""What a router with all it knows chooses: prefixes, sessions, fit, strategies, lateness."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing import (
    STRATEGIES,
    Fault,
    Need,
    NoneUsable,
    Picked,
    Replica,
    Router,
    Shown,
    State,
    TextOnly,
    UnknownModel,
)
from gateway.routing.prefixes import blocks
from gateway.routing.router import MOST_SESSIONS
from gateway.usage import Tokens

ASK = Need("m", streamed=True, kind="completions", prompt_bytes=4000)


def router(*replicas: str | Replica, strategy: str = "latency_aware") -> Router:
    made = Router(strategy, Random(1))
    listed = [
        one if isinstance(one, Replica) else Replica(one, f"http://{one}", "mesh", ("m",))
        for one in replicas
    ]
    made.update("mesh", listed, 0.0)
    return made


def picked(made: Router, need: Need = ASK, now: float = 0.0, **how: Any) -> Picked:
    found = made.pick(need, now, **how)
    assert isinstance(found, Picked), found
    return found


def served(
    made: Router, name: str, need: Need, seconds: float, now: float, cost: Tokens | None = None
) -> None:
    """Have `name` serve a request at that time, whoever would be chosen."""
    others = frozenset(f"http://{r.name}" for r in made.replicas() if r.name != name)
    one = picked(made, need, now, without=others)
    made.begin(one.replica.url, one.attempt, now)
    made.first_byte(one.replica.url, seconds, streamed=True, now=now + seconds, attempt=one.attempt)
    made.answered(one.attempt, cost, 50, now + seconds + 1.0)
    made.end(one.replica.url, one.attempt, now + seconds + 1.0)


def law(need: Need, tokens_s: float) -> float:
    return 0.05 + tokens_s * need.prompt_bytes / 4


def trained(*names: str, tokens_s: float = 0.001) -> tuple[Router, float]:
    """Return a router whose replicas take 50 ms and `tokens_s` for each token of a prompt."""
    made, random, now = router(*names), Random(5), 0.0
    for _ in range(40):
        for name in names:
            need = replace(ASK, prompt_bytes=random.randrange(400, 20_000))
            served(made, name, need, law(need, tokens_s), now)
            now += 0.2
    return made, now


@pytest.mark.parametrize("size", [400, 4000, 40_000])
def test_the_time_to_the_first_byte_is_predicted_from_the_prompt(size: int) -> None:
    made, now = trained("a")
    need = replace(ASK, prompt_bytes=size)
    one = picked(made, need, now)
    assert one.attempt.expected_s == pytest.approx(law(need, 0.001), rel=0.15)
    assert one.soonest_s is not None
    assert one.attempt.expected_s / 2 < one.soonest_s < one.attempt.expected_s


def test_a_prompt_that_waits_before_it_counts() -> None:
    made, now = trained("a", "b")
    long = replace(ASK, prompt_bytes=20_000)
    first = picked(made, long, now)
    made.begin(first.replica.url, first.attempt, now)
    second = picked(made, ASK, now)
    assert second.replica != first.replica
    made.begin(second.replica.url, second.attempt, now)
    # The short one will be done long before the long one.
    assert {picked(made, ASK, now).replica.name for _ in range(20)} == {second.replica.name}


def test_a_cached_prefix_makes_a_replica_better() -> None:
    made, now = trained("a", "b", "c")
    prefix = blocks([bytes(range(256)) * 40])
    need = replace(ASK, prompt_bytes=10_240, prefix=prefix)
    served(made, "b", need, law(need, 0.001), now)
    for _ in range(20):
        again = picked(made, need, now + 4)
        assert again.replica.name == "b"
    assert "latency_aware; predicted 0.3" in again.route
    assert "prefix 2,304 tokens cached; 3 of 3 usable" in again.route
    other = replace(need, prefix=blocks([b"x" * 10_240]))
    assert "cached" not in picked(made, other, now + 4).route


def test_a_cached_prefix_does_not_outweigh_a_queue() -> None:
    made, now = trained("a", "b")
    need = replace(ASK, prefix=blocks([bytes(range(250)) * 16]))
    served(made, "a", need, 1.0, now)
    now += 3
    for _ in range(4):
        without = frozenset({"http://b"})
        one = picked(made, replace(ASK, prompt_bytes=40_000), now, without=without)
        made.begin(one.replica.url, one.attempt, now)
    assert picked(made, need, now).replica.name == "b"


def test_a_memory_that_proves_false_is_trusted_less() -> None:
    made, now = trained("a")
    need = replace(ASK, prefix=blocks([bytes(range(250)) * 16]))
    served(made, "a", need, law(need, 0.001), now)
    believed = picked(made, need, now + 3).attempt.cached_tokens
    for step in range(20):  # it takes as long as ever
        served(made, "a", need, law(need, 0.001), now + 3 * step)
    after = picked(made, need, now + 60).attempt.cached_tokens
    assert after < believed / 2
    for step in range(20):
        cost = Tokens(prompt=1000, completion=50, cached=960)
        served(made, "a", need, 0.1, now + 60 + 3 * step, cost)
    assert picked(made, need, now + 120).attempt.cached_tokens > after


def test_a_session_stays_unless_another_is_clearly_better() -> None:
    made, now = trained("a", "b", "c")
    need = replace(ASK, session="talk")
    served(made, "c", need, law(need, 0.001), now)
    assert {picked(made, need, now + 3).replica.name for _ in range(20)} == {"c"}
    assert "same session" in picked(made, need, now + 3).route
    busy = picked(made, replace(ASK, prompt_bytes=8000), now + 3,
                  without=frozenset({"http://a", "http://b"}))  # fmt: skip
    made.begin(busy.replica.url, busy.attempt, now + 3)
    assert picked(made, need, now + 3).replica.name != "c"
    made.fault("http://c", Fault.REFUSED, "503", now + 3)
    assert picked(made, need, now + 3.5).replica.name != "c"


def test_sessions_are_bounded() -> None:
    made = router("a")
    for number in range(MOST_SESSIONS + 50):
        one = picked(made, replace(ASK, session=str(number)))
        made.begin(one.replica.url, one.attempt, 0.0)
        made.end(one.replica.url, one.attempt, 0.0)
    assert "same session" not in picked(made, replace(ASK, session="0")).route
    assert "same session" in picked(made, replace(ASK, session=str(MOST_SESSIONS))).route
    assert len(made._sessions) == MOST_SESSIONS


def test_a_replica_that_is_overdue_gets_no_more_before_it_answers() -> None:
    made, now = trained("a", "b")
    stuck = picked(made, ASK, now, without=frozenset({"http://b"}))
    made.begin("http://a", stuck.attempt, now)
    for number in range(5):  # b answers all the while
        served(made, "b", ASK, 1.05, now + 2 + number)
    names = Counter(picked(made, ASK, now + 8).replica.name for _ in range(20))
    assert names == {"b": 20}
    assert stuck.attempt.expected_s == pytest.approx(1.05, rel=0.2)


def test_one_long_answer_is_not_taken_for_a_replica_that_stands_still() -> None:
    made, now = trained("a", "b")
    whole = replace(ASK, streamed=False)
    long = picked(made, whole, now, without=frozenset({"http://b"}))
    made.begin("http://a", long.attempt, now)
    for number in range(10):
        served(made, "a", ASK, 1.05, now + 2 * number)
        served(made, "b", ASK, 1.05, now + 2 * number)
    assert picked(made, ASK, now + 19.2, without=frozenset({"http://b"})).attempt.late_s == 0
    stuck = picked(made, ASK, now + 20, without=frozenset({"http://b"}))
    made.begin("http://a", stuck.attempt, now + 20)
    assert picked(made, ASK, now + 25, without=frozenset({"http://b"})).attempt.late_s > 2


def test_a_client_that_leaves_a_late_replica_is_learned_from_and_never_makes_it_fast() -> None:
    made, now = trained("a")
    before = picked(made, ASK, now).attempt.expected_s
    left = picked(made, ASK, now)
    made.begin("http://a", left.attempt, now)
    made.end("http://a", left.attempt, now + 0.01)
    assert picked(made, ASK, now).attempt.expected_s == pytest.approx(before)
    waiting = [picked(made, ASK, now) for _ in range(8)]
    for one in waiting:
        made.begin("http://a", one.attempt, now)
    for one in waiting:
        made.end("http://a", one.attempt, now + 30)
    assert picked(made, ASK, now + 31).attempt.expected_s > 3 * before


def test_who_cannot_hold_the_prompt_is_not_asked_unless_nobody_can() -> None:
    small = Replica("small", "http://small", "mesh", ("m",), 1000)
    large = Replica("large", "http://large", "mesh", ("m",), 9000)
    made = router(small, large)
    fits = replace(ASK, prompt_bytes=2000)
    assert {picked(made, fits).replica.name for _ in range(40)} == {"small", "large"}
    too_long = replace(fits, max_tokens=900)
    assert {picked(made, too_long).replica.name for _ in range(40)} == {"large"}
    for_nobody = replace(fits, max_tokens=90_000)  # a replica tells the client so, not we
    assert {picked(made, for_nobody).replica.name for _ in range(40)} == {"small", "large"}


def test_the_kinds_it_serves_are_known_or_learned() -> None:
    embeds = Replica("embeds", "http://embeds", "mesh", ("m",), kinds=("embeddings",))
    made = router(embeds, "chats", "either")
    need = replace(ASK, kind="embeddings")
    made.lacks("http://chats", "embeddings", 0.0)
    assert {picked(made, need).replica.name for _ in range(40)} == {"embeds", "either"}
    assert {picked(made, ASK).replica.name for _ in range(40)} == {"chats", "either"}
    later = {picked(made, need, 61.0).replica.name for _ in range(60)}
    assert later == {"embeds", "chats", "either"}


def test_what_is_no_text_goes_to_those_that_see_and_waits_for_no_others() -> None:
    shows = replace(ASK, shown=Shown("messages[0].content[0]", "image_url"))
    made = router("reads", Replica("sees", "http://sees", "mesh", ("m", "n"), vision=True), "tells")
    assert {picked(made, shows).replica.name for _ in range(20)} == {"sees"}
    assert {picked(made).replica.name for _ in range(60)} == {"reads", "sees", "tells"}
    made.check_passed("http://tells", ("m", "o"), 0.0, seeing=frozenset({"m"}))
    assert {picked(made, shows).replica.name for _ in range(40)} == {"sees", "tells"}
    assert made.pick(replace(shows, model="o"), 0.0) == TextOnly(shows.shown)
    assert isinstance(made.pick(replace(shows, model="p"), 0.0), UnknownModel)
    made.check_passed("http://tells", ("m", "o"), 0.0)  # it has another model of that name now
    assert {picked(made, shows).replica.name for _ in range(20)} == {"sees"}
    made.check_failed("http://sees", "away")
    gone = made.pick(shows, 0.0)
    assert isinstance(gone, NoneUsable)
    assert gone.reasons == ("sees: away",)


def test_strategies_by_request_and_what_each_prefers() -> None:
    made = router(
        Replica("far", "http://far", "mesh", ("m",), 32_000),
        Replica("near", "http://near", "mesh", ("m",), 8000),
        Replica("many", "http://many", "mesh", ("m", "n"), 32_000),
    )
    for name, seconds in (("far", 0.2), ("near", 0.001), ("many", 0.1)):
        for extra in (0.3, 0.0, 0.1):
            made.check_passed(f"http://{name}", None, 0.0, seconds + extra)
    for _ in range(2):
        one = picked(made, ASK, without=frozenset({"http://far"}))
        made.begin(one.replica.url, one.attempt, 0.0)

    def by(strategy: str) -> set[str]:
        return {
            picked(made, replace(ASK, strategy=strategy)).replica.name for _ in range(12)
        }  # fmt: skip

    assert by("geo_proximity") == {"near"}
    assert by("capability_based") == {"far"}
    assert by("least_loaded") == {"far"}
    assert by("round_robin") == {"far", "near", "many"}
    assert picked(made, replace(ASK, strategy="geo_proximity")).route.startswith("geo_proximity; ")


def test_one_that_answers_many_times_later_than_others_is_left_out_for_a_while() -> None:
    made, now = trained("a", "b", "c")
    turn = replace(ASK, strategy="round_robin")

    def round_of_turns(now: float, **seconds: float) -> float:
        for _ in range(3):
            one = picked(made, turn, now)
            made.begin(one.replica.url, one.attempt, now)
            took_s = seconds[one.replica.name]
            now += took_s
            made.first_byte(
                one.replica.url, took_s, streamed=True, now=now, attempt=one.attempt
            )  # fmt: skip
            made.end(one.replica.url, one.attempt, now)
        return now

    for _ in range(3):
        now = round_of_turns(now, a=30.0, b=1.0, c=1.0)
    assert [entry["breaker"] for entry in made.view(now)] == ["open", "closed", "closed"]
    assert {picked(made, turn, now).replica.name for _ in range(9)} == {"b", "c"}
    assert made.view(now + 5)[0]["breaker"] == State.HALF_OPEN.value
    # What all of them take is not slow: nobody is left out then.
    made, now = trained("a", "b", "c")
    for _ in range(8):
        now = round_of_turns(now, a=9.0, b=9.0, c=9.0)
    assert {entry["breaker"] for entry in made.view(now)} == {State.CLOSED.value}


def test_one_on_trial_is_left_alone_while_there_are_others() -> None:
    made = router("a", "b", strategy="round_robin")
    made.fault("http://a", Fault.REFUSED, "503", 0.0)
    trial = picked(made, ASK, 2.0, without=frozenset({"http://b"}))
    made.begin("http://a", trial.attempt, 2.0)
    assert {picked(made, ASK, 2.1).replica.name for _ in range(6)} == {"b"}
    made.check_failed("http://b", "gone")
    assert picked(made, ASK, 2.1).replica.name == "a"
    made.check_passed("http://b", None, 2.2)
    made.first_byte("http://a", 0.2, streamed=True, now=2.3, attempt=trial.attempt)
    assert {picked(made, ASK, 2.4).replica.name for _ in range(6)} == {"a", "b"}


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "first", "end", "fault", "lacks"]),
        st.integers(0, 50),
        st.floats(0, 20),
        st.sampled_from(sorted(STRATEGIES)),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_whatever_happens_counts_are_right_and_predictions_are_numbers(
    steps: list[tuple[str, int, float, str]],
) -> None:
    made, now, running = router("a", "b", "c"), 0.0, []
    for what, which, later, strategy in steps:
        now += later
        need = replace(ASK, strategy=strategy, prompt_bytes=which * 500, session=str(which % 3))
        if what == "ask":
            one = made.pick(need, now)
            if isinstance(one, NoneUsable):
                continue
            assert isinstance(one, Picked)
            assert 0 <= one.attempt.expected_s < 1e6
            made.begin(one.replica.url, one.attempt, now)
            running.append(one.attempt)
        elif running:
            attempt = running[which % len(running)]
            match what:
                case "first":
                    if attempt.first_at is None:
                        seconds = now - attempt.begun
                        made.first_byte(
                            attempt.url, seconds, streamed=True, now=now, attempt=attempt
                        )
                        made.answered(attempt, Tokens(10, 5), 5, now)
                case "end":
                    running.remove(attempt)
                    made.end(attempt.url, attempt, now)
                case "fault":
                    made.fault(attempt.url, Fault.ERROR, "500", now)
                case _:
                    made.lacks(attempt.url, "completions", now)
        assert sum(entry["in_flight"] for entry in made.view(now)) == len(running)
