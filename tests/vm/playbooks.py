"""site.yml makes a mesh of a bare machine and an appliance, and runs a model on both.

Run in the sandbox of agent/demo/sandbox.py, as root: `playbooks.py IMAGE FOLDER`. The machine is a
namespace (tests/ansible/machines.py); the appliance is on the same switch, and was flashed with a
key for ssh and a ticket. Prints, as JSON, what the plays said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from appliance import Appliance, Port

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "tests/ansible"), str(REPOSITORY)]

import machines as made  # noqa: E402
import prepare  # noqa: E402

from agent.demo.fleet import wait_until  # noqa: E402

NAME, ISSUER = "shed-1", "alpha"
_AGENT = "/usr/local/bin/agent"
_MAC, _TAP = "52:54:00:00:00:01", "tap1"
_START_S, _PLAY_S = 900.0, 1200.0


class Site:
    """The two machines, and the inventory that has both."""

    def __init__(self, lab: made.Machines, image: Path, folder: Path) -> None:
        self._lab = lab
        self._paths = {"covey_wheelhouse": str(prepare.wheelhouse()),
                       "covey_cache_dir": str(lab.folder / "cache")}  # fmt: skip
        self._played("the issuer alone", self._inventory([]))
        port = Port(lab.switch, _TAP, _MAC)
        port.make("switch")
        subnet = lab[ISSUER].address.rpartition(".")[0]
        self._address = f"{subnet}.100"
        self.appliance = Appliance(image, folder, port)
        ticket = json.loads(lab[ISSUER].run(_AGENT, "invite", "--json"))["ticket"]
        key = lab.key.with_suffix(".pub").read_text().strip()
        self.appliance.write(
            "covey.toml",
            f'ticket = "{ticket}"\nname = "{NAME}"\naddress = "{self._address}/24"\n'
            f'ssh_key = "{key}"\n',
        )

    def play(self, what: str, playbook: str = "site.yml", *words: str) -> dict[str, Any]:
        """Run a playbook for both, which has to succeed."""
        wanted = {
            "covey_tags": ["cellar"],
            "covey_models": [{"name": "mini", "model": "covey-mini", "nodes": 2}],
        }
        inventory = self._inventory([NAME])
        return self._played(what, inventory, playbook, "-e", json.dumps(wanted), *words)

    def ask(self, *words: str) -> dict[str, Any]:
        """Return what the issuer's agent answers."""
        answer: dict[str, Any] = json.loads(self._lab[ISSUER].run(_AGENT, *words, "--json"))
        return answer

    def wait_for_ssh(self) -> None:
        """Return when the appliance lets this side in."""
        ssh = ["ssh", "-i", str(self._lab.key), *self._options(), f"root@{self._address}", "true"]
        wait_until(
            "the appliance has ssh", lambda: self._lab.control.run(ssh).returncode == 0, _START_S
        )

    def _options(self) -> list[str]:
        known = self._lab.folder / "appliances"
        return ["-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=accept-new"]

    def _inventory(self, appliances: list[str]) -> Path:
        path = self._lab.inventory(
            {"covey_issuers": [ISSUER], "covey_workers": [ISSUER, *appliances]}, **self._paths
        )
        if appliances:
            hosts = path.parent / "host_vars"
            hosts.mkdir(exist_ok=True)
            reached = {
                "ansible_host": self._address, "ansible_user": "root",
                "ansible_ssh_common_args": " ".join(self._options()),
                "ansible_ssh_private_key_file": str(self._lab.key),
            }  # fmt: skip
            (hosts / f"{NAME}.json").write_text(json.dumps(reached))
        return path

    def _played(
        self, what: str, inventory: Path, playbook: str = "site.yml", *words: str
    ) -> dict[str, Any]:
        played = self._lab.play(playbook, *words, inventory=inventory, within_s=_PLAY_S)
        if played.code:
            raise SystemExit(f"{what}: {played.code}\n{played.output}")
        return {"figures": played.figures, "output": played.output}


def main() -> None:
    """Do that."""
    image, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with made.started({ISSUER: "systemd"}) as lab:
        site = Site(lab, image, folder)
        with site.appliance.running():
            site.appliance.wait_for("Mesh: home", _START_S)
            site.wait_for_ssh()
            first = site.play("both")
            members = site.ask("members")["members"]
            deployments = site.ask("ps")["deployments"]
            second = site.play("both again")
            upgrade = site.play("an upgrade", "upgrade.yml")
    print(json.dumps({
        "first": first, "second": second, "upgrade": upgrade,
        "members": members, "deployments": deployments,
    }))  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{error}: {error.stderr}") from None
