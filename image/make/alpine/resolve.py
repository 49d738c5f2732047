"""Which packages a list of names takes. A core.

As apk does, but for what nobody asked for: a package that others would bring along only because
they are there (install_if) stays away, as Debian's recommended ones do. A choice that a later need
rules out is made anew with all needs known by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agent.errors import EnvironmentFault
from image.make.alpine import versions
from image.make.alpine.index import Entry, Need

_MIRROR_HINT = "Check that the mirror is whole, and of a release that has it."
# Each round knows a need more; real lists take one or two.
_ROUNDS = 50


class _AgainError(Exception):
    """A choice was wrong; `need` says why."""

    def __init__(self, need: Need) -> None:
        super().__init__(str(need))
        self.need = need


def resolve(
    entries: Sequence[Entry], wanted: Iterable[Need], arch: str, without: frozenset[str]
) -> list[Entry]:
    """Return the packages that `wanted` takes, by name; `without` are needs that are left unmet.

    Raises EnvironmentFault where a need cannot be met, with who has it.
    """
    wanted = tuple(wanted)
    known: list[Need] = []
    for _ in range(_ROUNDS):
        try:
            return _Round(entries, arch, without, known).run(wanted)
        except _AgainError as again:
            known.append(again.need)
    raise EnvironmentFault("the packages' needs rule each other out", hint=_MIRROR_HINT)


@dataclass
class _Round:
    entries: Sequence[Entry]
    arch: str
    without: frozenset[str]
    known: list[Need]
    chosen: dict[str, Entry] = field(default_factory=dict)
    unwanted: list[tuple[Need, str]] = field(default_factory=list)

    def run(self, wanted: tuple[Need, ...]) -> list[Entry]:
        names: dict[str, list[Entry]] = {}
        for entry in self.entries:
            for name in {entry.name, *(name for name, _ in entry.provides)}:
                names.setdefault(name, []).append(entry)
        queue = [(need, "") for need in wanted]
        while queue:
            need, by = queue.pop(0)
            if need.unwanted:
                self._forbid(need, by)
            elif need.name not in self.without and not self._met(need, by):
                entry = self._choice(need, by, names.get(need.name, []))
                self.chosen[entry.name] = entry
                queue += [(more, entry.name) for more in entry.needs]
        return [self.chosen[name] for name in sorted(self.chosen)]

    def _met(self, need: Need, by: str) -> bool:
        """Say whether a chosen package meets it; one of the same name that does not is wrong."""
        if any(_provides(entry, need) for entry in self.chosen.values()):
            return True
        if need.name in self.chosen:
            if need in self.known:
                raise self._conflict(need, by, self.chosen[need.name])
            raise _AgainError(need)
        return False

    def _forbid(self, need: Need, by: str) -> None:
        self.unwanted.append((need, by))
        for entry in self.chosen.values():
            if entry.name != by and _provides(entry, need):
                if need in self.known:
                    raise self._conflict(need, by, entry)
                raise _AgainError(need)

    def _choice(self, need: Need, by: str, named: list[Entry]) -> Entry:
        found = [entry for entry in named if entry.arch in (self.arch, "noarch")]
        if not found:
            where = f" for {self.arch}" if named else ""
            raise EnvironmentFault(
                f"no package{where} provides {need.name}{_who(by)}", hint=_MIRROR_HINT
            )
        right = [entry for entry in found if _provides(entry, need)]
        if not right:
            has = ", ".join(f"{entry.name} {entry.version}" for entry in found)
            raise EnvironmentFault(
                f"the mirror has {has}, and {by or 'the image'} needs {need}", hint=_MIRROR_HINT
            )
        free = [entry for entry in right if not self._ruled_out(entry)]
        if not free:
            raise self._conflict(need, by, right[0])
        best = max(free, key=lambda entry: _rank(entry, need.name))
        equal = {entry.name for entry in free if _rank(entry, need.name)[:2] == (0, 0)}
        if len(equal) > 1 and best.name in equal:
            raise EnvironmentFault(
                f"{', '.join(sorted(equal))} all provide {need.name}{_who(by)}, and none before the"
                " others",
                hint="Add the name of one of them to those that the image wants.",
            )
        return best

    def _ruled_out(self, entry: Entry) -> bool:
        """Say whether what is chosen, or known of earlier rounds, is against a package."""
        names = {entry.name, *(name for name, version in entry.provides if version)}
        mine = dict(((entry.name, entry.version), *entry.provides))
        for need in (*self.known, *(need for need, by in self.unwanted if by != entry.name)):
            if need.unwanted and _provides(entry, need):
                return True
            if not need.unwanted and need.name == entry.name and not need.allows(mine[entry.name]):
                return True
        for other in self.chosen.values():
            if names & {other.name, *(name for name, version in other.provides if version)}:
                return True
            if any(need.unwanted and _provides(other, need) for need in entry.needs):
                return True
        return False

    def _conflict(self, need: Need, by: str, entry: Entry) -> EnvironmentFault:
        others = ", ".join(sorted(self.chosen.keys() - {entry.name})) or "nothing"
        return EnvironmentFault(
            f"{entry.name} {entry.version} cannot be there with the others: "
            f"{by or 'the image'} says {need} (chosen so far: {others})",
            hint=_MIRROR_HINT,
        )


def _provides(entry: Entry, need: Need) -> bool:
    return (entry.name == need.name and need.allows(entry.version)) or any(
        name == need.name and need.allows(version) for name, version in entry.provides
    )


def _rank(entry: Entry, name: str) -> tuple[int, int, versions.Key, str]:
    """Return how good a choice it is: by its own name, as that version, as one that may be it."""
    if entry.name == name:
        return (2, 0, versions.key(entry.version), entry.name)
    version = next((version for provided, version in entry.provides if provided == name), "")
    if version:
        return (1, entry.priority, versions.key(entry.version), entry.name)
    return (0, entry.priority, versions.key(entry.version), entry.name)


def _who(by: str) -> str:
    return f", which {by} needs" if by else ", which the image needs"
