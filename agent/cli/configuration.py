"""`agent config`: the sample file and the settings in force."""

from __future__ import annotations

import click

from agent import config as configuration
from agent.cli.common import echo_json, json_option, table, with_config
from agent.config import Config


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
