"""The gateway's dashboard as a person uses it: look, chat, plan, deploy, undeploy, see usage."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from agent.demo.mesh import WORKERS, DemoMesh

FIGURES = re.compile(r"first token after \d.* · \d+(\.\d+)? tokens/s · \d+ tokens · by alpha")


def rings(mesh: DemoMesh) -> list[dict[str, Any]]:
    """Return what the mesh runs, by another node's word."""
    found: list[dict[str, Any]] = mesh.ask("beta", "ps")["deployments"]
    return found


def ask(page: Page, text: str) -> str:
    """Ask in the chat and return the answer, once it has ended."""
    before = page.locator("#chat-log li.assistant").count()
    page.fill("#chat-text", text)
    page.press("#chat-text", "Enter")
    answer = page.locator("#chat-log li.assistant").nth(before)
    expect(answer.locator(".figures")).to_be_visible()
    expect(page.locator("#chat-send")).to_have_text("Send")
    return answer.locator(".words").inner_text()


def test_the_map_shows_nodes_paths_and_layers(opened: Any, mesh: DemoMesh) -> None:
    page = opened.page()
    expect(page.locator("#mesh-name")).to_have_text("demo")
    expect(page.locator("#seen-from")).to_have_text("seen from door")
    drawn = page.locator("#map svg")
    expect(drawn.locator("g.node")).to_have_count(len(WORKERS) + 1)
    expect(drawn.locator(".hop")).to_have_count(3)  # alpha, another, another, and home
    expect(drawn.locator(".rtt").first).to_have_text(re.compile(r"\d ms$"))
    [ring] = rings(mesh)
    for stage in ring["stages"]:
        row = page.locator(f'#nodes tr[data-key="{stage["node"]}"]')
        expect(row).to_contain_text("covey-mini: layer")
        expect(row).to_contain_text(str(stage["first"]))
    told = drawn.get_attribute("aria-label") or ""
    order = list(dict.fromkeys(stage["name"] for stage in ring["stages"]))
    assert " → ".join([*order, order[0]]) in told
    page.click("#layers summary")
    expect(page.locator("#layers .reasons li").first).to_contain_text("3 nodes")


def test_what_is_open_stays_open_while_numbers_change(opened: Any) -> None:
    page = opened.page()
    page.click("#layers summary")
    with page.expect_response("**/dashboard/state"), page.expect_response("**/dashboard/state"):
        pass
    expect(page.locator("#layers details")).to_have_attribute("open", "")


def test_a_chat_says_what_it_measured(opened: Any, keys: Any) -> None:
    page = opened.page("chat", key=keys.phone)
    expect(page.locator("#chat-model option")).to_have_text(["covey-mini"])
    assert "42" in ask(page, "What is 27 + 15?")
    assert "ring" in ask(page, "What is a ring?")
    for figures in page.locator("#chat-log .figures").all_inner_texts():
        assert FIGURES.fullmatch(figures), figures
    page.goto(page.url.replace("#chat", "#requests"))
    rows = page.locator("#past tbody tr")
    expect(rows.first).to_contain_text("covey-mini")
    expect(rows.first).to_contain_text("phone")  # its own key's name, no one else's
    expect(page.locator("#replicas")).to_contain_text("tokens/s")
    page.goto(page.url.replace("#requests", "#usage"))
    expect(page.locator("#usage-table")).to_contain_text("phone")
    expect(page.locator("#usage-title")).to_contain_text("this key")


def test_shift_and_enter_starts_a_line(opened: Any) -> None:
    page = opened.page("chat")
    page.fill("#chat-text", "one")
    page.press("#chat-text", "Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#chat-text") == "one\ntwo"
    expect(page.locator("#chat-log li.user")).to_have_count(0)


def test_without_an_admin_key_it_says_what_is_needed(opened: Any, keys: Any) -> None:
    for key, words in (
        ("", "Actions need an admin key"),
        (keys.phone, "The key phone may not act"),
    ):
        page = opened.page("models", key=key)
        expect(page.locator("#act-needs")).to_contain_text(words)
        expect(page.locator("#act-needs code")).to_have_text("gateway keys create NAME --admin")
        expect(page.locator("#running .end")).to_be_disabled()
        expect(page.locator("#plan-button")).to_be_disabled()
        expect(page.locator("#deploy-button")).to_be_disabled()


