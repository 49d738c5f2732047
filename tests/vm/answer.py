"""Appliances on a switch join a mesh, run the bundled model, and a gateway answers from them.

Run in the sandbox of agent/demo/sandbox.py: `answer.py IMAGE FOLDER COUNT [CPU [ARCH]]`. A member
of the mesh without layers, and the gateway, are beside them on the switch. Prints, as JSON, when
they had joined, when the model answered, what they showed, the deployment, the answer, and the
bytes that WireGuard carried between that member and each of them.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from appliance import Appliance, Port

from agent.demo.fleet import wait_until
from agent.demo.mesh import MODEL, AgentLab
from agent.demo.netlab import Lan

QUESTION = "What is 27 + 15?"
_HOST = "host"
_ROLES = ("gateway", "issuer", "admin")
_LIMIT_S = 1200.0
_PORT = 8088
_ASK = Path(__file__).parents[1] / "lab" / "ask.py"


class Bench(AgentLab):
    """A member on a switch, and appliances plugged into it."""

    def __init__(self, root: Path, image: Path, count: int, arch: str = "x86_64") -> None:
        lan = Lan(1)
        super().__init__(root, lan)
        lan.add(_HOST)
        self.agent(_HOST, "mesh", "create", "home")
        self.agent(_HOST, "up")
        # No worker: what answers is computed on appliances alone.
        self.agent(_HOST, "grant", _HOST, *(f"--role={role}" for role in _ROLES))
        self.machines = {f"shed-{number}": number for number in range(1, count + 1)}
        self.appliances: dict[str, Appliance] = {}
        for name, number in self.machines.items():
            port = Port(lan.switch, f"tap{number}", f"52:54:00:00:00:{number:02x}")
            port.make("switch")
            ticket = self.ask(_HOST, "invite")["ticket"]
            appliance = Appliance(image, root / name, port, arch)
            appliance.write(
                "covey.toml",
                f'ticket = "{ticket}"\nname = "{name}"\naddress = "198.19.1.{100 + number}/24"\n',
            )
            self.appliances[name] = appliance

    def shown(self, text: str) -> None:
        """Wait until each of them shows a text."""
        with ThreadPoolExecutor(len(self.appliances)) as pool:
            list(pool.map(lambda one: one.wait_for(text, _LIMIT_S), self.appliances.values()))

    def connected(self) -> dict[str, dict[str, Any]]:
        """Return those that WireGuard connects the member with, by their names."""
        found = self.get(_HOST, "/v1/peers")["peers"]
        return {peer["name"]: peer for peer in found if peer["path"] == "direct"}

    def chat(self) -> list[dict[str, Any]]:
        """Start a gateway on the member's machine and ask the model through it."""
        machine, environment = self.machine(_HOST), self.environment(_HOST)
        gateway = [sys.executable, "-m", "gateway", "serve", "--listen", f"127.0.0.1:{_PORT}",
                   "--socket", str(self.socket(_HOST))]  # fmt: skip
        url = f"http://127.0.0.1:{_PORT}"
        with (self.root / "gateway.log").open("wb") as log:
            process = machine.spawn(gateway, env=environment, output=log)
            try:
                wait_until(
                    "the gateway finds the model",
                    lambda: MODEL in machine.run(["curl", "-s", f"{url}/v1/models"]).stdout,
                    _LIMIT_S,
                )
                ask = [sys.executable, str(_ASK), url, MODEL, QUESTION]
                done = machine.run(ask, env=environment, timeout_s=_LIMIT_S)
            finally:
                process.terminate()
                process.wait(timeout=60)
        if done.returncode:
            raise SystemExit(done.stderr)
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers


def main() -> None:
    """Do that."""
    image, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    cpu, arch = (*sys.argv[4:], *("max", "x86_64")[len(sys.argv) - 4 :])
    bench = Bench(folder, image, count, arch)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for appliance in bench.appliances.values():
            stack.enter_context(appliance.running(cpu=cpu))
        bench.shown("Mesh: home")
        joined_s = time.monotonic() - began
        wait_until("WireGuard connects all", lambda: len(bench.connected()) == count, _LIMIT_S)
        deploy = ["deploy", MODEL, "--nodes", str(count), "--json"]
        deployment = json.loads(bench.agent(_HOST, *deploy, timeout_s=_LIMIT_S))
        deployed_s = time.monotonic() - began
        answers = bench.chat()
        print(json.dumps({
            "joined_s": joined_s, "deployed_s": deployed_s,
            "answered_s": time.monotonic() - began,
            "shown": [one.console() for one in bench.appliances.values()],
            "deployment": deployment, "answers": answers,
            "bytes": {n: [p["rx_bytes"], p["tx_bytes"]] for n, p in bench.connected().items()},
        }))  # fmt: skip


if __name__ == "__main__":
    main()
