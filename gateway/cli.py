"""The `gateway` command: `serve`, `status`, and what `keys/commands.py` adds.

Every fault is one line and an exit status.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import click
import msgspec

from gateway import config as configuration
from gateway import exits
from gateway.errors import GatewayError
from gateway.keys import commands

if TYPE_CHECKING:
    from gateway.worker import Worker

Sockets = Sequence[socket.socket]


class _ReaderLeft(Exception):
    """Whoever read the output is gone. click would end with 1 by itself, as for a mistake."""


class _Commands(click.Group):
    """Prints an error as one line and exits with its number, as `agent` does."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command line."""
        try:
            code = super().main(args, prog_name="gateway", standalone_mode=False)
            # What a command ends with by `click.exceptions.Exit`; None is 0.
            sys.exit(code)
        except GatewayError as error:
            click.echo(f"gateway: {error.line()}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(exits.INTERRUPTED)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except _ReaderLeft:
            # What is still in the buffer would be told as an error of its own at the very end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(exits.NO_READER)

    def invoke(self, ctx: click.Context) -> Any:
        """Run what was asked for; raises _ReaderLeft in place of BrokenPipeError."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderLeft from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="covey", prog_name="gateway")
def main() -> None:
    """The OpenAI gateway of a Covey mesh."""


@main.command("serve")
@click.option(
    "--listen",
    envvar="COVEY_GATEWAY_LISTEN",
    metavar="HOST:PORT",
    help=f"Where to listen.  [default: {configuration.DEFAULT_LISTEN}]",
)
@click.option("--fd", type=click.IntRange(min=0), help="Listen on this inherited socket instead.")
@click.option(
    "--socket",
    envvar="COVEY_GATEWAY_SOCKET",
    metavar="PATH",
    help="The local agent's unix socket.  [default: where the agent puts it]",
)
@click.option(
    "--replica",
    "replicas",
    multiple=True,
    envvar="COVEY_GATEWAY_REPLICAS",
    metavar="NAME=URL",
    help="An outside OpenAI server to use as well; may be repeated.",
)
@click.option(
    "--vision", multiple=True, envvar="COVEY_GATEWAY_VISION", metavar="NAME",
    help="An outside server whose models see pictures and does not say so; may be repeated.",
)  # fmt: skip
@click.option(
    "--strategy",
    envvar="COVEY_GATEWAY_STRATEGY",
    type=click.Choice(get_args(configuration.Strategy)),
    help="How a replica is chosen.  [default: latency_aware]",
)
@click.option(
    "--wait",
    "wait_s",
    envvar="COVEY_GATEWAY_WAIT_S",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long a request waits for the next head when the only one is lost.  [default: 30]",
)
@click.option(
    "--per-replica",
    envvar="COVEY_GATEWAY_PER_REPLICA",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many requests run at one replica at most; more wait, by fair shares.  [default: 256]",
)
@click.option(
    "--workers", envvar="COVEY_GATEWAY_WORKERS", type=click.IntRange(min=1), metavar="N",
    help="How many processes serve, on the same address.  [default: 1]",
)  # fmt: skip
@click.option(
    "--queue",
    envvar="COVEY_GATEWAY_QUEUE",
    type=click.IntRange(min=0),
    metavar="N",
    help="How many requests of a model wait for their turn at most.  [default: 256]",
)
@click.option(
    "--queue-wait",
    "queue_wait_s",
    envvar="COVEY_GATEWAY_QUEUE_WAIT_S",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long a request waits for its turn at most.  [default: 30]",
)
@click.option(
    "--hedge", "hedge_percent", envvar="COVEY_GATEWAY_HEDGE_PERCENT",
    type=click.FloatRange(min=0, max=100), metavar="PERCENT",
    help="How many requests may be sent to a second replica when the first is late.  [default: 5]",
)  # fmt: skip
@click.option(
    "--access-log", envvar="COVEY_GATEWAY_ACCESS_LOG", metavar="PATH|-",
    help="A file that gets a JSON line for each request; - for stdout.  [default: none]",
)  # fmt: skip
@click.option(
    "--access-log-prompts", is_flag=True, default=None,
    envvar="COVEY_GATEWAY_ACCESS_LOG_PROMPTS", help="Have requests' bodies in the access log.",
)  # fmt: skip
@click.option(
    "--otlp-endpoint", envvar="COVEY_GATEWAY_OTLP_ENDPOINT", metavar="URL",
    help="An OpenTelemetry collector that gets a span for each request.  [default: none]",
)  # fmt: skip
@click.option(
    "--drain",
    "drain_s",
    envvar="COVEY_GATEWAY_DRAIN_S",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long running requests may go on after SIGTERM.  [default: 30]",
)
@click.option(
    "--store",
    envvar="COVEY_GATEWAY_STORE",
    metavar="PATH|URL",
    help="Where keys and usage are kept: a path, sqlite:///PATH or postgresql://…"
    "  [default: gateway.db in the gateway's state folder]",
)
@click.option(
    "--require-keys/--no-require-keys",
    default=None,
    envvar="COVEY_GATEWAY_REQUIRE_KEYS",
    help="Whether every request needs a key.  [default: where others can reach the gateway]",
)
@click.option(
    "--tls-cert", envvar="COVEY_GATEWAY_TLS_CERT", metavar="PATH",
    help="A PEM file with the certificate and its chain; looked at again when it changes.",
)  # fmt: skip
@click.option(
    "--tls-key", envvar="COVEY_GATEWAY_TLS_KEY", metavar="PATH",
    help="A PEM file with the certificate's private key.",
)  # fmt: skip
@click.option(
    "--config",
    "file",
    envvar="COVEY_GATEWAY_CONFIG",
    type=click.Path(path_type=Path),
    help="A TOML file with the same settings.",
)
@click.option(
    "--json-logs", is_flag=True, default=None, envvar="COVEY_GATEWAY_JSON_LOGS",
    help="Log JSON objects, one a line.",
)  # fmt: skip
def serve_command(
    fd: int | None, file: Path | None, replicas: tuple[str, ...], **flags: Any
) -> None:
    """Serve OpenAI's API in front of the mesh's replicas until SIGTERM."""
    # Only here: no other command needs them, and they take a second to import.
    from gateway import config_file, logs, serve, workers
    from gateway import listen as listening
    from gateway.agent_source import AgentSource, default_socket
    from gateway.keys import start

    flags["replicas"] = configuration.parse_replicas(replicas)

    def read() -> configuration.Config:
        return config_file.read(file, flags)

    config = read()
    sockets = listening.open_sockets(config.listen, fd, os.environ, shared=config.workers > 1)
    logs.set_up(json=config.json_logs)
    agent = Path(config.socket) if config.socket else default_socket(os.environ)
    store = commands.open_store(config)
    start.check(config, sockets, store, time.time())
    store.close()

    def run(config: configuration.Config, sockets: Sockets, worker: Worker | None = None) -> None:
        make_source = partial(AgentSource, agent)
        try:
            asyncio.run(serve.run(config, sockets, make_source, store, read, worker))
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise GatewayError("stopped before running requests had ended") from None

    if config.workers == 1:
        run(config, sockets)
    else:
        workers.supervise(config, sockets, read, run)


@main.command("status")
@click.option(
    "--listen",
    envvar="COVEY_GATEWAY_LISTEN",
    default=configuration.DEFAULT_LISTEN,
    show_default=True,
    metavar="HOST:PORT",
    help="Where the gateway listens.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(listen: str, as_json: bool) -> None:
    """Show what a running gateway knows of its replicas."""
    from rich.console import Console

    from gateway import status

    with Console(stderr=True).status("asking the gateway"):
        answer = asyncio.run(status.ask(listen))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
    else:
        click.echo(status.heading(answer))
        Console().print(status.table(answer))


@main.command("completion", short_help="Print what makes a shell complete gateway.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script for SHELL; once it has read it, Tab completes commands, options and keys.

    \b
    bash   eval "$(gateway completion bash)"          in ~/.bashrc
    zsh    eval "$(gateway completion zsh)"           in ~/.zshrc
    fish   gateway completion fish | source           in ~/.config/fish/config.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    if kind is None:  # click lost one
        raise click.UsageError(f"There is no completion for {shell}.")
    click.echo(ShellComplete.source(kind(main, {}, "gateway", "_GATEWAY_COMPLETE")))


main.add_command(commands.keys)
main.add_command(commands.usage)
