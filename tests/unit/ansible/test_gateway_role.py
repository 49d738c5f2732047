"""The gateway's part of the playbooks: keys, certificate, settings."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from gateway import config
from gateway.tls import Certificate
from tests.unit.ansible.library import library
from tests.unit.ansible.load import ROOT

pytestmark = pytest.mark.slow

keys = library("covey_gateway_key")
self_signed = library("covey_self_signed")

ASKED: dict[str, Any] = {
    "name": "ci", "models": ["qwen*"], "requests_per_minute": 60, "tokens_per_minute": None,
    "tokens_per_day": 1000, "expires": "90d", "weight": None,
}  # fmt: skip
KEY: dict[str, Any] = {
    "id": "abc", "name": "ci", "models": ["qwen*"], "requests_per_minute": 60,
    "tokens_per_minute": None, "tokens_per_day": 1000, "weight": 1.0,
}  # fmt: skip


def test_what_is_asked_of_a_key_is_said_to_the_gateway() -> None:
    assert keys.create_words(ASKED) == [
        "create", "ci", "--model", "qwen*", "--requests-per-minute", "60",
        "--tokens-per-day", "1000", "--expires", "90d",
    ]  # fmt: skip


def test_a_key_that_is_as_asked_differs_in_nothing() -> None:
    assert keys.differences(KEY, ASKED) == []
    every = {**ASKED, "models": None, "requests_per_minute": None, "tokens_per_day": None}
    assert keys.differences({**KEY, "models": ["*"], "requests_per_minute": None,
                             "tokens_per_day": None}, every) == []  # fmt: skip


def test_a_key_that_has_expired_keeps_its_name_and_is_not_made_anew() -> None:
    revoked, expired = {**KEY, "state": "revoked"}, {**KEY, "state": "expired"}
    assert keys.holding([revoked, expired], "ci") is expired
    assert keys.holding([revoked], "ci") is None
    assert keys.holding([expired], "other") is None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"requests_per_minute": 6}, "requests_per_minute is 60 and not 6"),
        ({"tokens_per_day": None}, "tokens_per_day is 1000 and not null"),
        ({"models": None}, 'models is ["qwen*"] and not ["*"]'),
        ({"weight": 2.0}, "weight is 1.0 and not 2.0"),
    ],
)
def test_each_difference_is_named(change: dict[str, Any], words: str) -> None:
    assert keys.differences(KEY, {**ASKED, **change}) == [words]


def test_a_certificate_is_made_for_its_names_and_known_again(tmp_path: Path) -> None:
    names = ["box", "10.0.0.7", "::1"]
    run = [sys.executable, "-c"]
    subprocess.run([*run, self_signed.MAKE, str(tmp_path), "825", *names], check=True)
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    said = subprocess.run(
        [*run, self_signed.LOOK, str(tmp_path)], check=True, capture_output=True, text=True
    )
    there = json.loads(said.stdout)
    assert there["belong"]
    assert not self_signed.due(there, names)
    assert self_signed.due(there, ["box"])
    assert self_signed.due({**there, "days": 29}, names)
    assert self_signed.due({**there, "belong": False}, names)
    assert self_signed.due(None, names)


def test_the_gateway_takes_such_a_certificate(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", self_signed.MAKE, str(tmp_path), "90", "box"], check=True)
    assert Certificate(f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem").context is not None


def rendered(settings: dict[str, Any]) -> str:
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters["to_json"] = lambda value, **more: json.dumps(value, **more)
    text = (ROOT / "roles/gateway/templates/gateway.toml.j2").read_text()
    return str(environment.from_string(text).render(gateway_toml=settings))


def test_what_the_inventory_says_is_what_the_gateway_reads() -> None:
    said = {
        "listen": "0.0.0.0:8443", "workers": 4, "hedge_percent": 0.5, "require_keys": True,
        "vision": ["ollama"], "replicas": {"ollama": "http://10.0.0.9:11434"},
        "store": 'a "quoted" \\ path, übrigens',
    }  # fmt: skip
    read = config.load(rendered(said), "gateway.toml", {})
    assert {name: getattr(read, name) for name in said} == {**said, "vision": ("ollama",)}


def scraped(here: str, groups: dict[str, list[str]], **hostvars: dict[str, Any]) -> Any:
    """Return what roles/monitoring has Prometheus on `here` ask."""
    yaml = pytest.importorskip("yaml")
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters["to_json"] = json.dumps
    environment.tests["match"] = lambda value, pattern: re.match(pattern, value) is not None
    environment.tests["file"] = lambda value: False
    text = (ROOT / "roles/monitoring/templates/scrape.yml.j2").read_text()
    said = environment.from_string(text).render(
        groups=groups, hostvars=hostvars, inventory_hostname=here, covey_agent_settings={},
        covey_gateway_listen="127.0.0.1:8088", covey_gateway_tls_self_signed=False,
        covey_gateway_tls_cert="", covey_mesh_name="home",
    )  # fmt: skip
    return yaml.safe_load(said)["scrape_configs"]


def test_prometheus_asks_the_agents_that_it_reaches_and_its_own() -> None:
    def at(listen: str, **more: str) -> dict[str, Any]:
        return {"covey_agent_settings": {"http": {"listen": listen}}, **more}

    (job,) = scraped(
        "box", {"covey": ["box", "nas", "alone", "inside", "off", "six"]}, box={}, alone={},
        nas=at("0.0.0.0:7074", ansible_host="192.0.2.7"), inside=at("overlay:7074"), off=at(""),
        six=at("[::]:99", ansible_host="2001:db8::6"),
    )  # fmt: skip
    assert job["job_name"] == "covey-agent"
    assert {config["labels"]["host"]: config["targets"] for config in job["static_configs"]} == {
        "box": ["127.0.0.1:7074"], "nas": ["192.0.2.7:7074"], "six": ["[2001:db8::6]:99"],
    }  # fmt: skip
    assert {config["labels"]["mesh"] for config in job["static_configs"]} == {"home"}


def test_prometheus_asks_gateways_and_may_have_nobody_to_ask() -> None:
    door = {"covey_gateway_listen": "0.0.0.0:8088", "ansible_host": "192.0.2.8"}
    groups = {"covey": ["door"], "covey_gateways": ["door"]}
    (job,) = scraped("elsewhere", groups, door=door)
    assert job["job_name"] == "covey-gateway-door"
    assert job["static_configs"][0]["targets"] == ["192.0.2.8:8088"]
    assert [one["job_name"] for one in scraped("door", groups, door=door)] == [
        "covey-agent", "covey-gateway-door",
    ]  # fmt: skip
    assert scraped("elsewhere", {"covey": ["box"]}, box={}) == []
