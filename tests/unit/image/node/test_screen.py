"""What the screen shows, in each situation that a person can be in."""

from __future__ import annotations

from dataclasses import replace

from image.node.screen import WAITING, View, setup, text

NEW = View("0.1.0", "a", "covey-123456", ["192.168.1.7"])
MEMBER = replace(
    NEW, name="shed-1", member=True, mesh="home", overlay="fd86::1", peers=2, joining=True,
    roles=["worker", "relay"], wireguard="covey0 (kernel)",
)  # fmt: skip


def test_without_a_ticket_it_says_what_to_do() -> None:
    assert text(NEW) == (
        "Covey 0.1.0, slot a: covey-123456\n"
        "  Addresses: 192.168.1.7\n"
        f"  {WAITING[0]}\n  {WAITING[1]}\n"
    )
    assert "is a cable in?" in text(replace(NEW, addresses=()))


def test_a_member() -> None:
    assert text(MEMBER).endswith(
        "  Mesh: home, fd86::1, 2 peers\n  Role: worker, relay\n  WireGuard: covey0 (kernel)\n"
    )
    assert "1 peer\n" in text(replace(MEMBER, peers=1))


def test_how_the_machine_is_comes_before_its_mesh() -> None:
    shown = text(replace(MEMBER, conditions=["Temperature: 54 °C", "Wifi: connected"]))
    assert "7\n  Temperature: 54 °C\n  Wifi: connected\n  Mesh: home" in shown


def test_the_lan_is_told_of_a_machine_that_is_not_set_up() -> None:
    assert setup(NEW) == "waiting for a ticket\n"
    ended = replace(NEW, joining=True, error="Error: the ticket has been used.")
    assert setup(ended) == "joining\nError: the ticket has been used.\n"
    # A member is silent, but for what is wrong in its file.
    assert setup(replace(MEMBER, faults=["No relay: open a port."])) == ""
    note = "line 2, name: “Shed 1” cannot be a name."
    assert setup(replace(MEMBER, notes=[note])) == f"covey.toml has mistakes\n{note}\n"


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
