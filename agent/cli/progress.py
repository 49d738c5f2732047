"""What is drawn while a command waits: one line on stderr, on a terminal alone.

Nothing of it is left when the command goes on, and nothing of it gets into a file or a pipe.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import click

# What takes less is not worth a line.
DELAY_S = 1.0
_WIPE = "\r\x1b[K"


class Progress:
    """One line that is drawn over by the next; wiped at the end of its `with`."""

    def __init__(self) -> None:
        self._shown = ""

    def tell(self, line: str) -> None:
        """Draw a line, cut to the terminal's width: a longer one could not be wiped."""
        if line == self._shown or not sys.stderr.isatty():
            return
        self._shown = line
        width = shutil.get_terminal_size().columns - 1
        drawn = line if len(line) <= width else f"{line[: width - 1]}…"
        click.echo(f"{_WIPE}{drawn}", nl=False, err=True)

    def end(self) -> None:
        """Wipe it."""
        if self._shown:
            click.echo(_WIPE, nl=False, err=True)
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.end()


@contextmanager
def waiting(doing: str, delay_s: float = DELAY_S) -> Iterator[None]:
    """Say what is waited for, and for how long already, once that takes longer than `delay_s`."""
    if not sys.stderr.isatty():
        yield
        return
    done, began = threading.Event(), time.monotonic()

    def draw() -> None:
        with Progress() as progress:
            while not done.wait(delay_s):
                progress.tell(f"{doing}, {time.monotonic() - began:.0f} s")

    drawer = threading.Thread(target=draw, name="progress", daemon=True)
    drawer.start()
    try:
        yield
    finally:
        done.set()
        drawer.join()
