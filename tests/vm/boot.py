"""Boot this machine's own files under a Debian kernel in QEMU and run one command there.

Used by the tests in this folder, for what the running kernel may lack (WireGuard, netem). The guest
has this machine's root directory read-only over 9p, memory for /tmp and /run, and no network. Its
words come over the serial console; a second serial port is for what the command reports. By hand:
`python tests/vm/boot.py COMMAND …`.

Needs: qemu-system-x86, busybox, kmod, and a kernel with its modules that has 9p: Debian's package
linux-image-amd64, not linux-image-cloud-amd64.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# What it takes to mount this machine's files; modprobe loads the others from there (init.sh).
_MODULES = ("virtio_pci", "9p", "9pnet_virtio")
_NEEDED = ("wireguard", "9p")
_INIT = Path(__file__).with_name("init.sh")
# A guest has these of its own, which hide this machine's.
_OWN = ("/tmp", "/run")
# Three agents take 0.5 GiB; and those two are memory.
_MEMORY_MIB = 2048
_CPUS = min(2, os.cpu_count() or 1)
_STATUS = re.compile(r"^covey-vm: status (\d+)$", re.MULTILINE)
_END_S = 10.0
_POLL_S = 0.05
# The file in the guest to which the command writes its reports.
REPORTS = "/dev/ttyS1"


class VmFault(Exception):
    """The machine cannot be booted, or did not finish; the message says why."""


class Guest:
    """A machine that runs; what it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._folder = folder

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """The command's exit status, once it has ended."""
        found = _STATUS.search(self.console())
        return int(found[1]) if found else None

    def console(self) -> str:
        """Return QEMU's own words, if it had any, and all that the console has shown."""
        return _text(self._folder / "qemu") + _text(self._folder / "console")

    def reports(self) -> list[str]:
        """Return the whole lines that the command has written to REPORTS."""
        return _text(self._folder / "reports").split("\n")[:-1]

    def end(self) -> None:
        """End it, if it runs."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self._process.kill()
        self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """Return the command's exit status; VmFault if there is none, or not by then."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise VmFault(
                f"the guest did not end within {timeout_s:.0f} s:\n{self.console()}"
            ) from None
        if self.status is None:
            raise VmFault(f"the guest did not run the command:\n{self.console()}")
        return self.status


def find_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Path:
    """Return the newest vmlinuz-* whose modules include WireGuard and 9p."""
    for kernel in sorted(boot.glob("vmlinuz-*"), key=_version, reverse=True):
        folder = modules / _release(kernel)
        if all(any(folder.rglob(f"{name}.ko*")) for name in _NEEDED):
            return kernel
    raise VmFault(
        f"no kernel in {boot} has WireGuard and 9p: install the package linux-image-amd64"
    )


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


@contextmanager
def start(
    command: Sequence[str], *, folder: Path, environment: dict[str, str], files: dict[str, str]
) -> Iterator[Guest]:
    """Start a guest that runs the command in `folder`; leaving the block ends it.

    `files` (name: text) lie in the folder that $COVEY_VM_FILES names there. Raises VmFault if
    something is missing.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise VmFault("qemu-system-x86_64 is not installed: install the package qemu-system-x86")
    for hidden in _OWN:
        if folder.is_relative_to(hidden):
            raise VmFault(
                f"{folder} lies in {hidden}, of which a guest has its own: run this from elsewhere"
            )
    kernel = find_kernel()
    # The guest shares this folder read-only with everything else; /tmp it has of its own.
    with tempfile.TemporaryDirectory(prefix="covey-vm-", dir="/var/tmp") as name:
        own = Path(name)
        for title, text in files.items():
            (own / title).write_text(text)
        wanted = environment | {"COVEY_VM_FILES": name, "HOME": "/tmp"}
        settings = "".join(f"export {key}={shlex.quote(text)}\n" for key, text in wanted.items())
        script = own / "command.sh"
        script.write_text(f"{settings}cd {shlex.quote(str(folder))}\nexec {shlex.join(command)}\n")
        archive = own / "initramfs"
        archive.write_bytes(build_initramfs(Path("/lib/modules") / _release(kernel)))
        share = "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
        line = f"console=ttyS0 quiet panic=-1 covey.script={script}"
        arguments = [
            qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-serial", f"file:{own}/console", "-serial", f"file:{own}/reports",
            # Not KVM: where it is there it is not always usable, and nothing here needs speed.
            "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(_CPUS),
            "-m", str(_MEMORY_MIB), "-nic", "none",
            "-virtfs", share, "-kernel", str(kernel), "-initrd", str(archive), "-append", line,
        ]  # fmt: skip
        with (own / "qemu").open("wb") as said:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
            )
        guest = Guest(process, own)
        try:
            yield guest
        finally:
            guest.end()


def _release(kernel: Path) -> str:
    return kernel.name.removeprefix("vmlinuz-")


def _version(kernel: Path) -> list[tuple[int, str]]:
    """Return what sorts kernels by age: 6.1.0-9 before 6.1.0-56."""
    parts = re.findall(r"\d+|\D+", kernel.name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _text(file: Path) -> str:
    if not file.exists():
        return ""
    return file.read_bytes().decode(errors="replace").replace("\r\n", "\n")


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


def main() -> int:
    """Run the command line's command in a guest, and show the console as it goes."""
    shown = 0
    try:
        with start(sys.argv[1:], folder=Path.cwd(), environment={}, files={}) as guest:
            while True:
                ended = not guest.runs
                text = guest.console()
                print(text[shown:], end="", flush=True)
                shown = len(text)
                if ended:
                    return guest.wait(0)
                time.sleep(_POLL_S)
    except VmFault as fault:
        print(str(fault).partition("\n")[0], file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
