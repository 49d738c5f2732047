"""An update proves itself by minutes of health without a gap."""

from __future__ import annotations

from image.node.probation import (
    GIVE_UP_S,
    MAX_SILENCE_S,
    SUSTAINED_S,
    Outlook,
    Probation,
    of_command_line,
)

STEP_S = 10


def times(first: float, last: float) -> range:
    return range(int(first), int(last) + 1, STEP_S)


def test_good_after_a_sustained_time() -> None:
    probation = Probation()
    said = [probation.report(True, now) for now in times(100, 100 + SUSTAINED_S)]
    assert said == [None] * (len(said) - 1) + ["good"]


def test_one_bad_report_begins_anew() -> None:
    probation = Probation()
    assert {probation.report(True, now) for now in times(0, 290)} == {None}
    assert probation.report(False, 295) is None
    assert {probation.report(True, now) for now in times(300, 590)} == {None}
    assert probation.report(True, 600) == "good"


def test_silence_is_no_health() -> None:
    probation = Probation()
    assert {probation.report(True, now) for now in times(0, 200)} == {None}
    after = int(200 + MAX_SILENCE_S) + 1
    assert {probation.report(True, now) for now in times(after, after + 290)} == {None}
    assert probation.report(True, after + SUSTAINED_S) == "good"


def test_two_reports_that_lie_far_apart_are_not_enough() -> None:
    probation = Probation()
    assert probation.report(True, 0) is None
    assert probation.report(True, SUSTAINED_S) is None


def test_it_gives_up() -> None:
    probation = Probation()
    said = [probation.report(False, now) for now in times(0, GIVE_UP_S)]
    assert said == [None] * (len(said) - 1) + ["gave up"]


def test_it_gives_up_on_an_agent_that_never_reports() -> None:
    probation = Probation()
    assert probation.look(5) is None
    assert probation.look(4 + GIVE_UP_S) is None
    assert probation.look(5 + GIVE_UP_S) == "gave up"


def test_it_gives_up_on_an_agent_that_went_silent() -> None:
    probation = Probation()
    assert probation.report(True, 0) is None
    assert probation.look(GIVE_UP_S) == "gave up"


def test_who_is_healthy_at_the_end_may_finish() -> None:
    probation = Probation()
    assert {probation.report(False, now) for now in times(0, GIVE_UP_S - STEP_S)} == {None}
    said = [probation.report(True, now) for now in times(GIVE_UP_S, GIVE_UP_S + SUSTAINED_S)]
    assert said == [None] * (len(said) - 1) + ["good"]


def test_the_kernels_command_line_may_shorten_it() -> None:
    short = of_command_line("quiet covey.trial=20:60 covey.slot=b")
    assert (short.sustained_s, short.give_up_s) == (20.0, 60.0)
    short.report(True, 0.0)
    assert short.report(True, 20.0) == "good"
    for line in ("quiet", "covey.trial=20", "covey.trial=x:y", "covey.trial=1:2x", "xcovey.trial="):
        assert of_command_line(line) == Probation()


def test_how_it_stands() -> None:
    trial = Probation()
    assert trial.outlook() is None
    trial.report(False, 5.0)
    assert trial.outlook() == Outlook(None, None, 1805.0)
    trial.report(True, 15.0)
    assert trial.outlook() == Outlook(15.0, 315.0, 1805.0)
