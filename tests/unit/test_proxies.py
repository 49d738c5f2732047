"""Which URLs go through the proxy of the environment, and that its password stays apart."""

from __future__ import annotations

import base64

import pytest

from agent.proxies import Proxy, proxy_for


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_without_one_servers_are_asked_directly() -> None:
    assert proxy_for("https://hub.example/file") == Proxy()


def test_https_goes_through_it_and_members_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.lan:3128")
    monkeypatch.setenv("http_proxy", "http://proxy.lan:3128")
    assert proxy_for("https://hub.example/file") == Proxy("http://proxy.lan:3128")
    assert proxy_for("http://[fd86::1]:4003/file") == proxy_for("http://127.0.0.1/file") == Proxy()
    monkeypatch.setenv("no_proxy", "localhost,hub.example")
    assert proxy_for("https://hub.example/file") == proxy_for("https://localhost/") == Proxy()


def test_a_user_and_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://sh%40d:p%3Ass%20w@[fd00::1]:3128")
    found = proxy_for("https://hub.example/file")
    said = base64.b64encode(b"sh@d:p:ss w").decode()
    assert found == Proxy("http://[fd00::1]:3128", {"Proxy-Authorization": f"Basic {said}"})
    assert said not in repr(found)


def test_one_without_a_scheme_is_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "proxy.lan:3128")
    assert proxy_for("https://hub.example/file") == Proxy("http://proxy.lan:3128")
