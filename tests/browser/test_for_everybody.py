"""Keyboard, screen reader, phone, dark and light; and the pictures of docs/screenshots/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import DESK, PHONE
from playwright.sync_api import Page, expect

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "screenshots"
AUDIT = (HERE / "audit.js").read_text()
VIEWS = ("mesh", "models", "chat", "requests", "usage", "health")
MOST_BYTES = 200 * 2**10


def turn(page: Page, view: str) -> None:
    page.goto(re.sub("#.*", f"#{view}", page.url))
    expect(page.locator(f"#view-{view}")).to_be_visible()
    if view == "models":
        expect(page.locator("#fits table")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_every_view_is_for_everybody(opened: Any, keys: Any, size: Any, scheme: str) -> None:
    page = opened.page(key=keys.admin, size=size, scheme=scheme)
    for view in VIEWS:
        turn(page, view)
        for summary in page.locator(f"#view-{view} summary").all():
            summary.click()
        assert page.evaluate(AUDIT) == [], view
    page.click("#key-button")
    assert page.evaluate(AUDIT) == []


def test_the_audit_finds_what_is_wrong(opened: Any) -> None:
    page = opened.page()
    page.evaluate(
        """() => {
          const bad = document.createElement("button");
          const pale = document.createElement("p");
          pale.textContent = "pale";
          pale.style.color = "#bbb";
          const wide = document.createElement("div");
          wide.style.width = "4000px";
          wide.textContent = "wide";
          document.querySelector("main").append(bad, pale, wide);
        }"""
    )
    found = " ".join(page.evaluate(AUDIT))
    for word in ("has no name", "pale", "contrast", "wider than the screen"):
        assert word in found


def test_all_can_be_reached_by_keyboard(opened: Any) -> None:
    page = opened.page()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    box = page.locator(".skip").bounding_box()
    assert box is not None and box["x"] >= 0
    page.keyboard.press("Tab")
    expect(page.locator("#key-button")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.locator('.tabs a[href="#chat"]')).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#view-chat")).to_be_visible()
    expect(page.locator('.tabs a[aria-current="page"]')).to_have_text("Chat")
    expect(page.locator("#main")).to_be_focused()
    expect(page.locator("#announcer")).to_have_text("chat")
    page.focus("#key-button")
    page.keyboard.press("Enter")
    expect(page.locator("#key-text")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#key-dialog")).to_be_hidden()
    expect(page.locator("#key-button")).to_be_focused()


def test_the_focus_stays_while_numbers_change(opened: Any) -> None:
    page = opened.page()
    page.focus("#layers summary")
    with page.expect_response("**/dashboard/state"), page.expect_response("**/dashboard/state"):
        pass
    expect(page.locator("#layers summary")).to_be_focused()


def test_a_screen_reader_is_given_roles_and_names(opened: Any) -> None:
    page = opened.page()
    expect(page.get_by_role("navigation", name="Parts of the dashboard")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("nodes as door sees them"))).to_be_visible()
    expect(page.get_by_role("table", name="Nodes of the mesh")).to_be_visible()
    expect(page.get_by_role("rowheader", name="alpha")).to_be_visible()
    assert page.get_by_role("heading", name="Map").count() == 1


def shoot(page: Page, name: str, folder: Path, *, full: bool = False) -> None:
    path = folder / f"{name}.png"
    page.wait_for_timeout(400)
    page.screenshot(path=path, full_page=full, animations="disabled")
    assert 4096 < path.stat().st_size < MOST_BYTES, (name, path.stat().st_size)


def test_pictures_are_taken(
    opened: Any, keys: Any, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Those of docs/screenshots/ are written with --screenshots alone."""
    folder = DOCS if pytestconfig.getoption("--screenshots") else tmp_path
    folder.mkdir(exist_ok=True)
    for scheme in ("light", "dark"):
        page = opened.page(key=keys.admin, scheme=scheme)
        expect(page.locator("#map .hop")).to_have_count(3)
        shoot(page, f"mesh-{scheme}", folder)
        turn(page, "chat")
        for question in ("What is 27 + 15?", "What is a ring?"):
            page.fill("#chat-text", question)
            page.press("#chat-text", "Enter")
            expect(page.locator("#chat-log li.assistant .figures").last).to_contain_text("by ")
            expect(page.locator("#chat-send")).to_have_text("Send")
        shoot(page, f"chat-{scheme}", folder)
    turn(page, "requests")
    expect(page.locator("#past tbody tr").first).to_be_visible()
    shoot(page, "requests-dark", folder)
    page = opened.page("models", key=keys.admin)
    turn(page, "models")
    page.fill("#place-model", "llama-3.1-8b")
    page.click("#plan-button")
    expect(page.locator("#plan .plan")).to_be_visible()
    page.locator("#place").scroll_into_view_if_needed()
    page.locator("#view-models .card").nth(1).evaluate("(e) => scrollTo(0, e.offsetTop - 70)")
    shoot(page, "plan-light", folder)
    for scheme in ("light", "dark"):
        page = opened.page(key=keys.admin, size=PHONE, scheme=scheme)
        expect(page.locator("#map .hop")).to_have_count(3)
        shoot(page, f"phone-mesh-{scheme}", folder)
        turn(page, "models")
        shoot(page, f"phone-models-{scheme}", folder)
