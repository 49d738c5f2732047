# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Calls of a host's `agent`, for modules: JSON in, or the line that the agent says to people."""

from __future__ import annotations

import json
import subprocess


class Refused(Exception):
    """The agent could not do it; the text is what it said."""


def ask(agent: str, *words: str, timeout_s: float = 120.0) -> dict:
    """Return what `agent WORDS --json` prints; raises Refused."""
    try:
        said = subprocess.run(
            [agent, *words, "--json"], capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip
    except OSError as error:
        raise Refused("%s cannot be started: %s" % (agent, error.strerror))
    except subprocess.TimeoutExpired:
        raise Refused("`agent %s` did not end within %d s" % (words[0], timeout_s))
    if said.returncode:
        lines = said.stderr.strip().splitlines()
        raise Refused(lines[-1] if lines else "`agent %s` ended with %d" % (words[0], said.returncode))
    try:
        return json.loads(said.stdout)
    except ValueError:
        raise Refused("`agent %s` did not answer with JSON" % words[0])
