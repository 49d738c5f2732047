"""The rest of a mesh's life: upgraded, taken back, compared, saved, removed, restored, put out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from machines import REPOSITORY, Machine, Machines, Played

pytestmark = pytest.mark.timeout(900)

ALL = ("alpha", "beta", "gamma")
AGENT = "/usr/local/bin/agent"
PYTHON = "/opt/covey/current/bin/python"
HALF_WAY = "/opt/covey/upgrading.json"
HERE = Path(__file__).parent
# What a host has from elsewhere: packages of the distribution, logs, and what Ansible leaves.
NOT_OURS = re.compile(
    r"/(var/(lib/(dpkg|apt|systemd|pam|ucf|private)|cache|log|tmp|backups|mail)|tmp|run|root/\."
    r"|home/|srv/|etc/(ssl/certs|ca-certificates|hosts|networks|ld\.so\.cache|machine-id|hostname|"
    r"\.pwd\.lock|alternatives|debian_version|os-release|systemd/system/.*\.wants|rc\d\.d|.*-$)"
    r"|usr/share/python3/|.*\.pyc$)"
)


@pytest.fixture(scope="module")
def told(machines: Machines) -> dict[str, str]:
    """What the operator says beside the inventory."""
    return {
        "covey_backup_dir": str(machines.folder / "backups"),
        "covey_backup_passphrase": "correct horse battery",
        "covey_doctor_dir": str(machines.folder / "doctor"),
        "covey_bench_dir": str(machines.folder / "bench"),
    }


class Upkeep:
    """Plays with what the operator says."""

    def __init__(self, machines: Machines, inventory: Path, told: dict[str, str]) -> None:
        self.machines, self._inventory, self._told = machines, inventory, told

    def play(self, playbook: str, *arguments: str, **more: object) -> Played:
        words = ["-e", json.dumps({**self._told, **more}), *arguments]
        return self.machines.play(playbook, *words, inventory=self._inventory)

    def kill(self, playbook: str, at: str, **more: object) -> None:
        words = ["-e", json.dumps({**self._told, **more})]
        self.machines.kill(playbook, *words, inventory=self._inventory, at=at)

    def done(self, playbook: str, *arguments: str, **more: object) -> Played:
        played = self.play(playbook, *arguments, **more)
        assert played.code == 0, played.output
        return played

    def refused(self, playbook: str, *arguments: str, **more: object) -> str:
        """Run a playbook that has to fail, and return what it says without line breaks."""
        played = self.play(playbook, *arguments, **more)
        assert played.code != 0, played.output
        return " ".join(played.output.split())

    def ask(self, name: str, *words: str) -> dict:
        answer: dict = json.loads(self.machines[name].run(AGENT, *words, "--json"))
        return answer

    def member(self, name: str) -> dict:
        found: dict = next(m for m in self.ask("alpha", "members")["members"] if m["name"] == name)
        return found

    def release(self, name: str) -> str:
        return self.machines[name].run("readlink", "/opt/covey/current").strip().rpartition("/")[2]


@pytest.fixture(scope="module")
def upkeep(machines: Machines, inventory: Path, told: dict[str, str]) -> Upkeep:
    return Upkeep(machines, inventory, told)


def clone(folder: Path, version: str, *, works: bool = True) -> str:
    """Make a clone of Covey that says it is `version`; one that does not work does not start."""
    for name in ("agent", "gateway", "image", "requirements"):
        shutil.copytree(REPOSITORY / name, folder / name,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "agent/__init__.py").write_text(f'"""A release."""\n\n__version__ = "{version}"\n')
    if not works:
        main = folder / "agent/cli/__init__.py"
        broken = '    if sys.argv[1:2] == ["up"]:\n        sys.exit("broken")\n'
        main.write_text(main.read_text().replace("    try:\n", broken + "    try:\n", 1))
    return str(folder)


def test_a_comparison_says_go_or_no_go(upkeep: Upkeep) -> None:
    alpha, beta = upkeep.machines["alpha"], upkeep.machines["beta"]
    alpha.run(AGENT, "deploy", "covey-mini")
    text = upkeep.refused("bench.yml")
    assert "Say which server this mesh is compared with" in text
    beta.write("/run/plain.py", (HERE / "plain_server.py").read_text())
    beta.run(
        "systemd-run", "--unit=plain", "sh", "-c",
        f"exec {PYTHON} /run/plain.py {beta.address} 11434 "
        "/opt/covey/current/lib/python3.*/site-packages/agent/models/bundled/covey-mini.gguf",
    )  # fmt: skip
    other = {"covey_bench_url": f"http://{beta.address}:11434", "covey_bench_name": "llama.cpp"}
    few = [{"name": "few", "models": ["other"]}]
    text = upkeep.refused("bench.yml", **other, covey_gateway_keys=few)
    assert "None of covey_gateway_keys of alpha may use all models." in text
    played = upkeep.done("bench.yml", **other, covey_bench_runs=1, covey_bench_tokens=16)
    beta.run("systemctl", "stop", "plain")
    assert "30 % more are wanted" in " ".join(played.output.split())
    made = {path.suffix: path for path in (upkeep.machines.folder / "bench").iterdir()}
    report = json.loads(made[".json"].read_text())
    assert all(server["tokens_s"] > 0 for server in report["levels"][0]["servers"])
    page = made[".md"].read_text()
    assert "# Covey against llama.cpp" in page
    assert f"`plain` at http://{beta.address}:11434" in page


@pytest.fixture(scope="module")
def newer(upkeep: Upkeep) -> str:
    return clone(upkeep.machines.folder / "new", "7.0.0")


def test_an_upgrade_that_is_killed_leaves_what_the_next_one_completes(
    upkeep: Upkeep, newer: str
) -> None:
    before = {name: upkeep.release(name) for name in ALL}
    upkeep.kill("upgrade.yml", at="TASK [Restart the agent]", covey_source=newer)
    half = json.loads(upkeep.machines["beta"].run("cat", HALF_WAY))
    assert half["release"] == before["beta"]
    assert upkeep.release("beta").startswith("7.0.0-")
    assert {name: upkeep.release(name) for name in ("alpha", "gamma")} == {
        name: before[name] for name in ("alpha", "gamma")
    }


def test_an_upgrade_goes_from_host_to_host(upkeep: Upkeep, newer: str) -> None:
    played = upkeep.done("upgrade.yml", covey_source=newer)
    reached = re.findall(r"TASK \[Point to release [^]]*\] \*+\n\w+: \[(\w+)\]", played.output)
    assert reached == ["beta", "gamma", "alpha"], "the issuer is the last"
    for name in ALL:
        assert upkeep.release(name).startswith("7.0.0-")
        status = upkeep.ask(name, "status")
        assert not status["draining"]
        there = upkeep.machines[name].run("ls", "/opt/covey/releases").split()
        assert set(there) > {upkeep.release(name)}, "the release before stays"
        assert upkeep.machines[name].run("cat", HALF_WAY, check=False) == ""
        line = upkeep.machines[name].run("cat", f"/proc/{status['pid']}/cmdline")
        assert "/releases/7.0.0-" in line
    phases = [one["phase"] for one in upkeep.ask("alpha", "ps")["deployments"]]
    assert phases == ["ready"]
    again = upkeep.done("upgrade.yml", covey_source=newer)
    assert again.sum("changed") == 0, again.output


def test_an_upgrade_stops_at_the_first_host_that_is_not_well_and_takes_it_back(
    upkeep: Upkeep,
) -> None:
    before = {name: upkeep.release(name) for name in ALL}
    source = clone(upkeep.machines.folder / "bad", "8.0.0", works=False)
    text = upkeep.refused("upgrade.yml", covey_source=source, covey_upgrade_agent_s=30)
    assert "was not well with release 8.0.0-" in text
    assert "its agent does not answer" in text
    assert f"It runs release {before['beta']} again, as before." in text
    assert {name: upkeep.release(name) for name in ALL} == before
    for name in ALL:
        assert not upkeep.ask(name, "status")["draining"]


def test_the_network_key_is_changed(upkeep: Upkeep) -> None:
    dry = upkeep.done("rotate.yml", "--check")
    assert "Network key" not in dry.output
    assert "Network key 1 is used from" in " ".join(upkeep.done("rotate.yml").output.split())
    text = upkeep.refused("rotate.yml")
    assert "is being changed already" in text


def test_reports_are_collected_and_hold_no_key(upkeep: Upkeep) -> None:
    upkeep.done("doctor.yml")
    for name in ALL:
        report = upkeep.machines.folder / "doctor" / f"{name}.tar.gz"
        assert report.read_bytes()[:2] == b"\x1f\x8b"


def test_backups_are_sealed(upkeep: Upkeep) -> None:
    assert "fewer than 12 characters" in upkeep.refused("backup.yml", covey_backup_passphrase="x")
    upkeep.done("backup.yml")
    made = sorted(path.name for path in (upkeep.machines.folder / "backups").iterdir())
    assert [name.split("-")[0] for name in made] == list(ALL)
    for name in made:
        path = upkeep.machines.folder / "backups" / name
        assert path.stat().st_mode & 0o077 == 0
        assert path.read_bytes().startswith(b'{"format": "covey-backup-1"')


def test_an_empty_host_becomes_the_node_again_that_was_saved(upkeep: Upkeep) -> None:
    node = upkeep.member("gamma")["node"]
    gamma = upkeep.machines["gamma"]
    gamma.run("rc-service", "covey-agent", "stop")
    gamma.run("rm", "-rf", "/var/lib/covey", "/etc/covey", "/opt/covey", "/etc/init.d/covey-agent")
    text = upkeep.refused("restore.yml", "--limit", "gamma", covey_backup_passphrase="x" * 12)
    assert "the passphrase is not the one" in text
    played = upkeep.done("restore.yml", "--limit", "gamma")
    assert "correct horse battery" not in played.output
    assert upkeep.ask("gamma", "status")["node"] == node
    assert upkeep.member("gamma")["state"] == "member"
    assert "is a node already" in upkeep.refused("restore.yml", "--limit", "gamma")


def left(machine: Machine) -> list[str]:
    """Return what a machine has that neither its root, nor a package, nor Ansible brought."""
    upper = machine.folder / "upper"
    listed = machine.run("sh", "-c", "cat /var/lib/dpkg/info/*.list").splitlines()
    packaged = set(listed) | {f"/usr{path}" for path in listed}
    return [
        path
        for found in upper.rglob("*")
        if not found.is_dir() or found.is_symlink() or "covey" in found.name
        for path in [f"/{found.relative_to(upper)}"]
        if not NOT_OURS.match(path) and path not in packaged and not found.is_char_device()
    ]


def test_a_host_is_removed_and_nothing_is_left(upkeep: Upkeep) -> None:
    gamma = upkeep.machines["gamma"]
    text = upkeep.refused("remove.yml", "--limit", "gamma")
    assert "say so: -e covey_remove_confirm=home" in text
    assert upkeep.member("gamma")["state"] == "member"
    upkeep.done("remove.yml", "--limit", "gamma", covey_remove_confirm="home")
    assert left(gamma) == []
    assert "covey" not in gamma.run("ip", "-br", "link")
    assert gamma.run("nft", "list", "tables") == ""
    assert "covey" not in gamma.run("ps", "-eo", "args")
    assert upkeep.member("gamma")["state"] == "left"


def test_a_node_whose_machine_is_off_is_put_out(upkeep: Upkeep) -> None:
    upkeep.machines["beta"].run("systemctl", "stop", "covey-agent", "ssh")
    assert "No node of the mesh is called nobody" in upkeep.refused(
        "revoke.yml", covey_node="nobody"
    )
    upkeep.done("revoke.yml", covey_node="beta", covey_revoke_reason="lost")
    found = upkeep.member("beta")
    assert (found["state"], found["reason"]) == ("revoked", "lost")
    again = upkeep.done("revoke.yml", covey_node="beta")
    assert again.sum("changed") == 0, again.output
    upkeep.machines["beta"].run("systemctl", "start", "ssh")


def test_the_last_issuer_goes_only_when_that_is_meant(upkeep: Upkeep) -> None:
    text = upkeep.refused("remove.yml", "--limit", "alpha", covey_remove_confirm="home")
    assert "alpha stays in the mesh" in text
    assert upkeep.ask("alpha", "status")["name"] == "alpha"
    upkeep.done("remove.yml", covey_remove_confirm="home", covey_remove_force=True)
    for name in ALL:
        assert left(upkeep.machines[name]) == []
