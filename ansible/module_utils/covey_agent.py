# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Calls of a host's `agent`, for modules: JSON in, or the line that the agent says to people."""

from __future__ import annotations

import json
import subprocess

# agent.errors.NotRunning
NOT_RUNNING = 10


class Refused(Exception):
    """The agent could not do it; the text is what it said."""


class Away(Refused):
    """No agent runs, or none is installed: in check mode it may be there by then."""


def ask(agent: str, *words: str, timeout_s: float = 120.0) -> dict:
    """Return what `agent WORDS --json` prints; raises Refused."""
    try:
        said = subprocess.run(
            [agent, *words, "--json"], capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip
    except OSError as error:
        raise Away(f"{agent} cannot be started: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise Refused(f"`agent {words[0]}` did not end within {timeout_s:.0f} s") from None
    if said.returncode:
        lines = said.stderr.strip().splitlines()
        kind = Away if said.returncode == NOT_RUNNING else Refused
        raise kind(lines[-1] if lines else f"`agent {words[0]}` ended with {said.returncode}")
    try:
        return json.loads(said.stdout)
    except ValueError:
        raise Refused(f"`agent {words[0]}` did not answer with JSON") from None
