"""compose.yaml: what the Compose specification allows, and no container has more than it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import config
from image.make import oci

FILE = Path(__file__).parents[4] / "image" / "containers" / "compose.yaml"
NODES = ("node-1", "node-2", "node-3")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def check(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec",
         str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_specifications_schema_takes_it(tmp_path: Path) -> None:
    done = check(FILE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("cap_drop:", "caps_drop:"))
    done = check(wrong)
    assert done.returncode == 1
    assert "caps_drop" in done.stdout


def test_no_container_has_more_than_it_needs(said: dict[str, Any]) -> None:
    assert set(said["services"]) == {*NODES, "place-1", "gather", "gateway"}
    for name, service in said["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        node = name in NODES
        assert service.get("cap_add") == (["NET_ADMIN", "NET_RAW"] if node else None)
        assert service.get("devices") == (["/dev/net/tun:/dev/net/tun"] if node else None)
        assert not {"privileged", "pid", "ipc", "userns_mode"} & service.keys()
        assert "host" not in service.get("network_mode", "")
        assert ("healthcheck" in service) == (node or name == "gateway")
    # Without keys it is this machine's alone.
    assert said["services"]["place-1"]["ports"] == ["127.0.0.1:${COVEY_PORT:-8088}:8088"]


def test_it_names_the_images_that_are_built(said: dict[str, Any]) -> None:
    built = {image.name: image.reference for image in oci.IMAGES}
    for name, service in said["services"].items():
        which = "gateway" if name == "gateway" else "agent"
        assert service["image"] == f"${{COVEY_{which.upper()}_IMAGE:-{built[which]}}}"


def test_its_variables_are_settings(said: dict[str, Any]) -> None:
    for name in NODES:
        settings, _ = config.load(Path("/dev/null"), said["services"][name]["environment"])
        assert settings.node.name == name


def test_every_node_but_the_first_is_handed_its_own_ticket(said: dict[str, Any]) -> None:
    services = said["services"]
    assert services["gather"]["command"][-2:] == list(NODES[1:])
    for name in NODES[1:]:
        assert services[name]["command"][-1] == f"/tickets/{name}"
        assert "tickets:/tickets:ro" in services[name]["volumes"]
    assert said["volumes"]["tickets"]["driver_opts"]["type"] == "tmpfs"
    named = {
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", ())
    }
    assert named == set(said["volumes"])
