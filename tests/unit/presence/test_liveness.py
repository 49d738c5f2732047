"""Liveness: silence makes a member suspect and then gone, and whatever it says brings it back."""

import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.identity.keys import NodeId
from agent.presence import report
from agent.presence.liveness import SILENT_S, SUSPECT_S, UNSHOWN_S, Liveness, State

STEP_S = 0.25


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


class World:
    """One observer and members that answer, or do not, after a fixed step of time."""

    def __init__(self, members: int, seed: int = 1) -> None:
        self.now = 1000.0
        self.changes: list[tuple[float, NodeId, State]] = []
        self.dead: set[NodeId] = set()
        self.unreachable: set[NodeId] = set()
        self.asked: list[NodeId] = []
        self.nodes = [node(n) for n in range(1, members + 1)]
        self.shown: list[NodeId] = []
        self.liveness = Liveness(
            random.Random(seed),
            lambda n, s: self.changes.append((self.now, n, s)),
            self.shown.append,
        )
        self.liveness.set_members(self.nodes, self.now)

    def run(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        for _ in range(int(seconds / STEP_S)):
            self.now += STEP_S
            asked = self.liveness.due(self.now)
            self.asked += asked
            each()
            for one in asked:
                if one in self.dead or one in self.unreachable:
                    self.liveness.missed(one, self.now, self.now)
                else:
                    self.liveness.answered(one, self.now)

    def state(self, number: int) -> State | None:
        return self.liveness.state(node(number))


def test_everyone_is_asked_once_in_a_round_and_stays_alive() -> None:
    world = World(20)
    world.run(20.0)
    assert set(world.asked) == set(world.nodes)
    assert world.changes == []


def test_a_dead_member_is_suspect_then_gone_without_an_operator() -> None:
    world = World(10)
    world.run(15.0)
    world.dead.add(node(3))
    # Rounds are shuffled, so its turn may be the last of the next one.
    world.run(2 * 10 + 0.5 + SUSPECT_S + 2 * STEP_S)
    assert [(n, s) for _, n, s in world.changes] == [
        (node(3), State.SUSPECT), (node(3), State.GONE)
    ]  # fmt: skip
    assert node(3) not in world.liveness.alive()


def test_a_hint_makes_a_dead_member_suspect_with_two_questions() -> None:
    world = World(30)
    world.run(31.0)
    world.dead.add(node(7))
    assert world.liveness.doubt(node(7), world.now)
    world.run(STEP_S)
    assert world.state(7) is State.ALIVE
    world.run(1.0)
    assert world.state(7) is State.SUSPECT


def test_a_hint_about_a_live_member_changes_nothing() -> None:
    world = World(5)
    world.run(6.0)
    assert world.liveness.doubt(node(2), world.now)
    world.run(5.0)
    assert world.changes == []


def test_one_lost_answer_is_no_suspicion_but_is_asked_again_soon() -> None:
    world = World(3)
    world.run(4.0)
    world.liveness.missed(node(1), world.now, world.now)
    assert world.state(1) is State.ALIVE
    world.asked.clear()
    world.run(1.0)
    assert node(1) in world.asked


def test_who_was_heard_of_since_it_was_asked_is_slow_and_no_suspect() -> None:
    world = World(3)
    world.run(4.0)
    for _ in range(10):
        asked_at, world.now = world.now, world.now + 1.0
        world.liveness.heard(node(1), world.now - 0.5)
        world.liveness.missed(node(1), asked_at, world.now)
    assert world.state(1) is State.ALIVE
    assert world.liveness.patience > 1.0, "nor is it taken for quick"
    for _ in range(2):
        asked_at, world.now = world.now, world.now + 1.0
        world.liveness.missed(node(1), asked_at, world.now)
    assert world.state(1) is State.SUSPECT


def test_where_most_questions_come_to_nothing_suspects_are_asked_less_often() -> None:
    asked = {}
    for dead in (1, 12):
        world = World(16)
        world.run(16.0)
        world.dead.update(node(n) for n in range(1, dead + 1))
        for one in world.dead:
            world.liveness.doubt(one, world.now)
        world.run(1.5)
        world.asked.clear()
        world.run(2.5)
        asked[dead] = world.asked.count(node(1))
    assert asked[1] == 3
    assert asked[12] < asked[1]


def test_who_cannot_be_asked_from_here_lives_as_long_as_it_is_heard() -> None:
    world = World(3)
    world.unreachable.add(node(2))
    world.run(SILENT_S / 2, lambda: world.liveness.heard(node(2), world.now))
    assert world.changes == []
    world.run(SILENT_S + SUSPECT_S + 1)
    assert world.state(2) is State.GONE


def test_silence_is_three_beats_at_least_however_many_members_there_are() -> None:
    for members in (1, 10, 30, 100, 1000):
        liveness = Liveness(random.Random(1), lambda one, state: None)
        liveness.set_members([node(n) for n in range(1, members)], 0.0)
        assert liveness.silent_s >= 3 * report.beat_interval_s(members)


def test_one_that_never_answered_is_gone_when_others_doubt_it_and_it_stays_silent() -> None:
    world = World(3)
    world.dead.add(node(2))  # before anybody asked it
    world.run(10.0)
    assert world.changes == []
    assert world.liveness.doubt(node(2), world.now)
    world.run(SUSPECT_S + 1.0)
    assert world.state(2) is State.GONE


def test_a_newcomer_is_asked_at_once() -> None:
    world = World(30)
    world.run(8.0)
    world.asked.clear()
    world.liveness.set_members([*world.nodes, node(99)], world.now)
    world.run(2 * STEP_S)
    assert node(99) in world.asked


def test_one_who_comes_back_is_alive_again() -> None:
    world = World(4)
    world.run(5.0)
    world.dead.add(node(1))
    world.run(20.0)
    assert world.state(1) is State.GONE
    world.dead.clear()
    world.run(15.0)
    assert world.state(1) is State.ALIVE
    assert world.changes[-1][1:] == (node(1), State.ALIVE)


def test_a_member_that_says_goodbye_is_gone_at_once_and_may_return() -> None:
    world = World(4)
    world.liveness.departed(node(2), world.now)
    assert world.state(2) is State.GONE
    world.liveness.heard(node(2), world.now)
    assert world.state(2) is State.ALIVE


def test_a_stranger_has_no_state_and_nothing_about_it_is_kept() -> None:
    world = World(2)
    world.liveness.heard(node(99), world.now)
    world.liveness.missed(node(99), world.now, world.now)
    assert not world.liveness.doubt(node(99), world.now)
    assert world.state(99) is None
    world.liveness.set_members([node(1)], world.now)
    assert world.state(2) is None
    assert world.liveness.alive() == [node(1)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from(["die", "live", "hint", "heard", "run"]),
                       st.integers(1, 12)), max_size=25),
    st.integers(0, 2**16),
)  # fmt: skip
def test_the_living_are_found_alive_and_the_dead_gone(
    members: int, steps: list[tuple[str, int]], seed: int
) -> None:
    """Whatever happened before: after a while of quiet everyone stands as it is."""
    world = World(members, seed)
    world.run(members + 1.0)  # everyone has answered once
    for what, number in steps:
        one = node(1 + number % members)
        if what == "die":
            world.dead.add(one)
        elif what == "live":
            world.dead.discard(one)
        elif what == "hint":
            world.liveness.doubt(one, world.now)
        elif what == "heard" and one not in world.dead:
            world.liveness.heard(one, world.now)
        else:
            world.run(number / 2)
    world.run(SILENT_S + SUSPECT_S + 10.0 * (members + 2))
    for one in world.nodes:
        expected = State.GONE if one in world.dead else State.ALIVE
        # Who is gone is asked by chance, so one that came back may be met late, but it is met.
        if expected is State.ALIVE and world.liveness.state(one) is State.GONE:
            world.run(2000.0)
        assert world.liveness.state(one) is expected


