"""Leases, fences and who counts as silent: each rule by itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.identity.keys import NodeId
from agent.ownership import rendezvous
from agent.ownership.fence import MEMORY_S, Fence
from agent.ownership.lease import LEASE_S, Granted, LeaseBook, Refused, Token
from agent.ownership.pulse import FORGET_S, HINTED_S, SILENCE_S, Pulse

A, B, C = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))
START = 100.0
T = START + LEASE_S


def book(floor: int = 0, limit: int = 1000) -> LeaseBook:
    return LeaseBook(START, floor=floor, limit=limit)


def token(answer: Granted | Refused | None) -> Token:
    assert isinstance(answer, Granted)
    return answer.token


def test_one_at_a_time_and_epochs_grow() -> None:
    leases = book()
    first = token(leases.claim("m", A, 1, 0, T))
    assert first == Token(1, A.ed25519)
    refused = leases.claim("m", B, 1, 0, T + 1)
    assert refused == Refused(first, pytest.approx(1), pytest.approx(0.5))
    assert leases.holder("m", T + 1) == first
    second = token(leases.claim("m", B, 1, 0, T + LEASE_S))
    assert second.epoch > first.epoch
    assert not leases.admits("m", first)
    assert leases.admits("m", second)


def test_the_same_claim_renews_and_a_newer_one_begins_anew() -> None:
    leases = book()
    first = token(leases.claim("m", A, 5, 0, T))
    assert token(leases.claim("m", A, 5, 0, T + 1)) == first
    assert isinstance(leases.claim("m", B, 1, 0, T + 2), Refused)
    assert leases.claim("m", A, 4, 0, T + 1) is None, "it was delayed"
    newer = token(leases.claim("m", A, 6, 0, T + 1))
    assert newer.epoch > first.epoch
    leases.release("m", first)
    assert leases.admits("m", newer), "a late release of the old token takes nothing"


def test_what_was_released_is_free_and_its_claim_is_dead() -> None:
    leases = book()
    first = token(leases.claim("m", A, 5, 0, T))
    leases.release("m", first)
    assert leases.holder("m", T) is None
    assert not leases.admits("m", first)
    assert leases.claim("m", A, 5, 0, T) is None, "it was on its way when the release was sent"
    assert token(leases.claim("m", B, 1, 0, T)).epoch > first.epoch


def test_a_lease_that_ran_out_still_admits_until_another_has_it() -> None:
    leases = book()
    first = token(leases.claim("m", A, 5, 0, T))
    assert leases.holder("m", T + LEASE_S) is None
    assert leases.admits("m", first)
    assert token(leases.claim("m", A, 5, 0, T + 9)) == first


def test_after_its_start_a_grantor_grants_nothing_for_one_lease() -> None:
    leases = book(floor=7)
    assert leases.claim("m", A, 1, 0, START + 1) == Refused(None, 0.0, pytest.approx(0.5))
    assert token(leases.claim("m", A, 1, 0, T)).epoch == 8


def test_epochs_go_on_above_what_a_claimant_saw_and_stop_at_the_limit() -> None:
    leases = book(limit=10)
    assert token(leases.claim("m", A, 1, 5, T)).epoch == 6
    assert token(leases.claim("n", A, 1, 10**6, T)).epoch == 7, "no honest claimant saw that"
    for number in range(3):
        token(leases.claim(f"x{number}", A, 1, 0, T))
    assert isinstance(leases.claim("y", A, 1, 0, T), Refused)
    leases.limit = 20
    assert token(leases.claim("y", A, 1, 0, T)).epoch == 11


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["claim", "release"]), st.sampled_from([A, B, C]),
                  st.integers(1, 4), st.floats(0, 1)), max_size=40,
    )
)  # fmt: skip
def test_no_order_of_claims_gives_two_a_lease(
    steps: list[tuple[str, NodeId, int, float]],
) -> None:
    leases, now, epochs = book(), T, [0]
    held: dict[NodeId, tuple[Token, float]] = {}
    for action, node, number, seconds in steps:
        now += seconds
        if action == "release" and node in held:
            leases.release("m", held.pop(node)[0])
        answer = leases.claim("m", node, number, 0, now) if action == "claim" else None
        if isinstance(answer, Granted):
            others = [n for n, (_, until) in held.items() if n != node and now < until]
            assert others == []
            held[node] = answer.token, now + LEASE_S
            if answer.token.epoch != epochs[-1]:
                assert answer.token.epoch > epochs[-1]
                epochs.append(answer.token.epoch)


def test_a_fence_lets_no_older_token_through() -> None:
    fence = Fence()
    assert fence.admit("r", Token(5, A.ed25519), 0)
    assert fence.admit("r", Token(5, A.ed25519), 1)
    assert not fence.admit("r", Token(5, B.ed25519), 1), "nobody grants an epoch twice"
    assert fence.admit("r", Token(6, B.ed25519), 2)
    assert not fence.admit("r", Token(5, A.ed25519), 3)
    assert fence.admit("other", Token(1, A.ed25519), 3)
    assert fence.highest("r") == Token(6, B.ed25519)
    assert fence.admit("r", Token(1, A.ed25519), 4 + MEMORY_S), "the head began anew"


def test_the_order_is_the_same_everywhere_and_moves_little() -> None:
    nodes = [NodeId(bytes([n]) * 32) for n in range(1, 30)]
    names = [f"m{n}" for n in range(100)]
    firsts = {name: rendezvous.order(name, nodes)[0] for name in names}
    assert firsts == {name: rendezvous.order(name, reversed(nodes))[0] for name in names}
    assert len(set(firsts.values())) > 20
    gone = nodes.pop(3)
    moved = [name for name in names if rendezvous.order(name, nodes)[0] != firsts[name]]
    assert moved == [name for name in names if firsts[name] == gone]
    one, other, *_ = rendezvous.order("m", nodes)
    assert rendezvous.above("m", one, other)
    assert not rendezvous.above("m", other, one)


def test_silence_counts_only_where_something_is_expected() -> None:
    pulse = Pulse()
    pulse.hear(A, 0)
    pulse.expect({B}, 10)
    pulse.lapse(10 + SILENCE_S)
    assert not pulse.down(A, 100)
    assert pulse.down(B, 10 + SILENCE_S)
    assert pulse.next_deadline() == float("inf")
    pulse.hear(B, 12)
    assert not pulse.down(B, 12)
    assert pulse.next_deadline() == pytest.approx(12 + SILENCE_S)


def test_a_hint_shortens_the_wait_and_a_word_ends_it() -> None:
    pulse = Pulse()
    pulse.hear(B, 9.9)
    pulse.expect({B}, 10)
    pulse.suspect(B, 10)
    assert not pulse.down(B, 10)
    assert pulse.next_deadline() == pytest.approx(10 + HINTED_S)
    pulse.lapse(10 + HINTED_S)
    assert pulse.down(B, 10.6)
    assert pulse.hinted(B)
    pulse.hear(B, 9.95)
    assert pulse.down(B, 10.6), "it was sent before the hint"
    pulse.hear(B, 10.7)
    assert not pulse.down(B, 10.7)
    assert not pulse.hinted(B)
    pulse.suspect(C, 10)
    assert pulse.down(C, 10)
    assert not pulse.down(C, 10.1 + FORGET_S)
