"""Install a release out of a folder of wheels: `install.py WHEELS RELEASE`.

It is run by the Python that is to run Covey. RELEASE/.whole is made last; what lies there without
it is of an installation that was broken off. A wheel is a zip file, so no pip is needed, which
takes half a minute on a small machine. What the wheels are was checked on the control machine.
"""

import configparser
import fcntl
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path, PurePosixPath

# Shows that what is compiled fits this machine, and has Python compile what is used.
_TRY = "import agent.daemon, agent.cli, gateway.cli, fastecdsa.curve, llama_cpp"


def target_of(name: str) -> PurePosixPath | None:
    """Return where a wheel's file belongs among the packages (PEP 427); None for nowhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise OSError(f"a wheel has a file outside itself: {name}")
    if not path.parts[0].endswith(".data"):
        return path
    kind = path.parts[1] if len(path.parts) > 2 else ""
    return PurePosixPath(*path.parts[2:]) if kind in ("purelib", "platlib") else None


def unpack(wheel: Path, packages: Path) -> None:
    """Unpack a wheel into the folder of packages."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            target = target_of(member.filename)
            if target is None or member.is_dir():
                continue
            path = packages / target
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, path.open("wb") as out:
                shutil.copyfileobj(source, out)


def write_commands(packages: Path, folder: Path) -> None:
    """Write Covey's own commands."""
    (points,) = packages.glob("covey-*.dist-info/entry_points.txt")
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read(points)
    for name, where in parser["console_scripts"].items():
        module, function = where.split(":")
        command = folder / name
        command.write_text(
            f"#!{folder / 'python'}\nimport sys\n\n"
            f"from {module} import {function}\n\nsys.exit({function}())\n"
        )
        command.chmod(0o755)


def install(wheels: Path, release: Path) -> str:
    """Install the release unless it is whole; return what went wrong, "" if nothing did."""
    if (release / ".whole").exists():
        return ""
    if release.exists():
        shutil.rmtree(release)
    venv.create(release, symlinks=True)
    packages = next(release.glob("lib/python3.*/site-packages"))
    for wheel in sorted(wheels.glob("*.whl")):
        unpack(wheel, packages)
    write_commands(packages, release / "bin")
    tried = subprocess.run([release / "bin/python", "-c", _TRY], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"it does not run: {(tried.stderr.strip().splitlines() or [tried.returncode])[-1]}"
    (release / ".whole").touch()
    return ""


def main() -> int:
    """Install, one at a time: whoever started another may be gone while that still works."""
    wheels, release = map(Path, sys.argv[1:])
    try:
        with (release.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            problem = install(wheels, release)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        problem = str(error)
    if problem:
        print(problem)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
