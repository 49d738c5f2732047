"""Continuous batching on simulated stages: the right tokens for everybody, whatever happens."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.asking import Asking
from agent.engine.batching import CHUNK_ROWS_MIN, MIXED_ROWS, PREFIX_MIN, Schedule
from agent.engine.cells import Cells
from agent.engine.frames import Copy, Ints, Remove
from agent.engine.pace import Measured
from agent.engine.turns import Turn, Work

pytestmark = pytest.mark.slow


def follows(tokens: Sequence[int]) -> int:
    """Return the token that the simulated model says after these."""
    return zlib.crc32(np.array(tokens, np.int32).tobytes()) % 1000


def repeats(tokens: Sequence[int]) -> int:
    """A model that goes round in circles, and now and then leaves one."""
    if len(tokens) % 11 == 0:
        return int(tokens[0]) % 7
    return (int(tokens[-1]) * 3 + 1) % 7


def ends(tokens: Sequence[int]) -> int:
    """A draft model that is right but for every fifth token, and sometimes sees the end."""
    return follows(tokens) if len(tokens) % 5 else -(len(tokens) % 2)


Says = Callable[[Sequence[int]], int]


def answer(prompt: Sequence[int], limit: int, says: Says = follows) -> list[int]:
    said = list(prompt)
    while len(said) < limit:
        said.append(says(said))
    return said[len(prompt) :]


class Stage:
    """A KV cache as llama.cpp has it: cells of a position and a token, shared by sequences."""

    def __init__(self, cells: int, says: Says) -> None:
        self.room, self.says = cells, says
        self.taken = 0
        self.sequences: dict[int, list[list[int]]] = {}  # of each position: its token, and users

    def run(self, turn: Turn, useful: Ints | None = None) -> dict[int, int]:
        """Apply a batch; return what the model says after each marked row that is useful."""
        for operation in turn.batch.operations:
            self.apply(operation)
        batch, found = turn.batch, {}
        for row in range(len(batch.tokens)) if useful is None else useful.tolist():
            there = self.sequences.setdefault(int(batch.sequences[row]), [])
            assert len(there) == batch.positions[row], "a gap, or a position twice"
            there.append([int(batch.tokens[row]), 1])
            self.taken += 1
            if batch.outputs[row]:
                found[row] = self.says([token for token, _ in there])
        assert self.taken <= self.room, "the KV cache is full"
        return found

    def apply(self, operation: Remove | Copy) -> None:
        match operation:
            case Remove(sequence, start, stop):
                assert stop == -1
                there = self.sequences.get(sequence, [])
                for cell in there[max(start, 0) :]:
                    cell[1] -= 1
                    self.taken -= cell[1] == 0
                del there[max(start, 0) :]
            case Copy(source, target, start, stop):
                assert start == 0
                assert not self.sequences.get(target)
                there = self.sequences.get(source, [])
                assert len(there) >= stop, "a copy of what is not there"
                self.sequences[target] = there[:stop]
                for cell in there[:stop]:
                    cell[1] += 1


class Draft:
    """A simulated draft model: what it says, and what is in its caches, of each request."""

    def __init__(self, says: Says, chunk: int = 20) -> None:
        self.says, self.chunk = says, chunk
        self.caches: dict[Work, list[int]] = {}
        self.guesses = self.read = 0
        self.tries = True

    def reads(self, work: Work, stop: int) -> list[int]:
        """Read a request's tokens up to `stop`; what it holds of them must be what they are."""
        there = self.caches.setdefault(work, [])
        assert work.drafts.known <= len(there)
        del there[work.drafts.known :]
        assert there == work.tokens[: len(there)].tolist(), "it knows what was never said"
        there += work.tokens[len(there) : stop].tolist()
        self.read += stop - work.drafts.known
        work.drafts.known = stop
        return there

    def answers(self, asking: Asking, works: Sequence[Work]) -> None:
        for work in works:
            assert work.guessed < work.limit - 1
            token = self.says(self.reads(work, work.guessed))
            self.guesses += 1
            asking.proposed(work, token if token >= 0 else None)

    def step(self, asking: Asking) -> bool:
        """Do what it is asked, if it is anything."""
        if works := asking.wanting():
            self.answers(asking, works)
        elif work := asking.to_read():
            self.reads(work, min(work.guessed, work.drafts.known + self.chunk))
        elif self.tries and (work := asking.untried()):
            self.answers(asking, [work])
        else:
            return False
        return True