def test_an_admin_plans_deploys_and_undeploys(opened: Any, keys: Any, mesh: DemoMesh) -> None:
    page = opened.page("models")
    expect(page.locator("#deploy-button")).to_be_disabled()
    page.click("#key-button")
    page.fill("#key-text", f" {keys.admin} ")
    page.keyboard.press("Enter")
    expect(page.locator("#key-button")).to_have_text("root (admin)")
    expect(page.locator("#act-needs")).to_be_hidden()

    page.fill("#place-model", "covey-mini")
    page.fill("#place-name", "second")
    page.fill("#place-nodes", "2")
    page.click("#plan-button")
    plan = page.locator("#plan .plan")
    expect(plan).to_contain_text("covey-mini, 512 tokens of context")
    expect(plan.locator(".stages li")).to_have_count(3)  # the head has the first and the last
    expect(plan).to_contain_text("tokens/s")
    plan.locator("summary").click()
    expect(plan.locator(".reasons")).to_contain_text("2 nodes were asked for")
    assert len(rings(mesh)) == 1

    page.click("#deploy-button")
    ring = page.locator('#running [data-key="second"]')
    expect(ring.locator(".badge")).to_have_text("ready", timeout=120_000)
    expect(page.locator("#announcer")).to_have_text("second: ready")
    found = {one["name"] for one in rings(mesh)}
    assert found == {"covey-mini", "second"}
    page.goto(page.url.replace("#models", "#mesh"))
    page.click('#ring-choice [data-ring="second"]')
    expect(page.locator("#map .hop")).to_have_count(2)

    page.goto(page.url.replace("#mesh", "#models"))
    ring.locator(".end").click()
    expect(page.locator("#end-title")).to_have_text("Undeploy second?")
    page.click("#end-close")
    expect(ring).to_be_visible()
    ring.locator(".end").click()
    page.click("#end-form button.danger")
    expect(ring).to_have_count(0)
    assert len(rings(mesh)) == 1


def test_the_agents_no_is_shown_in_its_words(opened: Any, keys: Any) -> None:
    opened.allow("400")
    page = opened.page("models", key=keys.admin)
    page.fill("#place-model", "covey-mini")
    page.fill("#place-nodes", "99")
    page.click("#deploy-button")
    said = page.locator("#place-said")
    expect(said).to_contain_text("a ring of 99 nodes was asked for, and this mesh has")
    expect(said).to_have_class(re.compile("bad"))


def test_what_fits_is_listed_and_chosen(opened: Any, keys: Any) -> None:
    page = opened.page("models", key=keys.admin)
    row = page.locator('#fits tr[data-key="covey-mini F16"]')
    expect(row).to_contain_text("fits")
    row.get_by_role("button", name="Choose covey-mini").click()
    assert page.input_value("#place-model") == "covey-mini"
    few = page.locator("#fits tbody tr").count()
    page.uncheck("#fits-only")
    assert page.locator("#fits tbody tr").count() > few
    expect(page.locator("#fits")).to_contain_text("more")


def test_the_key_is_in_this_tab_alone(opened: Any, keys: Any) -> None:
    page = opened.page("mesh", key=keys.admin)
    assert page.context.cookies() == []
    assert page.evaluate("localStorage.length") == 0
    assert keys.admin not in page.content()
    page.click("#key-button")
    page.click("#key-forget")
    expect(page.locator("#key-button")).to_have_text("Key…")
    assert page.evaluate("sessionStorage.length") == 0


def test_a_key_that_is_not_known_is_said(opened: Any) -> None:
    opened.allow("401")
    page = opened.page("mesh", key="ck-nonsense", wait=False)
    expect(page.locator("#key-dialog")).to_be_visible()
    expect(page.locator("#key-said")).to_contain_text("The API key is not known here")
    page.click("#key-forget")
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#banner")).to_be_hidden()


def test_everything_is_asked_where_the_page_is_from(opened: Any) -> None:
    page = opened.page()
    for view in ("models", "chat", "requests", "usage", "health"):
        page.goto(re.sub("#.*", f"#{view}", page.url))
        page.wait_for_timeout(300)
    assert {urlsplit(request.url).netloc for request in opened.asked} == {"127.0.0.1:8088"}


