"""`gateway keys create|list|revoke` and `gateway usage`. Added to the command by `cli.py`.

They work on the store, whether a gateway runs or not; a running one knows of a change within a
second or two.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem

from gateway import config_file
from gateway.config import Config
from gateway.errors import GatewayError, UsageFault
from gateway.keys.database import default_address, open_database
from gateway.keys.key import (
    SECRET_BYTES,
    Key,
    check_models,
    check_name,
    day_of,
    digest,
    expiry,
    id_of,
    instant,
    secret_of,
)
from gateway.keys.store import Store, Used

_F = TypeVar("_F", bound=Callable[..., Any])
_COLUMNS = (
    "day", "key_id", "key", "model", "requests", "prompt_tokens", "completion_tokens",
    "total_tokens", "estimated_requests",
)  # fmt: skip


def open_store(config: Config) -> Store:
    """Return the store that the configuration names; it is reached with its first use."""
    return Store(open_database(config.store or default_address(os.environ)))


def _store_options(command: _F) -> _F:
    named = click.option(
        "--store", envvar="COVEY_GATEWAY_STORE", metavar="PATH|URL",
        help="The store: a path, sqlite:///PATH or postgresql://…"
        "  [default: gateway.db in the gateway's state folder]",
    )  # fmt: skip
    file = click.option(
        "--config", "file", envvar="COVEY_GATEWAY_CONFIG", type=click.Path(path_type=Path),
        help="The gateway's configuration file, which may name the store.",
    )  # fmt: skip
    return named(file(command))


@contextmanager
def _opened(store: str | None, file: Path | None) -> Iterator[Store]:
    opened = open_store(config_file.read(file, {"store": store}))
    try:
        yield opened
    finally:
        opened.close()


def _known(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem[str]]:
    """Complete a key's name or id; silent where there is no store, or it is not on this machine."""
    try:
        config = config_file.read(ctx.params.get("file"), {"store": ctx.params.get("store")})
        address = config.store or default_address(os.environ)
        if address.startswith(("postgres:", "postgresql:")):
            return []
        with closing(open_store(config)) as store:
            found = store.all_keys() if store.there() else []
    except GatewayError:
        return []
    names = {name for key in found for name in (key.name, key.id)}
    return [CompletionItem(name) for name in sorted(names) if name.startswith(text)]


