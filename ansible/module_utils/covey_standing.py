"""How a node stands, as its own commands tell it, and whether that is as well as before. A core.

`standing` makes the small record that a playbook keeps; `worse` compares two of them. Used by the
module covey_health, so it runs on hosts, on whatever Python they have (3.8 and later).
"""

from __future__ import annotations

import re

# In a large mesh somebody always comes and goes: so much of it may be away that was there before.
_MAY_BE_AWAY = 0.1
_RELEASE = re.compile(r"/releases/([^/\s\0]+)/")


def standing(status, deployments, gateway, command_line):
    """Return the record of what `agent status`, `agent ps` and `gateway status` said as JSON.

    `gateway` is None where none runs or is to run; `command_line` is that of the agent's process,
    which tells the release that it was started from ("" where that cannot be seen).
    """
    found = _RELEASE.search(command_line)
    return {
        "name": status["name"],
        "node": status["node"],
        "release": found.group(1) if found else "",
        "draining": status["draining"],
        "control": status["parts"]["control"],
        "alive": status["peers"]["alive"],
        "known": status["peers"]["known"],
        "errors": {i["code"]: i["text"] for i in status["health"] if i["severity"] == "error"},
        "deployments": {d["key"]: [d["phase"], d["progress"]] for d in deployments["deployments"]},
        "gateway": None if gateway is None else gateway["agent"],
    }


def worse(before, now, release="", deployments=True):
    """Return in sentences what is not as well in `now` as it was in `before`; nothing: it is.

    `before` may be empty, then only what is wrong by itself counts. With `release` the agent has to
    run from that one. Without `deployments` it does not matter whether these are ready again.
    """
    found = []
    if release and now["release"] != release:
        found.append(f"the agent runs from release {now['release'] or 'unknown'}, not {release}")
    if now["control"] == "down":
        found.append("its control plane is down")
    found += [
        f"{code}: {text}"
        for code, text in now["errors"].items()
        if code not in before.get("errors", {})
    ]
    were = min(before.get("alive", 0), now["known"])
    if now["alive"] < were - int(were * _MAY_BE_AWAY):
        found.append(f"{now['alive']} members answer it, {were} did before")
    if before.get("gateway") == "ok" and now["gateway"] != "ok":
        found.append(f"its gateway: {now['gateway'] or 'does not answer'}")
    if deployments:
        for key, (phase, _) in before.get("deployments", {}).items():
            phase_now, progress = now["deployments"].get(key, ["ready", ""])
            if phase == "ready" and phase_now != "ready":
                found.append(f"deployment {key} is {phase_now}: {progress}")
    return found
