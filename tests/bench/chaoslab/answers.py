"""What became of a request, and what that counts as. A core, for `clients.py` and `tally.py`.

end       means
-------   -----
ok        exactly the text of the undisturbed run, as long as was asked for
refused   an honest word before anything of the answer: HTTP 5xx with an error object
denied    HTTP 4xx: it claims that the request is wrong, so nobody would ask again
lost      an honest error after the answer had begun: an error event in its stream
wrong     another text, or a part of it, that claims to be the answer
cut       it broke off without a word, or with one that is no error object
hung      it had not ended after `LIMIT_S`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

ENDS = ("ok", "refused", "denied", "lost", "wrong", "cut", "hung")
LIMIT_S = 120.0
# Where the second likeliest token is nearer than this (nat), other sums of the same numbers may
# choose it: a batch of other rows is enough. An answer is asked for up to the first such place.
MARGIN = 0.1


@dataclass(frozen=True)
class Work:
    """A request whose answer is known: `text` is that of the undisturbed ring."""

    prompt: str
    tokens: int
    text: str = ""


@dataclass
class Seen:
    """What came of a request; times are monotonic seconds, `gap_s` is between two pieces."""

    streamed: bool
    began: float
    ended: float = 0.0
    first: float = 0.0
    gap_s: float = 0.0
    gap_at: float = 0.0
    last: float = 0.0
    status: int = 0
    text: str = ""
    finish: str = ""
    done: bool = False
    error: str = ""
    retry_after_s: float = 0.0
    is_object: bool = False
    timed_out: bool = False
    end: str = ""
    expected: str = field(default="", repr=False)

    def take(self, piece: str, now: float) -> None:
        """Note a piece of the text."""
        if not self.first:
            self.first = now
        elif now - self.last > self.gap_s:
            self.gap_s, self.gap_at = now - self.last, self.last
        self.last = now
        self.text += piece

    def judge(self, work: Work) -> str:
        """Set and return `end`, one of ENDS."""
        self.end = self._judged(work)
        if self.end in ("wrong", "cut"):
            self.expected = work.text
        else:
            self.text = ""  # an hour of them is a lot
        return self.end

    def _judged(self, work: Work) -> str:
        if self.timed_out:
            return "hung"
        if self.error or self.status != 200:
            if not self.is_object:
                return "cut"
            if self.status == 200:
                # An error behind a text that is no part of the answer does not make it right.
                return "lost" if work.text.startswith(self.text) else "wrong"
            return "refused" if self.status >= 500 else "denied"
        if not self.finish and not self.done:
            return "cut"
        whole = self.text == work.text and self.finish == "length"
        return "ok" if whole and (self.done or not self.streamed) else "wrong"

    def line(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, line: str) -> Seen:
        """Return what `line` said."""
        return cls(**json.loads(line))


def error_of(body: Any) -> str:
    """Return the message of an OpenAI error object, "" for anything else."""
    found = body.get("error") if isinstance(body, dict) else None
    message = found.get("message") if isinstance(found, dict) else None
    return message if isinstance(message, str) else ""


def sure_tokens(own: Sequence[float], likely: Sequence[dict[str, float]]) -> int:
    """Return how many tokens come before the first that another one is too near to.

    `own` are their log probabilities, `likely` those of the likeliest tokens there. Tokens above
    the one that was chosen were forbidden, as an answer's end is.
    """
    for number, (chosen, others) in enumerate(zip(own, likely, strict=True)):
        below = sorted((value for value in others.values() if value <= chosen), reverse=True)
        # The first of them is the chosen one itself.
        if len(below) < 2 or chosen - below[1] < MARGIN:
            return number
    return len(own)
