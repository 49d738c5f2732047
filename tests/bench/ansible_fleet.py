"""site.yml for fleets of 1, 4 and 12 hosts: how its time grows with the number of hosts.

    python tests/bench/ansible_fleet.py [--quick] [--json FILE] [--hosts N …] [--profile]

As root: hosts are namespaces with OpenRC and sshd of their own (tests/ansible/machines.py), which
share one read-only root. The first is issuer and worker, the others workers; wheels are given. A
first run takes empty hosts to members that are well, a second one changes nothing.

All hosts compute on this machine's cores, and an installation costs a host some seconds of a core,
so here time grows as their work does. What the control machine computes is counted apart from what
hosts compute (by their control groups): real hosts bring their own cores, and what cannot be spread
is the control machine's and the issuer's part. --profile shows the slowest tasks.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from report import Row, conditions, finish, parser, row

sys.path.insert(0, str(Path(__file__).parents[1] / "ansible"))

import machines
import prepare
import roots

from agent.demo import sandbox

_FEW, _SOME, _MANY = 1, 4, 12
# A fleet's time against one host's: the goal is a third of the growth.
_GOAL_OF_GROWTH = 1 / 3
_RUN_S = 3600.0
_TASK = re.compile(r"^(?:TASK|RUNNING HANDLER) \[(.*?)\] \**$")


@dataclass(frozen=True)
class Cost:
    """One run of site.yml: its time, and seconds of a core on the control side and on hosts."""

    wall_s: float
    control_s: float
    issuer_s: float
    hosts_s: float
    tasks: dict[str, float]


class Fleet:
    """So many empty hosts."""

    def __init__(self, made: machines.Machines, names: list[str]) -> None:
        self._machines, self._names = made, names
        self._inventory = made.inventory(
            {"covey_issuers": names[:1], "covey_workers": names},
            covey_wheelhouse=str(prepare.wheelhouse()), covey_cache_dir=str(made.folder / "cache"),
        )  # fmt: skip

    def run(self) -> Cost:
        """Run site.yml; ends the bench where that fails or a host was not reached."""
        before = self._used()
        mine = _children_s()
        began = time.monotonic()
        tasks: dict[str, float] = {}
        process = subprocess.Popen(
            self._machines.control.command(
                ["ansible-playbook", "-i", str(self._inventory), "site.yml"]
            ),
            cwd=machines.REPOSITORY / "ansible", env=self._machines.environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said, task, since = [], "start", began
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := _TASK.match(line):
                now = time.monotonic()
                tasks[task] = tasks.get(task, 0.0) + now - since
                task, since = found[1], now
        if process.wait(_RUN_S) != 0:
            raise SystemExit(f"site.yml failed: {''.join(said[-60:])}")
        wall = time.monotonic() - began
        after = self._used()
        spent = {name: after[name] - before[name] for name in self._names}
        return Cost(wall, _children_s() - mine, spent[self._names[0]], sum(spent.values()), tasks)

    def _used(self) -> dict[str, float]:
        return {name: self._machines.cpu_s(name) for name in self._names}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def fleet(number: int) -> Iterator[Fleet]:
    """Start so many hosts."""
    names = [f"host{one:02}" for one in range(1, number + 1)]
    with machines.started(dict.fromkeys(names, "openrc")) as made:
        yield Fleet(made, names)


def measure(numbers: list[int], profile: bool) -> list[Row]:
    """Measure fleets of these sizes."""
    rows: list[Row] = []
    alone: dict[str, Cost] = {}
    for number in numbers:
        with fleet(number) as hosts:
            for title in ("first run", "second run"):
                cost = hosts.run()
                alone.setdefault(title, cost)
                rows += rows_of(number, title, cost, alone[title], numbers[0])
                print(f"  {number} hosts, {title}: {cost.wall_s:.1f} s", file=sys.stderr)
                if profile:
                    for name, took in sorted(cost.tasks.items(), key=lambda t: -t[1])[:25]:
                        print(f"    {took:6.1f} s  {name}", file=sys.stderr)
    return rows


def rows_of(number: int, title: str, cost: Cost, alone: Cost, least: int) -> list[Row]:
    """Return the rows of one run."""
    name = f"{number} hosts, {title}"
    goal = None
    if number > least:
        goal = round(alone.wall_s * number / least * _GOAL_OF_GROWTH, 1)
    return [
        row(name, cost.wall_s, "s", goal=goal,
            limit="all hosts on this machine's cores; the goal is a third of the growth"),
        row(f"{name}: control, a host", cost.control_s / number, "s of a core"),
        row(f"{name}: issuer", cost.issuer_s, "s of a core"),
        row(f"{name}: all hosts, each", cost.hosts_s / number, "s of a core"),
    ]  # fmt: skip


def main() -> int:
    """Parse flags, measure in a sandbox, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--hosts", type=int, nargs="+", metavar="N", help="sizes (1 4 12)")
    flags.add_argument("--profile", action="store_true", help="show the slowest tasks")
    arguments = flags.parse_args()
    if not sandbox.inside():
        if os.geteuid() != 0:
            print("Fleets are not measured: their hosts are made by root alone.")
            return 0
        needs = ["sh", str(machines.REPOSITORY / "requirements/system.sh"), "ansible"]
        if subprocess.run(needs, check=False).returncode != 0 or prepare.main() != 0:
            return 1
        return sandbox.run([sys.executable, *sys.argv])
    numbers = arguments.hosts or ([_FEW, _SOME] if arguments.quick else [_FEW, _SOME, _MANY])
    rows = measure(numbers, arguments.profile)
    found = conditions(quick=arguments.quick, hosts=numbers, root=roots.BOOKWORM.name,
                       init="openrc", device="wireguard-go")  # fmt: skip
    finish("ansible_fleet", found, rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