class Ring:
    """A schedule and its stages; batches come back in order."""

    def __init__(
        self, cells: int = 4096, rows: int = 512, slots: int = 4, sequences: int = 8,
        depth: int = 2, reuse: bool = True, says: Says = follows, links_s: float | None = None,
        draft: Draft | None = None, draft_s: float = 0.0005, patience: int = 0,
    ) -> None:  # fmt: skip
        """With `links_s` it is known what batches take, and guesses are worth their rows.

        A row of the draft model takes `draft_s`.
        """
        self.links_s, self.draft, self.draft_s = links_s, draft, draft_s
        self.turns: list[Turn] = []
        self.said: dict[Work, list[int]] = {}
        self.over: set[Work] = set()
        self.make = lambda depth, rows: Schedule(
            cells=cells, rows=rows, slots=slots, sequences=sequences, depth=depth, reuse=reuse,
            patience=patience,
        )  # fmt: skip
        self.cells, self.says, self.reuse = cells, says, reuse
        self.build(depth, rows)

    def build(self, depth: int, rows: int) -> None:
        """Make the schedule, and stages with nothing in their caches."""
        self.schedule, links_s = self.make(depth, rows), self.links_s
        if links_s is not None:
            self.schedule.pace.learn(
                [Measured(n, 0.01, (depth - 1) * 0.01 + links_s) for n in (1, 2, 4, 8)], links_s
            )
        if self.draft is not None and self.reuse:
            self.schedule.asking.begin()
            self.schedule.pace.drafts.learn([(n, self.draft_s * n) for n in (1, 64)])
        # The last part computes a batch when it has come round, unless nobody wants it any more.
        self.stage, self.last = Stage(self.cells, self.says), Stage(self.cells, self.says)
        self.flying: deque[Turn] = deque()
        self.depth, self.rows = depth, rows

    def lose(self, depth: int, rows: int) -> None:
        """A stage dies: nothing that is under way comes back, and another ring takes its place."""
        self.build(depth, rows)
        for work in self.said:
            if work not in self.over:
                work.move()
                self.schedule.add(work)

    def add(self, prompt: Sequence[int], limit: int, priority: int = 0) -> Work:
        work = Work.of(prompt, limit, priority)
        self.schedule.add(work)
        self.said[work] = []
        return work

    def cancel(self, work: Work) -> None:
        self.over.add(work)
        self.schedule.end(work)

    def submit(self) -> bool:
        turn = self.schedule.next(len(self.flying))
        if turn is None:
            return False
        assert 0 < len(turn.batch.tokens) <= self.rows
        self.turns.append(turn)
        self.flying.append(turn)
        self.stage.run(turn)
        assert self.schedule.free_cells == self.stage.room - self.stage.taken
        return True

    def collect(self) -> bool:
        if not self.flying:
            return False
        turn = self.flying.popleft()
        said = self.last.run(turn, turn.useful())
        assert set(said) == {wanted.row for wanted in turn.wanted if not wanted.stale}
        for wanted in turn.wanted:
            row, work = wanted.row, wanted.work
            if work in self.over or wanted.stale:
                continue
            self.said[work].append(said[row])
            self.schedule.sampled(work, said[row])
            if work.length == work.limit:
                self.over.add(work)
                self.schedule.end(work)
        return True

    def drafted(self) -> bool:
        """Have the draft model do something, if there is something."""
        return self.draft is not None and self.draft.step(self.schedule.asking)

    def run(self) -> None:
        for _ in range(100_000):
            if not self.submit() and not self.drafted() and not self.collect():
                break
        assert not self.schedule.waiting
        assert not self.schedule.running


def test_cells_are_shared_and_freed_with_their_last_user() -> None:
    cells = Cells(10, 3)
    cells.extend(0, 6)
    cells.share(0, 1, 4)
    cells.extend(1, 2)
    assert (cells.free, cells.length(0), cells.length(1)) == (2, 6, 6)
    cells.cut(0)
    assert cells.free == 4
    cells.cut(1, 3)
    assert (cells.free, cells.length(1)) == (7, 3)
    with pytest.raises(ValueError, match="8 cells are wanted, 7 are free"):
        cells.extend(2, 8)
    with pytest.raises(ValueError, match="cannot share"):
        cells.share(1, 2, 4)


def test_one_request_is_prompt_chunks_and_then_a_row_each() -> None:
    ring = Ring(depth=1, rows=100)
    prompt = list(range(250))
    work = ring.add(prompt, 260)
    ring.run()
    assert ring.said[work] == answer(prompt, 260)
    assert [len(turn.batch.tokens) for turn in ring.turns] == [100, 100, 50] + [1] * 9


