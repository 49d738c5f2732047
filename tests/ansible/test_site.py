"""From three bare machines to a mesh by site.yml, with what goes wrong on the way."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from machines import Machines, Played

pytestmark = pytest.mark.timeout(900)

ALL = ("alpha", "beta", "gamma")


def said(played: Played) -> str:
    """Return what was said, without the line breaks of the terminal's width."""
    return " ".join(played.output.split())


def members(machines: Machines) -> dict[str, dict[str, object]]:
    answer = json.loads(machines["alpha"].run("/usr/local/bin/agent", "members", "--json"))
    return {member["name"]: member for member in answer["members"]}


def refused(machines: Machines, inventory: Path, *arguments: str) -> str:
    """Run site.yml against gamma, which has to fail, and return what it says."""
    played = machines.play("site.yml", "--limit", "gamma", *arguments, inventory=inventory)
    assert played.code != 0, played.output
    return said(played)


def test_a_variable_of_the_wrong_type_is_named(machines: Machines, inventory: Path) -> None:
    text = refused(machines, inventory, "-e", '{"covey_agent_settings": [1]}')
    assert "covey_agent_settings" in text
    assert "dict" in text


def test_a_host_that_cannot_be_reached_is_named(machines: Machines, inventory: Path) -> None:
    text = refused(machines, inventory, "-e", "ansible_port=24")
    assert "gamma cannot be reached" in text
    assert "--limit gamma" in text


def test_a_wrong_password_is_told(machines: Machines, inventory: Path) -> None:
    played = machines.play("site.yml", "--limit", "beta", "-e", "ansible_become_password=no",
                           inventory=inventory)  # fmt: skip
    assert played.code != 0
    assert "nothing can be run there as root" in said(played)
    assert "--ask-become-pass" in said(played)


def test_an_unknown_distribution_is_refused(machines: Machines, inventory: Path) -> None:
    release = machines["gamma"].run("cat", "/etc/os-release")
    other = release.replace('VERSION_ID="12"', 'VERSION_ID="9"')
    machines["gamma"].write("/etc/os-release", other)
    machines["gamma"].write("/etc/debian_version", "9.13\n")
    text = refused(machines, inventory, "--flush-cache")
    assert "gamma has Debian 9" in text
    assert "Debian 12" in text
    machines["gamma"].write("/etc/os-release", release)
    machines["gamma"].write("/etc/debian_version", "12.11\n")


def test_a_full_disk_is_told_before_anything_is_written(
    machines: Machines, inventory: Path
) -> None:
    machines["gamma"].run("mkdir", "-p", "/opt/covey")
    machines["gamma"].run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/opt/covey")
    text = refused(machines, inventory, "--flush-cache")
    assert "MiB are free where /opt/covey lies" in text
    machines["gamma"].run("umount", "/opt/covey")


def test_check_mode_says_what_would_be_done(machines: Machines, inventory: Path) -> None:
    played = machines.play("site.yml", "--check", inventory=inventory)
    assert played.code == 0, played.output
    assert "alpha would make the mesh home" in said(played)
    assert "gamma would join the mesh home as gamma: worker." in said(played)
    assert "alpha would get a release of Covey" in said(played)
    for name in ALL:
        assert machines[name].run("find", "/opt", "/etc", "-name", "*covey*", "-type", "f") == ""


def test_a_run_that_is_killed_leaves_what_the_next_one_completes(
    machines: Machines, inventory: Path
) -> None:
    machines.kill("site.yml", inventory=inventory, at="TASK [agent : Install the release]")
    for name in ALL:
        assert machines[name].run("find", "/opt/covey/releases", "-name", ".whole") == ""


def test_an_expired_ticket_is_told(machines: Machines, inventory: Path) -> None:
    played = machines.play("site.yml", "--limit", "alpha,beta", inventory=inventory)
    assert played.code == 0, played.output
    made = machines["alpha"].run("/usr/local/bin/agent", "invite", "--ttl", "1s", "--json")
    time.sleep(1.1)
    wanted = json.dumps({"covey_ticket": json.loads(made)["ticket"]})
    text = refused(machines, inventory, "-e", wanted)
    assert "gamma did not join" in text
    assert "expired" in text
    assert "leave it empty" in text


def test_from_empty_to_a_mesh_of_three(machines: Machines, inventory: Path) -> None:
    played = machines.play("site.yml", inventory=inventory)
    assert played.code == 0, played.output
    assert "covey1" not in played.output, "a ticket is in the output"
    found = members(machines)
    assert found.keys() == set(ALL)
    assert found["alpha"]["roles"] == ["worker", "gateway", "issuer", "admin"]
    assert found["beta"]["roles"] == found["gamma"]["roles"] == ["worker"]
    for name in ALL:
        status = json.loads(machines[name].run("/usr/local/bin/agent", "status", "--json"))
        assert status["peers"]["known"] == 2


def test_no_ticket_lies_anywhere(machines: Machines, inventory: Path) -> None:
    for name in ALL:
        assert machines[name].run(
            "grep", "-rlI", "covey1[0-9a-z]", "/root", "/home", "/tmp", "/var/log", "/etc", "/run",
            check=False,
        ) == ""  # fmt: skip
    journal = machines["beta"].run("journalctl", "--no-pager", "-q")
    assert "covey1" not in journal
    facts = machines.folder / "facts"
    assert not [p for p in facts.rglob("*") if p.is_file() and "covey1" in p.read_text()]


def test_a_second_run_changes_nothing(machines: Machines, inventory: Path) -> None:
    played = machines.play("site.yml", inventory=inventory)
    assert played.code == 0, played.output
    assert played.sum("changed") == 0, played.output


def test_check_and_diff_say_what_would_change(machines: Machines, inventory: Path) -> None:
    machines["beta"].run("sed", "-i", "s/^backend.*/mtu = 1400/", "/etc/covey/agent.toml")
    machines["gamma"].run("rm", "/etc/init.d/covey-agent")
    wanted = json.dumps({"covey_tags": ["cellar"]})
    played = machines.play("site.yml", "--check", "--diff", "--limit", "beta,gamma", "-e", wanted,
                           inventory=inventory)  # fmt: skip
    assert played.code == 0, played.output
    assert "-mtu = 1400" in played.output
    assert '+backend = "auto"' in played.output
    assert "gamma is worker, tags none; it would be worker, tags cellar." in said(played)
    assert machines["beta"].run("grep", "-c", "mtu", "/etc/covey/agent.toml") == "1\n"
    assert members(machines)["gamma"]["tags"] == []


def test_what_was_changed_is_put_right(machines: Machines, inventory: Path) -> None:
    wanted = json.dumps({"covey_tags": ["cellar"]})
    played = machines.play("site.yml", "--limit", "beta,gamma", "-e", wanted, inventory=inventory)
    assert played.code == 0, played.output
    assert members(machines)["gamma"]["tags"] == ["cellar"]
    assert "mtu" not in machines["beta"].run("cat", "/etc/covey/agent.toml")
    assert machines["gamma"].run("rc-service", "covey-agent", "status").count("started") == 1
