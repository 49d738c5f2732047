"""The `agent` command. Each module adds commands; `main` is the console script.

Commands print for people, or with --json for programs; an error is one line on stderr and the
exit code that `agent.errors` gives it.
"""

from __future__ import annotations

import sys

import click

from agent import __version__
from agent.cli import (
    acl,
    catalogue,
    configuration,
    demo,
    deployments,
    doctor,
    drain,
    events,
    logs,
    members,
    mesh,
    models,
    network,
    placing,
    service,
    update,
)
from agent.errors import CoveyError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agent")
def cli() -> None:
    """Covey's node: joins a private WireGuard mesh and runs its share of one LLM.

    \b
    First machine:   agent mesh create home && agent up && agent invite
    Every other:     agent join TICKET
    Then, anywhere:  agent deploy covey-mini   and   gateway serve
    """


for command in (mesh.mesh, mesh.invite, mesh.join, service.up, service.down, service.restart,
                service.status, service.peers, network.ping, network.netcheck, doctor.doctor,
                members.members, members.rename, members.grant, members.revoke, members.leave,
                members.rotate, acl.acl, events.events, models.pull, models.models, models.remove,
                models.verify, catalogue.catalogue, placing.plan, deployments.deploy,
                deployments.undeploy, deployments.ps, logs.logs, drain.drain, update.update,
                update.factory_reset, configuration.config, demo.demo):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Run the command line; every known fault ends as one line and its exit code."""
    try:
        cli.main(prog_name="agent", standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        where = f" Try `{context.command_path} --help`." if context else ""
        click.echo(f"Error: {error.format_message()}{where}", err=True)
        sys.exit(error.exit_code)
    except CoveyError as error:
        click.echo(f"Error: {error.line()}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)  # what a shell reports for a reader that left (128 + SIGPIPE)
