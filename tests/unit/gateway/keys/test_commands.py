"""`gateway keys` and `gateway usage`: what people and scripts see."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.keys.database import open_database
from gateway.keys.key import day_of, digest
from gateway.keys.ledger import Row
from gateway.keys.store import Store

Run = Callable[..., Result]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def run(file: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COVEY_GATEWAY_STORE", str(file))
    monkeypatch.setenv("COLUMNS", "300")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments)

    return invoke


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_secret_is_shown_once_and_only_its_hash_is_kept(run: Run, file: Path) -> None:
    made = run("keys", "create", "ci")
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert re.fullmatch(r"ck-[A-Za-z0-9_-]{43}", secret)
    assert "shown this once" in made.stderr
    kept = b"".join(path.read_bytes() for path in file.parent.glob("keys.db*"))
    assert secret.encode() not in kept and digest(secret).encode() in kept
    for arguments in (["keys", "list"], ["keys", "list", "--json"]):
        shown = run(*arguments).stdout
        assert digest(secret)[:12] in shown and "ci" in shown
        assert secret not in shown and digest(secret) not in shown
    other = answer(run("keys", "create", "other", "--json"))
    assert other["secret"] != secret


def test_what_is_asked_for_is_made(run: Run) -> None:
    before = time.time()
    made = answer(run(
        "keys", "create", "team-a", "--model", "qwen*", "--model", "phi",
        "--requests-per-minute", "60", "--tokens-per-minute", "9000", "--tokens-per-day", "100000",
        "--expires", "30d", "--weight", "2.5", "--json",
    ))  # fmt: skip
    secret = made.pop("secret")
    assert answer(run("keys", "list", "--json")) == {"keys": [made]}
    assert made["id"] == digest(secret)[:12]
    expires = time.strptime(made.pop("expires"), "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(expires) - time.timezone - before - 30 * 86_400) < 60
    del made["created"]
    assert made == {
        "id": made["id"], "name": "team-a", "models": ["qwen*", "phi"],
        "requests_per_minute": 60, "tokens_per_minute": 9000, "tokens_per_day": 100000,
        "weight": 2.5, "revoked": None, "state": "active", "admin": False,
    }  # fmt: skip
    shown = run("keys", "list").stdout
    for text in ("team-a", "qwen*, phi", "60", "9000", "100000", "2.5"):
        assert text in shown


def test_a_revoked_key_is_listed_only_with_all(run: Run) -> None:
    made = answer(run("keys", "create", "a", "--json"))
    assert run("keys", "revoke", made["id"]).stdout == f"Key {made['id']} (a) is revoked.\n"
    assert answer(run("keys", "list", "--json")) == {"keys": []}
    [listed] = answer(run("keys", "list", "--all", "--json"))["keys"]
    assert listed["state"] == "revoked" and listed["revoked"]
    assert run("keys", "create", "a").exit_code == 0  # the name is free again
    assert answer(run("keys", "revoke", "a", "--json"))["state"] == "revoked"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["keys", "create", "a b"], 2, "gateway: the key name 'a b' cannot be used"),
        (["keys", "create", "a", "--expires", "soon"], 2, "gateway: --expires 'soon' is no time"),
        (["keys", "create", "a", "--expires", "2001-01-01"], 2, "has passed already"),
        (["keys", "create", "a", "--model", ""], 2, "gateway: a model's glob is empty"),
        (["keys", "create", "a", "--tokens-per-day", "0"], 2, "0 is not in the range"),
        (["keys", "create", "a", "--weight", "0"], 2, "is not in the range"),
        (["keys", "revoke", "nobody"], 2, "gateway: there is no key nobody that could be revoked"),
        (["usage", "--since", "x"], 2, "gateway: --since 'x' is no time"),
        (["usage", "--since", "2030-01-02", "--until", "2030-01-01"], 2, "is after --until"),
        (["usage", "--key", "nobody"], 2, "gateway: there is no key nobody"),
        (["keys", "list", "--store", "mysql://x"], 2, "gateway: --store mysql://… is no store"),
        (["keys", "list", "--store", "/dev"], 5, "gateway: the store /dev cannot be used"),
        (["keys", "list", "--config", "/nowhere.toml"], 5, "/nowhere.toml cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, arguments: list[str], code: int, line: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert line in result.stderr
    assert "Traceback" not in result.output


def test_the_configuration_file_names_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COVEY_GATEWAY_STORE", raising=False)
    config = tmp_path / "g.toml"
    config.write_text(f"store = 'sqlite://{tmp_path}/other.db'\n")
    made = CliRunner().invoke(main, ["keys", "create", "a", "--config", str(config)])
    assert made.exit_code == 0
    assert (tmp_path / "other.db").exists()


def test_nothing_is_made_by_looking(run: Run, file: Path) -> None:
    assert answer(run("keys", "list", "--json")) == {"keys": []}
    assert run("usage", "--csv").stdout.count("\n") == 1
    assert not file.exists()


def test_usage_as_csv(run: Run, file: Path) -> None:
    ids = [answer(run("keys", "create", name, "--json"))["id"] for name in ("a", "b")]
    store = Store(open_database(str(file)))
    days = [day_of(time.time() - days * 86_400) for days in (1, 0)]
    store.exchange("g1", [Row(ids[0], days[0], 'odd "model", x', 2, 10, 20, 1)], [], 0.0)
    store.exchange("g2", [Row(ids[0], days[0], 'odd "model", x', 1, 5, 5, 0),
                          Row(ids[1], days[1], "m", 1, 7, 8, 0)], [], 0.0)  # fmt: skip
    store.close()

    def rows(*arguments: str) -> list[list[str]]:
        result = run("usage", "--csv", *arguments)
        assert result.exit_code == 0, result.output
        return list(csv.reader(io.StringIO(result.stdout)))

    names, first, second = rows()
    assert names == ["day", "key_id", "key", "model", "requests", "prompt_tokens",
                     "completion_tokens", "total_tokens", "estimated_requests"]  # fmt: skip
    assert first == [days[0], ids[0], "a", 'odd "model", x', "3", "15", "25", "40", "1"]
    assert second == [days[1], ids[1], "b", "m", "1", "7", "8", "15", "0"]
    assert rows("--since", days[1]) == [names, second]
    assert rows("--until", days[0]) == [names, first]
    assert rows("--key", "b") == rows("--key", ids[1]) == [names, second]
    assert rows("--key", "b", "--until", days[0]) == [names]
    assert "odd" in run("usage").stdout
    used = answer(run("usage", "--key", "b", "--json"))["usage"]
    assert used == [
        {**dict(zip(names, second, strict=True)), "requests": 1, "prompt_tokens": 7,
         "completion_tokens": 8, "total_tokens": 15, "estimated_requests": 0}
    ]  # fmt: skip


def test_an_admin_key_is_made_and_shown(run: Run) -> None:
    assert answer(run("keys", "create", "root", "--admin", "--json"))["admin"] is True
    run("keys", "create", "plain")
    found = {key["name"]: key["admin"] for key in answer(run("keys", "list", "--json"))["keys"]}
    assert found == {"root": True, "plain": False}
