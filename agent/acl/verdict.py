"""What the policy says of one packet, and why, in a sentence. A core.

    the node itself   reaches itself: its own packets never leave it
    the rules         in their order; the first that matches decides
    Covey's ports     open to members
    everything else   closed

`ruleset.py` says the same to the kernel; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from agent.acl.policy import Policy, Rule, Selector, Subject
from agent.acl.ports import CoveyPorts, Protocol, parse_port
from agent.errors import UsageError

# A question about everybody in a mesh of 1,000 (design §5's largest) is answered; its square not.
MAX_PAIRS = 1000
# The end of a node id that names it: eight characters are what tables show.
_ID_CHARACTERS = 8


@dataclass(frozen=True)
class Verdict:
    """Whether it may, by which rule (its number, "covey", "default" or "self"), and a sentence."""

    allowed: bool
    rule: int | Literal["covey", "default", "self"]
    line: int | None
    sentence: str


def explain(
    policy: Policy, covey: CoveyPorts, src: Subject, dst: Subject, protocol: Protocol, port: int
) -> Verdict:
    """Say whether member `src` may open a connection to a port of member `dst` (ICMP: 0)."""
    if src.node == dst.node:
        return Verdict(True, "self", None, f"{src.name} reaches itself: that is never filtered.")
    what = "with ping" if protocol == "icmp" else f"on {protocol} {port}"
    for rule in policy.rules:
        if rule.is_to(dst) and rule.is_from(src) and rule.holds(protocol, port):
            allowed = rule.action == "allow"
            verb, does = ("may", "allows") if allowed else ("may not", "denies")
            sentence = (
                f"{src.name} {verb} reach {dst.name} {what}: {_place(policy, rule)} {does} it."
            )
            return Verdict(allowed, rule.number, rule.line, sentence)
    service = covey.find(protocol, port)
    if service is not None:
        sentence = f"{src.name} may reach {dst.name} {what}: Covey opens {service.what} to members."
        return Verdict(True, "covey", None, sentence)
    reason = "no rule allows it, and Covey serves nothing there"
    return Verdict(False, "default", None, f"{src.name} may not reach {dst.name} {what}: {reason}.")


def _place(policy: Policy, rule: Rule) -> str:
    where = PurePath(policy.file).name
    where += "" if rule.line is None else f" line {rule.line}"
    return f"rule {rule.number} ({where})"


def answer(
    policy: Policy,
    covey: CoveyPorts,
    members: Sequence[Subject],
    own: str,
    question: tuple[str, str, str],
) -> dict[str, Any]:
    """Answer `agent acl check SRC DST PORT`; a tag or role stands for all members who have it.

    `own` is this node's id. Returns allowed (for every pair), the sentence, the file, whether this
    node enforces it ("here"), and the verdict of each pair. Raises UsageError.
    """
    protocol, port = parse_port(question[2])
    sources, destinations = (_members(members, word) for word in question[:2])
    pairs = [(s, d) for s in sources for d in destinations if s.node != d.node]
    if not pairs:
        pairs = [(sources[0], destinations[0])]
    if len(pairs) > MAX_PAIRS:
        raise UsageError(
            f"{question[0]} and {question[1]} are {len(pairs)} pairs of members, too many to list",
            hint="Name one of the two members.",
        )
    verdicts = [(s, d, explain(policy, covey, s, d, protocol, port)) for s, d in pairs]
    allowed = sum(verdict.allowed for _, _, verdict in verdicts)
    return {
        "allowed": allowed == len(verdicts),
        "sentence": verdicts[0][2].sentence
        if len(verdicts) == 1
        else f"{allowed} of {len(verdicts)} pairs of {question[0]} and {question[1]} may.",
        "file": policy.file,
        "here": all(destination.node == own for _, destination, _ in verdicts),
        "verdicts": [
            {
                "src": source.name,
                "dst": destination.name,
                "allowed": verdict.allowed,
                "rule": verdict.rule,
                "line": verdict.line,
                "sentence": verdict.sentence,
            }
            for source, destination, verdict in verdicts
        ],
    }


def _members(members: Sequence[Subject], word: str) -> list[Subject]:
    """Return the members that a word names: a name, the end of a node id, or as in a rule."""
    if ":" in word or word == "*":
        selector = Selector.parse(word)
        found = [member for member in members if selector.matches(member)]
        if not found:
            raise UsageError(f"no member is {word}", hint="`agent members` lists them.")
        return found
    found = [member for member in members if member.name == word]
    if not found and len(word) >= _ID_CHARACTERS:
        found = [member for member in members if member.node.endswith(word)]
    if not found:
        raise UsageError(
            f"no member is called {word[:80]!r}",
            hint=f"Write a name, the last {_ID_CHARACTERS} characters of a node id, or tag:…",
        )
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} members are called {word[:80]!r}", hint="Write a whole node id."
        )
    return found
