"""libp2p costs nothing until it is wanted, and its absence is said in one line."""

from __future__ import annotations

import subprocess
import sys


def test_importing_it_imports_no_libp2p_and_without_libp2p_it_says_so() -> None:
    script = """
import asyncio, sys
from agent.control import ControlPlane
from agent.errors import EnvironmentFault
from agent.identity.keys import NodeKey
assert not {"libp2p", "trio", "multiaddr"} & set(sys.modules)
sys.modules["libp2p"] = None
async def main():
    plane = ControlPlane(NodeKey(bytes(32)), None, [])
    try:
        await plane.start()
    except EnvironmentFault as error:
        print(error.message)
    await plane.stop()
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert "the control plane (libp2p) cannot start: ModuleNotFoundError" in done.stdout
