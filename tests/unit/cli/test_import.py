"""`agent config import`: what becomes of distributed's settings, and that nothing is lost by it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from agent import config, distributed
from agent.cli.configuration import config as command
from agent.errors import ConfigError, StateError, UsageError

# All that its documentation and its code have.
WHOLE = """
node: {id: node1, geo_location: us-east, log_level: warn, data_dir: /var/lib/distributed}
p2p:
  listen_addrs: [/ip4/0.0.0.0/tcp/4101]
  bootstrap_peers: [/ip4/192.0.2.1/tcp/4101/p2p/12D3KooWabc, /dns4/a.example/tcp/4102, /ip6/2001:db8::1/tcp/1]
  enable_mdns: false
  enable_dht: true
  enable_gossip: false
  heartbeat_period: 30s
  private_key: SECRET1
wireguard:
  enabled: true
  interface: wg7
  private_key: SECRET2
  listen_port: 51999
  subnet_cidr: 10.78.0.0/16
  allowed_ips: [10.78.0.0/16]
  persistent_keepalive: 25
  use_kernel_module: false
llm:
  backend: llamacpp
  llamacpp_url: http://127.0.0.1:8080/v1
  model_id: llama-3.1-8b
  model_path: /models/m.gguf
  context_size: 8192
  batch_size: 512
  threads: 6
  gpu_layers: 0
  max_concurrent: 4
  tokens_per_second: 100
  capabilities: {a: b}
scheduler:
  strategy: latency_aware
  max_retries: 3
  load_balancing: round_robin
  health_check_rate: 10s
  request_timeout: 5m
