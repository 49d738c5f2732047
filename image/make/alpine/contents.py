"""Puts a verified package's files into a folder. A shell.

No owners (the image has one for all), no devices, nothing set-user-id. A package's paths, and the
links that others before it left on the way, lead nowhere outside the folder.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from agent.errors import EnvironmentFault

_MODES = 0o777
# As many as Linux follows.
_MOST_LINKS = 40


def unpack(data: bytes, root: Path, what: str) -> None:
    """Unpack a data stream into `root`; what is there already is replaced.

    Raises EnvironmentFault for a path that leads outside, a device, or a stream that is damaged.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                _member(archive, member, root, what)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise EnvironmentFault(f"the files in {what} cannot be unpacked: {error}") from None


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path, what: str) -> None:
    parts = _parts(member.name, what)
    if not parts:
        return
    path = _folder(root, parts[:-1], what) / parts[-1]
    if member.isdir():
        # A link to a folder stays one: packages of older releases have their files beside it.
        if not path.is_symlink() or not _inside(root, parts, what).is_dir():
            _clear(path, folder=True)
            path.mkdir(exist_ok=True)
        return
    if not (member.isreg() or member.issym() or member.islnk()):
        raise EnvironmentFault(f"{what} has {member.name!r}, which is no file, folder or link")
    _clear(path, folder=False)
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        source = _inside(root, _parts(member.linkname, what), what)
        if not source.is_file():
            raise EnvironmentFault(f"{what} links {member.name!r} to what it does not have")
        shutil.copy2(source, path)
    else:
        content = archive.extractfile(member)
        assert content is not None  # noqa: S101 - it is a regular file
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
        path.chmod(member.mode & _MODES)


def _parts(name: str, what: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise EnvironmentFault(f"{what} has a file outside the root: {name!r}")
    return path.parts


def _folder(root: Path, parts: tuple[str, ...], what: str) -> Path:
    """Return the folder inside `root`, links on the way followed; it is made if it is not there."""
    at = _inside(root, parts, what)
    if at.exists() and not at.is_dir():
        raise EnvironmentFault(f"{what} has files in {'/'.join(parts)}, which is no folder")
    at.mkdir(parents=True, exist_ok=True)
    return at


def _inside(root: Path, parts: tuple[str, ...], what: str) -> Path:
    """Return where a path leads for a process whose root this is."""
    left = list(parts)
    at: list[str] = []
    links = 0
    while left:
        part = left.pop(0)
        if part == "..":
            at = at[:-1]
            continue
        path = root.joinpath(*at, part)
        if not path.is_symlink():
            at.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise EnvironmentFault(f"{what} has files behind links that lead in a circle")
        target = PurePosixPath(path.readlink())
        if target.is_absolute():
            at = []
        left = [*(part for part in target.parts if part != "/"), *left]
    return root.joinpath(*at)


def _clear(path: Path, *, folder: bool) -> None:
    """Remove what is in the way of a folder or of a file."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir() and not folder:
        raise EnvironmentFault(f"a package has a file where another has the folder {path.name!r}")
