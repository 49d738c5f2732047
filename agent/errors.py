"""Every error that a person can meet, in one tree, and the one place that gives them exit codes.

CoveyError                       exit  HTTP
├── UsageError                      2   400   what was asked for makes no sense
├── ConfigError                     3   400   a configuration value or file
├── StateError                      4   500   something stored: key, certificate, lock, cache
├── EnvironmentFault                5   500   this machine: capability, program, port, device
├── MembershipError                 6   403   tickets, certificates, invites
│   └── TicketError                 6   403   this ticket cannot be used, and why
├── PeerError                       7   502   another node's fault: no answer, nonsense, refusal
├── ModelError                      8   400   a model file: damaged, unknown, cannot be cut
├── EngineError                     9   502   llama.cpp, a stage or a ring
└── NotRunning                     10   503   the agent (or what it should serve) is not up

A message is one line: what happened, to what. `hint` says what to do next, as a sentence. Both may
repeat what stands in a file or came from a peer, so what no terminal should get is taken out here.
"""

from __future__ import annotations


class CoveyError(Exception):
    """A fault with a message and a hint that are fit for a person; itself: our own mistake."""

    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = printable(message)
        self.hint = printable(hint)
        super().__init__(self.message)

    def line(self) -> str:
        """Return message and hint as the one line that the command line prints."""
        return f"{self.message.rstrip('.')}. {self.hint}".strip()


class UsageError(CoveyError):
    """What was asked for makes no sense."""

    exit_code = 2
    http_status = 400


class ConfigError(CoveyError):
    """A configuration value or file is wrong; the message names the key and where it was set."""

    exit_code = 3
    http_status = 400


class StateError(CoveyError):
    """Something stored is missing, damaged, open to others, or in use."""

    exit_code = 4


class EnvironmentFault(CoveyError):
    """This machine lacks something: a capability, a program, a free port, a device."""

    exit_code = 5


class MembershipError(CoveyError):
    """A certificate, an invite or a role does not allow this."""

    exit_code = 6
    http_status = 403


class TicketError(MembershipError):
    """This ticket cannot be used; the message says why."""


class PeerError(CoveyError):
    """Another node did not answer, refused, or sent what it must not."""

    exit_code = 7
    http_status = 502


class ModelError(CoveyError):
    """A model file is damaged, unknown, or cannot be cut."""

    exit_code = 8
    http_status = 400


class EngineError(CoveyError):
    """llama.cpp, a stage or a ring failed."""

    exit_code = 9
    http_status = 502


class NotRunning(CoveyError):
    """The agent, or what it should serve, is not up."""

    exit_code = 10
    http_status = 503


# A person is shown one line of what comes from elsewhere; nobody reads more than this.
MAX_TEXT_CHARACTERS = 400


def printable(text: str) -> str:
    """Return `text` with a space for each character that could command a terminal, or break it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text)


def one_line(text: str) -> str:
    """Return `text` as one printable line: what comes from a peer may hold anything."""
    clean = " ".join(printable(text[: 2 * MAX_TEXT_CHARACTERS]).split())
    if len(clean) <= MAX_TEXT_CHARACTERS:
        return clean
    return clean[: MAX_TEXT_CHARACTERS - 1] + "…"


_BY_NAME: dict[str, type[CoveyError]] = {
    kind.__name__: kind
    for kind in (CoveyError, UsageError, ConfigError, StateError, EnvironmentFault, MembershipError,
                 TicketError, PeerError, ModelError, EngineError, NotRunning)
}  # fmt: skip


def to_wire(error: CoveyError) -> dict[str, str]:
    """Return the error as the mapping that crosses the local API and the control plane.

    A package's own subclass crosses as the kind of the tree above that it is.
    """
    kind = next(kind for kind in type(error).__mro__ if kind.__name__ in _BY_NAME)
    return {"kind": kind.__name__, "message": error.message, "hint": error.hint}


def from_wire(fields: dict[str, str]) -> CoveyError:
    """Return the error that `to_wire` described; an unknown kind becomes a PeerError."""
    kind = _BY_NAME.get(fields.get("kind", ""), PeerError)
    return kind(fields.get("message", "no reason was given"), hint=fields.get("hint", ""))
