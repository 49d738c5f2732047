"""A click group that imports a command when it is called, not when the program starts."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

import click
from click.shell_completion import CompletionItem


class ReaderLeft(Exception):
    """Whoever read the output is gone. click would end with 1 by itself, as for a mistake."""


class LazyGroup(click.Group):
    """`places` says for each command where in `package` it is: `MODULE:NAME`."""

    def __init__(self, *arguments: Any, package: str, places: Mapping[str, str], **more: Any):
        super().__init__(*arguments, **more)
        self._package = package
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in order."""
        return sorted({*super().list_commands(ctx), *self._places})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command and return it; None where there is none of this name."""
        if name not in self._places:
            return super().get_command(ctx, name)
        module, _, attribute = self._places[name].partition(":")
        found = importlib.import_module(f"{self._package}.{module}")
        return cast("click.Command", getattr(found, attribute))

    def invoke(self, ctx: click.Context) -> Any:
        """Run what was asked for; raises ReaderLeft in place of BrokenPipeError."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderLeft from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        """Complete a command's name without importing all of them to ask what they are for."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*map(CompletionItem, names), *options]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called; where there is none, name those that are like it."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(ctx), ctx=ctx
            ) from None