@pytest.mark.parametrize(("links_s", "rows"), [(0.002, 64), (0.06, 256)])
def test_a_prompt_is_cut_so_that_its_chunks_follow_each_other(links_s: float, rows: int) -> None:
    ring = Ring(depth=3, rows=512, cells=8192)
    ring.schedule.pace.links_s = links_s
    ring.add(list(range(4096)), 4097)
    ring.run()
    assert [len(turn.batch.tokens) for turn in ring.turns] == [rows] * (4096 // rows)
    assert all(not turn.wanted for turn in ring.turns[:-1])


def test_decoding_requests_are_split_over_the_batches_under_way() -> None:
    ring = Ring(depth=2, slots=8, sequences=8)
    for n in range(8):
        ring.add([n, n + 1], 200)
    for _ in range(20):
        while ring.submit():
            pass
        ring.collect()
    assert {len(turn.batch.tokens) for turn in ring.turns[-8:]} == {4}
    ring.run()


def test_a_long_prompt_leaves_the_others_their_turns() -> None:
    ring = Ring(depth=2, cells=20_000, slots=8)
    talkers = [ring.add([n], 400) for n in range(4)]
    for _ in range(20):
        while ring.submit():
            pass
        ring.collect()
    before = {work: len(ring.said[work]) for work in talkers}
    ring.add(list(range(4000)), 4010)
    begun = len(ring.turns)
    while len(ring.turns) < begun + 40:
        while ring.submit():
            pass
        ring.collect()
    assert all(len(ring.said[work]) - before[work] >= 19 for work in talkers)
    mixed = ring.turns[begun:]
    assert max(len(turn.batch.tokens) for turn in mixed) <= MIXED_ROWS + 4
    assert sum(len(turn.batch.tokens) for turn in mixed) > 30 * CHUNK_ROWS_MIN
    ring.run()


def test_beside_answers_a_prompt_gets_as_many_rows_as_the_time_of_a_batch_allows() -> None:
    ring = Ring(depth=1, cells=20_000)
    ring.add([1], 4000)
    sizes = []
    for _ in range(60):
        if len(ring.turns) == 20:
            ring.add([2] * 3000, 3010)
        ring.submit()
        turn = ring.turns[-1]
        # Reading the weights takes 40 ms, a row 2 ms.
        ring.schedule.took(turn, max(0.04, 0.002 * len(turn.batch.tokens)))
        sizes.append(len(turn.batch.tokens))
        ring.collect()
    assert sizes[:20] == [1] * 20
    assert sizes[20] == 1 + MIXED_ROWS, "nothing was known of rows yet"
    assert set(sizes[22:]) == {1 + 40}


def test_a_prefix_is_shared_with_one_that_runs_and_one_that_is_over() -> None:
    ring = Ring(slots=4, sequences=8)
    system = list(range(300))
    first = ring.add([*system, 7], 340)
    for _ in range(12):
        ring.submit()
        ring.collect()
    second = ring.add([*system, 8, 9], 320)
    ring.run()
    third = ring.add([*system, 7, *answer([*system, 7], 340), 5], 400)
    ring.run()
    assert (second.reused, third.reused) == (300, 340 - 1)
    for work, prompt in ((first, [*system, 7]), (second, [*system, 8, 9])):
        assert ring.said[work] == answer(prompt, work.limit)
    assert ring.said[third] == answer(third.tokens[:341].tolist(), 400)


def test_the_same_prompt_again_computes_its_last_token_alone() -> None:
    ring = Ring()
    prompt = list(range(100))
    ring.add(prompt, 105)
    ring.run()
    again = ring.add(prompt, 105)
    ring.run()
    assert again.reused == 99
    assert ring.said[again] == answer(prompt, 105)


def test_a_prefix_goes_once_it_has_cost_the_others_what_it_could_save() -> None:
    ring = Ring(patience=150)
    prompt = list(range(100))
    ring.add(prompt, 105)
    ring.run()
    again = ring.add(prompt, 105)
    ring.run()
    assert again.reused == 99, "while nothing is computed it costs nothing"
    ring.add([5] * 30, 200)  # computes 199 rows
    ring.run()
    late = ring.add(prompt, 105)
    ring.run()
    assert late.reused == 0
    assert ring.said[late] == answer(prompt, 105)


def test_a_prefix_that_is_used_stays() -> None:
    ring = Ring(patience=300)
    prompt = list(range(100))
    for n in range(6):
        work = ring.add(prompt, 105)
        ring.run()
        assert work.reused == (99 if n else 0)
        ring.add([n] * 20, 60)
        ring.run()


def test_without_reuse_nothing_is_kept() -> None:
    ring = Ring(reuse=False)
    for _ in range(2):
        work = ring.add(list(range(100)), 105)
        ring.run()
        assert work.reused == 0
    assert ring.schedule.free_cells == 4096


def test_the_urgent_come_first_and_the_others_in_their_order() -> None:
    ring = Ring(slots=1, sequences=1)
    works = [ring.add([n], 6, priority) for n, priority in ((1, 0), (2, 0), (3, 5))]
    begun: list[Work] = []
    for _ in range(200):
        if ring.submit():
            begun += [work for work in ring.turns[-1].works if work not in begun]
        else:
            ring.collect()
    assert begun == [works[2], works[0], works[1]]


def test_when_cells_run_out_the_youngest_waits_and_goes_on_with_the_same_tokens() -> None:
    ring = Ring(cells=400, slots=4, sequences=4, depth=2)
    works = [ring.add([n] * 40, 200) for n in range(1, 5)]
    ring.run()
    for n, work in enumerate(works, 1):
        assert ring.said[work] == answer([n] * 40, 200)
    served = [sum(len(t.batch.tokens[t.batch.sequences == 0]) for t in ring.turns)]
    assert served[0] > 0
    rows = sum(len(turn.batch.tokens) for turn in ring.turns)
    assert rows > 4 * 199, "somebody had to compute again what it had given up"


def test_what_a_request_said_itself_does_not_count_as_reused_when_it_comes_again() -> None:
    ring = Ring(cells=300, slots=2, sequences=2)
    prompt = list(range(40))
    works = [ring.add(prompt, 200) for _ in range(2)]
    ring.run()
    assert all(work.reused < len(prompt) for work in works)
    assert all(ring.said[work] == answer(prompt, 200) for work in works)


def test_a_cancelled_request_leaves_at_once_though_its_rows_are_under_way() -> None:
    ring = Ring(slots=1, sequences=1)
    first = ring.add(list(range(30)), 100)
    ring.submit()
    ring.cancel(first)
    second = ring.add([5] * 30, 40)
    assert ring.submit(), "the next one begins before the cancelled one's batch is back"
    ring.run()
    assert ring.said[second] == answer([5] * 30, 40)
    assert ring.said[first] == []


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("moments", [(1,), (7,), (23, 24), (5, 40, 90)])
def test_who_loses_a_ring_goes_on_over_another_with_the_same_tokens(
    moments: tuple[int, ...], reuse: bool
) -> None:
    ring = Ring(cells=900, rows=40, depth=3, slots=3, sequences=6, reuse=reuse, says=repeats)
    works = [ring.add([n] * (20 * n), 20 * n + 60, priority=n == 5) for n in range(1, 6)]
    moment = rows = 0
    while ring.submit() or ring.collect():
        moment += 1
        if moment in moments:
            rows = sum(len(ring.said[work]) for work in works)
            begun = [work for work in works if work.served]
            ring.lose(1 + moment % 3, 50)
            assert (ring.schedule.running, ring.schedule.waiting) == (0, 5 - len(ring.over))
            # The most urgent, then the eldest, are the first again.
            first = ring.schedule.next(0)
            assert first is not None
            left = [work for work in [works[4], *works[:4]] if work not in ring.over]
            assert first.works <= set(left[:3])
            assert left[0] in first.works
            ring.turns.append(first)
            ring.flying.append(first)
            ring.stage.run(first)
            assert all(work.reused == 0 for work in begun)
    assert rows or moments == (1,)
    for n, work in enumerate(works, 1):
        assert ring.said[work] == answer([n] * (20 * n), work.limit, repeats)


def test_sequences_are_lent_while_nobody_runs_and_what_is_kept_stays() -> None:
    ring = Ring(cells=200, slots=2, sequences=4)
    prompt = list(range(40))
    ring.add(prompt, 45)
    ring.run()
    lent, operations = ring.schedule.lend(2)
    assert len(set(lent)) == 2
    for stage in (ring.stage, ring.last):
        for operation in operations:
            stage.apply(operation)
        for number in lent:
            stage.sequences[number] = [[0, 1]]
            stage.taken += 1
    assert ring.schedule.free_cells == 200 - 44 - 2
    ring.schedule.give_back(lent)
    again = ring.add(prompt, 45)
    ring.run()
    assert (again.reused, ring.said[again]) == (39, answer(prompt, 45))
    # Where all is kept, the eldest gives way.
    for n in range(5):
        ring.add([n] * 30, 40)
    ring.run()
    assert len(set(ring.schedule.lend(2)[0])) == 2


@pytest.mark.parametrize(("length", "limit"), [(0, 5), (5, 5), (3, 5000)])
def test_what_can_never_be_served_is_refused(length: int, limit: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Ring().add([1] * length, limit)


STEPS = st.lists(
    st.tuples(
        st.sampled_from("add add add cancel submit submit collect collect draft lose".split()),
        st.integers(0, 7), st.integers(1, 90), st.integers(1, 40), st.integers(0, 2),
    ),
    max_size=80,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    STEPS, st.integers(130, 600), st.integers(1, 70), st.integers(1, 5), st.integers(0, 4),
    st.integers(1, 4), st.booleans(), st.sampled_from([follows, repeats]),
    st.sampled_from([None, 0.0, 0.05]), st.sampled_from([None, follows, repeats, ends]),
    st.sampled_from([0, 1, 60]),
)  # fmt: skip
def test_any_order_of_events_gives_everybody_the_right_tokens(
    steps: list[tuple[str, int, int, int, int]], cells: int, rows: int, slots: int, more: int,
    depth: int, reuse: bool, says: Says, links_s: float | None, drafts: Says | None, patience: int,
) -> None:  # fmt: skip
    draft = None if drafts is None else Draft(drafts)
    ring = Ring(
        cells, rows, slots, slots + more, depth, reuse, says, links_s, draft, patience=patience
    )
    prompts: dict[Work, list[int]] = {}
    for what, kind, length, room, priority in steps:
        match what:
            case "add":
                # Few kinds, so that many share prefixes of different lengths.
                prompt = [(kind % 3) * 100 + n for n in range(length)]
                prompt[length * 2 // 3 :] = [kind] * (length - length * 2 // 3)
                work = ring.add(prompt, length + room, priority)
                prompts[work] = prompt
            case "cancel":
                living = [work for work in prompts if work not in ring.over]
                if living:
                    ring.cancel(living[kind % len(living)])
            case "submit":
                ring.submit()
            case "collect":
                ring.collect()
            case "draft":
                ring.drafted()
            case "lose":
                ring.lose(1 + kind % 4, length)
    cancelled = {
        work for work in ring.over if len(ring.said[work]) < work.limit - len(prompts[work])
    }
    ring.run()
    for work, prompt in prompts.items():
        expected = answer(prompt, work.limit, says)
        said = ring.said[work]
        assert said == (expected[: len(said)] if work in cancelled else expected)
        assert work.reused == 0 or PREFIX_MIN <= work.reused < len(prompt)


def turns(
    links_s: float | None, says: Says, *, depth: int = 3, slots: int = 1,
    draft: Draft | None = None, draft_s: float = 0.0005,
) -> int:  # fmt: skip
    """Return in how many batches answers to short prompts come round, one after the other."""
    ring = Ring(
        slots=slots, sequences=slots, depth=depth, says=says, links_s=links_s, draft=draft,
        draft_s=draft_s,
    )  # fmt: skip
    works = [ring.add([1, 2, n], 203) for n in range(slots)]
    rounds = 0
    while len(ring.over) < slots:
        while ring.submit() or ring.drafted():
            pass
        rounds += 1
        # All that are under way come back before the next are sent.
        for _ in range(len(ring.flying)):
            ring.collect()
    for n, work in enumerate(works):
        assert ring.said[work] == answer([1, 2, n], 203, says)
    return rounds


def test_guesses_fill_a_long_ring_and_save_rounds_where_text_repeats_itself() -> None:
    assert turns(None, repeats) == 200
    assert turns(0.05, repeats) < 100
    assert turns(0.05, follows) == 200


def test_a_pipeline_of_one_process_makes_guesses_in_the_same_batch() -> None:
    assert turns(0.0, repeats, depth=1) < 100


def test_rows_of_wrong_guesses_are_not_computed_by_the_last_part() -> None:
    ring = Ring(slots=1, sequences=1, depth=3, says=repeats)
    # Rows share nothing, so that each is a batch of its own.
    ring.schedule.pace.learn([Measured(n, 0.01 * n, 0.02 * n + 0.1) for n in (1, 2, 4)], 0.1)
    ring.add([1, 2, 3], 203)
    stale = 0
    while ring.submit() or ring.flying:
        while ring.submit():
            pass
        stale += ring.flying[0].useful() is not None
        ring.collect()
    assert stale > 3


def test_what_guesses_hold_is_free_when_a_request_is_cancelled() -> None:
    ring = Ring(slots=1, sequences=1, reuse=True, says=repeats, links_s=0.05)
    work = ring.add([1, 2, 3] * 10, 500)
    for _ in range(60):
        while ring.submit():
            pass
        ring.collect()
    assert ring.flying
    ring.cancel(work)
    again = ring.add([1, 2, 3] * 10, 200)
    ring.run()
    assert again.reused == 29
    assert ring.said[again] == answer([1, 2, 3] * 10, 200, repeats)


def wrong(tokens: Sequence[int]) -> int:
    """A draft model that is never right."""
    return 1000 + follows(tokens)


def test_a_draft_model_saves_rounds_where_n_grams_have_nothing_to_say() -> None:
    draft = Draft(follows)
    assert turns(0.05, follows, draft=draft) < 80
    assert draft.guesses < 3 * 200
    assert turns(0.0, follows, depth=1, draft=Draft(follows)) < 80
    assert turns(0.05, follows, slots=4, draft=Draft(follows)) < 140


def test_a_draft_model_that_is_wrong_is_soon_not_asked_any_more() -> None:
    draft = Draft(wrong)
    # Where nothing is tried, all that it says is said for rows.
    draft.tries = False
    assert turns(0.05, follows, draft=draft) == 200
    assert draft.guesses < 60


def test_a_draft_model_that_takes_too_long_is_not_asked() -> None:
    draft = Draft(follows)
    draft.tries = False
    assert turns(0.05, follows, draft=draft, draft_s=0.2) == 200
    assert (draft.guesses, draft.read) == (0, 0)


def test_where_text_repeats_itself_n_grams_are_as_good_and_cost_nothing() -> None:
    draft = Draft(wrong)
    assert turns(0.05, repeats, draft=draft) < 100
    assert draft.guesses < 60


def test_a_draft_model_reads_a_prompt_in_pieces_and_only_for_an_answer_that_may_be_long() -> None:
    for limit, reads in ((1005, False), (1400, True)):
        draft = Draft(follows)
        draft.tries = False
        ring = Ring(depth=2, links_s=0.05, draft=draft, rows=512)
        prompt = list(range(1000))
        work = ring.add(prompt, limit)
        ring.run()
        assert ring.said[work] == answer(prompt, limit)
        assert (draft.read >= 1000) is reads
        assert (work.drafts.right > 100) is reads


def test_guesses_that_get_no_row_show_that_a_draft_model_is_worth_asking_again() -> None:
    ring = Ring(depth=2, slots=1, links_s=0.05, draft=Draft(follows))
    work = ring.add([1, 2, 3], 400)
    work.drafts.model_hit = 0.01
    ring.run()
    assert ring.said[work] == answer([1, 2, 3], 400)
    assert work.drafts.model_hit > 0.9
    assert work.drafts.right > 300


def test_a_request_has_a_draft_models_guesses_from_the_first_token_that_n_grams_miss() -> None:
    """Both are right in turns; every token is the main model's, and both sorts get rows."""

    def turning(tokens: Sequence[int]) -> int:
        return repeats(tokens) if len(tokens) // 50 % 2 else follows(tokens)

    draft = Draft(turning)
    ring = Ring(depth=3, slots=2, links_s=0.05, says=turning, draft=draft)
    works = [ring.add([1, 2, n], 303) for n in range(2)]
    ring.run()
    for n, work in enumerate(works):
        assert ring.said[work] == answer([1, 2, n], 303, turning)
        assert 0 < draft.guesses < 2 * 400
        assert work.drafts.right > 200


def test_when_a_draft_model_is_gone_nobody_waits_for_it() -> None:
    ring = Ring(depth=2, slots=1, links_s=0.05, draft=Draft(follows))
    work = ring.add([1, 2, 3], 200)
    for _ in range(50):
        if not ring.submit() and not ring.drafted():
            ring.collect()
    assert ring.schedule.asking.wanting() or work.drafts.right
    ring.schedule.asking.end()
    ring.draft = None
    ring.run()
    assert ring.said[work] == answer([1, 2, 3], 200)
