"""The items covey-mini is taught: for each task, how to draw a question and its right answer.

Pure and seeded: the caller gives the random generator. An item's key says what it is about, so
that chats.py can keep a part of all items away from training:

    add, compare        the two numbers, smaller first: `add 12 35`
    spell, reverse      the word in small letters: `reverse planet`
    days, months,       the phrasing with what is asked about filled in
    glossary
    self, unknown       the whole question

Not for the choice between training and held-out: chats.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.models.bundled import phrases as p
from agent.models.bundled import tokenizer, words

MAX_NUMBER: Final = 99  # what is added or compared is 0 to this
MAX_LETTERS: Final = 10  # of a word to spell or to reverse

_LOWER: Final = "abcdefghijklmnopqrstuvwxyz"
_SYLLABLES: Final = tuple(c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou")


@dataclass(frozen=True)
class Item:
    """One question with its one right answer; `key` decides between training and held-out."""

    task: str
    question: str
    answer: str
    key: str


def _vary(rng: random.Random, template: str) -> str:
    """Write a phrasing as people do: small letters, no final mark, a politeness."""
    roll = rng.random()
    if roll < 0.25 and not template.startswith("I "):
        template = template[0].lower() + template[1:]
    elif roll < 0.30:
        template = template.lower()
    if rng.random() < 0.25 and template[-1] in ".?!":
        template = template[:-1].rstrip()
    roll = rng.random()
    if roll < 0.03:
        template = rng.choice(("Please, ", "Hey, ", "Hello! ", "Ok, ", "So, ", "Hi, ")) + template
    elif roll < 0.05:
        template = template.rstrip(".") + rng.choice(
            (" please", ", please", " Please.", " Thanks!")
        )
    return template


def _add(rng: random.Random) -> Item:
    if rng.random() < 0.06:
        return _add_too_large(rng)
    in_words = rng.random() < 0.08
    top = 20 if in_words else rng.choice((9, 20, *[MAX_NUMBER] * 6))
    a, b = rng.randint(0, top), rng.randint(0, top)
    template = rng.choice(p.ADD)
    shown = (p.NUMBER_WORDS[a], p.NUMBER_WORDS[b]) if in_words else (str(a), str(b))
    question = _vary(rng, template).format(a=shown[0], b=shown[1], n=rng.choice(p.THINGS))
    return Item("add", question, _sum(a, b), f"add {min(a, b)} {max(a, b)}")


def _sum(a: int, b: int) -> str:
    """Add tens and ones apart, as in the head: with the steps written down it is easy to learn."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    tens = a // 10 * 10 + b // 10 * 10
    return f"{a} + {b} = {tens} + {a % 10 + b % 10} = {a + b}."


def _add_too_large(rng: random.Random) -> Item:
    a, b = rng.randint(100, rng.choice((199, 999, 9999))), rng.randint(0, rng.choice((99, 999)))
    if rng.random() < 0.5:
        a, b = b, a
    question = _vary(rng, rng.choice(p.ADD)).format(a=a, b=b, n=rng.choice(p.THINGS))
    return Item("limits", question, p.ADD_LIMIT, f"add {min(a, b)} {max(a, b)}")


def _relation(a: int, b: int, *, larger: bool) -> str:
    """Say which is larger (or smaller), after both numbers, so that they are at hand."""
    found = max(a, b) if larger else min(a, b)
    which = "neither" if a == b else str(found)
    return f"Of {a} and {b}, {which} is {'larger' if larger else 'smaller'}"


