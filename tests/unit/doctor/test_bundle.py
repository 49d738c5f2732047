"""The report holds what helps and no secret, wherever one was put."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from pathlib import Path

import pytest

from agent import config
from agent.doctor import bundle, look
from agent.doctor.checks import examine
from agent.doctor.redact import GONE, forms
from agent.errors import StateError
from agent.membership.store import StateDir
from agent.membership.ticket import Ticket

NOW = 1.79e9
API_KEY = "ck-Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MDEyMzQ1Njc4OTA"
PASSWORD = "correct-horse-battery"
TICKET = Ticket(
    version=1, mesh_id=bytes(32), mesh_name="home", network_key=bytes(range(32)),
    issuer=bytes(range(32)), invite_id=bytes(8), secret=bytes(range(16)),
    addresses=("192.0.2.1:4001",), not_after=int(NOW) + 60,
)  # fmt: skip


def packed(path: Path) -> dict[str, str]:
    """Return what is in a report, by name."""
    with tarfile.open(path) as archive:
        assert all(member.mode == 0o600 for member in archive.getmembers())
        return {
            member.name.removeprefix(f"{bundle.FOLDER}/"): content.read().decode()
            for member in archive.getmembers()
            if (content := archive.extractfile(member)) is not None
        }


def test_secrets_that_lie_everywhere_are_not_in_it(tmp_path: Path) -> None:
    state_dir, out = tmp_path / "state", tmp_path / "report.tar.gz"
    settings, sources = config.load(
        Path(os.devnull), {"COVEY_MODELS_HUB": f"https://me:{PASSWORD}@hub.example"},
        [f"node.state_dir={state_dir}"],
    )  # fmt: skip
    with StateDir(state_dir).lock() as state:
        membership = state.create_mesh("home", "box", NOW)
        keys = (membership.key, membership.root_key)
        network_key = membership.network_keys(NOW)
    assert keys[1] is not None
    raw = [secret for key in keys if key for secret in (key.seed, key.wireguard_private)]
    raw += [stored for stored in bundle._secret_bytes(state_dir) if stored not in raw]
    assert len(raw) == 5, f"{network_key!r} has one key"
    secrets = [text for one in raw for text in forms(one)]
    secrets += [TICKET.encode(), TICKET.encode().upper(), API_KEY, PASSWORD]
    everywhere = "\n".join(f"2026 INFO at work with {secret} here" for secret in secrets)
    named = f"password = {PASSWORD}\nAuthorization: Bearer {API_KEY}\n"
    (state_dir / "agent.log").write_text(f"{named}{everywhere}\nthe last line\n".replace(
        f"with {PASSWORD}", f"with password={PASSWORD}"))  # fmt: skip
    answers = {
        "status": {"name": "box", "health": [{"text": everywhere.replace(PASSWORD, "")}]},
        "logs": {"nodes": [{"lines": secrets[:-1], "api_key": PASSWORD}]},
        "events?after=0": dict.fromkeys(secrets[:-1], "as a name"),
    }
    facts = look.facts(settings, None)
    names = bundle.write(out, settings, sources, facts, examine(facts), answers)
    files = packed(out)
    assert sorted(files) == names
    whole = gzip.decompress(out.read_bytes()).decode()
    assert [secret for secret in secrets if secret in whole] == []
    assert GONE in files["agent.log"]
    assert files["agent.log"].endswith("the last line\n")
    assert out.stat().st_mode & 0o777 == 0o600


def test_it_says_what_was_found_and_from_what(tmp_path: Path) -> None:
    settings, sources = config.load(
        Path(os.devnull), {}, [f"node.state_dir={tmp_path}", "network.listen_port=6000"]
    )
    facts = look.facts(settings, None)
    out = tmp_path / "report.tar.gz"
    bundle.write(out, settings, sources, facts, examine(facts), {"status": {"name": "box"}})
    files = {name: json.loads(text) for name, text in packed(out).items()}
    assert {item["code"] for item in files["items.json"]} >= {"no-mesh", "disk-low"}
    assert files["configuration.json"]["network.listen_port"] == {
        "value": 6000, "source": "--set network.listen_port",
    }  # fmt: skip
    assert files["versions.json"]["covey"]
    assert files["facts.json"]["wanted"]["wireguard_port"] == 6000
    assert files["agent/status.json"] == {"name": "box"}
    assert "agent.log" not in files


def test_of_a_long_log_the_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_LOG_BYTES", 20)
    (tmp_path / "agent.log").write_text("first\n" * 100 + "the last line\n")
    found = bundle._tail(tmp_path / "agent.log")
    assert found.endswith("the last line\n")
    assert len(found) == 20


def test_where_it_cannot_be_written_that_is_said(tmp_path: Path) -> None:
    settings, sources = config.load(Path(os.devnull), {}, [f"node.state_dir={tmp_path}"])
    facts = look.facts(settings, None)
    with pytest.raises(StateError, match="cannot write"):
        bundle.write(tmp_path / "no" / "report.tar.gz", settings, sources, facts, [], {})
