"""Which of two of Alpine's versions is the newer one. A core.

apk-package(5) has the form: number{.number}{letter}{_suffix{number}}{~hash}{-r#}.
"""

from __future__ import annotations

import re

from agent.errors import EnvironmentFault

_FORM = re.compile(
    r"(?P<numbers>\d+(?:\.\d+)*)(?P<letter>[a-z]?)(?P<suffixes>(?:_[a-z]+\d*)*)"
    r"(?:~[0-9a-f]+)?(?:-r(?P<release>\d+))?"
)
_SUFFIX = re.compile(r"_([a-z]+)(\d*)")
# Below 0: before the version that has none.
_RANKS = {
    "alpha": -4, "beta": -3, "pre": -2, "rc": -1, "cvs": 1, "svn": 2, "git": 3, "hg": 4, "p": 5,
}  # fmt: skip

Key = tuple[tuple[tuple[int, int, str], ...], str, tuple[tuple[int, int], ...], int]


def key(version: str) -> Key:
    """Return what versions are ordered by. Raises EnvironmentFault for what is no version."""
    match = _FORM.fullmatch(version)
    suffixes = _SUFFIX.findall(match["suffixes"]) if match else []
    if match is None or any(name not in _RANKS for name, _ in suffixes):
        raise EnvironmentFault(f"{version!r} is no version of an Alpine package")
    numbers = match["numbers"].split(".")
    ranked = [(_RANKS[name], int(number or 0)) for name, number in suffixes]
    release = int(match["release"]) if match["release"] else -1
    return (
        tuple(_number(text, first=at == 0) for at, text in enumerate(numbers)),
        match["letter"],
        (*ranked, (0, 0)),
        release,
    )


def begins_with(version: str, wanted: str) -> bool:
    """Say whether a version is `wanted` or a finer one of it, as 3.12.1-r0 is of 3.12."""
    key(wanted)
    return version == wanted or re.match(re.escape(wanted) + r"(?![0-9a-z])", version) is not None


def _number(text: str, *, first: bool) -> tuple[int, int, str]:
    # As the digits of a fraction: 1.01 is before 1.1.
    if text[0] == "0" and not first:
        return (0, 0, text)
    return (1, int(text), "")
