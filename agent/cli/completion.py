"""`agent completion`: what a shell has to read to complete this command."""

from __future__ import annotations

import click


@click.command(short_help="Print what makes a shell complete agent.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script for SHELL; once it has read it, Tab completes commands, options and names.

    \b
    bash   eval "$(agent completion bash)"            in ~/.bashrc
    zsh    eval "$(agent completion zsh)"             in ~/.zshrc
    fish   agent completion fish | source             in ~/.config/fish/config.fish

    Names of members, models and deployments are those that the running agent knows.
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    if kind is None:  # click lost one
        raise click.UsageError(f"There is no completion for {shell}.", context)
    root = context.find_root()
    name = root.info_name or "agent"
    # Not the shell's own `source`, which would start it to ask for its version.
    click.echo(ShellComplete.source(kind(root.command, {}, name, f"_{name.upper()}_COMPLETE")))