def test_a_lost_gateway_is_said_and_found_again(opened: Any) -> None:
    opened.allow("ERR_FAILED")
    page = opened.page()
    page.route("**/dashboard/state", lambda route: route.abort())
    expect(page.locator("#link")).to_have_text("no answer")
    expect(page.locator("#banner")).to_have_text("Nobody answers there.")
    page.unroute("**/dashboard/state")
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#banner")).to_be_hidden()


EVIL = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"


def hostile(state: Any) -> None:
    """Have names and words that are markup, as a member could choose them."""
    mesh = state["mesh"]
    mesh["mesh"] = mesh["name"] = EVIL
    for node in mesh["nodes"]:
        node["name"] = EVIL
        node["roles"] = [EVIL]
    for ring in mesh["rings"]:
        ring |= dict.fromkeys(("name", "model", "head", "progress", "phase", "gain"), EVIL)
        ring |= {"reasons": [EVIL], "error": {"message": EVIL, "hint": EVIL}}
        for stage in ring["stages"]:
            stage["name"] = stage["runs_on"] = EVIL
    mesh["health"] = [{"node": EVIL, "code": EVIL, "severity": "error", "title": EVIL,
                       "text": EVIL, "what_to_do": EVIL, "details": [EVIL]}]  # fmt: skip
    for event in mesh["events"]:
        event |= {"subject": EVIL, "text": EVIL, "kind": EVIL}
    gateway = state["gateway"]
    gateway["models"] = [{"id": EVIL, "usable": 1}]
    for replica in gateway["replicas"]:
        replica |= {"name": EVIL, "models": [EVIL], "reason": EVIL}


def test_a_members_name_is_text_and_never_markup(opened: Any) -> None:
    page = opened.told(hostile)
    expect(page.locator("#mesh-name")).to_have_text(EVIL)
    for view in ("mesh", "models", "chat", "requests", "health"):
        page.goto(re.sub("#.*", f"#{view}", page.url))
        shown = page.locator(f"#view-{view}")
        expect(shown).to_be_visible()
        assert EVIL[:20] in shown.inner_text() + (shown.locator("select").first.inner_text()
                                                  if view == "chat" else "")  # fmt: skip
        assert page.locator("main img, main b").count() == 0
    assert page.title().startswith(EVIL[:10])


def test_a_mesh_of_thirty_is_drawn(opened: Any) -> None:
    def crowd(state: Any) -> None:
        nodes = state["mesh"]["nodes"]
        other = next(node for node in nodes if not node["self"])
        kinds = ("relayed", "asleep", "none", "lan")
        nodes += [
            other | {"id": f"n{n}", "name": f"rack-{n}",
                     "path": other["path"] | {"route": kinds[n % 4]}}
            for n in range(26)
        ]  # fmt: skip

    page = opened.told(crowd)
    expect(page.locator("#map g.node")).to_have_count(30)
    expect(page.locator("#map-legend")).to_contain_text("relayed")
    check_inside(page)


@pytest.mark.parametrize("size", [{"width": 1100, "height": 820}, {"width": 360, "height": 740}])
@pytest.mark.parametrize("count", [1, 2])
def test_a_token_is_seen_all_the_way_around_few_nodes(opened: Any, count: int, size: Any) -> None:
    def few(state: Any) -> None:
        mesh = state["mesh"]
        others = [node for node in mesh["nodes"] if not node["self"]][:count]
        own = next(node for node in mesh["nodes"] if node["self"])
        mesh["nodes"] = [own, *others]
        ring = mesh["rings"][0]
        ring["stages"] = ring["stages"][:2]
        for stage, node in zip(ring["stages"], [*others, own], strict=False):
            stage.update(node=node["id"], name=node["name"])

    page = opened.told(few)
    page.set_viewport_size(size)
    expect(page.locator("#map .hop")).to_have_count(2)
    check_inside(page)


def check_inside(page: Page) -> None:
    """Nothing in the map's picture is beyond its edges."""
    boxes = page.evaluate(
        "[...document.querySelectorAll('#map g.node, #map .hop')].map((g) => g.getBBox())"
        ".map(({x, y, width, height}) => [x, y, width, height])"
    )
    view = page.locator("#map svg").get_attribute("viewBox") or ""
    box = [float(number) for number in view.split()]
    for x, y, width, height in boxes:
        assert box[0] <= x and x + width <= box[0] + box[2] + 1
        assert box[1] <= y and y + height <= box[1] + box[3] + 1
