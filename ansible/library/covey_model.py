#!/usr/bin/python
# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Ansible module: have a model in a host's store. It begins that, or looks how far it is.

It does not wait; the action covey_follow calls it until it is done.
"""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.covey_agent import Away, Refused, ask

DOCUMENTATION = r"""
module: covey_model
short_description: Pull a model into a host's store
options:
  agent: {description: The agent's program., type: path, required: true}
  name: {description: What the model is called there., type: str, required: true}
  source: {description: "A path, a URL, hf:… or a member's.", type: str, required: true}
  sha256: {description: What its SHA-256 must be., type: str}
  pin: {description: Whether it stays when room is needed., type: bool}
  anywhere: {description: Whether it may be at any member instead., type: bool, default: false}
  watch: {description: Whether to look alone., type: bool, default: false}
"""

RETURN = r"""
done: {description: Whether it is there., type: bool, returned: success}
progress: {description: How far it is., type: str, returned: success}
"""


def standing(models: list[dict], asked: dict) -> str:
    """Return how it stands: whole, coming, absent, or unpinned (whole, but not pinned as asked)."""
    for model in models:
        if model["name"] != asked["name"]:
            continue
        if not model["here"]:
            return "whole" if asked["anywhere"] else "absent"
        if model["phase"] != "whole":
            return "coming"
        if asked["sha256"] and model["sha256"] != asked["sha256"]:
            raise Refused(
                f"{asked['name']} is there with the SHA-256 {model['sha256']}. Give the new one "
                f"another name, or `agent rm {asked['name']}` there."
            )
        if asked["pin"] is not None and asked["pin"] != model["pinned"]:
            return "unpinned"
        return "whole"
    return "absent"


def progress(models: list[dict], name: str) -> str:
    """Return in words how far a pull is; raises Refused for one that has failed."""
    model = next(one for one in models if one["name"] == name and one["here"])
    if model["error"]:
        raise Refused(model["error"])
    if not model["size"]:
        return model["phase"]
    return f"{model['phase']}, {model['done'] >> 20} of {model['size'] >> 20} MiB"


def words(asked: dict) -> list[str]:
    """Return the words of `agent pull`."""
    said = ["pull", asked["source"], "--name", asked["name"]]
    if asked["sha256"]:
        said += ["--sha256", asked["sha256"]]
    if asked["pin"] is not None:
        said.append("--pin" if asked["pin"] else "--no-pin")
    return said


def main() -> None:
    """Begin the pull, or look how far it is."""
    module = AnsibleModule(
        argument_spec={
            "agent": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "source": {"type": "str", "required": True},
            "sha256": {"type": "str"},
            "pin": {"type": "bool"},
            "anywhere": {"type": "bool", "default": False},
            "watch": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        models = ask(asked["agent"], "models")["models"]
        now = standing(models, asked)
        if now == "whole":
            module.exit_json(changed=False, done=True, progress="it is there")
        if now == "coming" and not any(
            one["name"] == asked["name"] and one["error"] for one in models
        ):
            text = progress(models, asked["name"])
            module.exit_json(changed=False, done=module.check_mode, progress=text)
        if asked["watch"]:
            # It failed; where nothing came of it nothing is left to ask but itself.
            ask(asked["agent"], *words(asked))
            module.exit_json(changed=False, done=True, progress="it is there")
        if module.check_mode:
            module.exit_json(changed=True, done=True, progress="it would be pulled")
        job = ask(asked["agent"], *words(asked), "--no-wait")
        module.exit_json(changed=True, done=job["phase"] == "done", progress=job["phase"])
    except Refused as refusal:
        if module.check_mode and isinstance(refusal, Away):
            module.exit_json(changed=True, done=True, progress="it would be pulled")
        module.fail_json(msg="The model {}: {}".format(asked["name"], refusal))


if __name__ == "__main__":
    main()