gateway: {enabled: true, listen_addr: ":8088", enable_tls: true, cert_file: c.pem, key_file: k.pem}
monitoring: {metrics_enabled: true, metrics_addr: ":9090", tracing_enabled: false, tracing_addr: x}
"""  # noqa: E501
TAKEN = {
    "node": {"name": "node1", "log_level": "warning"},
    "network": {
        "control_port": 4101, "discovery_port": 4101, "mdns": False, "interface": "wg7",
        "bootstrap": ["192.0.2.1:4101", "a.example:4102", "[2001:db8::1]:1"],
        "listen_port": 51999, "ipv4_network": "10.78.0.0/16", "backend": "userspace",
    },
    "engine": {"threads": 6, "gpu": "off"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the file is written; nobody's variables count."""
    monkeypatch.setenv("COVEY_CONFIG", str(tmp_path / "etc" / "agent.toml"))
    (tmp_path / "distributed.yaml").write_text(WHOLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "etc" / "agent.toml"


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(command, ["import", *arguments], env=env)


def test_all_that_it_knew_is_taken_or_told(elsewhere: Path) -> None:
    done = run("distributed.yaml", "--json")
    assert done.exit_code == 0, done.output
    assert tomllib.loads(elsewhere.read_text()) == TAKEN
    settings, _ = config.load(elsewhere, {})
    assert settings.network.bootstrap == ("192.0.2.1:4101", "a.example:4102", "[2001:db8::1]:1")
    told = json.loads(done.stdout)
    assert told["written"] == str(elsewhere)
    keys = {line["key"] for line in told["lines"]}
    assert keys == set(distributed._KEYS) - {"llm.llamacpp_urls"}
    assert all(line["text"] for line in told["lines"])
    assert "SECRET" not in done.stdout + elsewhere.read_text()
    texts = {line["key"]: line["text"] for line in told["lines"]}
    assert "--context 8192" in texts["llm.context_size"]
    assert "--listen 0.0.0.0:8088" in texts["gateway.listen_addr"]
    assert "--replica llama1=http://127.0.0.1:8080`" in texts["llm.llamacpp_url"]
    assert "--tag us-east" in texts["node.geo_location"]


def test_each_line_says_what_becomes_of_one_thing(elsewhere: Path) -> None:
    lines = run("distributed.yaml").stdout.splitlines()
    (mdns,) = [line for line in lines if line.startswith("p2p.enable_mdns")]
    assert mdns.split(maxsplit=2)[1:] == ["taken", "network.mdns = false"]
    (dht,) = [line for line in lines if line.startswith("p2p.enable_dht")]
    assert "so anyway" in dht
    (gossip,) = [line for line in lines if line.startswith("p2p.enable_gossip")]
    assert "not taken" in gossip
    assert lines[-1] == f"Written to {elsewhere}."


VARIABLES = {
    "DISTRIBUTED_NODE_GEO_LOCATION": "eu-central", "DISTRIBUTED_LOG_LEVEL": "debug",
    "DISTRIBUTED_P2P_LISTEN_ADDRS": "/ip4/0.0.0.0/tcp/4001", "DISTRIBUTED_P2P_ENABLE_MDNS": "false",
    "DISTRIBUTED_P2P_BOOTSTRAP_PEERS": "", "DISTRIBUTED_WIREGUARD_LISTEN_PORT": "51820",
    "DISTRIBUTED_WIREGUARD_SUBNET_CIDR": "10.77.0.0/16",
    "DISTRIBUTED_LLM_LLAMACPP_URLS": "http://a:1/v1,http://b:2/v1",
}  # fmt: skip


def test_variables_are_read_and_from_a_file_too(tmp_path: Path, elsewhere: Path) -> None:
    done = run("--env", env=VARIABLES)
    assert done.exit_code == 0, done.output
    written = tomllib.loads(elsewhere.read_text())
    assert written["node"] == {"log_level": "debug"}
    assert written["network"]["mdns"] is False
    assert "--replica llama1=http://a:1 --replica llama2=http://b:2`" in done.stdout
    (tmp_path / "its.env").write_text(
        "# compose\nOTHER=1\n" + "".join(f'export {n}="{v}"\n' for n, v in VARIABLES.items())
    )
    assert run("its.env", "--to", "other.toml").exit_code == 0
    assert tomllib.loads((tmp_path / "other.toml").read_text()) == written


def test_a_file_that_is_there_stays_unless_it_is_forced(elsewhere: Path) -> None:
    elsewhere.parent.mkdir()
    elsewhere.write_text("# mine\n")
    done = run("distributed.yaml")
    assert isinstance(done.exception, StateError)
    assert done.exception.message == f"{elsewhere} is there already"
    assert elsewhere.read_text() == "# mine\n"
    assert run("distributed.yaml", "--force").exit_code == 0
    assert tomllib.loads(elsewhere.read_text()) == TAKEN
    assert [path.name for path in elsewhere.parent.iterdir()] == ["agent.toml"]


def test_forced_through_a_link_it_is_the_file_that_changes(elsewhere: Path, tmp_path: Path) -> None:
    elsewhere.parent.mkdir()
    real = tmp_path / "real.toml"
    real.write_text("# mine\n")
    elsewhere.symlink_to(real)
    assert run("distributed.yaml", "--force").exit_code == 0
    assert elsewhere.is_symlink()
    assert tomllib.loads(real.read_text()) == TAKEN


def test_a_dry_run_writes_nothing(elsewhere: Path) -> None:
    assert run("distributed.yaml", "--dry-run").stdout.endswith("Nothing was written.\n")
    assert not elsewhere.parent.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no section"),
        ("just words", "has no section"),
        ("node: [1]", "node is no section"),
        ("node: {log_level: loud}", "node.log_level is loud, not one of debug"),
        ("node: {log_level: {a: b}}", "node.log_level is"),
        ("p2p: {enable_mdns: perhaps}", "p2p.enable_mdns is perhaps, not true or false"),
        ("p2p: {listen_addrs: [0.0.0.0:4001]}", "p2p.listen_addrs is 0.0.0.0:4001, not an address"),
        ("p2p: {listen_addrs: [/ip4/0.0.0.0/udp/4001]}", "not an address such as"),
        ("p2p: {listen_addrs: [/ip4/0.0.0.0/tcp/70000]}", "not an address with a port"),
        ("p2p: {bootstrap_peers: {a: 1}}", "not a list of addresses"),
        ("wireguard: {listen_port: 99999}", "network.listen_port = 99999 (bad.yaml)"),
        ("wireguard: {listen_port: x}", "wireguard.listen_port is x, not a whole number"),
        ("wireguard: {subnet_cidr: 10.0.0.0/99}", "not an IPv4 network"),
        ("a: b: c", "bad.yaml is not valid YAML"),
        ("a: " + "[" * 5000, "bad.yaml is not valid YAML"),
        ("a: \"\\x00\x00\"", "bad.yaml is not valid YAML"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_clear_line(
    tmp_path: Path, elsewhere: Path, text: str, words: str
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    done = run("bad.yaml")
    assert isinstance(done.exception, ConfigError), done.exception
    assert words in done.exception.message
    assert "bad.yaml" in done.exception.message
    assert len(done.exception.line().splitlines()) == 1
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("none.yaml",), ConfigError, "none.yaml cannot be read: No such file"),
        (("large.yaml",), ConfigError, "more than 1 MiB"),
        (("binary.yaml",), ConfigError, "is no text"),
        (("--env",), ConfigError, "the variables DISTRIBUTED_…: it has no section"),
        ((), UsageError, "what shall be read is not clear"),
        (("--env", "distributed.yaml"), UsageError, "what shall be read is not clear"),
        (("distributed.yaml", "--to", "distributed.yaml/x/agent.toml"), StateError, "cannot make"),
    ],
)
def test_other_mistakes(
    tmp_path: Path, arguments: tuple[str, ...], kind: type[Exception], words: str
) -> None:
    (tmp_path / "large.yaml").write_text(" " * (1 << 20) + "a: 1")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    done = run(*arguments)
    assert isinstance(done.exception, kind), done.exception
    assert words in str(done.exception)


def test_what_nobody_knows_is_told_and_left() -> None:
    (line,) = distributed.read({"node": {"colour": "blue"}})
    assert (line.key, line.becomes) == ("node.colour", "none")
    assert distributed.read({"node": None, "p2p": {"enable_dht": None}}) == []


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(key=st.sampled_from(sorted(distributed._KEYS)), value=_ANY)
def test_any_value_becomes_a_setting_that_holds_or_one_clear_line(key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    try:
        lines = distributed.read({section: {name: value}})
        settings = distributed.settings_of(lines)
        config.build(settings, dict.fromkeys(settings, "it"))
    except ConfigError as error:
        assert len(error.line().splitlines()) == 1
        return
    assert all(line.text.isprintable() for line in lines)
    written = tomllib.loads(distributed.toml(settings, "it"))
    flat = {f"{s}.{k}": v for s, entries in written.items() for k, v in entries.items()}
    assert flat == settings
