from agent.lan.rhythm import Rhythm, Step

ALL = Step.ANNOUNCE | Step.ASK_DIRECTLY | Step.ASK_GROUP


def test_the_table_of_the_docstring_then_one_step_a_period() -> None:
    rhythm, seen = Rhythm(60.0, Step.ANNOUNCE), []
    rhythm.restart(100.0)
    while rhythm.next_at < 250.0:
        now = rhythm.next_at
        seen.append((now - 100.0, rhythm.due(now)))
    assert seen == [
        (0.0, Step.ANNOUNCE | Step.ASK_DIRECTLY), (0.25, Step.ASK_GROUP), (1.0, ALL), (3.0, ALL),
        (63.0, Step.ANNOUNCE), (123.0, Step.ANNOUNCE),
    ]  # fmt: skip


def test_nothing_is_due_before_its_time_or_before_a_change() -> None:
    rhythm = Rhythm(60.0, Step.ANNOUNCE)
    assert not rhythm.due(1e9)
    rhythm.restart(0.0)
    assert rhythm.due(0.0)
    assert not rhythm.due(0.2)
    assert not rhythm.due(0.0)


def test_what_was_missed_is_done_once() -> None:
    rhythm = Rhythm(60.0, Step.ANNOUNCE)
    rhythm.restart(0.0)
    assert rhythm.due(50.0) == ALL
    assert rhythm.next_at == 110.0
    assert not rhythm.due(50.0)


def test_a_change_begins_anew() -> None:
    rhythm = Rhythm(60.0, Step.ANNOUNCE)
    rhythm.restart(0.0)
    rhythm.due(50.0)
    rhythm.restart(55.0)
    assert rhythm.due(55.0) == Step.ANNOUNCE | Step.ASK_DIRECTLY
    assert rhythm.next_at == 55.25
