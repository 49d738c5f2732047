"""Whether a node is as well as it was before an upgrade."""

from typing import Any

import pytest

from tests.unit.ansible.load import load

standing = load("module_utils/covey_standing.py")

STATUS = {
    "name": "box", "node": "12D3", "draining": False, "parts": {"control": "TCP port 4001"},
    "peers": {"alive": 2, "known": 2},
    "health": [{"code": "dns", "severity": "warning", "text": "slow"}],
}  # fmt: skip
PS = {"deployments": [{"key": "chat/1", "phase": "ready", "progress": ""}]}
COMMAND = "/opt/covey/releases/0.22.0-ab12/bin/python\0/usr/local/bin/agent\0up\0"


def now(status: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    found = standing.standing(STATUS | (status or {}), PS, {"agent": "ok"}, COMMAND)
    return found | more


def test_the_release_is_that_of_the_running_process() -> None:
    assert now()["release"] == "0.22.0-ab12"
    assert standing.standing(STATUS, PS, None, "")["release"] == ""


def test_a_node_is_as_well_as_itself_and_warnings_do_not_count() -> None:
    assert standing.worse(now(), now(), "0.22.0-ab12") == []
    assert standing.worse({}, now()) == []


@pytest.mark.parametrize(
    "later, words",
    [
        (now({"parts": {"control": "down"}}), "its control plane is down"),
        (now({"peers": {"alive": 1, "known": 2}}), "1 members answer it, 2 did before"),
        (now({"health": [{"code": "disk", "severity": "error", "text": "full"}]}), "disk: full"),
        (now(gateway="agent away"), "its gateway: agent away"),
        (now(gateway=None), "its gateway: does not answer"),
        (now(release="0.21.0-cd"), "the agent runs from release 0.21.0-cd, not 0.22.0-ab12"),
        (
            now(deployments={"chat/1": ["waiting", "no worker is left"]}),
            "deployment chat/1 is waiting: no worker is left",
        ),
    ],
)
def test_what_is_worse_is_said(later: dict[str, Any], words: str) -> None:
    assert standing.worse(now(), later, "0.22.0-ab12") == [words]


def test_an_error_that_was_there_before_does_not_stop_an_upgrade() -> None:
    bad = now({"health": [{"code": "disk", "severity": "error", "text": "full"}]})
    assert standing.worse(bad, bad) == []


def test_members_that_were_put_out_are_not_waited_for() -> None:
    assert standing.worse(now(), now({"peers": {"alive": 1, "known": 1}})) == []


def test_of_many_members_a_tenth_may_be_away() -> None:
    before = now({"peers": {"alive": 50, "known": 50}})
    assert standing.worse(before, now({"peers": {"alive": 45, "known": 50}})) == []
    assert standing.worse(before, now({"peers": {"alive": 44, "known": 50}})) != []


def test_deployments_count_only_where_they_were_ready_and_are_still_wanted() -> None:
    waiting = now(deployments={"chat/1": ["waiting", ""]})
    assert standing.worse(waiting, waiting) == []
    assert standing.worse(now(), now(deployments={})) == []
    assert standing.worse(now(), waiting, deployments=False) == []
