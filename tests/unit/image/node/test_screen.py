"""What the screen shows, in each situation that a person can be in."""

from __future__ import annotations

from dataclasses import replace

from image.node.screen import WAITING, View, text

NEW = View("0.1.0", "a", "covey-123456", ["192.168.1.7"])
MEMBER = replace(
    NEW, name="shed-1", member=True, mesh="home", overlay="fd86::1", peers=2, joining=True,
    wireguard="covey0 (kernel)",
)  # fmt: skip


def test_without_a_ticket_it_says_what_to_do() -> None:
    assert text(NEW) == (
        "Covey 0.1.0, slot a: covey-123456\n"
        "  Addresses: 192.168.1.7\n"
        f"  {WAITING[0]}\n  {WAITING[1]}\n"
    )
    assert "is a cable in?" in text(replace(NEW, addresses=()))


def test_a_member() -> None:
    assert text(MEMBER).endswith("  Mesh: home, fd86::1, 2 peers\n  WireGuard: covey0 (kernel)\n")
    assert "1 peer\n" in text(replace(MEMBER, peers=1))


def test_while_the_agent_does_not_answer_its_error_is_shown() -> None:
    error = "Error: the ticket has been used. Ask for another one."
    joining = replace(NEW, joining=True, error=error)
    assert text(joining).endswith(f"  Mesh: joining with the ticket of covey.toml\n  {error}\n")
    gone = replace(MEMBER, mesh="", error=error)
    assert "the agent does not answer yet" in text(gone) and error in text(gone)
    assert error not in text(replace(MEMBER, error=error))


def test_mistakes_and_faults_are_shown_and_no_other_advice() -> None:
    note = "line 2, name: “Shed 1” cannot be a name."
    shown = text(replace(NEW, notes=[note], faults=["The disk: full."]))
    assert f"    {note}\n" in shown and shown.endswith("  The disk: full.\n")
    assert WAITING[0] not in shown
