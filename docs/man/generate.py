"""Write the manual pages of `agent` and `gateway` from the commands themselves: `make man`.

The pages are kept beside this file, so that a wheel has them without a build of their own; a test
says when they are not those of the commands any more.

    python docs/man/generate.py [FOLDER]
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from agent import __version__, exits
from agent.cli import cli as agent
from gateway.cli import main as gateway

HERE = Path(__file__).parent
_ABOUT = {
    "agent": "Covey\N{RIGHT SINGLE QUOTATION MARK}s node, which joins a private WireGuard mesh and "
    "runs its share of one LLM",
    "gateway": "the OpenAI gateway of a Covey mesh",
}
_FILES = {
    "agent": (
        ("/etc/covey/agent.toml, ~/.config/covey/agent.toml",
         "The configuration, of root and of others; `agent config sample` prints it with a "
         "sentence for each setting."),
        ("/etc/covey/acl.toml, ~/.config/covey/acl.toml",
         "Which tags may reach which ports of which others."),
        ("/var/lib/covey, ~/.local/state/covey",
         "Keys, membership, models, and the log; node.key is the node, root.key the mesh."),
        ("/run/covey/agent.sock", "Where the agent of root is asked; of others it is under "
         "$XDG_RUNTIME_DIR or in the state directory."),
    ),
    "gateway": (
        ("gateway.db", "Keys and usage, in /var/lib/covey or ~/.local/state/covey, unless --store "
         "names another place."),
    ),
}  # fmt: skip
_ENVIRONMENT = {
    "agent": (
        ("COVEY_CONFIG", "The configuration file, where --config names none."),
        ("COVEY_SECTION_KEY", "A setting, such as COVEY_NETWORK_LISTEN_PORT; stronger than the "
         "file, weaker than --set."),
        ("NO_COLOR", "If it is set and not empty, nothing is coloured; nor is it where the output "
         "is no terminal."),
    ),
    "gateway": (("NO_COLOR", "If it is set and not empty, nothing is coloured."),),
}  # fmt: skip
_KEYS = (
    ("COVEY_BENCH_MESH_KEY", "The key for --mesh."),
    ("COVEY_BENCH_KEY", "The key for the only --against."),
)


def pages() -> dict[str, str]:
    """Return each page's text by its file's name."""
    found = {}
    for root, name in ((agent, "agent"), (gateway, "gateway")):
        for context in _walk(root, name, None):
            words = context.command_path.split()
            found[f"{'-'.join(words)}.1"] = "\n".join(_page(context, words)) + "\n"
    return found


def _walk(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[click.Context]:
    context = click.Context(command, info_name=name, parent=parent)
    yield context
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None and not found.hidden:
                yield from _walk(found, each, context)


def _page(context: click.Context, words: list[str]) -> Iterator[str]:
    command, program, title = context.command, words[0], "-".join(words)
    yield f'.TH {_text(title.upper())} 1 "" "Covey {__version__}" "Covey"'
    about = _ABOUT.get(title) or command.get_short_help_str(limit=200).rstrip(".")
    yield from (".SH NAME", f"{_text(title)} \\- {_text(about)}")
    yield from (".SH SYNOPSIS", f".B {_text(' '.join(words))}")
    yield _wrapped(" ".join(command.collect_usage_pieces(context)))
    yield ".SH DESCRIPTION"
    yield from _paragraphs(command.help or "")
    options = [
        record
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context))
    ]
    yield from _listed("OPTIONS", options)
    below = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                below.append((name, found.get_short_help_str(limit=200)))
        yield from _listed("COMMANDS", below)
    codes = exits.of(" ".join(words))
    yield from _listed("EXIT STATUS", [(str(code), told) for code, told in codes.items()])
    yield from _listed("FILES", _FILES[program])
    named = [
        (str(parameter.envvar), f"As {parameter.opts[0]}.")
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.envvar
    ]
    keys = _KEYS if title == "agent-bench" else ()
    yield from _listed("ENVIRONMENT", [*named, *keys, *_ENVIRONMENT[program]])
    above = ["-".join(words[:-1])] if len(words) > 1 else []
    others = [*above, *(f"{title}-{name}" for name, _ in below)]
    if others:
        yield ".SH SEE ALSO"
        for number, other in enumerate(others, 1):
            yield f".BR {_text(other)} (1){',' if number < len(others) else ''}"


def _listed(heading: str, entries: tuple | list) -> Iterator[str]:
    if not entries:
        return
    yield f".SH {heading}"
    for term, told in entries:
        yield from (".TP", f".B {_text(term)}", _wrapped(told) or "\\&")


def _paragraphs(text: str) -> Iterator[str]:
    """Yield help as click reads it: paragraphs, and after \\b lines that stay as they are."""
    blocks = re.split(r"\n\s*\n", "\n".join(line.rstrip() for line in text.splitlines()))
    for number, block in enumerate(blocks):
        if number:
            yield ".PP"
        if block.lstrip().startswith("\b"):
            yield ".nf"
            yield from (_text(line) for line in block.replace("\b", "").splitlines() if line)
            yield ".fi"
        else:
            yield _wrapped(block)


def _text(text: str) -> str:
    """Return text as roff takes it, in ASCII."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    escaped = "".join(c if ord(c) < 128 else f"\\[u{ord(c):04X}]" for c in escaped)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _wrapped(text: str) -> str:
    """Return text as lines of its source; where they break is nobody's concern but a reader's."""
    lines = textwrap.wrap(_text(text), 78, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def main() -> None:
    """Write all pages, and remove those whose command is gone."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    made = pages()
    for old in folder.glob("*.1"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text)
    print(f"{len(made)} pages are in {folder}.")


if __name__ == "__main__":
    main()
