"""Every variable of the playbooks is documented in one place, and everything there is used."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ansible.load import ROOT

yaml = pytest.importorskip("yaml")

SETTINGS = ROOT / "roles/settings"
DEFAULTS = (SETTINGS / "defaults/main.yml").read_text()
DOCUMENTED: dict[str, Any] = yaml.safe_load(DEFAULTS)
FILES = [
    path for kind in ("*.yml", "*.j2") for path in ROOT.rglob(kind)
    # Alerts have metrics' names, which tests/unit/monitoring looks at.
    if "inventories" not in path.parts and not path.is_symlink()
    and path.parent not in (SETTINGS / "defaults", SETTINGS / "meta")
]  # fmt: skip
GROUPS = {
    "covey_issuers", "covey_gateways", "covey_workers", "covey_relays", "covey_monitoring",
}  # fmt: skip


def made(text: str) -> set[str]:
    """Return the names that a file gives a value itself: facts, results, loops and `vars`."""
    return {
        *re.findall(r"^\s+(covey_\w+):", text, re.M),
        *re.findall(r"(?:register|loop_var|groups|name): *(covey_\w+)", text),
        *re.findall(r"{% *(?:set|for) +(covey_\w+)", text),
    }


def used(text: str) -> set[str]:
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return set(re.findall(r"\bcovey_[a-z_]+\b", code))


def test_what_roles_and_playbooks_use_is_documented_or_their_own() -> None:
    texts = [path.read_text() for path in FILES]
    programs = {
        path.stem for folder in ("library", "action_plugins", "filter_plugins", "module_utils")
        for path in (ROOT / folder).glob("*.py")
    }  # fmt: skip
    own = set().union(*(made(text) for text in texts)) | programs | GROUPS
    filters = set(re.findall(r'"(covey_\w+)":', "".join(
        path.read_text() for path in (ROOT / "filter_plugins").glob("*.py")
    )))  # fmt: skip
    for path, text in zip(FILES, texts, strict=True):
        unknown = used(text) - own - filters - DOCUMENTED.keys()
        assert not unknown, f"{path.relative_to(ROOT)} uses {', '.join(sorted(unknown))}"


def test_what_is_documented_is_used() -> None:
    there = set().union(*(used(path.read_text()) for path in FILES))
    there |= used(DEFAULTS.replace("\n# ", "\n"))
    assert sorted(DOCUMENTED.keys() - there) == []
    only_here = {
        name for name in DOCUMENTED
        if not any(re.search(rf"\b{name}\b", path.read_text()) for path in FILES)
    }  # fmt: skip
    assert sorted(only_here) == []


def test_each_variable_has_a_type_and_a_comment() -> None:
    specs = yaml.safe_load((SETTINGS / "meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    assert sorted(options) == sorted(DOCUMENTED)
    lines = DEFAULTS.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"covey_\w+:", line):
            above = number - 1
            # A comment may be about the variables below it.
            while re.match(r"covey_\w+:", lines[above]):
                above -= 1
            assert lines[above].startswith("# "), line


@pytest.mark.parametrize("name", ["one-host", "gpu-boxes", "fleet"])
def test_samples_set_what_there_is(name: str) -> None:
    folder = ROOT / "inventories" / name
    hosts = yaml.safe_load((folder / "hosts.yml").read_text())
    assert {"covey_issuers", "covey_workers", "covey_gateways"} <= set(hosts["covey"]["children"])
    for path in folder.rglob("*.yml"):
        text = path.read_text()
        unknown = used(text) - DOCUMENTED.keys() - GROUPS
        assert not unknown, f"{path.relative_to(ROOT)} sets {', '.join(sorted(unknown))}"


def test_samples_are_one_host_four_and_fifty_with_a_gateway() -> None:
    def count(node: Any) -> set[str]:
        found: set[str] = set()
        for host in (node or {}).get("hosts") or {}:
            span = re.fullmatch(r"(\w+)\[(\d+):(\d+)\]", host)
            numbers = range(int(span[2]), int(span[3]) + 1) if span else ()
            found |= {f"{span[1]}{n:0{len(span[2])}}" for n in numbers} if span else {host}
        for child in ((node or {}).get("children") or {}).values():
            found |= count(child)
        return found

    def hosts(name: str) -> int:
        text = Path(ROOT, "inventories", name, "hosts.yml").read_text()
        return len(count(yaml.safe_load(text)["covey"]))

    assert [hosts(name) for name in ("one-host", "gpu-boxes", "fleet")] == [1, 4, 51]
