"""The page's files: nothing inline, nothing from elsewhere, all that is named is there."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agent.page.files import HEADERS, INDEX, files

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted(name for name in files() if name.endswith(".js"))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.texts[self.found[-1][0]] = self.texts.get(self.found[-1][0], "") + data


@pytest.fixture
def tags() -> Tags:
    parser = Tags()
    parser.feed(files()[INDEX].body.decode())
    return parser


def test_nothing_is_inline(tags: Tags) -> None:
    for tag, attributes in tags.found:
        assert tag != "style"
        assert not {"style", *(a for a in attributes if a.startswith("on"))} & attributes.keys()
        if tag == "script":
            assert attributes.get("src")
    assert not tags.texts.get("script", "").strip()


def test_all_that_the_page_names_is_there(tags: Tags) -> None:
    named = [a[name] for _, a in tags.found for name in ("src", "href") if a.get(name)]
    for name in named:
        assert name is not None
        assert name.startswith("#") or name.removeprefix("files/") in files(), name


def test_scripts_import_each_other_only() -> None:
    for script in SCRIPTS:
        text = files()[script].body.decode()
        for name in re.findall(r'from "([^"]+)"', text):
            assert name.removeprefix("./") in files(), (script, name)


@pytest.mark.parametrize("name", sorted(files()))
def test_nothing_is_from_elsewhere(name: str) -> None:
    text = files()[name].body.decode()
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
    # The name of SVG's elements, and where to find the gateway, in words.
    assert addresses <= {"http://www.w3.org/2000/svg", "http://127.0.0.1:8088/dashboard/"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_text_becomes_markup(script: str) -> None:
    """What comes from members and models is text; so no script has a way to make it more."""
    text = files()[script].body.decode()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser",
                "eval(", "new Function", "srcdoc", "localStorage", "cookie"):  # fmt: skip
        assert way not in text, way


def test_a_browser_is_told_to_allow_no_more_than_that() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    for part in ("script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'",
                 "require-trusted-types-for 'script'"):  # fmt: skip
        assert part in policy.split("; ")


def test_a_wheel_has_them() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tool["package-data"]["agent.page"] == ["web/*"]
    assert INDEX in files()
