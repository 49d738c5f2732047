#!/usr/bin/python
# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Ansible module: have the mesh run a model, or not.

It says so to the mesh, or looks how far it is. It does not wait; the action covey_follow calls it
until it is done. What a deployment was asked to be cannot be changed while it runs: one that shall
be otherwise is ended, and made again.
"""

from __future__ import annotations

import json

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.covey_agent import Away, Refused, ask

DOCUMENTATION = r"""
module: covey_deployment
short_description: Have the mesh run a model
options:
  agent: {description: The agent's program., type: path, required: true}
  name: {description: What clients call it., type: str, required: true}
  state: {description: present or absent., type: str, default: present}
  model: {description: "covey-mini, a stored model or a path.", type: str}
  nodes: {description: Over exactly so many nodes., type: int}
  min_nodes: {description: Over at least so many., type: int, default: 1}
  rings: {description: So many rings or auto., type: str, default: "1"}
  objective: {description: What it shall be good for., type: str, default: auto}
  tags: {description: Only on nodes with one of these., type: list, elements: str, default: []}
  not_tags: {description: Never on nodes with one of these., type: list, elements: str, default: []}
  context: {description: Tokens., type: int, default: 0}
  engine: {description: ring or rpc., type: str, default: ring}
  draft: {description: A draft model., type: str, default: ""}
  watch: {description: Whether to look alone., type: bool, default: false}
"""

RETURN = r"""
done: {description: Whether it answers (or has ended)., type: bool, returned: success}
progress: {description: How far it is., type: str, returned: success}
waiting: {description: Whether it waits for what may never come., type: bool, returned: success}
"""


def wanted(asked: dict) -> dict:
    """Return what was asked, as far as it can be compared with what is there."""
    said = {
        "model": asked["model"], "nodes": asked["nodes"], "min_nodes": asked["min_nodes"],
        "objective": asked["objective"], "tags": asked["tags"], "not_tags": asked["not_tags"],
        "context": asked["context"], "engine": asked["engine"], "draft": asked["draft"],
    }  # fmt: skip
    # `auto` was settled when it was deployed, and nothing tells by what.
    return said if asked["rings"] == "auto" else {**said, "rings": int(asked["rings"])}


def there(ring: dict, asked: dict, ids: dict[str, str]) -> dict:
    """Return the same of a deployment that is there; `ids` are those of stored models, by name."""
    wish = ring["wish"]
    model = ring["model"]
    # Copies of one model may have other names at other members.
    if ring["model_id"] and ids.get(asked["model"] or "") == ring["model_id"]:
        model = asked["model"]
    said = {
        "model": model, "nodes": wish["nodes"], "min_nodes": wish["least"],
        "objective": wish["objective"], "tags": wish["only"], "not_tags": wish["never"],
        "context": wish["context"], "engine": ring["engine"], "draft": ring["draft"],
    }  # fmt: skip
    return said if asked["rings"] == "auto" else {**said, "rings": ring["rings"]}


def words(asked: dict) -> list[str]:
    """Return the words of `agent deploy`."""
    said = ["deploy", asked["model"], "--name", asked["name"], "--no-wait"]
    said += ["--min-nodes", str(asked["min_nodes"]), "--rings", asked["rings"]]
    said += ["--objective", asked["objective"], "--engine", asked["engine"]]
    for name in ("nodes", "context"):
        if asked[name]:
            said += ["--" + name, str(asked[name])]
    for name, flag in (("tags", "--tag"), ("not_tags", "--not-tag")):
        for tag in asked[name]:
            said += [flag, tag]
    return said + (["--draft", asked["draft"]] if asked["draft"] else [])


def look(rings: list[dict]) -> dict:
    """Return how far the rings of a deployment are; raises Refused for one that has failed."""
    for ring in rings:
        if ring["phase"] == "failed":
            error = ring["error"] or {}
            raise Refused(
                " ".join(error.get(one, "") for one in ("message", "hint")) or "it has failed"
            )
    behind = [ring for ring in rings if ring["phase"] != "ready"]
    return {
        "done": not behind,
        "progress": "; ".join(ring["progress"] or ring["phase"] for ring in behind) or "it answers",
        "waiting": any(ring["phase"] == "waiting" for ring in behind),
    }


def lines(said: dict | None) -> str:
    """Return it as --diff shows it."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in (said or {}).items())


def main() -> None:
    """Deploy or undeploy, or look how far it is."""
    module = AnsibleModule(
        argument_spec={
            "agent": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "model": {"type": "str"},
            "nodes": {"type": "int"},
            "min_nodes": {"type": "int", "default": 1},
            "rings": {"type": "str", "default": "1"},
            "objective": {
                "type": "str", "default": "auto", "choices": ["auto", "latency", "throughput"],
            },
            "tags": {"type": "list", "elements": "str", "default": []},
            "not_tags": {"type": "list", "elements": "str", "default": []},
            "context": {"type": "int", "default": 0},
            "engine": {"type": "str", "default": "ring", "choices": ["ring", "rpc"]},
            "draft": {"type": "str", "default": ""},
            "watch": {"type": "bool", "default": False},
        },
        required_if=[("state", "present", ["model"])],
        supports_check_mode=True,
    )  # fmt: skip
    asked = module.params
    if asked["rings"] != "auto" and not asked["rings"].isdecimal():
        module.fail_json(msg="The deployment {}: rings is a number or auto.".format(asked["name"]))
    try:
        outcome = step(module, asked)
    except Refused as refusal:
        if module.check_mode and isinstance(refusal, Away):
            changed = asked["state"] == "present"
            words = "it would be told to the mesh" if changed else "it does not run"
            module.exit_json(changed=changed, done=True, progress=words, waiting=False)
        module.fail_json(msg="The deployment {}: {}".format(asked["name"], refusal))
    module.exit_json(**outcome)


def step(module: AnsibleModule, asked: dict) -> dict:
    """Do what is to be done now; raises Refused."""
    agent, name = asked["agent"], asked["name"]

    def rings() -> list[dict]:
        return [one for one in ask(agent, "ps")["deployments"] if one["name"] == name]

    now = rings()
    if asked["state"] == "absent":
        if now and not asked["watch"] and not module.check_mode:
            ask(agent, "undeploy", name)
        gone = not now or module.check_mode
        diff = {"before": f"{name} runs\n" if now else "", "after": ""}
        return {
            "changed": bool(now),
            "done": gone,
            "progress": "it ends",
            "waiting": False,
            "diff": diff,
        }
    ids = {one["name"]: one["id"] for one in ask(agent, "models")["models"]}
    want, have = wanted(asked), there(now[0], asked, ids) if now else None
    if have == want or asked["watch"]:
        if not now:
            raise Refused("it was undeployed meanwhile")
        return {"changed": False, **look(now)}
    diff = {
        "before_header": name,
        "after_header": name,
        "before": lines(have),
        "after": lines(want),
    }
    if not module.check_mode:
        if now:
            ask(agent, "undeploy", name)
        # Several rings are planned first, for which links are measured.
        ask(agent, *words(asked), timeout_s=180.0)
    outcome = {"changed": True, "done": module.check_mode, "progress": "it is told to the mesh"}
    return {**outcome, "waiting": False, "diff": diff}


if __name__ == "__main__":
    main()
