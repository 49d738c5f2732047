"""Machines for the playbooks: namespaces with a root file system, an init and an sshd of their own.

They stand on one LAN in a sandbox (`agent/demo/sandbox.py`), with a control side that has ssh to
all of them and what `ansible-playbook` needs. What a machine writes is in a folder of its own, on
top of the roots that `roots.py` makes, and goes with it. Of its kernel a machine has what a
container has: systemd or OpenRC run, modules and clocks are not its own.

By hand, as root: `python tests/ansible/machines.py alpha beta gamma:openrc` starts them, says how
to get in, and ends them with Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(HERE), str(REPOSITORY)]

import roots  # noqa: E402

from agent.demo import netlab, sandbox  # noqa: E402

CONTROL = "control"
_BOOT_S = 120.0
_LOOK_AGAIN_S = 0.2
_OLD_S = 3600.0
_CGROUPS = Path("/run/covey-cgroups")
_RECAP = re.compile(r"^(\S+)\s+: ((?:\w+=\d+\s*)+)$", re.MULTILINE)


@dataclass(frozen=True)
class Kind:
    """What a machine is made of: a distribution, its layers' names, topmost first, its init."""

    distribution: roots.Distribution
    layers: tuple[str, ...] = ("base",)
    init: str = "/lib/systemd/systemd"

    @property
    def folders(self) -> list[Path]:
        """The folders of its layers, topmost first."""
        return [roots.cached(self.distribution) / layer for layer in self.layers]


KINDS = {
    "systemd": Kind(roots.BOOKWORM),
    "openrc": Kind(roots.BOOKWORM, ("openrc", "base"), "/sbin/init"),
    "trixie": Kind(roots.TRIXIE),
}


@dataclass(frozen=True)
class Machine:
    """A machine that runs: its address on the LAN, its kind and its first process."""

    name: str
    address: str
    kind: str
    folder: Path
    process: subprocess.Popen[bytes]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command there as root, without ssh, and return what it says."""
        done = subprocess.run(
            ["nsenter", "-a", "-t", str(self._init()), *command],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode != 0:
            said = f"{done.stdout}{done.stderr}".strip()
            raise AssertionError(f"{self.name}: {' '.join(command)}: {done.returncode}: {said}")
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file there; it keeps its owner and its mode if there was one."""
        self.run("sh", "-c", 'printf %s "$1" >"$0"', path, text)

    def _init(self) -> int:
        of = self.process.pid
        return int(Path(f"/proc/{of}/task/{of}/children").read_text().split()[0])


@dataclass(frozen=True)
class Played:
    """How a playbook ended, what it said, and its figures: machine → ok, changed, failed, …."""

    code: int
    output: str
    figures: Mapping[str, Mapping[str, int]]

    def sum(self, figure: str) -> int:
        """Return one figure of all machines together."""
        return sum(of[figure] for of in self.figures.values())