def test_what_was_said_before_a_member_was_gone_does_not_bring_it_back() -> None:
    world = World(3)
    world.liveness.departed(node(1), world.now - 60.0)
    assert world.state(1) is State.GONE
    world.liveness.heard(node(1), world.now - 61.0)
    assert world.state(1) is State.GONE
    world.liveness.heard(node(1), world.now - 59.0)
    assert world.state(1) is State.ALIVE


def test_an_old_goodbye_of_one_who_has_answered_since_changes_nothing() -> None:
    world = World(3)
    world.liveness.answered(node(1), world.now)
    world.liveness.departed(node(1), world.now - 1.0)
    assert world.state(1) is State.ALIVE
    world.liveness.departed(node(1), world.now)
    assert world.state(1) is State.GONE


def test_who_is_slow_itself_waits_longer_and_suspects_fewer() -> None:
    """All answers come too late for a while, as on a machine with too much to do."""
    world = World(30)
    world.run(60.0)
    assert world.liveness.patience == 1.0
    world.unreachable = set(world.nodes)
    world.run(12.0)
    assert world.liveness.patience > 2.0
    gone = sum(world.liveness.state(one) is State.GONE for one in world.nodes)
    assert gone <= 3, "they are given more time"
    world.unreachable = set()
    world.run(40.0)
    assert world.liveness.patience == 1.0, "and all is as before when answers come again"
    assert all(world.liveness.state(one) is State.ALIVE for one in world.nodes)


