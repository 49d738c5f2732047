#!/usr/bin/python
# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Ansible module: see to it that a gateway has an API key of a name, or has none.

A key's secret is told once, by the task that made it: register it under `no_log`, write it where
it shall stay, and forget it.
"""

from __future__ import annotations

import json
import subprocess

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: covey_gateway_key
short_description: Make or revoke an API key of a gateway
options:
  gateway: {description: The gateway's program., type: path, required: true}
  config: {description: The gateway's settings., type: path, required: true}
  name: {description: The key's name., type: str, required: true}
  state: {description: present or absent., type: str, default: present}
  models: {description: Globs of models that it may use., type: list, elements: str}
  requests_per_minute: {description: A limit., type: int}
  tokens_per_minute: {description: A limit., type: int}
  tokens_per_day: {description: A limit., type: int}
  expires: {description: When it ends: 30d, or a date., type: str}
  weight: {description: Its share where requests wait., type: float}
"""

RETURN = r"""
secret: {description: The secret of a key that was made., type: str, returned: when one was made}
"""

LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day")


def create_words(asked: dict) -> list[str]:
    """Return the words of `gateway keys create` for what was asked."""
    words = ["create", asked["name"]]
    for model in asked["models"] or ():
        words += ["--model", model]
    for name in (*LIMITS, "expires", "weight"):
        if asked[name] is not None:
            words += ["--" + name.replace("_", "-"), str(asked[name])]
    return words


def differences(key: dict, asked: dict) -> list[str]:
    """Return in words in what a key that is there is not as asked.

    When it ends is left out: 90d is counted from the day on which it was made.
    """
    wanted = {name: asked[name] for name in LIMITS}
    wanted["models"] = list(dict.fromkeys(asked["models"] or ())) or ["*"]
    wanted["weight"] = 1.0 if asked["weight"] is None else asked["weight"]
    return [
        f"{name} is {json.dumps(key[name])} and not {json.dumps(value)}"
        for name, value in wanted.items()
        if key[name] != value
    ]


def holding(keys: list[dict], name: str) -> dict | None:
    """Return the key that has the name, if any: one that has expired keeps it until it is revoked.

    It is not made anew by itself: whoever gave it an end meant that.
    """
    found = [key for key in keys if key["name"] == name and key["state"] != "revoked"]
    return found[0] if found else None


class Failure(Exception):
    """The gateway's program refused, with its own words."""


def main() -> None:
    """Make or revoke the key where that is due."""
    module = AnsibleModule(
        argument_spec={
            "gateway": {"type": "path", "required": True},
            "config": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "models": {"type": "list", "elements": "str"},
            "requests_per_minute": {"type": "int"},
            "tokens_per_minute": {"type": "int"},
            "tokens_per_day": {"type": "int"},
            "expires": {"type": "str"},
            "weight": {"type": "float"},
        },
        supports_check_mode=True,
    )
    asked = module.params

    def keys(*words: str) -> dict:
        said = subprocess.run(
            [asked["gateway"], "keys", *words, "--json", "--config", asked["config"]],
            capture_output=True, text=True,
        )  # fmt: skip
        if said.returncode:
            raise Failure(said.stderr.strip() or f"gateway keys ended with {said.returncode}")
        return json.loads(said.stdout)

    try:
        there = holding(keys("list", "--all")["keys"], asked["name"])
        if asked["state"] == "absent":
            if there and not module.check_mode:
                keys("revoke", there["id"])
            module.exit_json(changed=bool(there))
        if there:
            differs = differences(there, asked)
            if differs:
                module.fail_json(
                    msg=f"The key {asked['name']} is there, and {'; '.join(differs)}. A key's "
                    "limits cannot be changed: give the new one another name, or revoke this one "
                    "(state: absent) first."
                )
            module.exit_json(changed=False)
        if module.check_mode:
            module.exit_json(changed=True)
        module.exit_json(changed=True, secret=keys(*create_words(asked))["secret"])
    except (Failure, OSError, ValueError) as error:
        module.fail_json(msg="The key {}: {}".format(asked["name"], error))


if __name__ == "__main__":
    main()
