"""Which requests run now and which ended last."""

from __future__ import annotations

from random import Random

import msgspec

from gateway.recent import MOST_ENDED, MOST_RUNNING, Recent, Seen
from gateway.record import MOST_LETTERS, Record
from gateway.tracing import context

random = Random(1)


def record(begun: float = 1.0, **given: object) -> Record:
    made = Record("chat", context((), (), export=False, entropy=random.randbytes), begun, 0)
    for name, value in given.items():
        setattr(made, name, value)
    return made


def test_a_request_runs_and_then_has_ended() -> None:
    recent, one = Recent(), record(model="m", key="ada", key_id="i", streamed=True)
    recent.begin(one)
    [seen] = recent.running()
    assert (seen.model, seen.key, seen.key_id, seen.replica) == ("m", "ada", "i", "")
    assert (seen.first_at, seen.ended, seen.token_s) == (None, None, None)
    one.replica, one.first_at, one.ended, one.status = "box", 2.0, 4.0, 200
    one.prompt, one.completion = 7, 5
    recent.end(one)
    assert recent.running() == []
    [seen] = recent.ended()
    assert (seen.replica, seen.first_at, seen.ended, seen.token_s) == ("box", 2.0, 4.0, 0.5)
    assert (seen.status, seen.prompt, seen.completion) == (200, 7, 5)


def test_what_was_never_begun_does_not_end() -> None:
    recent = Recent()
    recent.end(record())
    assert recent.ended() == []


def test_both_are_bounded_and_the_youngest_come_first() -> None:
    recent = Recent()
    records = [record(float(n)) for n in range(MOST_RUNNING + 10)]
    for one in records:
        recent.begin(one)
    begun = [seen.begun for seen in recent.running()]
    assert begun == [float(MOST_RUNNING + 9 - n) for n in range(MOST_RUNNING)]
    for one in records:
        one.ended = one.begun + 100
        recent.end(one)
    ended = [seen.ended for seen in recent.ended()]
    assert len(ended) == MOST_ENDED
    assert ended[0] == MOST_RUNNING + 109.0
    assert recent.running() == []


def test_a_model_that_is_a_book_is_cut() -> None:
    recent = Recent()
    recent.begin(record(model="x" * 10_000))
    [seen] = recent.running()
    assert len(seen.model) == MOST_LETTERS
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(seen), type=Seen) == seen
