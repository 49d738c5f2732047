"""The port mapper against a real router: nftables NAT with miniupnpd, all in namespaces."""

from __future__ import annotations

import importlib.util
import json
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PCP, NATPMP, UPNP = "PCP", "NAT-PMP", "UPnP"
ALL = f"{PCP},{NATPMP},{UPNP}"
PORT = 51820
SELDOM_S, OFTEN_S = 300.0, 3.0
LONG_S = 7200

pytestmark = pytest.mark.skipif(
    shutil.which("miniupnpd") is None, reason="miniupnpd is not installed (miniupnpd-nftables)"
)


def _home_module() -> Any:
    spec = importlib.util.spec_from_file_location("portmap_home", HERE / "home.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Mapped:
    """A running `mapped.py`, and all that it has said so far."""

    def __init__(
        self,
        home: Any,
        protocols: str,
        *,
        port: int = PORT,
        check_s: float = SELDOM_S,
        lifetime_s: int = LONG_S,
    ) -> None:
        self.said: list[dict[str, Any]] = []
        self.read_to = 0
        self._lines: queue.Queue[bytes] = queue.Queue()
        arguments = [str(port), str(check_s), str(lifetime_s), protocols]
        self.process = home.HOME.spawn(
            [sys.executable, str(HERE / "mapped.py"), *arguments], output=subprocess.PIPE
        )
        threading.Thread(target=self._read, daemon=True).start()

    def next(self, what: Callable[[dict[str, Any]], bool], within_s: float = 20) -> dict[str, Any]:
        """Return the first thing after the last one returned that is `what`."""
        deadline = time.monotonic() + within_s
        while True:
            while self.read_to < len(self.said):
                self.read_to += 1
                if what(self.said[self.read_to - 1]):
                    return self.said[self.read_to - 1]
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"nothing of that came: {self.said[-6:]}")
            self.said.append(json.loads(line))

    def mapping(self, within_s: float = 20) -> Any:
        """Return the next mapping that it tells; None when it tells that there is none."""
        return self.next(lambda said: said["what"] == "mapping", within_s)["mapping"]

    def report(self, fits: Callable[[Any], bool], within_s: float = 20) -> Any:
        return self.next(lambda said: said["what"] == "report" and fits(said["report"]), within_s)[
            "report"
        ]

    def heard(self, text: str, within_s: float = 5) -> None:
        self.next(lambda said: said["what"] == "heard" and said["text"] == text, within_s)

    def stop(self) -> float:
        """End it in order; return how long that took it (s)."""
        self.process.send_signal(signal.SIGTERM)
        took = self.next(lambda said: said["what"] == "stopped")["took_s"]
        assert self.process.wait(timeout=10) == 0
        return float(took)

    def _read(self) -> None:
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)


class Lab:
    """The home, and the machines in it that a test started."""

    def __init__(self, module: Any, folder: Path) -> None:
        self.module = module
        self.home = module.Home(folder)
        self._running: list[Mapped] = []

    def mapped(self, protocols: str, **options: Any) -> Mapped:
        self._running.append(Mapped(self.module, protocols, **options))
        return self._running[-1]

    def end(self) -> None:
        for mapped in self._running:
            if mapped.process.poll() is None:
                mapped.process.kill()
                mapped.process.wait(timeout=10)
        self._running.clear()
        self.home.stop(signal.SIGKILL)
        self.home.forget()
        self.home.set_wan(self.module.WAN)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(_home_module(), tmp_path_factory.mktemp("home"))


@pytest.fixture
def lab(made: Lab) -> Iterator[Lab]:
    yield made
    made.end()


def place(mapping: Any) -> tuple[str, int]:
    return mapping["external"][0], mapping["external"][1]


@pytest.mark.parametrize("protocol", [PCP, NATPMP, UPNP])
def test_a_mapping_lets_the_outside_in_and_is_gone_after_stop(lab: Lab, protocol: str) -> None:
    lab.home.start()
    mapped = lab.mapped(protocol)
    mapping = mapped.mapping()
    assert mapping == {
        "protocol": protocol, "gateway": lab.module.ROUTER.address,
        "external": [lab.module.WAN, PORT], "lifetime_s": LONG_S, "public": True,
    }  # fmt: skip
    lab.home.send_in(place(mapping), "hello")
    mapped.heard("hello")
    assert mapped.stop() < 2
    assert "dport" not in lab.home.redirects()


def test_without_a_mapping_the_outside_is_not_let_in(lab: Lab) -> None:
    """What the test above hears comes through the mapping and no other way."""
    lab.home.start()
    mapped = lab.mapped(PCP, port=PORT + 1)
    mapped.mapping()
    lab.home.send_in((lab.module.WAN, PORT), "to nobody")
    lab.home.send_in((lab.module.WAN, PORT + 1), "to us")
    mapped.heard("to us")
    assert not any(said.get("text") == "to nobody" for said in mapped.said)


