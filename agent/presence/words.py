"""Which words of members count, and when. A core; used by `service.py`.

A newcomer is told of all gossip of the last two minutes, in any order and from several links; so is
whoever was cut off. Taken as news, it makes members that live gone, and members that died alive,
until the last of it has come.

    word                                       what becomes of it
    ----                                       ------------------
    not newer than the author's last of        nothing
    its kind, or than its goodbye
    written within FRESH_S                     acted on at once
    older                                      held for HOLD_S, for a newer one may come; then acted
                                               on as what was so when it was written
    an old doubt about one who wrote since     nothing

`at` is when its author wrote a word, by the author's own clock. A clock that is wrong by more than
FRESH_S costs its author the wait, and no more. What is known of an author from a clock that was
ahead is forgotten when a word comes that is fresh by ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.identity.keys import NodeId
from agent.presence.report import Beat, Doubt, Models

# Gossip comes within a second; clocks of machines that keep time differ by less than the rest.
FRESH_S = 10.0
# What is kept for a newcomer reaches it within a second, and a lost part of it within another.
HOLD_S = 2.0
# Gossip is kept for two minutes, so an older beat says that the clocks differ; and so does one from
# the future.
OLD_S, AHEAD_S = 240.0, 120.0

Word = Beat | Doubt | Models
# What a word is about: a newer one of the same author and subject takes its place.
_Subject = tuple[type[Word], bytes]


@dataclass(frozen=True)
class Held:
    """A word that waits until `due` (monotonic s); it was written `age_s` before `came`."""

    author: NodeId
    word: Word
    came: float
    age_s: float

    @property
    def written(self) -> float:
        """When it was written, in monotonic seconds here."""
        return self.came - self.age_s

    @property
    def due(self) -> float:
        """When it is to be acted on."""
        return self.came + HOLD_S


@dataclass
class _Author:
    """What one member wrote last, by its own clock (unix s)."""

    last: dict[_Subject, float] = field(default_factory=dict)
    wrote: float = 0.0
    left: float = 0.0
    age_s: float | None = None  # of the last beat when it came


class Words:
    """The words of all members, at one node. `now` is monotonic seconds, `wall` unix seconds."""

    def __init__(self) -> None:
        self._authors: dict[NodeId, _Author] = {}
        self._held: dict[tuple[NodeId, _Subject], Held] = {}

    def take(self, author: NodeId, word: Word, now: float, wall: float) -> bool:
        """Take a word that came; say whether to act on it now. What is held comes from `due`."""
        known = self._authors.setdefault(author, _Author())
        age_s = wall - word.at
        fresh = age_s <= FRESH_S
        if fresh and known.wrote > wall + FRESH_S:
            known = self._authors[author] = _Author()
        subject = _subject(word)
        if word.at <= max(known.last.get(subject, 0.0), known.left):
            return False
        known.last[subject] = word.at
        known.wrote = max(known.wrote, word.at)
        if isinstance(word, Beat):
            known.age_s = age_s
        if isinstance(word, Beat) and word.leaving:
            known.left = word.at
            self._drop(lambda held: held.author == author and held.word.at < word.at)
        before = self._held.pop((author, subject), None)
        if fresh:
            return True
        # The first that was held says when: a stream of old words ends as well.
        came = before.came if before else now
        self._held[author, subject] = Held(author, word, came, age_s - (now - came))
        return False

    def wrote(self, author: NodeId, at: float) -> None:
        """Note that a member wrote something at `at`, this node itself for one."""
        known = self._authors.setdefault(author, _Author())
        known.wrote = max(known.wrote, at)

    def has_left(self, author: NodeId, at: float) -> bool:
        """Say whether what the author wrote at `at` was before its goodbye."""
        known = self._authors.get(author)
        return known is not None and at <= known.left

    def clock_differs(self) -> bool:
        """Say whether every member that was heard has another time than this node."""
        ages = [known.age_s for known in self._authors.values() if known.age_s is not None]
        return bool(ages) and not any(-AHEAD_S <= age_s <= OLD_S for age_s in ages)

    def due(self, now: float) -> list[Held]:
        """Return what was held long enough, in the order in which it was written."""
        ripe = [key for key, held in self._held.items() if held.due <= now]
        found = [self._held.pop(key) for key in ripe]
        return sorted(filter(self._stands, found), key=lambda held: held.written)

    def keep(self, members: set[NodeId]) -> None:
        """Forget all others; only doubts about members are to come here."""
        self._authors = {a: known for a, known in self._authors.items() if a in members}
        doubted = {member.ed25519 for member in members} | {b""}
        for known in self._authors.values():
            known.last = {s: at for s, at in known.last.items() if s[1] in doubted}
        self._drop(lambda held: held.author not in members)

    def _stands(self, held: Held) -> bool:
        if not isinstance(held.word, Doubt):
            return True
        doubted = self._authors.get(NodeId(held.word.node))
        return doubted is None or doubted.wrote < held.word.at

    def _drop(self, unwanted: Callable[[Held], bool]) -> None:
        self._held = {key: held for key, held in self._held.items() if not unwanted(held)}


def _subject(word: Word) -> _Subject:
    return type(word), word.node if isinstance(word, Doubt) else b""
