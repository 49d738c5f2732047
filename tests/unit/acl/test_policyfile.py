"""The policy follows its file: settled changes, broken files, files that come and go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.acl.policy import Policy
from agent.acl.policyfile import SETTLE_S, PolicyFile, covey_ports, read, where
from agent.config import Config, Http, Network, default_file
from agent.errors import ConfigError

RULE = '[[rule]]\nfrom = "*"\nto = "*"\nports = ["tcp:{}"]\naction = "allow"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "acl.toml"


def port(file: PolicyFile) -> int | None:
    return file.policy.rules[0].ports[0].first if file.policy.rules else None


def settle(file: PolicyFile, now: float) -> bool:
    """Look until what there is now must have been taken in."""
    return [file.look(now), file.look(now + SETTLE_S)][1]


def test_no_file_is_asked_for() -> None:
    file = PolicyFile(None)
    file.load()
    assert (file.state, file.policy, file.look(1.0)) == ("none", Policy(), False)


def test_a_file_that_is_not_there_is_the_default(path: Path) -> None:
    file = PolicyFile(path)
    file.load()
    assert (file.state, file.policy, file.fault) == ("absent", Policy(), None)
    assert not settle(file, 1.0)


def test_a_change_is_taken_in_once_it_has_settled(path: Path) -> None:
    path.write_text(RULE.format(22))
    file = PolicyFile(path)
    file.load()
    assert (file.state, port(file)) == ("loaded", 22)
    assert not file.look(1.0)
    path.write_text(RULE.format(2))  # half of 23, as an editor might leave it for a moment
    assert not file.look(2.0)
    path.write_text(RULE.format(233))
    assert not file.look(2.0 + SETTLE_S)
    assert port(file) == 22
    assert not file.look(2.1 + SETTLE_S)
    assert file.look(2.0 + 2 * SETTLE_S)
    assert port(file) == 233
    assert not file.look(9.0)


def test_a_clock_that_is_set_back_only_delays(path: Path) -> None:
    file = PolicyFile(path)
    file.load()
    path.write_text(RULE.format(22))
    assert not file.look(1000.0)
    assert not file.look(1.0)
    assert file.look(1.0 + SETTLE_S)


def test_a_broken_file_keeps_the_policy_before_it(path: Path) -> None:
    path.write_text(RULE.format(22))
    file = PolicyFile(path)
    file.load()
    path.write_text(RULE.format(0))
    assert settle(file, 1.0)
    assert (file.state, port(file)) == ("broken", 22)
    assert file.fault is not None
    assert "rule 1 (line 1), ports: 'tcp:0'" in file.fault.message
    assert not settle(file, 2.0)  # it is not read again until it changes
    path.write_text(RULE.format(443))
    assert settle(file, 3.0)
    assert (file.state, port(file), file.fault) == ("loaded", 443, None)


def test_a_file_that_is_broken_at_the_start_is_the_default(path: Path) -> None:
    path.write_text("[[")
    file = PolicyFile(path)
    file.load()
    assert (file.state, file.policy) == ("broken", Policy())


def test_a_removed_file_is_the_default(path: Path) -> None:
    path.write_text(RULE.format(22))
    file = PolicyFile(path)
    file.load()
    path.unlink()
    assert not file.look(1.0)
    assert port(file) == 22
    path.write_text(RULE.format(25))  # an editor that moves the old file away first
    assert settle(file, 1.2)
    assert port(file) == 25
    path.unlink()
    assert settle(file, 3.0)
    assert (file.state, file.policy) == ("absent", Policy())


def test_a_file_that_is_replaced_is_a_change(path: Path) -> None:
    """Also one of the same size with its old time, as `rsync -t` and symbolic links bring them."""
    path.write_text(RULE.format(22))
    file = PolicyFile(path)
    file.load()
    times = path.stat()
    new = path.with_name("new")
    new.write_text(RULE.format(25))
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    new.rename(path)
    assert settle(file, 1.0)
    assert port(file) == 25


def test_what_is_no_file_is_told(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ConfigError, match="is no regular file"):
        read(path)
    os.mkfifo(path / "fifo")
    with pytest.raises(ConfigError, match="is no regular file"):
        read(path / "fifo")
    loop = path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match="cannot be read: Too many levels"):
        read(loop)


def test_the_file_is_the_one_named_or_lies_where_the_settings_do() -> None:
    assert where(Config()) == default_file().parent / "acl.toml"
    assert where(Config(network=Network(acl="/srv/rules.toml"))) == Path("/srv/rules.toml")
    assert where(Config(network=Network(acl="~/a"))) == Path.home() / "a"


def test_covey_ports_are_those_of_the_settings() -> None:
    settings = Config(
        network=Network(
            control_port=5, overlay_port=6, engine_ports="7-8", beat_port=9, discovery_port=4
        )
    )
    found = [str(service.ports) for service in covey_ports(settings).services]
    assert found == ["tcp:5", "tcp:6", "tcp:7-8", "udp:4", "udp:9", "icmp"]


def test_the_pages_are_for_members_only_where_they_are_on_the_overlay() -> None:
    for listen, there in (("overlay:99", True), ("127.0.0.1:99", False), ("", False)):
        services = covey_ports(Config(http=Http(listen=listen))).services
        assert ("tcp:99" in [str(service.ports) for service in services]) == there
