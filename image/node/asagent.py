"""On the appliance root's `agent` commands run as the agent does: `/usr/bin/agent` calls `settle`.

The agent is no root there, and what `agent mesh create` wrote would be root's and closed to it. An
update and a reset are root's own: they ask the machine, not the agent. A shell.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence

_AGENT = "covey"
_ROOTS = frozenset({"update", "factory-reset"})
# As /usr/lib/covey/agent has it.
_HOME = "/var/lib/covey"
_PLACES = {"COVEY_NODE_STATE_DIR": _HOME, "COVEY_NODE_SOCKET": "/run/covey-agent/agent.sock"}


def is_the_agents(arguments: Sequence[str]) -> bool:
    """Say whether a command is one of the agent, and not of the machine."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    return command not in _ROOTS


def settle(arguments: Sequence[str]) -> None:
    """Become the agent's user, for a command of the agent's; only root can."""
    if not is_the_agents(arguments):
        return
    user = pwd.getpwnam(_AGENT)
    os.environ["HOME"] = _HOME
    for name, value in _PLACES.items():
        os.environ.setdefault(name, value)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
