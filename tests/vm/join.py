"""Makes a mesh, writes its ticket onto an appliance's disk, and starts that: it has to join.

Run in the sandbox of agent/demo/sandbox.py: `join.py IMAGE FOLDER`. Prints, as JSON, after how many
seconds the appliance showed the mesh and the peers that this node knew then; what covey.toml held
when the power was cut right after that; and after how many seconds the next start showed the mesh.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from appliance import Appliance

# QEMU's NAT reaches what this machine reaches, so the member needs an address that is no loopback.
_ADDRESS = "10.9.0.1"
_LAN = (
    "ip link set lo up",
    "ip link add lan0 type veth peer name lan1",
    f"ip address add {_ADDRESS}/24 dev lan0",
    "ip link set lan0 up",
    "ip link set lan1 up",
    "ip route add default via 10.9.0.2",
)
_JOIN_S = 600.0


def agent(*words: str) -> str:
    """Run a command of the agent and return what it prints."""
    command = [sys.executable, "-m", "agent", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Do that."""
    image, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for line in _LAN:
        subprocess.run(line.split(), check=True)
    os.environ |= {
        "COVEY_NODE_STATE_DIR": str(folder / "state"), "COVEY_NETWORK_ADDRESSES": _ADDRESS,
    }  # fmt: skip
    agent("mesh", "create", "home")
    agent("up")
    try:
        ticket = agent("invite").strip()
        machine = Appliance(image, folder)
        machine.write("covey.toml", f'# Ours.\nticket = "{ticket}"\nname = "shed-1"\n')
        with machine.running():
            took = machine.wait_for("Mesh: home", _JOIN_S)
            members = json.loads(agent("peers", "--json"))
        # Its power was cut just now.
        text = machine.read("covey.toml").decode()
        with machine.running():
            again = machine.wait_for("Mesh: home", _JOIN_S)
        print(json.dumps({"took_s": took, "again_s": again, "file": text, "members": members}))
    finally:
        agent("down")


if __name__ == "__main__":
    main()
