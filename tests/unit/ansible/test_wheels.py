"""Wheels for hosts: Covey's own, and which of a folder a kind of host needs."""

import importlib.metadata
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from agent import __version__
from tests.unit.ansible.library import library
from tests.unit.ansible.load import ROOT

pytestmark = pytest.mark.slow

covey_wheel = library("covey_wheel")
wheelset = library("covey_wheelset")
host_kind = library("covey_host_kind")

SOURCE = ROOT.parent
KIND = "cp311-x86_64-glibc2.36-cpu"
MUSL = "cp312-aarch64-musl1.2-cpu"


def test_the_own_wheel_has_all_modules_and_data_and_what_the_project_says(tmp_path: Path) -> None:
    members = covey_wheel.content(SOURCE)
    packages = {"agent", "gateway", "image"}
    modules = {
        str(path.relative_to(SOURCE)) for name in packages for path in (SOURCE / name).rglob("*.py")
        if (path.parent / "__init__.py").exists()
    }  # fmt: skip
    assert modules <= members.keys()
    assert "agent/models/bundled/covey-mini.gguf" in members
    assert "image/root/etc/init.d/covey-agent" in members
    assert not [name for name in members if "__pycache__" in name]
    covey_wheel.write(members, __version__, tmp_path / "covey.whl")
    with zipfile.ZipFile(tmp_path / "covey.whl") as archive:
        archive.extractall(tmp_path / "site")
    [found] = importlib.metadata.distributions(path=[str(tmp_path / "site")])
    installed = importlib.metadata.metadata("covey")
    assert found.metadata["Name"] == "covey"
    assert found.version == __version__ == covey_wheel.version_of(SOURCE)
    scripts = {one.name: one.value for one in found.entry_points}
    assert scripts == {"agent": "agent.cli:main", "gateway": "gateway.cli:main"}
    needs = [one for one in installed.get_all("Requires-Dist") or [] if "extra ==" not in one]
    assert len(found.requires or []) == len(needs)
    files = found.files or []
    assert {str(one) for one in files} == {*members, f"covey-{__version__}.dist-info/RECORD"}
    assert all(one.locate().stat().st_size == one.size for one in files if one.size is not None)


def test_the_same_sources_are_the_same_wheel(tmp_path: Path) -> None:
    members = {"a.py": (b"1", 0o644), "b": (b"#!", 0o755)}
    for name in ("one", "two"):
        covey_wheel.write(dict(reversed(members.items())), "1.0", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "name, fits",
    [
        ("six-1.17.0-py2.py3-none-any.whl", {KIND, MUSL}),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", {KIND}),
        ("numpy-2.4.6-cp313-cp313-manylinux_2_27_x86_64.whl", set()),
        ("pynacl-1.6.2-cp38-abi3-manylinux_2_34_x86_64.whl", {KIND}),
        ("new-1-cp38-abi3-manylinux_2_39_x86_64.whl", set()),
        ("old-1-cp311-cp311-manylinux2014_x86_64.whl", {KIND}),
        ("fastecdsa-2.3.2-cp311-cp311-linux_x86_64.whl", {KIND}),
        ("llama_cpp_python-0.3.36-py3-none-linux_aarch64.whl", {MUSL}),
        ("blake3-1.0.11-cp312-cp312-musllinux_1_2_aarch64.whl", {MUSL}),
        ("blake3-1.0.11-cp312-cp312-manylinux_2_17_aarch64.whl", set()),
        ("newer-1-cp313-abi3-musllinux_1_2_aarch64.whl", set()),
    ],
)
def test_which_wheels_are_for_a_kind(name: str, fits: set[str]) -> None:
    assert {kind for kind in (KIND, MUSL) if wheelset.fits(name, kind)} == fits


