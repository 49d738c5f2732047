"""libp2p costs nothing until it is wanted, and its absence is said in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_importing_it_imports_no_libp2p_and_without_libp2p_it_says_so() -> None:
    script = """
import asyncio, sys
from agent.control import ControlPlane
from agent.errors import EnvironmentFault
from agent.identity.keys import NodeKey
from agent.membership.networkkeys import NetworkKeys
assert not {"libp2p", "trio", "multiaddr"} & set(sys.modules)
sys.modules["libp2p"] = None
async def main():
    plane = ControlPlane(NodeKey(bytes(32)), NetworkKeys.single(bytes(32)), [])
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


def test_libp2p_comes_without_what_is_not_used() -> None:
    script = """
import asyncio, sys
from agent.control import ControlPlane
from agent.identity.keys import NodeKey
from agent.membership.networkkeys import NetworkKeys
async def main():
    plane = ControlPlane(NodeKey(bytes(32)), NetworkKeys.single(bytes(32)), ["127.0.0.1:0"])
    await plane.start()
    await plane.stop()
asyncio.run(main())
unused = {"libp2p.kad_dht", "libp2p.bitswap", "libp2p.pubsub.gossipsub", "libp2p.host.basic_host"}
print(sorted(unused & set(sys.modules)), sum(name.startswith("libp2p") for name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    unused, modules = done.stdout.rsplit(" ", 1)
    assert unused == "[]"
    assert int(modules) < 200  # 304 with the package's own module
