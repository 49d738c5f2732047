"""Never more than the limit in any window, and never more than a quota over all gateways."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.keys.limits import HELD_RETRY_S, SLOTS, Share, Window, block, grant

# Sums of floats end a hair before or after a second; a client waits whole seconds.
HAIR_S = 1e-6
steps = st.lists(
    st.tuples(st.floats(0, 45), st.integers(1, 60), st.booleans()), min_size=1, max_size=60
)


@given(limit=st.integers(1, 100), begin=st.floats(0, 1e6), steps=steps)
def test_no_window_holds_more_than_the_limit(
    limit: int, begin: float, steps: list[tuple[float, int, bool]]
) -> None:
    window = Window(limit)
    now = begin
    used: list[tuple[float, int]] = []
    for gap_s, amount, patient in steps:
        now += gap_s
        if amount > window.left(now):
            if amount > limit or not patient:
                continue
            wait_s = window.wait_s(amount, now)
            assert 0 < wait_s <= 61 + HAIR_S
            now += wait_s + HAIR_S
            assert amount <= window.left(now)
        window.use(amount, now)
        used.append((now, amount))
    for end, _ in used:
        assert sum(amount for at, amount in used if end - 60 < at <= end) <= limit


@given(limit=st.integers(1, 50), amounts=st.lists(st.integers(0, 50), max_size=20))
def test_all_is_left_after_the_reset(limit: int, amounts: list[int]) -> None:
    window = Window(limit)
    for second, amount in enumerate(amounts):
        window.use(amount, 100.0 + second)
    now = 100.0 + len(amounts)
    later = now + window.reset_s(now) + HAIR_S
    assert window.left(later) == limit
    assert window.reset_s(later) == 0


def test_a_second_window_does_not_begin_full() -> None:
    window = Window(10)
    window.use(10, 59.9)  # a bucket that fills up once a minute would give ten more at 60
    assert window.left(60.0) == 0
    assert window.left(119.9) == 0
    assert window.left(121.0) == 10


def test_what_is_held_is_not_left_whenever_it_was_held() -> None:
    window = Window(10)
    window.held = 8
    assert (window.left(1000.0), window.left(5000.0)) == (2, 2)
    assert window.wait_s(5, 5000.0) == HELD_RETRY_S
    window.use(2, 5000.0)
    assert window.wait_s(1, 5000.0) == 61.0
    assert window.wait_s(5, 5000.0) == HELD_RETRY_S


def test_memory_is_bounded() -> None:
    window = Window(10**9)
    for request in range(10_000):
        window.use(1, request / 50)
    assert len(window._slots) <= SLOTS + 1


actions = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 400), st.integers(0, 100)), max_size=80
)


@given(limit=st.integers(1, 1000), actions=actions)
def test_grants_never_add_up_to_more_than_the_quota(
    limit: int, actions: list[tuple[int, int, int]]
) -> None:
    granted, used = [0] * 4, [0] * 4
    for who, wanted, percent in actions:
        others = [Share(granted[n], used[n], False) for n in range(4) if n != who]
        granted[who] = grant(limit, used[who] + wanted, used[who], others)
        assert sum(granted) <= limit
        used[who] += (granted[who] - used[who]) * percent // 100
    assert sum(used) <= limit


def test_a_gateway_that_is_gone_gives_back_what_it_did_not_use() -> None:
    there, gone = Share(60, 10, False), Share(60, 10, True)
    assert grant(100, 80, 0, [there]) == 40
    assert grant(100, 80, 0, [gone]) == 80
    assert grant(100, 80, 50, [Share(60, 90, True)]) == 50  # used is used


def test_blocks() -> None:
    assert [block(limit) for limit in (1, 19, 1000, 10**9)] == [1, 1, 50, 50_000]
