"""What a container's bound leaves of memory, in both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import cgroups
from agent.deploy import machine

MIB = 1 << 20
STAT = f"anon 1\ninactive_file {30 * MIB}\nactive_file {20 * MIB}\n"
OLD = f"active_file 1\ntotal_inactive_file {30 * MIB}\ntotal_active_file {20 * MIB}\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def second(folder: str, bound: str, used: int) -> dict[str, str]:
    base = f"sys/fs/cgroup/{folder}"
    return {f"{base}memory.max": f"{bound}\n", f"{base}memory.current": f"{used}\n",
            f"{base}memory.stat": STAT}  # fmt: skip


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", **second("", "max", 9)}, None),
        ({"proc/self/cgroup": "0::/\n", **second("", str(400 * MIB), 250 * MIB)}, 200 * MIB),
        # The narrowest counts: a pod's bound holds for its containers.
        ({"proc/self/cgroup": "0::/a/b\n", **second("a/b/", str(900 * MIB), 0),
          **second("a/", str(100 * MIB), 60 * MIB)}, 90 * MIB),
        ({"proc/self/cgroup": "0::/\n", **second("", str(10 * MIB), 80 * MIB)}, 0),
        ({"proc/self/cgroup": "4:memory:/x\n",
          "sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(300 * MIB),
          "sys/fs/cgroup/memory/x/memory.usage_in_bytes": str(100 * MIB),
          "sys/fs/cgroup/memory/x/memory.stat": OLD}, 250 * MIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "garbled"}, None),
    ],
)  # fmt: skip
def test_what_is_left(tmp_path: Path, files: dict[str, str], left: int | None) -> None:
    assert cgroups.memory_left(write(tmp_path, files)) == left


def test_a_node_has_no_more_than_its_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemAvailable: {500 * 1024} kB\n")
    files = {"proc/self/cgroup": "0::/\n", **second("", str(400 * MIB), 250 * MIB)}
    assert machine.free_bytes(meminfo, write(tmp_path, files)) == 200 * MIB
    files |= second("", str(4000 * MIB), 250 * MIB)
    assert machine.free_bytes(meminfo, write(tmp_path, files)) == 500 * MIB
