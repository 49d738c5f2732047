"""Makes the root file system's tree out of packages, Covey itself, and image/root. A shell."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from agent import __version__
from agent.errors import EnvironmentFault
from image.make import debian, initramfs, wheels
from image.make.programs import run

REPOSITORY = Path(__file__).parents[2]
OVERLAY = Path(__file__).parents[1] / "root"
PACKAGES = Path("usr/lib/python3/dist-packages")
_LIBRARY = Path("usr/lib/python3.11")
# For people, for other programs, and for tests.
_NOT_NEEDED = (
    "usr/share", "usr/games", "usr/include", "usr/lib/initramfs-tools", "usr/lib/systemd",
    "lib/systemd", "lib/udev", "etc/cron.d", "etc/runlevels", "etc/init.d", "etc/pam.d", "boot",
    f"{_LIBRARY}/ensurepip", f"{_LIBRARY}/idlelib", f"{_LIBRARY}/lib2to3", f"{_LIBRARY}/pydoc_data",
    f"{_LIBRARY}/tkinter", f"{_LIBRARY}/turtledemo", "usr/bin/perf",
)  # fmt: skip
_TEST_FOLDERS = frozenset(("test", "tests", "_pyinstaller"))
_FOLDERS = (
    "boot/esp", "data", "dev", "etc/insserv.conf.d", "etc/insserv/overrides", "low", "proc", "root",
    "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/lib/covey", "var/log", "var/tmp",
)  # fmt: skip
_LINKS = {
    "bin/sh": "dash", "usr/bin/python3": "python3.11", "sbin/init": "/bin/busybox",
    "sbin/getty": "/bin/busybox", "var/run": "/run", "var/lock": "/run/lock",
    # Debian's own key signs its copy, and Debian's kernel trusts that.
    "lib/firmware/regulatory.db": "regulatory.db-debian",
    "lib/firmware/regulatory.db.p7s": "regulatory.db.p7s-debian",
}  # fmt: skip
_RUNLEVELS = {
    "sysinit": ("covey-devices",),
    "boot": ("covey-disk", "covey-settings"),
    "default": (
        "covey-network", "covey-wifi", "covey-ssh", "covey-time", "covey-watchdog", "covey-power",
        "covey-agent", "covey-watch",
    ),
    "shutdown": (),
}  # fmt: skip
# Covey's own; of image/ what runs on the appliance.
_OURS = ("agent", "gateway", "image/node")


def make(root: Path, debs: list[Path], python: list[Path]) -> None:
    """Fill an empty folder: Debian's packages, wheels, Covey, kernel and initramfs.

    Raises EnvironmentFault for what cannot be unpacked or is not in the packages.
    """
    debian.unpack(debs, root)
    release = _kernel(root)
    for wheel in python:
        wheels.unpack(wheel, root / PACKAGES)
    _trim(root)
    _covey(root / PACKAGES)
    _lay(root)
    _compile(root)
    run(["depmod", "-b", root, release])
    (root / "boot/initramfs").write_bytes(initramfs.make(root, release))
    _even_modes(root)


def _kernel(root: Path) -> str:
    """Set the kernel aside; return its release."""
    kernels = list((root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise EnvironmentFault(f"the packages have {len(kernels)} kernels, and not one")
    kernels[0].rename(root / "vmlinuz")
    return kernels[0].name.removeprefix("vmlinuz-")


def _trim(root: Path) -> None:
    for name in _NOT_NEEDED:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for library in (root / _LIBRARY, root / PACKAGES):
        for folder, names, _ in os.walk(library):
            for name in _TEST_FOLDERS.intersection(names):
                shutil.rmtree(Path(folder) / name)
                names.remove(name)


def _covey(packages: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in _OURS:
        shutil.copytree(REPOSITORY / name, packages / name, ignore=ignore)
    shutil.copyfile(REPOSITORY / "image/__init__.py", packages / "image/__init__.py")
    facts = packages / f"covey-{__version__}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: covey\nVersion: {__version__}\n")


def _lay(root: Path) -> None:
    """Add folders, links, busybox's commands, image/root, and what starts when."""
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "vmlinuz").rename(root / "boot/vmlinuz")
    shutil.copytree(OVERLAY, root, dirs_exist_ok=True)
    for name, target in _LINKS.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    # What a package brought is better than busybox's command of the same name.
    for name in run([root / "bin/busybox", "--list-full"]).split():
        path = root / name
        if not os.path.lexists(path) and not _found(root, path.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to("/bin/busybox")
    for level, services in _RUNLEVELS.items():
        folder = root / "etc/runlevels" / level
        folder.mkdir(parents=True)
        for service in services:
            (folder / service).symlink_to(f"/etc/init.d/{service}")


def _even_modes(root: Path) -> None:
    """Give each file one of two modes, whatever this machine's umask; so no program is setuid."""
    for folder, _, names in os.walk(root):
        Path(folder).chmod(0o755)
        for path in (Path(folder) / name for name in names):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _found(root: Path, program: str) -> bool:
    folders = ("bin", "sbin", "usr/bin", "usr/sbin")
    return any(os.path.lexists(root / folder / program) for folder in folders)


def _compile(root: Path) -> None:
    """Compile Python's files, which a read-only root could not keep; unchecked, as none changes.

    By the image's own Python, since another one may write other bytes. One process goes through
    them in the order of their names, for the same reason.
    """
    folders = [root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"]
    run(
        [folders[0] / "ld-linux-x86-64.so.2", "--library-path", ":".join(map(str, folders)),
         root / "usr/bin/python3.11", "-B", "-s", "-S", "-m", "compileall", "-q",
         "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/",
         root / _LIBRARY, root / PACKAGES],
        env={"PYTHONHOME": str(root / "usr"), "PYTHONPATH": "", "PYTHONHASHSEED": "0"},
        hint="The image is for x86_64, and so has to be the machine that builds it.",
    )  # fmt: skip
