"""Errors: the wire form keeps kind and words, and every kind has an exit code of its own."""

import pytest

from agent import errors


@pytest.mark.parametrize("kind", list(errors._BY_NAME.values()))
def test_an_error_survives_the_wire(kind: type[errors.CoveyError]) -> None:
    error = kind("it broke.", hint="Mend it.")
    back = errors.from_wire(errors.to_wire(error))
    assert type(back) is kind
    assert back.line() == "it broke. Mend it."


def test_a_packages_own_error_crosses_as_the_kind_that_it_is() -> None:
    class LostError(errors.EngineError):
        """One of a package's own."""

    assert type(errors.from_wire(errors.to_wire(LostError("gone")))) is errors.EngineError


def test_unknown_kinds_become_a_peers_fault() -> None:
    assert isinstance(errors.from_wire({"kind": "SystemExit", "message": "x"}), errors.PeerError)
    assert errors.from_wire({}).message


def test_message_and_hint_join_with_one_full_stop() -> None:
    assert errors.StateError("a file is gone", hint="Find it.").line() == "a file is gone. Find it."
    assert errors.StateError("a file is gone").line() == "a file is gone."


def test_exit_codes_differ_but_for_tickets() -> None:
    codes = [kind.exit_code for kind in errors._BY_NAME.values() if kind is not errors.TicketError]
    assert len(codes) == len(set(codes))
    assert 0 not in codes


def test_what_comes_from_elsewhere_is_shown_as_one_line() -> None:
    assert errors.one_line("a\x1b[2J\n b\tc") == "a [2J b c"
    assert len(errors.one_line("x" * 10_000)) == errors.MAX_TEXT_CHARACTERS
