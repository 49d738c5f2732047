"""The gateway's part of what the dashboard polls, and who may see and do what. A core.

who asks          sees                                          may
nobody's          the mesh, requests without names of keys      look (where no key is required)
a key             the same; its own name and its own usage      chat
an admin key      all names of keys, all usage                  plan, deploy, undeploy as well
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agent.page.state import Gateway, Live, Past, Replica, Served, You
from gateway import together
from gateway.keys.key import Key
from gateway.recent import Seen
from gateway.together import Entry, Sheet

MOST_LIVE = 50
MOST_PAST = 40
# The kinds of first byte that `Router.view` tells of, the one that people wait for first.
_FIRST = ("stream", "whole")
# Milliseconds say enough, and what differs by less need not be sent again.
_DIGITS = 3


def view(
    sheets: Sequence[Sheet], now: float, *, strategy: str, agent: str, keys_required: bool,
    key: Key | None,
) -> Gateway:  # fmt: skip
    """Return how the gateway stands at `now` (time.monotonic), as who has `key` may see it."""
    replicas = together.replicas(sheets)
    live = sorted((s for sheet in sheets for s in sheet.live), key=lambda s: -s.begun)
    past = sorted((s for sheet in sheets for s in sheet.past), key=lambda s: -(s.ended or 0.0))
    return Gateway(
        strategy=strategy,
        agent=agent,
        keys_required=keys_required,
        models=[Served(model["id"], model["usable"]) for model in together.models(replicas)],
        replicas=[_replica(entry) for entry in replicas],
        in_flight=sum(sheet.in_flight for sheet in sheets),
        waiting=together.total(sheet.waiting for sheet in sheets),
        live=[_live(seen, now, key) for seen in live[:MOST_LIVE]],
        past=[_past(seen, now, key) for seen in past[:MOST_PAST]],
    )


def you(
    key: Key | None, *, has_store: bool, agent_node: str, may_deploy: bool | None,
    takes_orders: bool = True,
) -> You:  # fmt: skip
    """Return what who has `key` may do, or what is missing for that.

    `may_deploy`: whether the node `agent_node` may; None where its agent does not answer.
    `takes_orders`: whether that agent hears any from this gateway.
    """
    if key is None:
        return You(needs="Actions need an admin key: `gateway keys create NAME --admin` makes one."
                   if has_store else "This gateway has no store of keys.")  # fmt: skip
    if not key.admin:
        return You(key.name, needs=f"The key {key.name} may not act: `gateway keys create NAME "
                   "--admin` makes one that may.")  # fmt: skip
    if may_deploy is None:
        return You(key.name, True, "The agent does not answer.")
    if not takes_orders:
        return You(
            key.name, True,
            f"This gateway reaches the agent of {agent_node} by a socket that takes no orders "
            "(node.gateway_socket). Deploy on a machine of the mesh: `agent deploy MODEL`.",
        )  # fmt: skip
    if not may_deploy:
        return You(
            key.name, True,
            f"The gateway's node {agent_node} has neither the role worker nor admin, so it may not "
            f"deploy: `agent grant {agent_node} --role gateway --role worker` lets it.",
        )  # fmt: skip
    return You(key.name, True)


def usage(rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return rows of `Store.usage` as the page shows them."""
    names = ("day", "key_id", "key", "model", "requests", "prompt_tokens", "completion_tokens",
             "estimated_requests")  # fmt: skip
    return [dict(zip(names, row, strict=True)) for row in rows]


def _replica(entry: Entry) -> Replica:
    first = next((entry["first_byte_s"][k] for k in _FIRST if k in entry["first_byte_s"]), None)
    measured = bool(entry["requests"])
    reason = entry["reason"] or ("" if entry["usable"] else "cooling down")
    return Replica(
        name=entry["name"], source=entry["source"], models=list(entry["models"]),
        usable=entry["usable"], reason=reason, breaker=entry["breaker"],
        in_flight=entry["in_flight"], requests=entry["requests"],
        # Before the first request they are guesses.
        first_s=_rounded(first) if measured else None,
        token_s=round(entry["token_s"], 5) if measured else None,
        rtt_s=_rounded(entry["rtt_s"]),
    )  # fmt: skip


def _live(seen: Seen, now: float, key: Key | None) -> Live:
    return Live(
        id=seen.id, model=seen.model, operation=seen.operation, replica=seen.replica,
        streamed=seen.streamed, age_s=round(max(now - seen.begun, 0.0), 1),
        first_s=_since(seen), key=_name(seen, key),
    )  # fmt: skip


def _past(seen: Seen, now: float, key: Key | None) -> Past:
    ended = seen.ended if seen.ended is not None else now
    return Past(
        id=seen.id, model=seen.model, operation=seen.operation, replica=seen.replica,
        streamed=seen.streamed, ago_s=round(max(now - ended, 0.0)),
        seconds=round(max(ended - seen.begun, 0.0), _DIGITS), status=seen.status,
        first_s=_since(seen), token_s=_rounded(seen.token_s, 5), prompt=seen.prompt,
        completion=seen.completion, error=seen.error, key=_name(seen, key),
    )  # fmt: skip


def _since(seen: Seen) -> float | None:
    return None if seen.first_at is None else round(max(seen.first_at - seen.begun, 0.0), _DIGITS)


def _name(seen: Seen, key: Key | None) -> str:
    """Return whose a request is, for who may know."""
    if key is not None and (key.admin or key.id == seen.key_id):
        return seen.key
    return ""


def _rounded(value: float | None, digits: int = _DIGITS) -> float | None:
    return None if value is None else round(value, digits)
