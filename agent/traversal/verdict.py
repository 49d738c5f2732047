"""What a node's network lets through, in a sentence: `agent netcheck`. A core."""

from __future__ import annotations

from agent.paths.messages import NatKind

_SENTENCES = {
    NatKind.NONE: "This node has an address of its own: every member that has UDP reaches it.",
    NatKind.EASY: "This node is behind an easy NAT: others and it meet directly, those behind a "
    "hard NAT after some seconds of trying.",
    NatKind.HARD: "This node is behind a hard NAT, which shows each peer another port: it meets "
    "those behind easy NATs after some seconds of trying, those behind hard ones by a relay.",
    NatKind.BLOCKED: "No UDP gets out of here: everything goes by a relay's WebSocket. Let UDP "
    "{port} out to be faster.",
    NatKind.UNKNOWN: "No member could say where it sees this node: paths within the same network "
    "work, those through a NAT cannot be judged.",
}


_SILENT = (
    "Nothing gets out of here, neither UDP nor TCP, or no member is there: this node reaches "
    "nobody, and nobody reaches it. Let UDP {port} and TCP to the members' control port through "
    "the firewall, and see whether the cable and the default route are right."
)


def without_engine(reason: str) -> str:
    """Return what follows where paths are not looked for at all."""
    return (
        f"This node looks for no paths: {reason}. It reaches members that are at the addresses of "
        "their records, and members behind routers do not reach it."
    )


def sentence(
    nat: NatKind, *, port: int, mapped: bool, helpers: int, relays: int, linked: bool = True
) -> str:
    """Return what follows from the NAT's kind, a mapped port, and who is there to help.

    `linked`: a control connection to some member is open.
    """
    if nat is NatKind.BLOCKED and not linked:
        return _SILENT.format(port=port)
    if nat is NatKind.UNKNOWN and not helpers:
        return (
            "No member that others reach from outside is known yet, so nothing can be said of "
            "NATs. A mesh over the internet needs one machine with a public address or an open "
            "port."
        )
    if mapped and nat in (NatKind.EASY, NatKind.HARD):
        return "The router forwards a port to this node: every member that has UDP reaches it."
    found = _SENTENCES[nat].format(port=port)
    if not relays and nat in (NatKind.HARD, NatKind.BLOCKED):
        found += " No relay is known: give a member with a public address the role relay."
    return found