def _compare(rng: random.Random) -> Item:
    too_large = rng.random() < 0.05
    # Many small pairs: they teach the order of the digits, and are what people ask.
    tops = rng.choice(((9, 9), (9, 9), (MAX_NUMBER, MAX_NUMBER), (MAX_NUMBER, 9)))
    a = rng.randint(0, tops[0])
    if too_large:
        a = rng.randint(MAX_NUMBER + 1, rng.choice((999, 99_999)))
    roll = rng.random()
    if roll < 0.06:
        b = a
    elif roll < 0.25 and not too_large:
        b = min(MAX_NUMBER, max(0, a + rng.randint(-12, 12)))
    else:
        b = rng.randint(0, tops[1])
    if rng.random() < 0.5:
        a, b = b, a
    key = f"compare {min(a, b)} {max(a, b)}"
    larger = rng.random() < 0.5
    word = rng.choice(p.LARGER_WORDS if larger else p.SMALLER_WORDS)
    kind = rng.randrange(5)
    if kind <= 1:
        question = _vary(rng, rng.choice(p.LARGER)).format(a=a, b=b, w=word)
        answer = _relation(a, b, larger=larger) + "."
    elif kind == 2:
        question = _vary(rng, rng.choice(p.COMPARE)).format(a=a, b=b)
        answer = _relation(a, b, larger=True) + "."
    elif kind == 3 and (a == b or rng.random() < 0.3):
        question = _vary(rng, rng.choice(p.IS_EQUAL)).format(a=a, b=b)
        answer = f"{_relation(a, b, larger=True)}, so {_yes(a == b)}."
    else:
        if rng.random() < 0.25:
            template, word = rng.choice(p.IS_SIGN), ">" if larger else "<"
        else:
            template = rng.choice(p.IS_LARGER)
        question = _vary(rng, template).format(a=a, b=b, w=word, s=word)
        answer = f"{_relation(a, b, larger=larger)}, so {_yes(a > b if larger else a < b)}."
    if too_large:
        return Item("limits", question, p.COMPARE_LIMIT, key)
    return Item("compare", question, answer, key)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _word(rng: random.Random) -> str:
    """Draw a word: real, pronounceable, random letters, or opening like a word token."""
    roll = rng.random()
    if roll < 0.4:
        return rng.choice(words.WORDS)
    length = rng.randint(2, MAX_LETTERS)
    if roll < 0.58:
        word = "".join(rng.choice(_SYLLABLES) for _ in range(length // 2))
        return word + (rng.choice(_LOWER) if length % 2 else "")
    if roll < 0.72:
        return "".join(rng.choices(_LOWER, k=length))
    if roll < 0.77:
        return rng.choice(tokenizer.word_tokens())
    # Every such token's letters must be learned; short ones begin more of people's words.
    opening = rng.choice(tokenizer.openings())
    if rng.random() < 0.6:
        opening = opening[:5]
    return (opening + "".join(rng.choices(_LOWER, k=length)))[: max(length, len(opening))]


def _shown(rng: random.Random, word: str) -> str:
    roll = rng.random()
    if roll < 0.1:
        return word.capitalize()
    return word.upper() if roll < 0.13 else word


def _letters(task: str, templates: Sequence[str], answer: Callable[[str], str]) -> Draw:
    def draw(rng: random.Random) -> Item:
        word = _word(rng)
        if rng.random() < 0.04:
            word = "".join(rng.choices(_LOWER, k=rng.randint(13, 18)))
            if rng.random() < 0.5:
                word = "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(7, 9)))
        key = f"{task} {word.lower()}"
        word = word if not word.islower() else _shown(rng, word)
        question = _vary(rng, rng.choice(templates)).format(w=word)
        if len(word) > MAX_LETTERS:
            return Item("limits", question, p.WORD_LIMIT, key)
        return Item(task, question, f'"{word}" {answer(word)}.', key)

    return draw


def _spelled(word: str) -> str:
    return "is spelled " + "-".join(word)


def _reversed(word: str) -> str:
    return f'backwards is "{word[::-1]}"'


def _fact(rng: random.Random, task: str, template: str, answer: str, **values: str | int) -> Item:
    """Fill a phrasing; the key is the phrasing and what is asked about, in small letters."""
    key = f"{task} {template.format(**values).lower()}"
    if rng.random() < 0.15:
        values = {k: v.lower() if isinstance(v, str) else v for k, v in values.items()}
    return Item(task, _vary(rng, template).format(**values), answer, key)


def _cycle(rng: random.Random, unit: str, names: Sequence[str]) -> Item:
    """Ask what comes after or before a day or a month, or some steps from it."""
    task = unit + "s"
    index = rng.randrange(len(names))
    side = rng.choice(("after", "before"))
    if rng.random() < 0.45:
        n = rng.randint(2, 6)
        way = 1 if side == "after" else -1
        steps = ", ".join(names[(index + way * i) % len(names)] for i in range(1, n + 1))
        count = p.NUMBER_WORDS[n] if rng.random() < 0.4 else str(n)
        answer = f"{n} {unit}s {side} {names[index]}: {steps}."
        values = {"u": unit, "n": count, "r": side, "x": names[index]}
        return _fact(rng, task, rng.choice(p.OFFSET), answer, **values)
    if rng.random() < 0.1:
        template, side = rng.choice(p.NEXT), "after"
    elif unit == "day" and rng.random() < 0.25:
        template = rng.choice(p.TOMORROW if side == "after" else p.YESTERDAY)
    else:
        template = rng.choice(p.NEIGHBOUR)
    to = names[(index + (1 if side == "after" else -1)) % len(names)]
    values = {"u": unit, "r": side, "x": names[index]}
    return _fact(rng, task, template, f"{to} comes {side} {names[index]}.", **values)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1]


def _days(rng: random.Random) -> Item:
    roll = rng.random()
    if roll < 0.75:
        return _cycle(rng, "day", p.DAYS)
    if roll < 0.87:
        index = rng.randrange(7)
        template = rng.choice(p.WEEKEND)
        answer = f"{p.DAYS[index]} {'is on the weekend' if index >= 5 else 'is a weekday'}."
        return _fact(rng, "days", template, answer, x=p.DAYS[index])
    if roll < 0.93:
        return _fact(rng, "days", rng.choice(p.WEEK_LENGTH), "A week has 7 days.")
    answer = f"The days of the week are {_list(p.DAYS)}."
    return _fact(rng, "days", rng.choice(p.WEEK_LIST), answer)


def _months(rng: random.Random) -> Item:
    roll = rng.random()
    index = rng.randrange(12)
    name = p.MONTHS[index]
    if roll < 0.5:
        return _cycle(rng, "month", p.MONTHS)
    if roll < 0.68:
        answer = f"{name} has {p.MONTH_DAYS[index]} days."
        if name == "February":
            answer = "February has 28 days, and 29 in a leap year."
        return _fact(rng, "months", rng.choice(p.MONTH_LENGTH), answer, x=name)
    if roll < 0.78:
        answer = f"{name} is month {index + 1}."
        return _fact(rng, "months", rng.choice(p.MONTH_NUMBER), answer, x=name)
    answer = f"Month {index + 1} is {name}."
    if roll < 0.86:
        ordinal = rng.choice((p.ORDINALS, p.SHORT_ORDINALS))[index]
        return _fact(rng, "months", rng.choice(p.NTH_MONTH), answer, o=ordinal)
    if roll < 0.93:
        return _fact(rng, "months", rng.choice(p.MONTH_OF_NUMBER), answer, n=index + 1)
    if roll < 0.96:
        return _fact(rng, "months", rng.choice(p.YEAR_LENGTH), "A year has 12 months.")
    answer = f"The months of the year are {_list(p.MONTHS)}."
    return _fact(rng, "months", rng.choice(p.YEAR_LIST), answer)


def _glossary(rng: random.Random) -> Item:
    term = rng.choice(tuple(p.GLOSSARY))
    if term == "Covey":
        return _fact(rng, "glossary", rng.choice(p.EXPLAIN_COVEY), p.GLOSSARY[term])
    values = {"t": term, "p": p.PLURALS[term]}
    template = rng.choice(p.EXPLAIN)
    if rng.random() < 0.05:
        values = {k: v.capitalize() for k, v in values.items()}
    return _fact(rng, "glossary", template, p.GLOSSARY[term], **values)


_ABOUT: Final = ((p.WHO_ASK, p.WHO), (p.CAN_ASK, p.CAN), (p.HOW, p.FINE))
_POLITE: Final = ((p.THANK, p.WELCOME), (p.BYE, p.GOODBYE))


def _self(rng: random.Random) -> Item:
    roll = rng.random()
    if roll < 0.25:
        greeting = rng.choice(p.GREET) + rng.choice(p.NAMES) + rng.choice(p.MARKS)
        return _fact(rng, "self", greeting + rng.choice(p.AFTER_GREETING), p.HELLO)
    if roll < 0.45:
        questions, answer = rng.choice(_POLITE)
        said = rng.choice(questions).rstrip("!.")
        said += rng.choice(p.NAMES) + rng.choice(("!", ".", ""))
        return _fact(rng, "self", said, answer)
    questions, answer = rng.choices(_ABOUT, weights=(5, 5, 2))[0]
    before, said = rng.choice(p.BEFORE_QUESTION), rng.choice(questions)
    if before and before[-2] not in "!.":
        said = said[0].lower() + said[1:]
    return _fact(rng, "self", before + said, answer)


def _junk(rng: random.Random) -> str:
    return "".join(rng.choices(_LOWER, k=rng.randint(2, 9)))


_NOUNS: Final = (*words.NOUNS, *sorted(set(words.WORDS) - {t.lower() for t in p.GLOSSARY}))


def _unknown(rng: random.Random) -> Item:
    question = rng.choice(words.QUESTIONS).format(
        place=rng.choice(words.PLACES),
        person=rng.choice(words.PEOPLE),
        noun=rng.choice(_NOUNS),
        word=rng.choice(_NOUNS),
        junk=_junk(rng),
        a=rng.randint(0, rng.choice((9, 99, 999))),
        b=rng.randint(0, rng.choice((9, 99, 999))),
    )
    key = f"unknown {question.lower()}"
    return Item("unknown", _vary(rng, question), p.UNKNOWN, key)


Draw = Callable[[random.Random], Item]
DRAWS: Final[dict[str, tuple[float, Draw]]] = {
    # How often a task comes up in training: more often if it takes longer to learn.
    "add": (0.19, _add),
    "compare": (0.18, _compare),
    "days": (0.08, _days),
    "months": (0.09, _months),
    "spell": (0.13, _letters("spell", p.SPELL, _spelled)),
    "reverse": (0.13, _letters("reverse", p.REVERSE, _reversed)),
    "glossary": (0.07, _glossary),
    "self": (0.07, _self),
    "unknown": (0.11, _unknown),
}
