"""`agent config`: the sample file, the settings in force, and those of another program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from agent import config as configuration
from agent.cli.common import echo_json, json_option, table, with_config
from agent.config import Config
from agent.errors import ConfigError, StateError, UsageError

# Far above any that a person wrote.
_MOST_BYTES = 1 << 20
_WORDS = {"taken": "taken", "same": "so anyway", "none": "not taken"}


@click.group(short_help="Show the configuration.")
def config() -> None:
    """Show the configuration: a commented sample, or what is in force and where it was set."""


@config.command()
@json_option
def sample(as_json: bool) -> None:
    """Print a commented agent.toml with every setting at its default."""
    if as_json:
        echo_json(configuration.described())
        return
    click.echo(configuration.sample(), nl=False)


@config.command()
@json_option
@with_config
def show(as_json: bool, settings: Config, sources: dict[str, str]) -> None:
    """Print every setting, its value and its source (flag, environment, file, default)."""
    values = configuration.flatten(settings)
    if as_json:
        echo_json({k: {"value": v, "source": sources.get(k, "default")} for k, v in values.items()})
        return
    rows = [[key, str(value), sources.get(key, "default")] for key, value in values.items()]
    table(["setting", "value", "source"], rows)


@config.command("import", short_help="Take over what Foundation42/distributed was told.")
@click.argument("source", required=False, type=click.Path(path_type=Path), metavar="[FILE]")
@click.option("--env", "variables", is_flag=True, help="Read the variables DISTRIBUTED_… instead.")
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write (else $COVEY_CONFIG, else the default place).")  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--dry-run", is_flag=True, help="Say what would become of it; write nothing.")
@json_option
def import_(
    source: Path | None, variables: bool, to: Path | None, force: bool, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write an agent.toml from the configuration of Foundation42/distributed.

    FILE is its distributed.yaml, or a file of lines DISTRIBUTED_SECTION_KEY=VALUE. Each thing that
    it sets is told: taken, so in Covey anyway, or without an equivalent, and then what to do
    instead. A file that is there stays, unless --force is given.
    """
    from agent import distributed
    from agent.identity import privatefile

    if variables == (source is not None):
        raise UsageError("what shall be read is not clear", hint="Give a FILE, or --env.")
    origin = str(source) if source else f"the variables {distributed.PREFIX}…"
    target = to or Path(os.environ.get("COVEY_CONFIG") or configuration.default_file())
    try:
        document = _document(source) if source else distributed.from_variables(os.environ)
        lines = distributed.read(document)
        settings = distributed.settings_of(lines)
        configuration.build(settings, dict.fromkeys(settings, origin))
    except ConfigError as error:
        told = error.message if origin in error.message else f"{origin}: {error.message}"
        raise ConfigError(told, hint=error.hint) from None
    if not dry_run:
        text = distributed.toml(settings, origin).encode()
        _make_folder(target.parent)
        if force:
            privatefile.replace(target.resolve(), text)
        elif not privatefile.create(target, text):
            raise StateError(
                f"{target} is there already",
                hint="Write elsewhere with --to, or over it with --force.",
            )
    if as_json:
        written = None if dry_run else str(target)
        echo_json({"written": written, "settings": settings, "lines": lines})
        return
    table(["setting", "becomes", "in Covey"],
          [[line.key, _WORDS[line.becomes], line.text] for line in lines])  # fmt: skip
    click.echo("Nothing was written." if dry_run else f"Written to {target}.")


def _document(source: Path) -> Any:
    """Return what a file of theirs holds; raises ConfigError."""
    import msgspec

    from agent import distributed

    try:
        with source.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source} is no text") from None
    if len(raw) > _MOST_BYTES:
        raise ConfigError(f"{source} is no configuration: it has more than 1 MiB")
    lines = [line.strip().removeprefix("export ") for line in text.splitlines()]
    if any(line.startswith(distributed.PREFIX) for line in lines):
        pairs = (line.partition("=") for line in lines if line.startswith(distributed.PREFIX))
        return distributed.from_variables({n.strip(): v.strip(" \"'") for n, _, v in pairs})
    try:
        return msgspec.yaml.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or "nested too deep"
        raise ConfigError(f"{source} is not valid YAML: {reason}") from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"cannot make the directory {folder}: {error.strerror}") from None