def test_the_best_protocol_is_kept_and_the_others_are_known(lab: Lab) -> None:
    lab.home.start()
    mapped = lab.mapped(ALL)
    started = mapped.next(lambda said: said["what"] == "started")
    told = mapped.next(lambda said: said["what"] == "mapping")
    assert told["mapping"]["protocol"] == PCP
    assert told["at"] - started["at"] < 2
    report = mapped.report(
        lambda report: [attempt["state"] for attempt in report["attempts"]]
        == ["mapped", "ready", "ready"]
    )  # fmt: skip
    assert report["summary"] == (
        f"mapped to {lab.module.WAN}:{PORT} by PCP from {lab.module.ROUTER.address}"
    )
    mapped.stop()
    assert "dport" not in lab.home.redirects()


def test_a_router_with_upnp_alone_is_used_by_upnp(lab: Lab) -> None:
    lab.home.start(pmp=False)
    mapped = lab.mapped(ALL)
    assert mapped.mapping()["protocol"] == UPNP
    report = mapped.report(lambda report: report["mapping"] is not None)
    assert [attempt["why"] for attempt in report["attempts"]] == ["nothing there listens"] * 2 + [
        ""
    ]


def test_mappings_are_renewed_and_a_crashed_machines_mapping_ends(lab: Lab) -> None:
    lab.home.start()
    lifetime_s = 40
    running = [
        lab.mapped(protocol, port=PORT + number, lifetime_s=lifetime_s)
        for number, protocol in enumerate((PCP, NATPMP, UPNP, NATPMP))
    ]
    places = [place(mapped.mapping()) for mapped in running]
    assert [port for _, port in places] == [PORT, PORT + 1, PORT + 2, PORT + 3]
    crashed = running.pop()
    crashed.process.kill()
    lab.home.wait_redirect(PORT + 3, present=False, within_s=2 * lifetime_s)
    time.sleep(lifetime_s / 2)
    for mapped, outside in zip(running, places, strict=False):
        lab.home.send_in(outside, "still here")
        mapped.heard("still here")
        # One mapping all the time; were there another, the router's clock and its kind say why.
        told = [said for said in mapped.said if said["what"] == "mapping"]
        assert len(told) == 1, told
        mapped.stop()
    assert "dport" not in lab.home.redirects()


@pytest.mark.parametrize(
    ("protocol", "check_s"), [(PCP, SELDOM_S), (NATPMP, SELDOM_S), (UPNP, OFTEN_S)]
)
def test_a_mapping_comes_back_after_the_router_restarts(
    lab: Lab, protocol: str, check_s: float
) -> None:
    """NAT-PMP and PCP by the router's announcement; UPnP when the next check finds nothing."""
    lab.home.start(pmp=protocol != UPNP)
    mapped = lab.mapped(protocol, check_s=check_s)
    outside = place(mapped.mapping())
    time.sleep(5)  # long enough for its clock to show that it began anew
    lab.home.stop(signal.SIGKILL)
    lab.home.forget()
    assert "dport" not in lab.home.redirects()
    lab.home.start(pmp=protocol != UPNP)
    lab.home.wait_redirect(PORT, present=True, within_s=60)
    lab.home.send_in(outside, "again")
    mapped.heard("again")
    mapped.stop()
    assert "dport" not in lab.home.redirects()


def test_another_external_address_is_told(lab: Lab) -> None:
    lab.home.start()
    mapped = lab.mapped(NATPMP)
    assert place(mapped.mapping())[0] == lab.module.WAN
    time.sleep(5)
    lab.home.set_wan(lab.module.NEW_WAN)
    assert place(mapped.mapping(within_s=60)) == (lab.module.NEW_WAN, PORT)


def test_a_router_without_an_address_outside_says_so(lab: Lab) -> None:
    lab.home.set_wan(lab.module.CARRIER_WAN)
    lab.home.start()
    report = lab.mapped(ALL).report(
        lambda report: (
            all(attempt["state"] == "resting" for attempt in report["attempts"])
            and report["attempts"]
        )
    )
    assert report["mapping"] is None
    # Of PCP miniupnpd says that it has no room.
    no_address = "it has no external address itself at present"
    assert [attempt["why"] for attempt in report["attempts"]][1:] == [no_address] * 2
    assert report["summary"] == "no gateway maps ports for us"


def test_a_router_that_begins_to_map_is_noticed_after_a_network_change(lab: Lab) -> None:
    mapped = lab.mapped(f"{PCP},{NATPMP}")
    report = mapped.report(lambda report: report["summary"] == "no gateway maps ports for us")
    assert {attempt["why"] for attempt in report["attempts"]} == {"nothing there listens"}
    lab.home.start()
    time.sleep(1)
    mapped.process.send_signal(signal.SIGUSR1)
    assert mapped.mapping()["protocol"] == PCP


def test_a_crashed_machine_takes_its_mapping_over(lab: Lab) -> None:
    """It has the same place as before, and takes it back at its end.

    miniupnpd does not look at the nonce when it grants; that a stricter router is content with ours
    is a unit test.
    """
    lab.home.start()
    first = lab.mapped(PCP)
    outside = place(first.mapping())
    first.process.kill()
    first.process.wait(timeout=10)
    second = lab.mapped(PCP)
    assert place(second.mapping()) == outside
    second.stop()
    assert "dport" not in lab.home.redirects()
