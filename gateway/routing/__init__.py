"""Which replica gets a request, and what the gateway has learned about each of them.

A core, all of it: no I/O; `now` is in seconds of any clock that does not go back, randomness is
an argument.

    router.py       the replicas, their checks, and what becomes of requests
    choice.py       who gets a request, of those that are there
    strategies.py   how one is chosen of those that can serve
    learned.py      what is known of one replica, from these five:
    prediction.py   time to the first byte and for each token, from its own requests
    prefixes.py     which prompts' beginnings it has seen
    others.py       how many requests of others are there
    breaker.py      whether it is left alone for a while, after faults
    tokens.py       how many tokens a prompt has, from its bytes
    replicas.py     the words of all this
"""

from gateway.routing.breaker import COOL_MOST_S, State
from gateway.routing.prediction import FADE_S
from gateway.routing.replicas import (
    Attempt,
    Fault,
    Need,
    NoneUsable,
    Picked,
    Replica,
    Shown,
    TextOnly,
    UnknownModel,
)
from gateway.routing.router import LATELY_S, Router
from gateway.routing.strategies import STRATEGIES, Candidate

__all__ = [
    "COOL_MOST_S",
    "FADE_S",
    "LATELY_S",
    "STRATEGIES",
    "Attempt",
    "Candidate",
    "Fault",
    "Need",
    "NoneUsable",
    "Picked",
    "Replica",
    "Router",
    "Shown",
    "State",
    "TextOnly",
    "UnknownModel",
]
