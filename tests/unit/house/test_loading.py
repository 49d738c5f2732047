"""What starts an agent fast: packages that are imported in part, and all of them at once."""

from __future__ import annotations

import subprocess
import sys

import gguf
import pytest

from agent.engine import gguf_constants
from agent.hollow import hollow


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_part_is_imported_without_the_rest() -> None:
    code = """
import sys
from agent.hollow import hollow
hollow("pyroute2")
from pyroute2.netlink.generic.wireguard import WireGuard
print("pyroute2.ndb.main" in sys.modules)
from pyroute2 import NDB, netlink
from pyroute2.netlink.generic import wireguard
print("pyroute2.ndb.main" in sys.modules, wireguard.WireGuard is WireGuard)
"""
    assert run(code) == ["False", "True", "True"]


def test_what_a_package_does_not_have_is_said_as_ever() -> None:
    code = """
from agent.hollow import hollow
hollow("pyroute2")
import pyroute2
for name in ("nothing", "__wrapped__"):
    print(hasattr(pyroute2, name))
"""
    assert run(code) == ["False", "False"]
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        hollow("no_such_package")


def test_a_running_agent_has_all_and_no_more() -> None:
    code = """
import gc, sys
from agent.cli import loading
loading.load()
print(gc.isenabled())
before = set(sys.modules)
from agent.daemon import serve
from agent.control.node import Node
from agent.overlay.kernel import KernelDevice
from agent.overlay.userspace import UserspaceDevice
print(len(set(sys.modules) - before))
print(*(name in sys.modules for name in ("gguf", "pyroute2.ndb", "libp2p.bitswap", "llama_cpp")))
"""
    assert run(code) == ["False", "0", *["False"] * 4]


def test_an_agent_is_loaded_without_libp2p_too() -> None:
    code = """
import sys
sys.modules["libp2p"] = None
from agent.cli import loading
loading.load()
print("agent.daemon" in sys.modules, "agent.control.node" in sys.modules)
"""
    assert run(code) == ["True", "False"]


def test_the_constants_are_those_of_the_package() -> None:
    for name in gguf_constants.__all__:
        ours, theirs = getattr(gguf_constants, name), getattr(gguf, name)
        assert values(ours) == values(theirs)


def values(names: object) -> list[tuple[str, object]]:
    if isinstance(names, dict):
        return [(kind.name, sizes) for kind, sizes in names.items()]
    return [(kind.name, kind.value) for kind in names]  # type: ignore[attr-defined]
