"""What a container lacks is said in one line, with what to add to it."""

from __future__ import annotations

import pytest
from engine import Engine

AGENT = "localhost/covey/agent:latest"
MESH = "agent mesh create m >/dev/null && exec agent up --foreground"
FULL = ("--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", "--device",
        "/dev/net/tun", "--network", "none")  # fmt: skip


def words(engine: Engine, *options: str) -> str:
    """Return the last line of an agent that does not start."""
    found = engine.podman("run", "--rm", *options, "--entrypoint", "/bin/sh", AGENT, "-c", MESH)
    assert found.returncode == 5, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    return found.stderr.strip().splitlines()[-1]


def test_without_net_admin(engine: Engine) -> None:
    options = [word for pair in zip(FULL[::2], FULL[1::2], strict=True) if pair[1] != "NET_ADMIN"
               for word in pair]  # fmt: skip
    assert words(engine, *options).endswith(
        "this needs CAP_NET_ADMIN. Run the agent as root, or give its service "
        "AmbientCapabilities=CAP_NET_ADMIN, or its container `--cap-add NET_ADMIN`, or start it in "
        "a user and network namespace."
    )


def test_without_a_tun_device(engine: Engine) -> None:
    options = [word for pair in zip(FULL[::2], FULL[1::2], strict=True) if pair[0] != "--device"
               for word in pair]  # fmt: skip
    line = words(engine, *options)
    assert "there is no /dev/net/tun" in line
    assert line.endswith("or give the container `--device /dev/net/tun`.")


def test_where_ipv6_is_off(engine: Engine) -> None:
    line = words(engine, *FULL, "--sysctl", "net.ipv6.conf.all.disable_ipv6=1", "--sysctl",
                 "net.ipv6.conf.default.disable_ipv6=1")  # fmt: skip
    assert "IPv6 is switched off" in line
    assert "(a container: --sysctl)" in line


@pytest.mark.parametrize("image", ["agent", "gateway"])
def test_a_version_needs_nothing(engine: Engine, image: str) -> None:
    found = engine.done("run", "--rm", "--read-only", "--cap-drop", "ALL", "--network", "none",
                        f"localhost/covey/{image}:latest", "--version")  # fmt: skip
    assert found.startswith(f"{image}, version ")
