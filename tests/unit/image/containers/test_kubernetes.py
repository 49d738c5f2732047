"""The files for Kubernetes are what its schemas allow, and say the same as each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agent import config
from image.make import oci

FOLDER = Path(__file__).parents[4] / "image" / "containers" / "kubernetes"
BASE = FOLDER / "base"
# The oldest with sidecars as they are used here, and the newest that is known.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
pytestmark = pytest.mark.slow
Objects = dict[tuple[str, str], dict[str, Any]]


def read(text: str) -> Objects:
    found = [one for one in yaml.safe_load_all(text) if one]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


@pytest.fixture(scope="module")
def base() -> Objects:
    files = (path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")
    return {key: one for path in files for key, one in read(path.read_text()).items()}


def kustomized(folder: Path) -> Objects:
    """Return what kubectl makes of a folder; skips where no kubectl has kustomize 4 or newer."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    told = subprocess.run(
        ["kubectl", "version", "--client", "-o", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    version = json.loads(told.stdout or "{}").get("kustomizeVersion", "v0")
    if int(re.sub(r"^v(\d+).*", r"\1", version)) < 4:
        pytest.skip(f"kubectl has kustomize {version}")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


def validate(objects: Objects, version: str) -> None:
    for one in objects.values():
        kubernetes_validate.validate(one, version, strict=True)


def pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """Return the pods' specs by what makes them."""
    return {
        kind: one["spec"]["template"]["spec"]
        for (kind, _), one in objects.items()
        if kind in ("DaemonSet", "Deployment")
    }


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_take_the_base(base: Objects, version: str) -> None:
    assert {kind for kind, _ in base} == {
        "Namespace", "ServiceAccount", "DaemonSet", "Deployment", "Service", "NetworkPolicy",
        "PodDisruptionBudget",
    }  # fmt: skip
    validate(base, version)


def test_a_word_that_is_none_is_found(base: Objects) -> None:
    wrong = json.loads(json.dumps(base["DaemonSet", "agent"]))
    wrong["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostNetworks"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", ["base", "overlays/gpu"])
def test_the_schemas_take_what_kustomize_makes(folder: str, version: str) -> None:
    made = kustomized(FOLDER / folder)
    validate(made, version)
    assert all(
        one["metadata"]["namespace"] == "covey"
        for (kind, _), one in made.items() if kind != "Namespace"
    )  # fmt: skip
    [settings] = [one for (kind, _), one in made.items() if kind == "ConfigMap"]
    [volume] = [v for v in pods(made)["DaemonSet"]["volumes"] if "configMap" in v]
    assert volume["configMap"]["name"] == settings["metadata"]["name"] != "agent"


def test_nodes_with_a_gpu_alone() -> None:
    pod = pods(kustomized(FOLDER / "overlays/gpu"))["DaemonSet"]
    assert pod["nodeSelector"] == {
        "kubernetes.io/os": "linux", "nvidia.com/gpu.present": "true",
    }  # fmt: skip
    [agent] = pod["containers"]
    assert agent["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert agent["resources"]["requests"]["memory"] == "1Gi"


def test_with_a_tun_device(tmp_path: Path) -> None:
    made = shutil.copytree(FOLDER, tmp_path / "kubernetes") / "mine"
    made.mkdir()
    (made / "kustomization.yaml").write_text(
        "resources: [../base]\ncomponents: [../components/tun]\n"
    )
    found = kustomized(made)
    validate(found, VERSIONS[0])
    for pod in pods(found).values():
        has = {
            one["name"]: any(m["mountPath"] == "/dev/net/tun" for m in one["volumeMounts"])
            for one in containers(pod)
        }
        assert has == {name: name == "agent" for name in has}


def test_no_container_has_more_than_it_needs(base: Objects) -> None:
    for pod in pods(base).values():
        assert pod["automountServiceAccountToken"] is False
        # Else a Service's variables would be settings to the agent.
        assert pod["enableServiceLinks"] is False
        assert not {"hostPID", "hostIPC"} & pod.keys()
        for one in containers(pod):
            rights = one["securityContext"]
            assert "privileged" not in rights
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"]["drop"] == ["ALL"]
            gateway = one["name"] == "gateway"
            assert rights["capabilities"].get("add") == (
                None if gateway else ["NET_ADMIN", "NET_RAW"]
            )
            assert rights.get("runAsNonRoot") == (True if gateway else None)


def test_the_images_are_those_that_are_built(base: Objects) -> None:
    built = {image.name: image.reference.rpartition(":")[0] for image in oci.IMAGES}
    for pod in pods(base).values():
        assert all(one["image"] == built[one["name"]] for one in containers(pod))


def test_each_selector_finds_its_pods(base: Objects) -> None:
    gateways = base["Deployment", "gateway"]["spec"]
    labels = gateways["template"]["metadata"]["labels"]
    assert gateways["selector"]["matchLabels"] == labels
    assert base["Service", "gateway"]["spec"]["selector"] == labels
    assert base["NetworkPolicy", "gateway"]["spec"]["podSelector"]["matchLabels"] == labels
    budget = base["PodDisruptionBudget", "gateway"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert budget["minAvailable"] < gateways["replicas"]
    nodes = base["DaemonSet", "agent"]["spec"]
    assert nodes["selector"]["matchLabels"] == nodes["template"]["metadata"]["labels"] != labels


def test_what_is_mounted_is_a_volume_and_each_volume_is_mounted(base: Objects) -> None:
    for pod in pods(base).values():
        mounted = {mount["name"] for one in containers(pod) for mount in one["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_a_ticket_is_read_where_it_is_mounted(base: Objects) -> None:
    for kind, key in (("DaemonSet", "worker"), ("Deployment", "gateway")):
        pod = pods(base)[kind]
        [volume] = [one["secret"] for one in pod["volumes"] if "secret" in one]
        assert volume["secretName"] == "ticket"
        assert volume["items"] == [{"key": key, "path": key}]
        [agent] = [one for one in containers(pod) if one["name"] == "agent"]
        assert agent["args"][-2:] == ["--ticket-file", f"/run/secrets/covey/{key}"]
        assert any(m["mountPath"] == "/run/secrets/covey" for m in agent["volumeMounts"])


def test_the_ports_are_the_agents(base: Objects) -> None:
    network = config.Config().network
    ports = {
        ("UDP", network.listen_port), ("UDP", network.listen_port + 1),
        ("UDP", network.discovery_port),
        ("TCP", network.control_port),
    }  # fmt: skip
    [agent] = pods(base)["DaemonSet"]["containers"]
    assert {(one["protocol"], one["containerPort"]) for one in agent["ports"]} == ports
    _, mesh = base["NetworkPolicy", "gateway"]["spec"]["ingress"]
    assert {(one["protocol"], one["port"]) for one in mesh["ports"]} == ports


def test_the_settings_are_settings() -> None:
    settings, sources = config.load(BASE / "agent.toml", {})
    assert set(sources) == {"models.quota_bytes"}
    assert settings.models.quota_bytes == 100_000_000_000
