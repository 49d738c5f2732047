"""What commands end with: every exit code of `agent` and `gateway`, and what it means. A core.

`agent.errors` gives each error its code; here is the table that people and manual pages have, with
the codes that single commands have besides. docs/commands.md holds the same, and a test both to it.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
# Of `agent doctor` something is an error, of `agent ping` nobody answered: what such programs say.
FAULTY: Final = 1
DENIED: Final = 11
DAMAGED: Final = 12
NO_GO: Final = 13
UNDECIDED: Final = 14
# What shells report for those that a signal ended: 128 + SIGINT, SIGPIPE, SIGTERM.
INTERRUPTED: Final = 130
NO_READER: Final = 141
TERMINATED: Final = 143

# For every command, by code.
COMMON: Final = {
    OK: "It is done.",
    1: "A mistake of Covey's own.",
    2: "What was asked for makes no sense: a flag, an argument, a name.",
    3: "A value of the configuration, or its file.",
    4: "Something stored: a key, a certificate, a lock, a file that is in the way.",
    5: "This machine: a capability, a program, a port, a device, a file that cannot be read.",
    6: "Tickets, certificates, invites, roles.",
    7: "Another node or server: no answer, nonsense, a refusal.",
    8: "A model file: damaged, unknown, one that cannot be cut.",
    9: "llama.cpp, a stage or a ring.",
    10: "The agent, the gateway, or what it should serve is not up.",
    INTERRUPTED: "Ctrl-C.",
    NO_READER: "Whoever read the output left.",
    TERMINATED: "SIGTERM or SIGHUP, where a command tidies up before it ends.",
}

# Of single commands besides, by the command's words.
SPECIAL: Final[dict[str, dict[int, str]]] = {
    "agent acl check": {DENIED: "It is denied."},
    "agent bench": {
        NO_GO: "No go: the mesh is not faster by the threshold.",
        UNDECIDED: "Not decided: the rounds differ more than what there is to tell.",
    },
    "agent doctor": {FAULTY: "Something is an error."},
    "agent ping": {FAULTY: "No answer, or with --until-direct no direct path in time."},
    "agent verify": {DAMAGED: "Something is damaged, and was not repaired."},
}


def of(command: str) -> dict[int, str]:
    """Return all codes of a command (`agent ping`), in order."""
    return dict(sorted((COMMON | SPECIAL.get(command, {})).items()))
