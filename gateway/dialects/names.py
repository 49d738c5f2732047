"""The names of models, as clients write them.

A core, used by the dialects whose requests may name a model in another way than replicas do, or
not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from gateway.dialects.port import Refused

# The names of the models that there are now, from a snapshot that any thread may read.
Known = Callable[[], Collection[str]]

_LATEST = ":latest"


def resolve(asked: str, known: Collection[str]) -> str:
    """Return the known model that a client means, or what it asked for where there is none.

    To Ollama's clients a name without a tag has the tag `latest`; some add it, or leave it out.
    """
    without = asked.removesuffix(_LATEST)
    for name in (asked, without, without + _LATEST):
        if name in known:
            return name
    return asked


def only(known: Collection[str]) -> str:
    """Return the one model that there is, for a request that names none; raises Refused."""
    if not known:
        raise Refused(503, "The request names no model, and there is none yet")
    if len(known) == 1:
        return next(iter(known))
    named = ", ".join(sorted(known))
    raise Refused(400, f"The request names no model, and there are {len(known)}: {named}")
