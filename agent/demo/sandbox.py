"""Run a command in private mount, process and network namespaces that vanish with it.

Whatever the command leaves (network namespaces, interfaces, processes, files under /run) ends
with its first process: the kernel ends a process namespace with its process 1, and the rest lives
only as long as some process is in it. So nothing has to be cleaned up, even after SIGKILL.

As root the namespaces are root's; otherwise a user namespace is made, where the system allows
that. Used by `agent demo` and by the lab tests: `python -m agent.demo.sandbox -- COMMAND …`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agent.errors import EnvironmentFault

# Set inside, so that a test can refuse to build networks on the machine itself.
MARK = "COVEY_SANDBOX"
# How long the command may take to end by itself before its namespace is ended.
_GRACE_S = 10.0
# ip and nft lie where an ordinary user's PATH does not look.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_PACKAGES = {
    "unshare": "util-linux", "nsenter": "util-linux", "mount": "mount", "ip": "iproute2",
    "sysctl": "procps", "wireguard-go": "wireguard-go",
}  # fmt: skip


def check() -> None:
    """Raise EnvironmentFault with the one thing that is missing for a sandbox on this machine."""
    for program, package in _PACKAGES.items():
        if shutil.which(program, path=_PATH) is None:
            raise EnvironmentFault(
                f"{program} is not installed.", hint=f"Install the package {package}."
            )
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise EnvironmentFault(
            "/dev/net/tun is missing or closed to this user, and WireGuard needs it.",
            hint="Run this as root, or `chmod 666 /dev/net/tun` as root.",
        )
    probe = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EnvironmentFault(
            f"this system does not allow private namespaces ({reason}).",
            hint="Run this as root, or allow user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1).",
        )


@contextmanager
def start(
    command: Sequence[str], *, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command` in a sandbox; leaving the block ends it and everything in it.

    Also when this process dies without leaving the block: the command's process 1 watches a pipe.
    Raises EnvironmentFault when the system does not allow it.
    """
    check()
    watch_read, watch_write = os.pipe()
    init = [sys.executable, "-m", "agent.demo.init", str(watch_read), ",".join(map(str, pass_fds))]
    process = subprocess.Popen(
        [*_unshare(), *init, *command],
        pass_fds=[watch_read, *pass_fds],
        env={**os.environ, MARK: "1", "PATH": _PATH},
    )
    os.close(watch_read)
    try:
        yield process
    finally:
        os.close(watch_write)
        try:
            process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()  # --kill-child: process 1 goes with it, and with that the namespace
            process.wait()


def run(command: Sequence[str]) -> int:
    """Run `command` in a sandbox to its end and return its exit code.

    SIGTERM and SIGHUP end it and give 128 + the signal, as a shell says it; Ctrl-C reaches the
    command itself, which shares the terminal.
    """

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    signal.signal(signal.SIGINT, lambda *_: None)
    with start(command) as process:
        return process.wait()


def inside() -> bool:
    """Say whether this process already runs in a sandbox."""
    return os.environ.get(MARK) == "1"


def _unshare() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "--net", "--pid", "--fork", "--kill-child",
            "--mount-proc"]  # fmt: skip


def main() -> int:
    """Run the command after `--`."""
    command = sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]
    if not command:
        print("Usage: python -m agent.demo.sandbox -- COMMAND …", file=sys.stderr)
        return 2
    try:
        return run(command)
    except EnvironmentFault as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