class Machines:
    """Some machines and the control side; inside a sandbox, as root, until `down`."""

    def __init__(self, folder: Path, kinds: Mapping[str, str]) -> None:
        """Start a machine of each name, of a kind of KINDS, and wait for their sshd."""
        self.folder = folder
        self._roots = contextlib.ExitStack()
        self._lan = netlab.Lan()
        self.control = self._lan.add(CONTROL)
        self.key = folder / "key"
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        if not _CGROUPS.exists():
            _CGROUPS.mkdir()
            _do("mount", "-t", "cgroup2", "cgroup2", str(_CGROUPS))
            _remove_old_cgroups()
        self.machines: dict[str, Machine] = {}
        try:
            for distribution in {KINDS[kind].distribution for kind in kinds.values()}:
                self._roots.enter_context(roots.in_use(roots.cached(distribution)))
            for name, kind in kinds.items():
                self.machines[name] = self._start(name, kind)
            self._write_ssh_config()
            self._wait()
        except BaseException:
            self.down()
            raise

    @property
    def switch(self) -> str:
        """The namespace of the switch that they are plugged into."""
        return self._lan.switch

    def __getitem__(self, name: str) -> Machine:
        """Return the machine with a name."""
        return self.machines[name]

    def down(self) -> None:
        """End all machines; what they wrote stays until the folder goes."""
        for machine in self.machines.values():
            machine.process.kill()  # --kill-child: its init goes with it, and all that runs there
        for name, machine in self.machines.items():
            machine.process.wait()
            _remove_cgroups(self._cgroup(name))
        self._lan.close()
        self._roots.close()

    def inventory(self, groups: Mapping[str, Sequence[str]], **variables: Any) -> Path:
        """Write an inventory with these groups of machines, and variables for all of them."""
        where = {
            "ansible_ssh_common_args": f"-F {self.folder / 'ssh_config'}",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        children = {
            name: {"hosts": {member: {} for member in members}} for name, members in groups.items()
        }
        covey = {"covey": {"children": children}}
        said = {"all": {"vars": {**where, **variables}, "children": covey}}
        path = self.folder / "hosts.yml"
        path.write_text(json.dumps(said, indent=1))
        return path

    def environment(self) -> dict[str, str]:
        """Return the environment of what runs on the control side."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "COVEY_"))}
        programs = Path(sys.executable).parent
        return kept | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible/ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(self.folder / "facts"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "local"),
            # Other machines have the same addresses, and ssh knows connections by these alone.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        }  # fmt: skip

    def play(
        self, playbook: str, *arguments: str, inventory: Path, within_s: float = 900
    ) -> Played:
        """Run a playbook of `ansible/` from the control side and return how it ended."""
        done = subprocess.run(
            self.control.command(["ansible-playbook", "-i", str(inventory), playbook, *arguments]),
            cwd=REPOSITORY / "ansible", env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=within_s,
        )  # fmt: skip
        figures = {
            name: {k: int(v) for k, v in (pair.split("=") for pair in pairs.split())}
            for name, pairs in _RECAP.findall(done.stdout)
        }
        return Played(done.returncode, done.stdout, figures)

    def kill(
        self, playbook: str, *arguments: str, inventory: Path, at: str, later_s: float = 1,
        within_s: float = 600,
    ) -> None:  # fmt: skip
        """Run a playbook, and kill it a moment after it has said `at`."""
        log = self.folder / "killed.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.control.command(
                    ["ansible-playbook", "-i", str(inventory), playbook, *arguments]
                ),
                cwd=REPOSITORY / "ansible", stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=self.environment(), start_new_session=True,
            )  # fmt: skip
            deadline = time.monotonic() + within_s
            while at not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(_LOOK_AGAIN_S)
            time.sleep(later_s)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def cpu_s(self, name: str) -> float:
        """Return the seconds of a core that a machine has computed so far."""
        told = (self._cgroup(name) / "cpu.stat").read_text()
        return int(re.findall(r"^usage_usec (\d+)$", told, re.M)[0]) / 1e6

    def _start(self, name: str, kind: str) -> Machine:
        folder = self.folder / name
        made_of = KINDS[kind]
        self._prepare(folder / "upper", made_of.folders[-1])
        net = self._lan.add(name)
        group = self._cgroup(name)
        group.mkdir()
        command = [
            "sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh",
            *net.command(["unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork",
                          "--kill-child", "--propagation", "private", str(HERE / "boot.sh"), name,
                          ":".join(map(str, made_of.folders)), str(folder), made_of.init]),
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        return Machine(name, net.address, kind, folder, process)

    def _prepare(self, upper: Path, base: Path) -> None:
        """Let this control side in as root and as who gives a password."""
        for home in ("root", f"home/{roots.OPERATOR}"):
            owner = (base / home).stat()
            for made in (upper / home, upper / home / ".ssh"):
                made.mkdir(parents=True)
                made.chmod(0o700)
                os.chown(made, owner.st_uid, owner.st_gid)
            keys = upper / home / ".ssh/authorized_keys"
            keys.write_text(self.key.with_suffix(".pub").read_text())
            keys.chmod(0o600)
            os.chown(keys, owner.st_uid, owner.st_gid)
        (upper / "home").chmod(0o755)
        upper.chmod(0o755)

    def _write_ssh_config(self) -> None:
        """Write how ssh reaches them; they are known by the keys that their roots have."""
        known = self.folder / "known_hosts"
        known.write_text("".join(
            f"{machine.address} {key.read_text()}" for machine in self.machines.values()
            for key in (KINDS[machine.kind].folders[-1] / "etc/ssh").glob("ssh_host_*_key.pub")
        ))  # fmt: skip
        common = f"  IdentityFile {self.key}\n  UserKnownHostsFile {known}\n  User root\n"
        hosts = (f"Host {m.name}\n  HostName {m.address}\n{common}" for m in self.machines.values())
        (self.folder / "ssh_config").write_text("".join(hosts))

    def _wait(self) -> None:
        deadline = time.monotonic() + _BOOT_S
        ssh = ["ssh", "-F", str(self.folder / "ssh_config")]
        for machine in self.machines.values():
            while self.control.run([*ssh, machine.name, "true"]).returncode != 0:
                if machine.process.poll() is not None or time.monotonic() > deadline:
                    log = (machine.folder / "log").read_text().strip()
                    raise AssertionError(f"{machine.name} has no sshd that answers: {log}")
                time.sleep(_LOOK_AGAIN_S)

    def _cgroup(self, name: str) -> Path:
        # Another sandbox's machines are in the same hierarchy, which knows no namespaces here.
        return _CGROUPS / f"covey-{self.folder.name}-{name}"


def _remove_old_cgroups() -> None:
    """Remove the control groups of machines whose sandbox was killed, all that outlives one."""
    for group in _CGROUPS.glob("covey-*"):
        with contextlib.suppress(OSError):
            old = group.stat().st_mtime < time.time() - _OLD_S
            if old and "populated 0" in (group / "cgroup.events").read_text():
                _remove_cgroups(group)


def _remove_cgroups(top: Path) -> None:
    """Remove a control group and those in it, a moment after their last process has ended."""
    for group in sorted([top, *top.rglob("*/")], reverse=True):
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
            if not group.exists():
                break
            time.sleep(_LOOK_AGAIN_S / 10)


@contextlib.contextmanager
def started(kinds: Mapping[str, str], folder: Path | None = None) -> Iterator[Machines]:
    """Start machines in a folder of their own, which goes with them."""
    with tempfile.TemporaryDirectory(prefix="covey-machines-", dir=folder) as made:
        machines = Machines(Path(made), kinds)
        try:
            yield machines
        finally:
            machines.down()


def _do(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


_ENTER = """\
#!/bin/sh
# Run a command on the control side: {enter} COMMAND …
exec nsenter -m -p -n -t {init} sh -c 'cd "$0" && exec nsenter --net=/run/netns/{control} "$@"' \\
    "$PWD" env {environment} "$@"
"""


def _stay(kinds: Mapping[str, str], told: int) -> int:
    """Start machines in this sandbox and keep them until a signal ends it."""
    with started(kinds) as machines:
        workers = [name for name in kinds if name != next(iter(kinds))]
        inventory = machines.inventory({"covey_issuers": list(kinds)[:1], "covey_workers": workers})
        changed = {k: v for k, v in machines.environment().items() if os.environ.get(k) != v}
        facts = {
            "environment": changed,
            "inventory": str(inventory),
            "folder": str(machines.folder),
        }
        with os.fdopen(told, "w") as pipe:
            pipe.write(json.dumps(facts) + "\n")
        _wait_for(signal.SIGTERM, signal.SIGINT)
    return 0


def _wait_for(*signals: signal.Signals) -> signal.Signals:
    # Blocked only now: what was started before would have them blocked, too.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    return signal.Signals(signal.sigwait(signals))


def main() -> int:
    """Start machines by hand."""
    parser = argparse.ArgumentParser(description="Start test machines and keep them.")
    parser.add_argument("machines", nargs="+", metavar="NAME[:KIND]")
    parser.add_argument("--told", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--enter", type=Path, default=Path("enter"), metavar="FILE",
                        help="the script to write, which runs commands there")  # fmt: skip
    said = parser.parse_args()
    pairs = (word.partition(":") for word in said.machines)
    kinds = {name: kind or "systemd" for name, _, kind in pairs}
    if unknown := set(kinds.values()) - KINDS.keys():
        parser.error(f"there is no kind {', '.join(sorted(unknown))}, but {', '.join(KINDS)}")
    if sandbox.inside():
        return _stay(kinds, said.told)
    for kind in set(kinds.values()):
        roots.make(KINDS[kind].distribution)
    read, write = os.pipe()
    command = [sys.executable, __file__, *said.machines, "--told", str(write)]
    with sandbox.start(command, pass_fds=[write]) as process:
        os.close(write)
        with os.fdopen(read) as pipe:
            facts = json.loads(pipe.readline() or "null")
        if facts is None:
            return process.wait()
        of = process.pid
        init = Path(f"/proc/{of}/task/{of}/children").read_text().split()[0]
        words = " ".join(f"'{key}={value}'" for key, value in facts["environment"].items())
        script = _ENTER.format(enter=said.enter, init=init, control=CONTROL, environment=words)
        said.enter.write_text(script)
        said.enter.chmod(0o755)
        print(f"{said.enter} ssh -F {facts['folder']}/ssh_config {next(iter(kinds))}")
        print(f"{said.enter} ansible-playbook -i {facts['inventory']} site.yml", flush=True)
        # A child that is stopped, or goes on, is told of by the same signal as one that ends.
        while _wait_for(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD) == signal.SIGCHLD:
            if process.poll() is not None:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
