"""A release is unpacked whole, its commands run, and what was broken off is begun anew."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.unit.ansible.load import load

install = load("roles/agent/files/install.py")


def wheel(path: Path, files: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    points = "[console_scripts]\nagent = bird.cli:main\n"
    wheel(folder / "covey-1-py3-none-any.whl", {
        "bird/__init__.py": "", "bird/cli.py": "def main():\n    print('coo')\n",
        "covey-1.dist-info/entry_points.txt": points, "covey-1.data/purelib/seed.py": "",
        "covey-1.data/scripts/x": "",
    })  # fmt: skip
    return folder


def test_a_release_is_unpacked_and_its_command_runs(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "_TRY", "import bird, seed")
    release = tmp_path / "releases/1"
    (release / "left").mkdir(parents=True)
    assert install.install(wheels, release) == ""
    assert (release / ".whole").exists()
    assert not (release / "left").exists()
    done = subprocess.run([release / "bin/agent"], capture_output=True, text=True, check=True)
    assert done.stdout == "coo\n"


def test_one_that_does_not_run_is_not_whole(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "_TRY", "import hawk")
    release = tmp_path / "releases/1"
    assert "No module named 'hawk'" in install.install(wheels, release)
    assert not (release / ".whole").exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up"])
def test_nothing_is_written_outside(name: str) -> None:
    with pytest.raises(OSError, match="outside itself"):
        install.target_of(name)
