"""The sentence that tells a person why a peer is not reached directly. A core."""

from __future__ import annotations

from agent.paths.book import Book
from agent.paths.chance import Chance
from agent.paths.messages import NatKind
from agent.paths.own import Own
from agent.paths.talk import Talk

# After this long a try that is under way is not the reason any more.
_TRYING_S = 4.0


def why_not_direct(
    own: Own,
    book: Book,
    chance: Chance,
    talk: Talk,
    lost_at: float | None,
    since: float,
    now: float,
) -> str:
    """Return one sentence; `lost_at`: when the last direct path went silent."""
    if own.nat is NatKind.BLOCKED:
        return "This network lets no UDP through."
    if talk.heard_epoch == 0:
        return "The peer has not answered our signals yet."
    if book.nat is NatKind.BLOCKED:
        return "The peer's network lets no UDP through."
    if lost_at is not None and now - lost_at < 60:
        return f"The direct path went silent {now - lost_at:.0f} s ago; it is being tried again."
    hard = (own.nat is NatKind.HARD, book.nat is NatKind.HARD)
    if all(hard):
        return "Both sides are behind NATs that use another port for each destination."
    failed = chance.tried - chance.trying
    if (chance.trying and not failed) or now - since < _TRYING_S:
        return "A direct path is being tried."
    if any(hard):
        side = "This node" if hard[0] else "The peer"
        tries = f"; {failed} attempts to guess it failed" if failed else ""
        return f"{side} is behind a NAT that uses another port for each destination{tries}."
    if not book.candidates:
        return "The peer knows no address of its own yet."
    if not any(path.relay is None for path in book.all()):
        return "None of the peer's addresses can be reached from this network."
    return "None of the peer's addresses answers: a firewall on either side may drop our probes."