def test_pins_are_those_of_the_kind() -> None:
    text = (
        "# made\nnumpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=sha256:00 \\\n"
        "    --hash=sha256:01\nnumpy==2.5.5 ; python_full_version >= '3.12' \\\n"
        "    --hash=sha256:02\n"
        "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:03\nPy_Cid==0.5.0\n"
    )
    assert wheelset.pins(text, wheelset.environment_of(KIND)) == {
        "numpy": "2.4.6", "py-cid": "0.5.0",
    }  # fmt: skip
    assert wheelset.pins(text, wheelset.environment_of(MUSL))["numpy"] == "2.5.5"


def test_what_is_missing_is_named() -> None:
    names = ["six-1.17.0-py2.py3-none-any.whl", "six-1.16.0-py2.py3-none-any.whl"]
    wanted = {"six": "1.17.0", "numpy": "2.4.6"}
    assert wheelset.chosen(names, wanted, KIND) == ([names[0]], ["numpy 2.4.6"])


def test_every_pin_of_the_project_is_understood() -> None:
    for file, least in (("runtime.txt", 60), ("llama.txt", 1)):
        text = (SOURCE / "requirements" / file).read_text()
        assert len(wheelset.pins(text, wheelset.environment_of(KIND))) >= least


def test_what_dies_on_masked_amx_is_left_out_of_llama_cpp(tmp_path: Path) -> None:
    name = "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    lost = f"{wheelset.LEFT_OUT}so"
    record = "llama_cpp_python-0.3.36.dist-info/RECORD"
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for member in (lost, "llama_cpp/lib/libggml-cpu-zen4.so"):
            archive.writestr(member, b"elf")
        archive.writestr(record, f"{lost},sha256=x,3\nllama_cpp/lib/libggml-cpu-zen4.so,,\n")
    other = tmp_path / "six-1-py3-none-any.whl"
    other.write_bytes(b"as it is")
    wheelset.pack(tmp_path, [name, other.name], tmp_path / "all.tar")
    with tarfile.open(tmp_path / "all.tar") as packed:
        assert packed.getnames() == [name, other.name]
        raw = {one: packed.extractfile(one).read() for one in packed.getnames()}  # type: ignore[union-attr]
    assert raw[other.name] == b"as it is"
    with zipfile.ZipFile(io.BytesIO(raw[name])) as archive:
        assert archive.namelist() == ["llama_cpp/lib/libggml-cpu-zen4.so", record]
        assert archive.read(record).decode() == "llama_cpp/lib/libggml-cpu-zen4.so,,\n"


def asked(**versions: tuple[int, int, bool]) -> object:
    def ask(python: str) -> dict[str, object] | None:
        if python not in versions:
            return None
        major, minor, venv = versions[python]
        return {"version": [major, minor], "venv": venv, "path": f"/usr/bin/{python}"}

    return ask


def test_the_newest_python_that_fits_is_taken() -> None:
    there = asked(
        **{"python3.12": (3, 12, True), "python3.11": (3, 11, True), "python3": (3, 10, True)}
    )
    assert host_kind.chosen("", there)[0]["path"] == "/usr/bin/python3.12"
    assert host_kind.chosen("python3.11", there)[0]["path"] == "/usr/bin/python3.11"
    newer = asked(python3=(3, 14, True))
    assert host_kind.chosen("", newer)[0]["path"] == "/usr/bin/python3"


def test_a_host_without_a_python_is_told_what_to_install() -> None:
    found, words = host_kind.chosen("", asked(python3=(3, 10, True)))
    assert found is None
    assert "/usr/bin/python3 is 3.10" in words
    assert "python3.11-venv" in words
    _, words = host_kind.chosen("", asked(python3=(3, 11, False)))
    assert "/usr/bin/python3 has no venv: install python3.11-venv" in words
    _, words = host_kind.chosen("/opt/py", asked())
    assert words.startswith("/opt/py cannot run Covey (none was found)")


def test_this_python_says_what_it_is() -> None:
    said = host_kind.ask("python3")
    assert said["abi"].startswith("cp3")
    assert said["libc"].startswith(("glibc", "musl"))