@click.group()
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="GLOB",
    help="A model it may use, such as 'qwen*'; may be repeated.  [default: all]",
)
@click.option("--requests-per-minute", type=click.IntRange(min=1), help="[default: no limit]")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), help="[default: no limit]")
@click.option(
    "--tokens-per-day",
    type=click.IntRange(min=1),
    help="Its quota for a day (UTC), over all gateways.  [default: no limit]",
)
@click.option(
    "--expires",
    metavar="WHEN",
    help="30d, 12h, or a date such as 2030-01-31 (UTC).  [default: never]",
)
@click.option(
    "--weight",
    type=click.FloatRange(min=0, min_open=True, max=1000),
    default=1.0,
    show_default=True,
    help="Its share where requests wait for each other.",
)
@click.option(
    "--admin", is_flag=True, help="It may deploy and undeploy by the dashboard, and see all usage."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_store_options
def create(
    name: str, models: tuple[str, ...], expires: str | None, as_json: bool, store: str | None,
    file: Path | None, **limits: Any,
) -> None:  # fmt: skip
    """Make a key and show its secret, this once."""
    now = time.time()
    secret = secret_of(secrets.token_bytes(SECRET_BYTES))
    hashed = digest(secret)
    key = Key(
        id=id_of(hashed),
        name=check_name(name),
        models=check_models(models),
        created=now,
        expires=expiry(expires, now) if expires is not None else None,
        **limits,
    )
    with _opened(store, file) as opened:
        opened.create(key, hashed)
    if as_json:
        _print_json({**_view(key, now), "secret": secret})
        return
    click.echo(secret)
    click.echo(
        f"This is key {key.id} ({key.name}). It is shown this once; only its hash is kept.",
        err=True,
    )


@keys.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those revoked or expired.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_store_options
def list_command(everything: bool, as_json: bool, store: str | None, file: Path | None) -> None:
    """List keys by their ids; secrets are not kept."""
    now = time.time()
    with _opened(store, file) as opened:
        found = opened.all_keys() if opened.there() else []
    views = [_view(key, now) for key in found if everything or key.state(now) == "active"]
    if as_json:
        _print_json({"keys": views})
        return
    # Only here: what prints JSON, and what completes names, needs none of it.
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column in ("id", "name", "state", "models", "requests/min", "tokens/min", "tokens/day",
                   "weight", "admin", "expires"):  # fmt: skip
        table.add_column(column, overflow="fold")
    for view in views:
        table.add_row(
            view["id"], escape(view["name"]), view["state"], escape(", ".join(view["models"])),
            *("-" if view[limit] is None else str(view[limit])
              for limit in ("requests_per_minute", "tokens_per_minute", "tokens_per_day")),
            f"{view['weight']:g}", "yes" if view["admin"] else "-", view["expires"] or "never",
        )  # fmt: skip
    Console().print(table)


@keys.command("revoke")
@click.argument("key", shell_complete=_known)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_store_options
def revoke(key: str, as_json: bool, store: str | None, file: Path | None) -> None:
    """Revoke the key with this id or name, for good."""
    now = time.time()
    with _opened(store, file) as opened:
        revoked = opened.revoke(key, now)
    if as_json:
        _print_json(_view(revoked, now))
    else:
        click.echo(f"Key {revoked.id} ({revoked.name}) is revoked.")


@click.command("usage")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--since", metavar="DATE", help="The first day (UTC).")
@click.option("--until", metavar="DATE", help="The last day (UTC).")
@click.option("--key", "which", default="", metavar="ID|NAME", shell_complete=_known,
              help="Only this key's.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_store_options
def usage(
    as_csv: bool, since: str | None, until: str | None, which: str, as_json: bool,
    store: str | None, file: Path | None,
) -> None:  # fmt: skip
    """Show what was used, by day, key and model."""
    first = day_of(instant(since, "--since")) if since else "0000-00-00"
    last = day_of(instant(until, "--until")) if until else "9999-12-31"
    if first > last:
        raise UsageFault(f"--since {since} is after --until {until}")
    with _opened(store, file) as opened:
        rows = opened.usage(first, last, which) if opened.there() else []
        known = opened.all_keys() if opened.there() else []
    if which and not any(which in (key.id, key.name) for key in known):
        raise UsageFault(
            f"there is no key {which}", hint="`gateway keys list --all` shows ids and names."
        )
    if as_csv:
        click.echo(to_csv(rows), nl=False)
        return
    if as_json:
        _print_json({"usage": [dict(zip(_COLUMNS, _values(row), strict=True)) for row in rows]})
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in _values(row)))
    Console().print(table)


def to_csv(rows: list[Used]) -> str:
    """Return the rows as CSV (RFC 4180) with a line of names."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows(_values(row) for row in rows)
    return text.getvalue()


def _values(row: Used) -> tuple[str | int, ...]:
    """Return a row's values in the order of _COLUMNS."""
    total = row.prompt_tokens + row.completion_tokens
    return (*row[:7], total, row.estimated)


def _view(key: Key, now: float) -> dict[str, Any]:
    """Return a key as JSON shows it; times in ISO form (UTC)."""
    return {
        **msgspec.structs.asdict(key),
        "state": key.state(now),
        "created": _iso(key.created),
        "expires": _iso(key.expires),
        "revoked": _iso(key.revoked),
    }


def _iso(unix: float | None) -> str | None:
    if unix is None:
        return None
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print_json(answer: dict[str, Any]) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
