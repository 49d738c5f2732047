"""The same page from an agent: the mesh as that node sees it, for looking."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import expect

BASE = "http://127.0.0.1:7074"


def test_it_shows_the_mesh_from_where_it_is(opened: Any) -> None:
    page = opened.page(machine="alpha", base=BASE)
    expect(page.locator("#seen-from")).to_have_text("seen from alpha")
    expect(page.locator("#map g.node")).to_have_count(4)
    expect(page.locator("#map .hop")).to_have_count(3)
    expect(page.locator("#tiles")).to_contain_text("free")
    expect(page.locator("#key-button")).to_be_hidden()


def test_its_root_leads_there(opened: Any) -> None:
    page = opened.page(machine="alpha", base=BASE)
    page.goto(f"{BASE}/")
    assert page.url == f"{BASE}/dashboard/"
    expect(page.locator("#map g.node")).to_have_count(4)


def test_what_it_cannot_do_it_says(opened: Any) -> None:
    page = opened.page("models", machine="alpha", base=BASE)
    expect(page.locator("#act-needs")).to_contain_text("for looking")
    expect(page.locator("#deploy-button")).to_be_disabled()
    expect(page.locator("#running .end")).to_have_count(0)
    expect(page.locator("#fits")).to_contain_text("covey-mini")
    for view, words in (("chat", "gateway's page"), ("requests", "gateway"), ("usage", "gateway")):
        page.goto(re.sub("#.*", f"#{view}", page.url))
        expect(page.locator(f"#{view}-none")).to_contain_text(words)
