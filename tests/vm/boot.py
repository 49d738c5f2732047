"""Boot this machine's own files under another kernel in QEMU and run one command there.

Used by the tests in this folder, for what the running kernel lacks (WireGuard). The guest has a
Debian kernel, this machine's root directory read-only over 9p, memory for /tmp and /run, and no
network. Its words come over the serial console. By hand: `python tests/vm/boot.py COMMAND …`.

Needs: qemu-system-x86, busybox, and a kernel with its modules, for instance Debian's package
linux-image-cloud-amd64.
"""

from __future__ import annotations

import lzma
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

_MODULES = ("virtio_pci", "9p", "9pnet_virtio", "veth", "wireguard")
_INIT = Path(__file__).with_name("init.sh")
_MEMORY_MIB = 768
_CPUS = 1


class VmFault(Exception):
    """The machine cannot be booted, or did not finish; the message says why."""


def find_kernel() -> tuple[Path, Path]:
    """Return the newest /boot/vmlinuz-* whose modules include WireGuard, and their folder."""
    for kernel in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        modules = Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")
        if any(modules.rglob("wireguard.ko*")):
            return kernel, modules
    raise VmFault("no kernel with WireGuard in /boot: install the package linux-image-cloud-amd64")


def module_files(modules: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of the modules and all they need, in the order to load them.

    A name that has no file is built into the kernel.
    """
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {re.sub(r"\.ko.*$", "", Path(path).name).replace("-", "_"): path for path in needs}
    ordered: list[str] = []
    for name in names:
        path = by_name.get(name)
        if path is not None:
            # modules.dep lists everything that is needed, the innermost last.
            ordered += [p for p in [*reversed(needs[path]), path] if p not in ordered]
    return [modules / path for path in ordered]


def build_initramfs(modules: Path) -> bytes:
    """Return a cpio archive with /init, busybox with its libraries, and the modules."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise VmFault("busybox is not installed")
    files: dict[str, bytes] = {
        "init": _INIT.read_bytes(),
        "bin/busybox": Path(busybox).read_bytes(),
    }
    for library in _libraries(busybox):
        files[library.lstrip("/")] = Path(library).read_bytes()
    for number, path in enumerate(module_files(modules, _MODULES)):
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        elif path.suffix != ".ko":
            raise VmFault(f"cannot unpack the module {path}")
        files[f"modules/{number:02}-{path.name.partition('.')[0]}.ko"] = data
    return _cpio(files, ("dev", "proc", "sys", "root"))


def run(
    command: Sequence[str], *, environment: dict[str, str], timeout_s: float
) -> tuple[int, str]:
    """Run the command in the guest; return its exit status and what the console showed.

    Raises VmFault if something is missing, or the guest did not finish within `timeout_s`.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise VmFault("qemu-system-x86_64 is not installed: install the package qemu-system-x86")
    kernel, modules = find_kernel()
    settings = "".join(f"export {key}={shlex.quote(text)}\n" for key, text in environment.items())
    # The guest shares this folder read-only with everything else.
    with tempfile.TemporaryDirectory(prefix="covey-vm-", dir="/var/tmp") as folder:
        script = Path(folder, "command.sh")
        script.write_text(f"{settings}cd {shlex.quote(os.getcwd())}\nexec {shlex.join(command)}\n")
        archive = Path(folder, "initramfs")
        archive.write_bytes(build_initramfs(modules))
        share = "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
        line = f"console=ttyS0 quiet panic=-1 covey.script={script}"
        arguments = [
            qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-serial", "stdio", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(_CPUS),
            "-m", str(_MEMORY_MIB), "-nic", "none",
            "-virtfs", share, "-kernel", str(kernel), "-initrd", str(archive), "-append", line,
        ]  # fmt: skip
        try:
            guest = subprocess.run(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            words = (late.stdout or b"").decode(errors="replace")
            raise VmFault(f"the guest did not end within {timeout_s:.0f} s:\n{words}") from None
    output = guest.stdout.decode(errors="replace").replace("\r\n", "\n")
    status = re.search(r"^covey-vm: status (\d+)$", output, re.MULTILINE)
    if status is None:
        raise VmFault(f"the guest did not run the command:\n{output}")
    return int(status[1]), output


def _libraries(program: str) -> list[str]:
    """Return the shared libraries that a program loads, the loader too; none if it is static."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return re.findall(r"(/\S+) \(0x", listed.stdout)


def _cpio(files: dict[str, bytes], folders: Iterable[str]) -> bytes:
    """Return a `newc` archive; parents are made, every file is executable."""
    wanted = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in sorted({*wanted, *folders})]
    entries += [(name, stat.S_IFREG | 0o755, data) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    archive = bytearray()
    for number, (name, mode, data) in enumerate(entries, 1):
        text = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(text), 0)
        archive += b"070701" + b"".join(f"{value:08X}".encode() for value in fields)
        for part in (text, data):
            archive += part
            archive += bytes(-len(archive) % 4)
    return bytes(archive)


if __name__ == "__main__":
    try:
        code, words = run(sys.argv[1:], environment={}, timeout_s=600)
    except VmFault as fault:
        sys.exit(str(fault))
    sys.stdout.write(words)
    sys.exit(code)
