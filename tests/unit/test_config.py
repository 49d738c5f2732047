"""Configuration: precedence, the sample, and one clear line for each mistake."""

import tomllib
from pathlib import Path

import pytest

from agent import config
from agent.errors import ConfigError


def test_precedence_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        '[network]\nlisten_port = 1001\ncontrol_port = 1001\nmtu = 1400\n[node]\nname = "box"\n'
    )
    environment = {"COVEY_NETWORK_LISTEN_PORT": "1002", "COVEY_NETWORK_CONTROL_PORT": "1002"}
    settings, sources = config.load(file, environment, ["network.listen_port=1003"])
    assert settings.network.listen_port == 1003
    assert settings.network.control_port == 1002
    assert settings.network.mtu == 1400
    assert settings.network.discovery_port == 4001
    assert settings.node.name == "box"
    assert sources == {
        "network.listen_port": "--set network.listen_port",
        "network.control_port": "COVEY_NETWORK_CONTROL_PORT",
        "network.mtu": str(file),
        "node.name": str(file),
    }


def test_the_sample_is_valid_and_says_the_defaults(tmp_path: Path) -> None:
    text = config.sample()
    uncommented = "\n".join(
        line[2:] if line.startswith("# ") and " = " in line and not line.endswith(".") else line
        for line in text.splitlines()
    )
    file = tmp_path / "agent.toml"
    file.write_text(uncommented)
    assert len(tomllib.loads(uncommented)["network"]) == len(config.Network.__struct_fields__)
    settings, sources = config.load(file, {})
    assert settings == config.Config()
    assert set(sources) == set(config.flatten(config.Config()))


def test_the_sample_in_the_docs_is_this_one() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert (docs / "agent.sample.toml").read_text() == config.sample()


def test_every_setting_has_a_sentence() -> None:
    lines = config.sample().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("# ") and " = " in line:
            assert lines[number - 1].startswith("# ") and lines[number - 1].endswith(".")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("network = 3", "[network] is no section"),
        ("[netwrk]\n", "[netwrk] is no section"),
        ("[network]\nport = 3", "network.port is no setting"),
        ("[network]\nlisten_port = 'x'", "network.listen_port = 'x'"),
        ("[network]\nlisten_port = 70000", "network.listen_port = 70000"),
        ("[node]\nlog_level = 'loud'", "node.log_level = 'loud'"),
        ("[network", "not valid TOML"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ("x = " + "[" * 20000, "not valid TOML: nested too deep"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, body: str, words: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(body)
    with pytest.raises(ConfigError) as caught:
        config.load(file, {})
    assert words in caught.value.message
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.line()


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(None, {"COVEY_CONFIG": str(tmp_path / "none.toml")})


def test_the_gateways_own_variables_are_left_alone() -> None:
    settings, sources = config.load(Path("/dev/null"), {"COVEY_GATEWAY_LISTEN": "127.0.0.1:1"})
    assert (settings, sources) == (config.Config(), {})


def test_misspelt_environment_and_flags_are_refused() -> None:
    with pytest.raises(ConfigError, match="COVEY_NETWORK_PORT is no setting"):
        config.load(Path("/dev/null"), {"COVEY_NETWORK_PORT": "1"})
    with pytest.raises(ConfigError, match="--set"):
        config.load(Path("/dev/null"), {}, ["network.port=1"])
    with pytest.raises(ConfigError, match="COVEY_NETWORK_MTU"):
        config.load(Path("/dev/null"), {"COVEY_NETWORK_MTU": "wide"})


def test_a_list_is_written_with_commas_outside_the_file() -> None:
    settings, _ = config.load(Path("/dev/null"), {"COVEY_NETWORK_ADDRESSES": "192.0.2.1, ::1"})
    assert settings.network.addresses == ("192.0.2.1", "::1")


@pytest.mark.parametrize("text", ["7100", "7100-", "a-b", "7200-7100", "0-5", "7100-70000"])
def test_engine_ports_must_be_a_range(text: str) -> None:
    settings, _ = config.load(Path("/dev/null"), {}, [f"network.engine_ports={text}"])
    with pytest.raises(ConfigError, match="engine_ports"):
        _ = settings.engine_ports


def test_the_socket_lies_in_the_state_directory_when_that_is_set() -> None:
    settings, _ = config.load(Path("/dev/null"), {}, ["node.state_dir=/srv/covey"])
    assert settings.socket == Path("/srv/covey/agent.sock")


def test_where_the_pages_are() -> None:
    assert config.Config().http_listen == ("127.0.0.1", 7074)
    for text, found in (("[::1]:80", ("::1", 80)), ("overlay:80", ("overlay", 80)), ("", None)):
        settings, _ = config.load(Path("/dev/null"), {}, [f"http.listen={text}"])
        assert settings.http_listen == found


@pytest.mark.parametrize("text", ["7074", "localhost", "127.0.0.1:0", "::1:7074", "off"])
def test_where_the_pages_are_must_be_a_place(text: str) -> None:
    settings, _ = config.load(Path("/dev/null"), {}, [f"http.listen={text}"])
    with pytest.raises(ConfigError, match=r"http\.listen"):
        _ = settings.http_listen
