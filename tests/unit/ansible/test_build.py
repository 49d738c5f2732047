"""How wheels are built on a host: what is asked of the compiler, and what the script makes."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import jinja2
import pytest

from tests.unit.ansible.load import ROOT

yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.slow

ROLE = ROOT / "roles/llama_build"
VARS: dict[str, Any] = yaml.safe_load((ROLE / "vars/main.yml").read_text())

PYTHON = """#!/bin/sh
if [ "$1" = -m ]; then
    mkdir -p venv/bin
    cp "$(dirname "$0")/pip" venv/bin/pip
else
    echo "$* with $CMAKE_ARGS" >"$SAID" || exit 3
    mkdir -p cache
    echo llama >cache/llama.whl
    echo "Building for some time"
    echo cache/llama.whl
fi
"""
PIP = '#!/bin/sh\necho "$*" >>said-to-pip\necho other >wheels/other.whl\n'


def tasks(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for item in items:
        found += [item, *tasks(item.get("block", []))]
    return found


@pytest.mark.parametrize(
    "gpu, more, said",
    [
        ("none", "", ""),
        ("cuda", "", "-DGGML_CUDA=ON"),
        ("cuda", "-DCMAKE_CUDA_ARCHITECTURES=86", "-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=86"),
        ("rocm", "", "-DGGML_HIP=ON"),
        ("vulkan", "", "-DGGML_VULKAN=ON"),
    ],
)
def test_what_is_asked_for_a_gpu(gpu: str, more: str, said: str) -> None:
    [build] = [
        task for task in tasks(yaml.safe_load((ROLE / "tasks/build.yml").read_text()))
        if "CMAKE_ARGS" in task.get("environment", {})
    ]  # fmt: skip
    template = jinja2.Environment().from_string(build["environment"]["CMAKE_ARGS"])
    assert template.render(**VARS, covey_gpu=gpu, covey_cmake_args=more) == said


def test_each_gpu_has_a_compiler_to_look_for() -> None:
    assert set(VARS["llama_build_options"]) == {"none", *VARS["llama_build_compiler"]}


@pytest.mark.parametrize("family", ["Debian", "RedHat", "Alpine"])
def test_each_family_has_its_packages(family: str) -> None:
    for name in ("runtime", "packages", "gpu_packages"):
        assert VARS[f"llama_build_{name}"][family]


def made(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROLE / "files/build.sh", folder)
    for name, text in (("python", PYTHON), ("pip", PIP)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "wheels").mkdir(exist_ok=True)
    return subprocess.run(
        [folder / "build.sh", folder / "python"], capture_output=True, text=True, check=False,
        env={**os.environ, "SAID": str(folder / "said-to-llama"), **environment},
    )  # fmt: skip


def test_the_script_makes_an_archive_of_all_wheels(tmp_path: Path) -> None:
    done = made(tmp_path, CMAKE_ARGS="-DGGML_CUDA=ON")
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "wheels.tar") as archive:
        assert {Path(name).name for name in archive.getnames()} >= {"llama.whl", "other.whl"}
    assert "--require-hashes" in (tmp_path / "said-to-pip").read_text()
    said = (tmp_path / "said-to-llama").read_text()
    assert "--any-cpu" in said
    assert said.endswith("with -DGGML_CUDA=ON\n")


def test_a_build_that_fails_is_no_archive(tmp_path: Path) -> None:
    done = made(tmp_path, SAID="/nowhere/at/all")
    assert done.returncode != 0
    assert not (tmp_path / "wheels.tar").exists()
