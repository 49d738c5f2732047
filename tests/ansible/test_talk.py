"""What clients see of a mesh that site.yml made: a gateway with TLS, keys and a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from machines import Machines, Played

pytestmark = pytest.mark.timeout(900)

PORT = 8443
ASK = """
import ssl, sys
import httpx, openai
url, key, certificate = sys.argv[1:]
client = openai.OpenAI(
    base_url=url, api_key=key, timeout=120, max_retries=0,
    http_client=httpx.Client(verify=ssl.create_default_context(cafile=certificate)),
)
said = client.chat.completions.create(
    model="mini", temperature=0, messages=[{"role": "user", "content": "What is 2 + 3?"}],
)
print(said.choices[0].message.content)
"""


SIGN = """
cd "$0"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \\
    -subj "/CN=House's authority" -keyout ca.key -out ca.pem
openssl req -newkey rsa:2048 -nodes -subj /CN=alpha -keyout own.key -out own.csr
printf 'subjectAltName=IP:%s,DNS:alpha\\n' "$1" >own.ext
openssl x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \\
    -extfile own.ext -out own.pem
"""


class Talk:
    """site.yml for alpha, which is issuer, worker and gateway, with what clients need."""

    def __init__(self, machines: Machines, inventory: Path) -> None:
        self.machines, self._inventory = machines, inventory
        self.secrets = machines.folder / "secrets/alpha"
        self.certificate = machines.folder / "gateway.pem"

    def play(self, *arguments: str, **variables: object) -> Played:
        wanted: dict[str, object] = {
            "covey_gateway_listen": f"0.0.0.0:{PORT}", "covey_gateway_tls_self_signed": True,
            "covey_gateway_tls_names": [self.machines["alpha"].address, "alpha"],
            "covey_gateway_keys": [{"name": "ci", "models": ["mini"]}],
            "covey_models": [{"name": "mini", "model": "covey-mini", "nodes": 2}],
        }  # fmt: skip
        words = ["--limit", "alpha", "-e", json.dumps({**wanted, **variables}), *arguments]
        return self.machines.play("site.yml", *words, inventory=self._inventory)

    def ask(self, key: str, authority: Path | None = None) -> tuple[int, str]:
        """Ask with OpenAI's own client; return its exit status and all that it printed.

        It trusts the gateway's own certificate, or an authority.
        """
        if authority is None:
            served = self.machines["alpha"].run("cat", "/etc/covey/tls/cert.pem")
            self.certificate.write_text(served)
        url = f"https://{self.machines['alpha'].address}:{PORT}/v1"
        done = self.machines.control.run(
            [sys.executable, "-c", ASK, url, key, str(authority or self.certificate)], timeout_s=300
        )
        return done.returncode, f"{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def talk(machines: Machines, inventory: Path) -> Talk:
    return Talk(machines, inventory)


def test_a_chat_through_the_gateway(talk: Talk) -> None:
    played = talk.play()
    assert played.code == 0, played.output
    [file] = talk.secrets.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    secret = file.read_text().strip()
    assert secret.startswith("ck-")
    assert secret not in played.output
    code, text = talk.ask(secret)
    assert (code, text.strip()) == (0, "2 + 3 = 5."), text
    assert "401" in talk.ask("ck-wrong")[1]


def test_the_key_s_secret_lies_in_its_file_alone(talk: Talk) -> None:
    secret = (talk.secrets / "ci").read_text().strip()
    places = ["/root", "/home", "/tmp", "/var/log", "/var/lib", "/etc", "/run/covey"]
    assert talk.machines["alpha"].run("grep", "-rlaF", secret, *places, check=False) == ""
    assert secret not in talk.machines["alpha"].run("journalctl", "--no-pager", "-q")
    facts = talk.machines.folder / "facts"
    assert not [p for p in facts.rglob("*") if p.is_file() and secret in p.read_text()]


def test_a_second_run_changes_nothing_and_a_model_that_cannot_run_says_why(talk: Talk) -> None:
    mini = {"name": "mini", "model": "covey-mini", "nodes": 2}
    played = talk.play(covey_models=[mini, {**mini, "name": "large", "nodes": 9}])
    assert played.sum("changed") == 0, played.output
    assert played.code != 0
    text = " ".join(played.output.split())
    assert "The deployment large: " in text
    assert "this mesh has 3 that could be in it" in text


def test_a_deployment_that_shall_be_otherwise_is_told_before(talk: Talk) -> None:
    other = [{"name": "mini", "model": "covey-mini", "nodes": 3}]
    played = talk.play("--check", "--diff", covey_models=other)
    assert played.code == 0, played.output
    assert "-nodes: 2" in played.output
    assert "+nodes: 3" in played.output
    rings = json.loads(talk.machines["alpha"].run("/usr/local/bin/agent", "ps", "--json"))
    assert [ring["wish"]["nodes"] for ring in rings["deployments"]] == [2]


def test_a_certificate_of_the_house_s_own_authority(talk: Talk) -> None:
    folder = talk.machines.folder / "authority"
    folder.mkdir()
    subprocess.run(
        ["sh", "-euc", SIGN, str(folder), talk.machines["alpha"].address],
        check=True, capture_output=True,
    )  # fmt: skip
    own = {
        "covey_gateway_tls_self_signed": False, "covey_gateway_tls_cert": str(folder / "own.pem"),
    }  # fmt: skip
    played = talk.play(**own, covey_gateway_tls_key=str(folder / "ca.key"))
    assert played.code != 0, played.output
    text = " ".join(played.output.split())
    assert "The gateway on alpha cannot serve with what the inventory brings" in text
    assert "the key is not that of the certificate of CN=alpha" in text
    secret = (talk.secrets / "ci").read_text().strip()
    assert talk.ask(secret)[0] == 0, "the gateway goes on with what it had"
    played = talk.play(**own, covey_gateway_tls_key=(folder / "own.key").read_text())
    assert played.code == 0, played.output
    assert "PRIVATE KEY" not in played.output
    code, text = talk.ask(secret, folder / "ca.pem")
    assert (code, text.strip()) == (0, "2 + 3 = 5."), text


def test_what_is_taken_out_of_the_inventory_goes(talk: Talk) -> None:
    played = talk.play(
        covey_gateway_listen="127.0.0.1:8088", covey_gateway_tls_self_signed=False,
        covey_gateway_keys=[{"name": "ci", "state": "absent"}],
        covey_models=[{"name": "mini", "state": "absent"}],
    )  # fmt: skip
    assert played.code == 0, played.output
    rings = json.loads(talk.machines["alpha"].run("/usr/local/bin/agent", "ps", "--json"))
    assert rings["deployments"] == []
    keys = talk.machines["alpha"].run("/usr/local/bin/gateway", "keys", "list", "--json")
    assert json.loads(keys)["keys"] == []
