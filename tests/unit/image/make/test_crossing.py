"""An image for another CPU: what runs here is this machine's, what is compiled is for that one."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import EnvironmentFault
from image.make import crossing, foreign
from image.make.packages import Package

TARGET = foreign.Target("3.11", "aarch64", "manylinux_2_36_aarch64")
FACTS = "usr/lib/python3.11/_sysconfigdata__aarch64-linux-gnu.py"


class FakeApt:
    """Has every package; each needs one more."""

    def __init__(self, arch: str) -> None:
        self._arch = arch

    def plan(self, flavour: str) -> tuple[Package, ...]:
        return self.resolve((f"linux-{flavour}",))

    def resolve(self, names: tuple[str, ...]) -> tuple[Package, ...]:
        return tuple(Package(name, "1.0", self._arch) for name in (*names, "libc6"))

    def fetch(self, packages: tuple[Package, ...]) -> list[Path]:
        return [Path(package.file) for package in packages]


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> dict[Path, list[str]]:
    """Into what folder which packages were unpacked; each has Python's facts."""
    found: dict[Path, list[str]] = {}

    def unpack(files: list[Path], root: Path) -> None:
        found[root] = [file.name for file in files]
        (root / FACTS).parent.mkdir(parents=True)
        (root / FACTS).write_text("facts")

    monkeypatch.setattr(crossing, "unpack", unpack)
    return found


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> crossing.CrossedPackages:
    monkeypatch.setattr(crossing.platform, "machine", lambda: "x86_64")
    arches = {"aarch64": "arm64", "x86_64": "amd64"}
    monkeypatch.setattr(crossing, "Apt", lambda cache, mirror, arch, *_: FakeApt(arches[arch]))
    return crossing.Crossed("", "aarch64", tmp_path, tmp_path).fetch("virt")


def test_a_raspberry_pi_is_a_board(packages: crossing.CrossedPackages, tmp_path: Path) -> None:
    assert packages.layout.board is None
    found = crossing.Crossed("", "aarch64", tmp_path, tmp_path).fetch("raspberrypi")
    assert found.layout.board and found.layout.line == "ttyS1"


def test_what_runs_here_is_of_the_same_packages_for_this_machine(
    packages: crossing.CrossedPackages, unpacked: dict[Path, list[str]], tmp_path: Path
) -> None:
    assert packages.layout.arch == "aarch64"
    assert [file.name for file in packages.files] == [
        "linux-virt_1.0_arm64.deb", "libc6_1.0_arm64.deb",
    ]  # fmt: skip
    found = packages.runnable(tmp_path / "root")
    # Beside the image's root, since nothing of it belongs into the image.
    assert found.root.parent == tmp_path and found.root != tmp_path / "root"
    assert found.layout.loader == "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    assert unpacked == {
        found.root: [
            "python3.11_1.0_amd64.deb", "busybox-static_1.0_amd64.deb", "libc6_1.0_amd64.deb",
        ]
    }  # fmt: skip


def test_grub_is_unpacked_and_not_what_it_needs(
    packages: crossing.CrossedPackages, unpacked: dict[Path, list[str]], tmp_path: Path
) -> None:
    assert packages.grub(tmp_path / "grub") == tmp_path / "grub/usr/lib/grub"
    assert unpacked == {tmp_path / "grub": ["grub-efi-arm64-bin_1.0_arm64.deb"]}


def test_what_has_no_wheel_is_compiled_for_that_cpu_once(
    unpacked: dict[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[object], dict[str, str]]] = []

    def run(command: list[object], *, env: dict[str, str], hint: str) -> str:
        facts = Path(env["PYTHONPATH"]) / f"{env['_PYTHON_SYSCONFIGDATA_NAME']}.py"
        assert facts.read_text() == "facts"
        # Nothing else of that Python may take this one's place.
        assert list(facts.parent.iterdir()) == [facts]
        asked.append((command, env))
        folder = Path(str(command[command.index("-w") + 1]))
        (folder / "fast-1.0-cp311-cp311-linux_aarch64.whl").touch()
        return ""

    monkeypatch.setattr(crossing, "run", run)
    monkeypatch.setattr(foreign, "builder", lambda cache: Path("/builder/bin/python"))
    sources, headers = [Path("/sources/fast-1.0.tar.gz")], [Path("libgmp-dev_1.0_arm64.deb")]
    found = crossing.compiled(sources, headers, TARGET, tmp_path)
    assert [path.name for path in found] == ["fast-1.0-cp311-cp311-linux_aarch64.whl"]
    assert crossing.compiled(sources, headers, TARGET, tmp_path) == found
    ((command, env),) = asked
    assert command[-1] == sources[0]
    (stage,) = unpacked
    assert env["CC"] == "aarch64-linux-gnu-gcc"
    assert env["_PYTHON_HOST_PLATFORM"] == "linux-aarch64"
    assert env["CFLAGS"].split()[:2] == ["-g0", f"-I{stage}/usr/include/python3.11"]
    assert env["LDFLAGS"] == f"-L{stage}/usr/lib/aarch64-linux-gnu"
    # A newer package is another one to compile against.
    crossing.compiled(sources, [Path("libgmp-dev_1.1_arm64.deb")], TARGET, tmp_path)
    assert len(asked) == 2


def test_packages_that_do_not_say_what_their_python_is_like(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="do not say what Python is like on aarch64"):
        crossing._environment(tmp_path / "stage", tmp_path / "facts", TARGET)
