"""Signals that are lost, doubled, late, replayed: repeated not for ever, and few."""

from agent.paths.messages import Signal
from agent.paths.talk import BURST, PER_S, REPEAT_S, STALE_S, Talk

OWN_EPOCH = 7


def drain(talk: Talk, start: float, end: float, *, call: bool = True) -> list[float]:
    """Send whenever it is due; return when."""
    times, now = [], start
    while (now := max(now, talk.wake_at)) <= end:
        if talk.due(now):
            talk.sent(now, call=call)
            times.append(now)
    return times


def test_news_is_repeated_until_it_is_heard() -> None:
    talk = Talk()
    talk.say(0.0)
    assert len(drain(talk, 0.0, 1.2)) == 3
    assert talk.unheard
    assert talk.accept(Signal(1, 1, heard_epoch=OWN_EPOCH, heard=talk.sequence), OWN_EPOCH, 1.2)
    assert not talk.unheard
    assert drain(talk, 1.2, 100.0) == []


def test_repetition_ends_when_nobody_is_there() -> None:
    talk = Talk()
    talk.say(0.0)
    assert len(drain(talk, 0.0, 1000.0)) == 1 + len(REPEAT_S)


def test_an_old_acknowledgement_or_one_of_another_start_is_none() -> None:
    talk = Talk()
    talk.say(0.0)
    drain(talk, 0.0, 0.1)
    talk.say(0.2)
    talk.accept(Signal(1, 1, heard_epoch=OWN_EPOCH, heard=1), OWN_EPOCH, 0.2)
    assert talk.unheard
    drain(talk, 0.2, 0.3)
    talk.accept(Signal(1, 2, heard_epoch=OWN_EPOCH - 1, heard=2), OWN_EPOCH, 0.3)
    assert talk.unheard
    talk.accept(Signal(1, 3, heard_epoch=OWN_EPOCH, heard=10**9), OWN_EPOCH, 0.4)
    assert not talk.unheard


def test_order_and_doubles() -> None:
    talk = Talk()
    assert talk.accept(Signal(1, 5), OWN_EPOCH, 0.0)
    assert not talk.accept(Signal(1, 5), OWN_EPOCH, 0.0)
    assert not talk.accept(Signal(1, 4), OWN_EPOCH, 0.0)
    assert talk.accept(Signal(2, 1), OWN_EPOCH, 0.0)
    assert not talk.accept(Signal(1, 6), OWN_EPOCH, STALE_S)
    assert talk.accept(Signal(1, 6), OWN_EPOCH, STALE_S + 0.1)


def test_a_call_s_round_trip_is_measured_once() -> None:
    talk = Talk()
    talk.say(0.0)
    drain(talk, 0.0, 0.45)
    answer = Signal(1, 1, heard_epoch=OWN_EPOCH, heard=2)
    assert talk.call_rtt(answer, OWN_EPOCH, 0.5) == 0.5 - REPEAT_S[0]
    assert talk.call_rtt(answer, OWN_EPOCH, 0.6) is None


def test_however_much_there_is_to_say_signals_are_few() -> None:
    talk, sent, now = Talk(), 0, 0.0
    while now < 10.0:
        talk.say(now)
        talk.answer(now)
        sent += len(drain(talk, now, now))
        now += 0.01
    assert sent <= BURST + 10 * PER_S + 1


def test_what_needs_no_agreement_is_not_repeated_but_an_answer_is_given() -> None:
    talk = Talk()
    talk.say(0.0)
    talk.settle()
    assert len(drain(talk, 0.0, 0.1)) == 1, "it is said once"
    talk.settle()
    assert drain(talk, 0.1, 100.0) == []
    talk.say(100.0)
    drain(talk, 100.0, 100.1)
    talk.answer(100.2)
    talk.settle()
    assert len(drain(talk, 100.2, 200.0)) == 1
