"""The gateway's part of the dashboard, and who sees and may do what."""

from __future__ import annotations

from typing import Any

import pytest

from agent.page.state import Gateway, Served, You
from gateway.dashboard.view import MOST_LIVE, MOST_PAST, usage, view, you
from gateway.keys.key import Key
from gateway.keys.store import Used
from gateway.metrics import Metrics
from gateway.recent import Seen
from gateway.together import Sheet

ADA, BOB, ROOT = Key("a", "ada"), Key("b", "bob"), Key("r", "root", admin=True)


def seen(name: str = "1", begun: float = 10.0, key: Key | None = None, **given: Any) -> Seen:
    usual: dict[str, Any] = {
        "operation": "chat", "model": "m", "replica": "box", "streamed": True,
        "key": key.name if key else "", "key_id": key.id if key else "",
    }  # fmt: skip
    return Seen(id=name, begun=begun, **(usual | given))


def entry(**given: Any) -> dict[str, Any]:
    usual = {
        "name": "box", "url": "http://[fd00::1]:7100", "source": "mesh", "models": ["m"],
        "usable": True, "reason": "", "cooling_s": 0.0, "breaker": "closed", "in_flight": 1,
        "requests": 3, "first_byte_s": {"stream": 0.12345, "whole": 1.0}, "others_in_flight": 0.0,
        "token_s": 0.0123456, "rtt_s": 0.0056789,
    }  # fmt: skip
    return usual | given


def sheet(*live: Seen, past: tuple[Seen, ...] = (), **given: Any) -> Sheet:
    usual: dict[str, Any] = {
        "pid": 1, "counted": Metrics().counted(), "dropped": {}, "in_flight": len(live),
        "waiting": {"place": 1}, "replicas": [entry()],
    }  # fmt: skip
    return Sheet(**(usual | given), live=list(live), past=list(past))


def viewed(*sheets: Sheet, key: Key | None = None) -> Gateway:
    return view(sheets, 20.0, strategy="least_loaded", agent="ok", keys_required=True, key=key)


def test_workers_come_to_one_gateway() -> None:
    found = viewed(
        sheet(seen("1", 12.0), past=(seen("8", 1.0, ended=5.0),)),
        sheet(seen("2", 15.0), past=(seen("9", 1.0, ended=7.0),)),
    )
    assert found.in_flight == 2
    assert found.waiting == {"place": 2}
    assert [one.id for one in found.live] == ["2", "1"]
    assert [one.id for one in found.past] == ["9", "8"]
    assert found.models == [Served("m", 1)]


def test_a_request_is_told_by_its_ages() -> None:
    [live] = viewed(sheet(seen(first_at=10.25))).live
    assert (live.age_s, live.first_s, live.model, live.replica) == (10.0, 0.25, "m", "box")
    done = seen(ended=12.5, status=200, token_s=0.01, prompt=3, completion=4, first_at=10.5)
    [past] = viewed(sheet(past=(done,))).past
    assert (past.ago_s, past.seconds, past.first_s) == (8, 2.5, 0.5)
    assert (past.status, past.token_s, past.prompt, past.completion) == (200, 0.01, 3, 4)


def test_lists_are_bounded() -> None:
    found = viewed(
        *(sheet(*(seen(f"{w}-{n}") for n in range(50)),
                past=tuple(seen(f"p{w}-{n}", ended=11.0) for n in range(40))) for w in range(3))
    )  # fmt: skip
    assert (len(found.live), len(found.past)) == (MOST_LIVE, MOST_PAST)
    assert found.in_flight == 150


def test_where_replicas_are_is_not_told() -> None:
    [replica] = viewed(sheet()).replicas
    assert "fd00" not in repr(replica)
    assert (replica.first_s, replica.token_s, replica.rtt_s) == (0.123, 0.01235, 0.006)


@pytest.mark.parametrize(
    ("given", "first_s", "token_s", "reason"),
    [
        ({"requests": 0}, None, None, ""),  # a guess is no measure
        ({"first_byte_s": {"whole": 2.0}}, 2.0, 0.01235, ""),
        ({"first_byte_s": {}}, None, 0.01235, ""),
        ({"usable": False, "cooling_s": 2.0}, 0.123, 0.01235, "cooling down"),
        ({"usable": False, "reason": "away"}, 0.123, 0.01235, "away"),
    ],
)
def test_what_a_replica_took(given: Any, first_s: Any, token_s: Any, reason: str) -> None:
    [replica] = viewed(sheet(replicas=[entry(**given)])).replicas
    assert (replica.first_s, replica.token_s, replica.reason) == (first_s, token_s, reason)


@pytest.mark.parametrize(
    ("key", "names"), [(None, ["", ""]), (ADA, ["ada", ""]), (BOB, ["", "bob"]),
                       (ROOT, ["ada", "bob"])],
)  # fmt: skip
def test_whose_a_request_is_knows_who_it_is_and_an_admin(key: Key | None, names: list[str]) -> None:
    ada, bob = seen("1", 12.0, ADA), seen("2", 11.0, BOB)
    found = viewed(sheet(ada, bob, past=(seen("3", 1.0, ADA, ended=9.0),)), key=key)
    assert [one.key for one in found.live] == names
    assert found.past[0].key == names[0]


def test_a_revoked_key_of_the_same_name_is_another() -> None:
    [live] = viewed(sheet(seen("1", 12.0, Key("old", "ada"))), key=ADA).live
    assert live.key == ""


@pytest.mark.parametrize(
    ("key", "may_deploy", "has_store", "needs"),
    [
        (None, True, True, "--admin"),
        (None, True, False, "no store"),
        (ADA, True, True, "The key ada may not act"),
        (ROOT, None, True, "agent does not answer"),
        (ROOT, False, True, "agent grant door --role gateway --role worker"),
    ],
)
def test_what_is_missing_to_act(
    key: Key | None, may_deploy: bool | None, has_store: bool, needs: str
) -> None:
    found = you(key, has_store=has_store, agent_node="door", may_deploy=may_deploy)
    assert needs in found.needs
    assert found.key == (key.name if key else "")


def test_an_agent_that_takes_no_orders_is_told_as_such() -> None:
    found = you(ROOT, has_store=True, agent_node="door", may_deploy=True, takes_orders=False)
    assert "takes no orders" in found.needs
    assert "agent deploy" in found.needs


def test_an_admin_whose_node_may_deploy_lacks_nothing() -> None:
    assert you(ROOT, has_store=True, agent_node="door", may_deploy=True) == You("root", True, "")


def test_usage_is_named_as_the_page_reads_it() -> None:
    assert usage([Used("2030-01-31", "a", "ada", "m", 1, 2, 3, 4)]) == [
        {"day": "2030-01-31", "key_id": "a", "key": "ada", "model": "m", "requests": 1,
         "prompt_tokens": 2, "completion_tokens": 3, "estimated_requests": 4}
    ]  # fmt: skip
