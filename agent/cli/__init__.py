"""The `agent` command, whose commands are in the modules beside; `main` is the console script.

Commands print for people, or with --json for programs; an error is one line on stderr and the
exit code that `agent.errors` gives it.
"""

from __future__ import annotations

import os
import sys

import click

from agent import __version__, exits
from agent.cli.lazily import LazyGroup, ReaderLeft
from agent.errors import CoveyError

# Where each command is: imported when it is called, since all of them take longer than one does.
_COMMANDS = {
    "acl": "acl:acl",
    "bench": "bench:bench",
    "catalogue": "catalogue:catalogue",
    "completion": "completion:completion",
    "config": "configuration:config",
    "demo": "demo:demo",
    "deploy": "deployments:deploy",
    "doctor": "doctor:doctor",
    "down": "service:down",
    "drain": "drain:drain",
    "events": "events:events",
    "factory-reset": "update:factory_reset",
    "grant": "members:grant",
    "invite": "mesh:invite",
    "join": "mesh:join",
    "leave": "members:leave",
    "logs": "logs:logs",
    "members": "members:members",
    "mesh": "mesh:mesh",
    "models": "models:models",
    "netcheck": "network:netcheck",
    "peers": "service:peers",
    "ping": "network:ping",
    "plan": "placing:plan",
    "ps": "deployments:ps",
    "pull": "models:pull",
    "rename": "members:rename",
    "restart": "service:restart",
    "revoke": "members:revoke",
    "rm": "models:remove",
    "rotate": "members:rotate",
    "status": "service:status",
    "undeploy": "deployments:undeploy",
    "up": "service:up",
    "update": "update:update",
    "verify": "models:verify",
}


@click.group(
    cls=LazyGroup, package=__name__, places=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
@click.version_option(__version__, prog_name="agent")
def cli() -> None:
    """Covey's node: joins a private WireGuard mesh and runs its share of one LLM.

    \b
    First machine:   agent mesh create home && agent up && agent invite
    Every other:     agent join TICKET
    Then, anywhere:  agent deploy covey-mini   and   gateway serve
    """


def main() -> None:
    """Run the command line; every known fault ends as one line and its exit code."""
    try:
        # What a command ends with by `click.exceptions.Exit`; None is 0.
        sys.exit(cli.main(prog_name="agent", standalone_mode=False))
    except click.Abort:
        sys.exit(exits.INTERRUPTED)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        where = f" Try `{context.command_path} --help`." if context else ""
        click.echo(f"Error: {error.format_message()}{where}", err=True)
        sys.exit(error.exit_code)
    except CoveyError as error:
        click.echo(f"Error: {error.line()}", err=True)
        sys.exit(error.exit_code)
    except ReaderLeft:
        # What is still in the buffer would be told as an error of its own at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(exits.NO_READER)
