"""The dashboard in Debian's Chromium, before a real mesh in namespaces. Run it by `make browser`.

`python -m agent.demo.sandbox -- pytest tests/browser`: mesh, gateway and browsers end with that
sandbox. A browser runs on the machine whose loopback it looks at, so that nothing listens anywhere
else. What a page says on its console is a fault, unless a test asks for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, Request, expect, sync_playwright

from agent.demo import sandbox
from agent.demo.mesh import GATEWAY, GATEWAY_PORT, DemoMesh

ROOT = Path("/run/covey-browser")
BASE = f"http://127.0.0.1:{GATEWAY_PORT}"
# The models' answers and the ring's building take the same two cores as the browser.
TIMEOUT_MS = 60_000
expect.set_options(timeout=TIMEOUT_MS)
DESK, PHONE = {"width": 1100, "height": 820}, {"width": 360, "height": 740}

# What lies beside the tests, which pytest's importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", action="store_true", help="Write the screenshots of docs/ anew."
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse to build networks on the machine itself; give each test a slow machine's time."""
    if items and not sandbox.inside():
        raise pytest.UsageError("the browser's tests run in a sandbox: use `make browser`")
    for item in items:
        item.add_marker(pytest.mark.timeout(300))


@dataclass
class Keys:
    admin: str
    phone: str


@pytest.fixture(scope="session")
def keys() -> Keys:
    """Make an admin key, and one that may only chat."""

    def make(name: str, *flags: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "keys", "create", name, *flags, "--json",
             "--store", str(ROOT / "keys.db")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        secret: str = json.loads(done.stdout)["secret"]
        return secret

    ROOT.mkdir(parents=True, exist_ok=True)
    return Keys(make("root", "--admin"), make("phone"))


@pytest.fixture(scope="session")
def mesh(keys: Keys) -> Iterator[DemoMesh]:
    """Three workers that run covey-mini as a ring, and a gateway whose node may deploy."""
    made = DemoMesh(ROOT)
    try:
        made.up(print)
        made.deploy(3, print)
        made.agent("alpha", "grant", GATEWAY, "--role", "gateway", "--role", "worker")
        made.gateway(["--listen", f"127.0.0.1:{GATEWAY_PORT}", "--store", str(ROOT / "keys.db")])
        made.wait_served({"covey-mini"})
        yield made
    finally:
        made.stop_gateways()
        for log in sorted(ROOT.glob("*/agent.log")):
            print(f"== {log}\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browsers(mesh: DemoMesh, playwright: Playwright) -> Iterator[Callable[[str], Browser]]:
    """Start Chromium on one of the machines, once each."""
    program = shutil.which("chromium")
    assert program is not None, "Debian's chromium is not installed"
    started: dict[str, Browser] = {}

    def start(machine: str) -> Browser:
        if machine not in started:
            wrapper = ROOT / f"chromium-{machine}"
            command = " ".join(mesh.machine(machine).command([program]))
            wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            wrapper.chmod(0o755)
            started[machine] = playwright.chromium.launch(
                executable_path=str(wrapper), env={**os.environ, "HOME": str(ROOT)},
                # Root has no sandbox of Chromium's; all of this is in one of ours.
                args=["--no-sandbox"],
            )  # fmt: skip
        return started[machine]

    yield start
    for browser in started.values():
        browser.close()


@dataclass
class Opened:
    """Pages that a test opened; what they said and asked for."""

    browsers: Callable[[str], Browser]
    stack: ExitStack
    said: list[str] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def page(
        self, view: str = "mesh", *, key: str = "", machine: str = GATEWAY, base: str = BASE,
        size: Any = DESK, scheme: Any = "light", wait: bool = True, **more: Any,
    ) -> Page:  # fmt: skip
        """Open the dashboard in a context of its own, with `key` typed already."""
        context = self.browsers(machine).new_context(
            viewport=size, color_scheme=scheme, reduced_motion="reduce", **more
        )
        self.stack.callback(context.close)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        # On busy cores, members take longer to tell of their models than the page waits; it says
        # so, and asks again.
        self.allow("status of 503")
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", lambda request: self.asked.append(request))
        if key:
            page.add_init_script(f"sessionStorage.setItem('covey-key', {json.dumps(key)})")
        page.goto(f"{base}/dashboard/#{view}")
        if wait:
            expect(page.locator("#link")).to_have_attribute("data-state", "live")
        return page

    def told(self, change: Callable[[Any], None]) -> Page:
        """Open the page with another state than the gateway's own, changed once."""
        page = self.page()
        state = page.evaluate("fetch('/dashboard/state').then((answer) => answer.json())")
        change(state)
        body = json.dumps(state)
        page.route(
            "**/dashboard/state",
            lambda route: route.fulfill(status=200, content_type="application/json", body=body),
        )
        page.reload()
        return page

    def allow(self, pattern: str) -> None:
        """Let the console say what matches, such as that a request failed which shall fail."""
        self.allowed.append(pattern)

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(re.search(p, text) for p in self.allowed):
            self.said.append(f"{kind}: {text}")


@pytest.fixture
def opened(browsers: Callable[[str], Browser]) -> Iterator[Opened]:
    with ExitStack() as stack:
        made = Opened(browsers, stack)
        yield made
        assert made.said == []
