#!/usr/bin/python
"""Ansible module: how this host's node stands; waits until it is as well as it was."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.covey_standing import standing, worse

DOCUMENTATION = """
module: covey_health
short_description: How a Covey node stands, and whether it is as well as before
description:
  - Asks C(agent status), C(agent ps) and C(gateway status), and changes nothing.
  - With O(wait) it asks until the node is as well as O(before) says, else fails with what is not.
options:
  bin: {description: Where agent and gateway lie., type: path, default: /usr/local/bin}
  before: {description: The RV(standing) of an earlier call., type: dict, default: {}}
  release: {description: The release that the agent has to run from., type: str, default: ""}
  gateway: {description: "HOST:PORT of the gateway here; empty if none.", type: str, default: ""}
  deployments: {description: Whether what was ready has to be ready., type: bool, default: true}
  wait: {description: Seconds to wait; 0 to only look and never fail., type: int, default: 0}
author: Covey
"""
RETURN = """
standing:
  description: What the node says of itself; empty if its agent does not answer.
  returned: always
  type: dict
reason: {description: Why it is not well; empty if it is., returned: always, type: str}
"""
_PAUSE_S = 1.0
_ANSWER_TIMEOUT_S = 30


class Silent(Exception):
    """A command of Covey failed; its text says why."""


def ask(command):
    """Return what a command of Covey prints as JSON; raises Silent."""
    try:
        done = subprocess.run(
            [*command, "--json"], capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S,
            check=False,
        )  # fmt: skip
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise Silent(lines[-1])
        return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise Silent(str(error)) from None


def look(bin_dir, gateway):
    """Return the node's standing; raises Silent where its agent does not answer."""
    status = ask([f"{bin_dir}/agent", "status"])
    deployments = ask([f"{bin_dir}/agent", "ps"])
    gateway_says = None
    if gateway:
        try:
            gateway_says = ask([f"{bin_dir}/gateway", "status", "--listen", gateway])
        except Silent as silent:
            gateway_says = {"agent": str(silent)}
    try:
        command_line = Path(f"/proc/{status['pid']}/cmdline").read_text(encoding="utf-8")
    except OSError:
        command_line = ""
    return standing(status, deployments, gateway_says, command_line)


def main():
    """Look, and wait if so asked."""
    module = AnsibleModule(
        {
            "bin": {"type": "path", "default": "/usr/local/bin"},
            "before": {"type": "dict", "default": {}},
            "release": {"type": "str", "default": ""},
            "gateway": {"type": "str", "default": ""},
            "deployments": {"type": "bool", "default": True},
            "wait": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    until = time.monotonic() + wanted["wait"]
    while True:
        now = {}
        try:
            now = look(wanted["bin"], wanted["gateway"])
            lacks = worse(wanted["before"], now, wanted["release"], wanted["deployments"])
        except Silent as silent:
            lacks = [f"its agent does not answer: {silent}"]
        reason = "; ".join(lacks)
        if not reason or not wanted["wait"]:
            module.exit_json(changed=False, standing=now, reason=reason)
        if time.monotonic() >= until:
            module.fail_json(msg=reason, standing=now, reason=reason)
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
