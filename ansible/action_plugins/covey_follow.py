# Copyright: Covey's authors. AGPL-3.0-or-later.
"""Action: call a module that begins something, then until it is done, and show how far it is.

    covey_follow:
      module: covey_model        # or covey_deployment: what answers with `done` and `progress`
      args: {…}                  # the module's; `watch` is added after the first call
      timeout_s: 600             # without progress

It ends with the module's own failure, or when nothing has changed for so long.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

POLL_S = 1.0
# What waits may get what it needs in a moment, as when a node joins; mostly it does not.
WAITING_S = 45.0


class ActionModule(ActionBase):  # type: ignore[misc]
    """One task, over as many calls of its module as it takes."""

    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Return the module's first answer, as changed as that was, or how it failed."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        module, given = self._task.args["module"], dict(self._task.args["args"])
        timeout_s = float(self._task.args["timeout_s"])

        def call(**more: Any) -> dict[str, Any]:
            found: dict[str, Any] = self._execute_module(
                module_name=module, module_args={**given, **more}, task_vars=task_vars
            )
            return found

        first = call()
        result.update(first)
        shown, since, answer = "", time.monotonic(), first
        while not answer.get("failed") and not answer.get("done"):
            if answer["progress"] != shown:
                shown, since = answer["progress"], time.monotonic()
                host = task_vars["inventory_hostname"]
                display.display(f"  {host}: {given['name']}: {shown}")
            limit_s = min(WAITING_S, timeout_s) if answer.get("waiting") else timeout_s
            if time.monotonic() - since > limit_s:
                words = (
                    f"{given['name']} is not ready, and nothing has changed for {limit_s:.0f} s: "
                    f"{shown}. The mesh goes on trying; `agent ps` shows how it stands, and the "
                    "play may be run again."
                )
                return {**result, "failed": True, "msg": words}
            time.sleep(POLL_S)
            answer = call(watch=True)
        if answer.get("failed"):
            return {**result, "failed": True, "msg": answer.get("msg", "")}
        return {**result, "done": True, "progress": answer["progress"]}