def test_a_third_that_dies_at_once_is_noticed_as_fast_as_one() -> None:
    world = World(30)
    world.run(60.0)
    world.dead = set(world.nodes[:10])
    began = world.now
    world.run(45.0)
    gone = [at - began for at, _, state in world.changes if state is State.GONE]
    assert len(gone) == 10
    assert max(gone) < 30 + 2 * SUSPECT_S + 5, "a round of questions, and the time of a suspect"


def test_links_go_to_those_who_have_shown_that_they_are_there() -> None:
    world = World(4)
    assert set(world.liveness.linkable(world.now)) == set(world.nodes), "whoever comes may be there"
    world.liveness.heard(node(1), world.now)
    world.liveness.heard(node(1), world.now)
    world.liveness.heard(node(2), world.now - 60.0)
    assert world.shown == [node(1), node(2)]
    assert set(world.liveness.linkable(world.now + UNSHOWN_S)) == {node(1), node(2)}
    world.liveness.departed(node(2), world.now)
    world.liveness.heard(node(2), world.now)
    assert world.shown == [node(1), node(2)], "that it is back is a change of state"
    world.liveness.departed(node(1), world.now)
    world.liveness.departed(node(2), world.now + 1.0)
    unshown = {node(3), node(4)}
    assert set(world.liveness.linkable(world.now + UNSHOWN_S)) == unshown, "nobody else is there"


def test_nobody_counts_on_members_that_were_off_before_this_node_began() -> None:
    """They count as alive for minutes: nothing shows that they are not."""
    world = World(4)
    world.dead = {node(3), node(4)}
    assert set(world.liveness.there(world.now)) == set(world.nodes)
    world.run(UNSHOWN_S + STEP_S)
    assert world.state(3) is State.ALIVE
    assert set(world.liveness.there(world.now)) == {node(1), node(2)}
    world.dead.clear()
    world.run(20.0)
    assert set(world.liveness.there(world.now)) == set(world.nodes)


def test_where_all_others_are_off_nobody_is_counted_on() -> None:
    world = World(2)
    world.dead = {node(1), node(2)}
    world.run(UNSHOWN_S + STEP_S)
    assert world.liveness.there(world.now) == []
