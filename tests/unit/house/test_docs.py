"""The documents can be followed: their commands parse, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from agent.cli import cli as agent
from gateway.cli import main as gateway

TREE = Path(__file__).parents[3]
DOCUMENTS = sorted([TREE / "README.md", *(TREE / "docs").glob("**/*.md")])
PROGRAMS = {"agent": agent, "gateway": gateway}
OURS = re.compile(r"(^|[\s|;&(])(agent|gateway) ")
SHELLS = {"", "sh", "bash", "console"}
_parsed: dict[Path, list[Token]] = {}


def name(document: Path) -> str:
    return str(document.relative_to(TREE))


def tokens(document: Path) -> list[Token]:
    """Return a document's blocks, those within lines after the line that they are in."""
    if document not in _parsed:
        blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(document.read_text())
        _parsed[document] = [t for block in blocks for t in (block, *(block.children or ()))]
    return _parsed[document]


def shell_lines(document: Path) -> Iterator[str]:
    """Yield the lines of a document's code that have a command of ours, continued ones joined."""
    for token in tokens(document):
        if token.type in ("fence", "code_block") and token.info.split(" ")[0] in SHELLS:
            for line in token.content.replace("\\\n", " ").splitlines():
                if OURS.search(line):
                    yield line


def commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of ours in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;<>()"):
            while words and ("=" in words[0] or words[0] in ("sudo", "exec", "$")):
                words.pop(0)
            if words and words[0] in PROGRAMS:
                yield words
            words = []
        else:
            words.append(word)


def typed() -> list[tuple[str, str, list[str]]]:
    return [
        (name(document), " ".join(words), words)
        for document in DOCUMENTS
        for line in shell_lines(document)
        for words in commands(line)
    ]


def parse(words: list[str]) -> None:
    """Take a command line apart as click does, without running it; raises click's errors."""
    command: click.Command = PROGRAMS[words[0]]
    context = command.make_context(words[0], words[1:])
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        called, found, rest = command.resolve_command(context, rest)
        assert called and found
        command, context = found, found.make_context(called, rest, parent=context)


@pytest.fixture
def any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that the documents name need not be there."""
    for kind in (click.Path, click.File):
        monkeypatch.setattr(kind, "convert", lambda _, value, *__: value)


@pytest.mark.usefixtures("any_file")
@pytest.mark.parametrize(("document", "line", "words"), typed())
def test_a_command_in_the_documents_is_one(document: str, line: str, words: list[str]) -> None:
    try:
        parse(words)
    except click.exceptions.Exit as done:  # --help
        assert done.exit_code == 0
    except click.UsageError as error:
        pytest.fail(f"{document}: `{line}`: {error.format_message()}")


def mentioned() -> list[tuple[str, str]]:
    return sorted({
        (name(document), token.content)
        for document in DOCUMENTS
        for token in tokens(document)
        if token.type == "code_inline" and re.match(r"(agent|gateway) ", token.content)
    })  # fmt: skip


@pytest.mark.parametrize(("document", "span"), mentioned())
def test_a_command_that_a_sentence_names_exists(document: str, span: str) -> None:
    """Its arguments may be left out; its options may not be invented."""
    program, *rest = span.split()
    command: click.Command = PROGRAMS[program]
    context = click.Context(command)
    while isinstance(command, click.Group) and rest and not rest[0].startswith(("-", "…")):
        for word in rest.pop(0).split("|"):
            found = command.get_command(context, word)
            assert found is not None, f"{document}: `{span}`: there is no {word}"
        command = found
    options = {
        option
        for param in command.get_params(context)
        for option in (*param.opts, *param.secondary_opts)
    }
    for word in rest:
        option = word.strip("[]()").split("=")[0]
        if option.startswith("-") and len(option) > 1:
            assert option in options, f"{document}: `{span}`: there is no {option}"


def anchors(document: Path) -> set[str]:
    """Return what GitHub makes of a document's headings."""
    found = tokens(document)
    headings = [
        "".join(child.content for child in inline.children or ())
        for opened, inline in pairwise(found)
        if opened.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """Yield what a document links to in the tree: the file, and the place in it."""
    for token in tokens(document):
        if token.type in ("link_open", "image"):
            target = str(token.attrs["href" if token.type == "link_open" else "src"])
            if not re.match(r"\w+:", target):
                file, _, place = target.partition("#")
                yield (document.parent / file).resolve() if file else document, place


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    for found, place in links(document):
        assert found.exists(), f"there is no {found}"
        if place and found.suffix == ".md":
            assert place in anchors(found), f"{name(found)} has no {place}"


def test_every_document_is_found_from_the_readme() -> None:
    found: set[Path] = set()
    left = [TREE / "README.md"]
    while left:
        document = left.pop()
        if document not in found and document.suffix == ".md":
            found.add(document)
            left += [target for target, _ in links(document)]
    assert [name(d) for d in DOCUMENTS if d not in found] == []
