"""Makes the root file system's tree out of packages, Covey itself, and image/root. A shell."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from agent import __version__
from agent.errors import EnvironmentFault
from image.make import commands, initramfs, raspberrypi, wheels
from image.make.foreign import PACKAGES, REPOSITORY
from image.make.modules import RASPBERRY_PI
from image.make.programs import run
from image.make.source import Layout, Packages, Runnable

OVERLAY = Path(__file__).parents[1] / "root"
# For people, for other programs, and for tests.
_NOT_NEEDED = (
    "usr/share",
    "usr/games",
    "usr/include",
    "usr/lib/initramfs-tools",
    "usr/lib/systemd",
    "lib/systemd",
    "lib/udev",
    "etc/cron.d",
    "etc/runlevels",
    "etc/init.d",
    "etc/pam.d",
    "boot",
    "usr/bin/perf",
    "etc/apk",
    "lib/apk",
    "usr/lib/apk",
)
# Of Python's own library.
_NOT_NEEDED_OF_PYTHON = (
    "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtledemo",
)  # fmt: skip
_TEST_FOLDERS = frozenset(("test", "tests", "_pyinstaller"))
_FOLDERS = (
    "boot/esp", "data", "dev", "etc/insserv.conf.d", "etc/insserv/overrides", "low", "proc", "root",
    "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/lib/covey", "var/log", "var/tmp",
)  # fmt: skip
_LINKS = {
    "sbin/init": "/bin/busybox", "sbin/getty": "/bin/busybox",
    "var/run": "/run", "var/lock": "/run/lock",
}  # fmt: skip
_RUNLEVELS = {
    "sysinit": ("covey-agent", "covey-devices"),
    "boot": ("covey-disk", "covey-settings"),
    "default": (
        "covey-network", "covey-plug", "covey-wifi", "covey-ssh", "covey-time", "covey-watchdog",
        "covey-power", "covey-watch",
    ),
    "shutdown": (),
}  # fmt: skip
# Covey's own; of image/ what runs on the appliance.
_OURS = ("agent", "gateway", "image/node", "image/containers")


def make(root: Path, packages: Packages, python: list[Path], boot: Path) -> None:
    """Fill an empty folder: a source's packages, wheels, Covey, kernel and initramfs.

    What a board's firmware reads on the boot partition is put into `boot`, which is not there yet;
    other machines have nothing. Raises EnvironmentFault for what cannot be unpacked or is not in
    the packages.
    """
    packages.unpack(root)
    layout = packages.layout
    if layout.board:
        raspberrypi.set_aside(root, layout.board, boot)
    release = _kernel(root)
    for wheel in python:
        wheels.unpack(wheel, root / PACKAGES)
    _trim(root, layout)
    _covey(root / PACKAGES)
    runnable = packages.runnable(root)
    _lay(root, layout, runnable)
    _compile(root, layout, runnable)
    run(["depmod", "-b", root, release])
    more = RASPBERRY_PI if layout.board else ()
    (root / "boot/initramfs").write_bytes(initramfs.make(root, release, more))
    _even_modes(root)


def _kernel(root: Path) -> str:
    """Set the kernel aside; return its release."""
    kernels = list((root / "boot").glob("vmlinuz-*"))
    releases = list((root / "lib/modules").glob("*"))
    if len(kernels) != 1 or len(releases) != 1:
        raise EnvironmentFault(
            f"the packages have {len(kernels)} kernels and modules for {len(releases)}, and not one"
        )
    kernels[0].rename(root / "vmlinuz")
    return releases[0].name


def _trim(root: Path, layout: Layout) -> None:
    library = root / f"usr/lib/python{layout.python}"
    for path in (
        *(root / name for name in _NOT_NEEDED),
        *(library / name for name in _NOT_NEEDED_OF_PYTHON),
        # Device trees, which a machine's firmware has.
        *(root / "usr/lib").glob("linux-image-*"),
    ):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for packages in (library, root / PACKAGES):
        for folder, names, _ in os.walk(packages):
            for name in _TEST_FOLDERS.intersection(names):
                shutil.rmtree(Path(folder) / name)
                names.remove(name)


def _covey(packages: Path) -> None:
    # compose.yaml and Kubernetes' files are for who starts containers.
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "*.yaml", "kubernetes")
    for name in _OURS:
        shutil.copytree(REPOSITORY / name, packages / name, ignore=ignore)
    shutil.copyfile(REPOSITORY / "image/__init__.py", packages / "image/__init__.py")
    facts = packages / f"covey-{__version__}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: covey\nVersion: {__version__}\n")


def _lay(root: Path, layout: Layout, runnable: Runnable) -> None:
    """Add folders, links, busybox's commands, image/root, and what starts when."""
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "vmlinuz").rename(root / "boot/vmlinuz")
    shutil.copytree(OVERLAY, root, dirs_exist_ok=True)
    if layout.busybox != "bin/busybox":
        (root / layout.busybox).rename(root / "bin/busybox")
    links = {"bin/sh": layout.shell, "usr/bin/python3": f"python{layout.python}", **_LINKS}
    for name, target in links.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    inittab = root / "etc/inittab"
    inittab.write_text(inittab.read_text().replace("\nttyS0::", f"\n{layout.line}::"))
    # What a package brought is better than busybox's command of the same name.
    commands.link(root, runnable.root / "bin/busybox")
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


def _compile(root: Path, layout: Layout, runnable: Runnable) -> None:
    """Compile Python's files, which a read-only root could not keep; unchecked, as none changes.

    By the image's own Python, or that of the same package: another one may write other bytes. What
    it writes is the same for all CPUs. One process goes through them in the order of their names,
    for the same reason.
    """
    own, here = runnable.layout, runnable.root
    folders = ":".join(str(here / folder) for folder in own.libraries)
    library = root / f"usr/lib/python{layout.python}"
    run(
        [here / own.loader, "--library-path", folders,
         here / f"usr/bin/python{own.python}", "-B", "-s", "-S", "-m", "compileall", "-q",
         "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/", library, root / PACKAGES],
        env={"PYTHONHOME": str(here / "usr"), "PYTHONPATH": "", "PYTHONHASHSEED": "0"},
    )  # fmt: skip
