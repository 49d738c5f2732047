"""The root file systems of the test machines: Debian as a server's installer leaves it.

Made once, with the network, by `python tests/ansible/roots.py`, and kept in the cache. What a
machine of Covey needs beside lies in the root as a repository of packages, so that the playbooks
install it by apt without the network. A layer on top of Debian 12 has OpenRC in the place of
systemd.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"


@dataclass(frozen=True)
class Distribution:
    """A release of Debian: what it is called here and by its mirror, and its layers."""

    name: str
    suite: str
    openrc: bool = False

    @property
    def source(self) -> str:
        """The line by which apt finds its mirror."""
        return f"deb {MIRROR} {self.suite} main"


BOOKWORM = Distribution("debian-12", "bookworm", openrc=True)
TRIXIE = Distribution("debian-13", "trixie")
ALL = (BOOKWORM, TRIXIE)
# What is there before a playbook is run.
INSTALLED = (
    "iproute2", "kmod", "openssh-server", "procps", "python3", "python3-apt", "sudo", "systemd",
)  # fmt: skip
# What playbooks install, and what the layer with OpenRC is made of.
OFFERED = (
    "busybox", "ca-certificates", "conntrack", "curl", "libgmp10", "libgomp1", "netbase",
    "nftables", "openrc", "python3-venv", "wireguard-go", "wireguard-tools",
)  # fmt: skip
REPOSITORY = "srv/packages"
# Who has to give a password to become root.
OPERATOR, PASSWORD = "keeper", "partridge"
_UNUSED_S = 7 * 86400
_LEFT_OUT = ("doc", "man", "locale", "info")
_SOURCES = f"deb [trusted=yes] file:/{REPOSITORY} ./\n"
_FETCH = (
    f"mkdir -p $1/{REPOSITORY}/partial && chroot $1 apt-get install -qq -y --download-only "
    f"-o Dir::Cache::archives=/{REPOSITORY} {' '.join(OFFERED)}"
)
# busybox is process 1 there, as in the appliance; each runlevel holds what a container can start.
_INITTAB = """\
::sysinit:/sbin/openrc sysinit
::sysinit:/sbin/openrc boot
::wait:/sbin/openrc default
::shutdown:/sbin/openrc shutdown
"""
_OPENRC = """\
apt-get update -qq
apt-get install -qq -y --no-install-recommends openrc busybox >/dev/null
rm -f /etc/runlevels/*/* /var/lib/apt/lists/*Packages
rc-update add ssh default
ln -sf /bin/busybox /sbin/init
"""


_LAYER = """\
mount -t overlay overlay -o "$1" "$2"
printf %s "$3" >"$2/etc/inittab"
chroot "$2" sh -euc "$4"
"""


class RootFault(Exception):
    """A root file system could not be made, and why."""


def cached(distribution: Distribution = BOOKWORM) -> Path:
    """Return where this version's roots are kept: `base` and `openrc`, made or not."""
    cache = Path(os.environ.get("COVEY_CACHE") or Path.home() / ".cache/covey")
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return cache / "ansible" / f"{distribution.name}-{digest}"


def make(distribution: Distribution) -> Path:
    """Return the folder of the roots; make them if they are not in the cache. Raises RootFault."""
    target = cached(distribution)
    if target.exists():
        os.utime(target)
        return target
    if os.geteuid() != 0:
        raise RootFault("the machines' root file systems are made by root alone")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        _debian(distribution, made / "base")
        if distribution.openrc:
            _openrc(made)
        try:
            made.rename(target)
        except OSError:  # Another run has made it meanwhile.
            if not target.exists():
                raise
    remove_old(target.parent)
    return target


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep the folder of the roots from `remove_old`; raises RootFault where it is not made."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise RootFault(f"{folder} is not made: python tests/ansible/prepare.py") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def remove_old(folder: Path) -> None:
    """Remove roots that nobody asked for of late, such as an older clone's, and none in use."""
    for old in folder.glob("debian-*"):
        if old.stat().st_mtime > time.time() - _UNUSED_S:
            continue
        descriptor = os.open(old, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _debian(distribution: Distribution, root: Path) -> None:
    """Install Debian into `root`, with the repository in it."""
    options = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _LEFT_OUT]
    run([
        "mmdebstrap", "--quiet", "--mode=root", "--variant=apt", "--format=directory",
        f"--include={','.join(INSTALLED)}", '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=force-unsafe-io", *options, f"--customize-hook={_FETCH}",
        distribution.suite, str(root), distribution.source,
    ])  # fmt: skip
    shutil.rmtree(root / REPOSITORY / "partial")
    _index(root / REPOSITORY)
    lists = root / "etc/apt/sources.list.d"
    shutil.rmtree(lists)
    lists.mkdir()
    (root / "etc/apt/sources.list").write_text(_SOURCES)
    _chroot(root, "apt-get update -qq")
    _chroot(root, f"useradd -m -s /bin/bash {OPERATOR} -G sudo")
    _chroot(root, f"echo {OPERATOR}:{PASSWORD} | chpasswd")
    # No name server answers, at once; and nothing is there that each machine has of its own.
    (root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    (root / "etc/machine-id").write_text("")
    for unit in ("getty.target", "systemd-resolved.service", "apt-daily.timer",
                 "apt-daily-upgrade.timer", "e2scrub_all.timer"):  # fmt: skip
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")


def _index(folder: Path) -> None:
    """Write what apt wants to know of the packages in a folder."""
    told = []
    for package in sorted(folder.glob("*.deb")):
        fields = run(["dpkg-deb", "-f", str(package)]).rstrip("\n")
        content = package.read_bytes()
        told.append(
            f"{fields}\nFilename: ./{package.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n\n"
        )
    (folder / "Packages").write_text("".join(told))


def _openrc(made: Path) -> None:
    """Make the layer that has OpenRC: what an installation there adds to the base."""
    layer, work, merged = (made / name for name in ("openrc", "work", "merged"))
    for folder in (layer, work, merged):
        folder.mkdir()
    mount = f"lowerdir={made / 'base'},upperdir={layer},workdir={work}"
    # In a mount namespace, where nothing has to be unmounted.
    run(["unshare", "--mount", "--propagation", "private", "sh", "-euc", _LAYER, "sh",
          mount, str(merged), _INITTAB, _OPENRC])  # fmt: skip
    shutil.rmtree(work)
    merged.rmdir()


def _chroot(root: Path, script: str) -> None:
    run(["chroot", str(root), "sh", "-euc", script])


def run(command: list[str]) -> str:
    """Run a command and return what it prints; raises RootFault."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError:
        raise RootFault(
            f"{command[0]} is not installed: sh requirements/system.sh ansible"
        ) from None
    if done.returncode != 0:
        raise RootFault(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def main() -> int:
    """Make the roots and print where they are."""
    try:
        for distribution in ALL:
            print(make(distribution))
    except RootFault as fault:
        print(f"{fault}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
