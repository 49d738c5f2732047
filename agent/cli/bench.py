"""`agent bench`: is the mesh worth it, against one node, llama.cpp's RPC and other servers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from agent import __version__, exits
from agent.cli import completing
from agent.cli.common import echo_json, json_option, with_config
from agent.cli.progress import Progress
from agent.config import Config
from agent.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from agent.client import AgentClient
    from agent.comparing.report import Level
    from agent.comparing.wish import Server, Wish

_Result = TypeVar("_Result")

# Keys come by the environment or a file: a command line is seen by everyone on this machine.
MESH_KEY, OTHER_KEY = "COVEY_BENCH_MESH_KEY", "COVEY_BENCH_KEY"
_CODES = {None: exits.OK, "go": exits.OK, "no go": exits.NO_GO, "undecided": exits.UNDECIDED}
_MOST_STREAMS = 256


def _streams(_: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Option callback: numbers of chats at once, as 1,8."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 4 for part in parts):
        raise click.BadParameter(f"{value!r} are no numbers: write 1 or 1,8.", param=param)
    numbers = tuple(dict.fromkeys(map(int, parts)))
    if not all(1 <= number <= _MOST_STREAMS for number in numbers):
        raise click.BadParameter(f"{value!r}: 1 to {_MOST_STREAMS} each.", param=param)
    return numbers


@click.command(short_help="Compare this mesh with one node and with other servers.")
@click.option("--model", default="", metavar="NAME", shell_complete=completing.deployments,
              help="What clients call it (else the only one that is deployed).")  # fmt: skip
@click.option("--mesh", default="", metavar="URL",
              help="Ask the mesh here, such as a gateway (else the model's head).")  # fmt: skip
@click.option("--one-node", is_flag=True,
              help="Against the model whole on this node, which must have its file.")  # fmt: skip
@click.option("--rpc", is_flag=True,
              help="Against llama.cpp's RPC over as many nodes, for this alone.")  # fmt: skip
@click.option("--against", "against", multiple=True, metavar="URL[#MODEL]",
              help="Against this OpenAI server, such as an Ollama; repeatable.")  # fmt: skip
@click.option("--key-file", type=click.Path(path_type=Path), metavar="FILE",
              help="A file with a line `URL KEY` for each server that wants a key.")  # fmt: skip
@click.option("--insecure", is_flag=True, help="Take any TLS certificate of these servers.")
@click.option("--streams", default="1", show_default=True, callback=_streams, metavar="N,…",
              help="How many chats at once, each number in turn.")  # fmt: skip
@click.option("--prompt-tokens", type=click.IntRange(0, 1_000_000), default=0, metavar="N",
              help="About how long prompts are (else about 20 tokens).")  # fmt: skip
@click.option("--tokens", type=click.IntRange(8, 100_000), default=128, show_default=True,
              metavar="N", help="How long answers are at most.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True,
              help="How often each is asked, in turns.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(min=0), default=30.0, show_default=True,
              metavar="PERCENT", help="So many more tokens/s are a go.")  # fmt: skip
@click.option("--save", type=click.Path(path_type=Path), metavar="NAME",
              help="Write NAME.md and NAME.json (else covey-bench-TIME here).")  # fmt: skip
@json_option
@with_config
def bench(
    model: str, mesh: str, one_node: bool, rpc: bool, against: tuple[str, ...],
    key_file: Path | None, insecure: bool, save: Path | None, threshold: float, as_json: bool,
    settings: Config, **asked: Any,
) -> None:  # fmt: skip
    """Compare this mesh with one node, llama.cpp's RPC, and any OpenAI servers.

    All get the same chats, one server after the other in each round, so that what else the machines
    do meets all; one round before is not counted. Figures are medians with their spread: tokens/s
    after the first one, time to the first, and how much faster the mesh is, in per cent.

    Nothing else should run meanwhile. Keys are read from --key-file, or $COVEY_BENCH_MESH_KEY for
    --mesh and $COVEY_BENCH_KEY for the only --against.

    Exit code: 0 for go, against all and for each number of streams; 13 for no go; 14 where the
    rounds differ more than what there is to tell; any other is an error.
    """
    target = _Target(save)
    servers = _Servers(model, mesh, against, _keys(key_file), not insecure)
    with Progress() as progress:
        wish, levels, facts = _bounded(
            _measure(servers, settings, progress, one_node=one_node, rpc=rpc,
                     options={**asked, "threshold_percent": threshold})
        )  # fmt: skip
    from agent.comparing import report

    conditions = report.Conditions(time.strftime("%Y-%m-%d %H:%M %Z"), facts)
    told = report.document(wish, levels, conditions)
    page = report.markdown(wish, levels, conditions)
    saved = target.write(page, msgspec.json.format(msgspec.json.encode(told), indent=2))
    if as_json:
        echo_json(told)
    else:
        click.echo(page)
        click.echo(f"Saved in {saved[0]} and {saved[1]}.")
    if code := _CODES[report.outcome(levels)]:
        sys.exit(code)


@dataclass
class _Servers:
    """Who is asked, as it was typed."""

    model: str
    mesh: str
    against: tuple[str, ...]
    keys: dict[str, str]
    verify_tls: bool
    facts: dict[str, str] = field(default_factory=dict)

    def gateway(self) -> Server:
        """Return the mesh as --mesh names it."""
        key = os.environ.get(MESH_KEY, "")
        return self._server(self.mesh, "--mesh", key, self.model, "this mesh")

    def others(self) -> list[Server]:
        """Return what --against names."""
        alone = os.environ.get(OTHER_KEY, "")
        if alone and len(self.against) > 1:
            raise UsageError(
                f"{OTHER_KEY} is one key, and {len(self.against)} servers are named by --against",
                hint="Write their keys into a file for --key-file, a line `URL KEY` for each.",
            )
        found = []
        for text in self.against:
            url, _, model = text.partition("#")
            found.append(self._server(url, "--against", alone, model, ""))
        return found

    def _server(self, url: str, flag: str, key: str, model: str, name: str) -> Server:
        from agent.comparing.wish import Server

        fields = {"url": url, "model": model, "name": name, "verify_tls": self.verify_tls}
        try:
            server = msgspec.convert(fields, Server)
        except msgspec.ValidationError:
            raise UsageError(
                f"{flag} {url!r} is no server's address",
                hint="Write its base URL, such as http://127.0.0.1:11434.",
            ) from None
        return msgspec.structs.replace(server, key=self.keys.get(server.base, "") or key)


class _Target:
    """Where the report is written; whether that is possible is known before it is measured."""

    def __init__(self, named: Path | None) -> None:
        self._base = named or Path(time.strftime("covey-bench-%Y-%m-%d-%H-%M-%S"))
        folder = self._base.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise EnvironmentFault(
                f"nothing can be written into {folder.absolute()}",
                hint="Name another place with --save.",
            )

    def write(self, page: str, document: bytes) -> tuple[Path, Path]:
        """Write both files, each whole or not at all; return them."""
        from agent.identity import privatefile

        made = []
        for suffix, content in ((".md", page.encode()), (".json", document + b"\n")):
            path = self._base.with_name(self._base.name + suffix)
            privatefile.replace(path, content)
            made.append(path)
        return made[0], made[1]


def _keys(file: Path | None) -> dict[str, str]:
    """Return the keys of a file by base URL; raises UsageError, EnvironmentFault."""
    if file is None:
        return {}
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "") or "it is no text"
        raise EnvironmentFault(f"the key file {file} cannot be read: {reason}") from None
    keys = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            if len(words) != 2:
                raise UsageError(f"line {number} of {file} is not `URL KEY`")
            keys[words[0].rstrip("/").removesuffix("/v1").rstrip("/")] = words[1]
    return keys


async def _measure(
    servers: _Servers, settings: Config, progress: Progress, *, one_node: bool, rpc: bool,
    options: dict[str, Any],
) -> tuple[Wish, tuple[Level, ...], dict[str, str]]:  # fmt: skip
    """Have all servers there, ask them, and let go of what was there for this alone."""
    from agent.comparing import report
    from agent.comparing.asking import measure
    from agent.comparing.wish import Wish

    others = servers.others()
    facts = {"machine": f"{os.uname().nodename}, {os.cpu_count()} CPUs, {os.uname().machine}",
             "Covey": __version__, "load before": _load()}  # fmt: skip
    async with AsyncExitStack() as stack:
        if not servers.mesh or one_node or rpc:
            ours, local, said = await stack.enter_async_context(
                _local(servers, settings, progress, one_node=one_node, rpc=rpc)
            )
            facts |= said
        else:
            ours, local = servers.gateway(), []
        wish = Wish(ours, (*local, *others), salt=f"{os.urandom(3).hex()}.", **options)
        wish, found = await measure(wish, progress.tell)
    facts["load after"] = _load()
    levels = report.levels(wish, found)
    for server, its in zip(wish.servers, levels[0].figures, strict=True):
        if its.prompt_tokens:
            facts[f"prompts, as {server.title} counts"] = f"{its.prompt_tokens} tokens"
    return wish, levels, facts


@asynccontextmanager
async def _local(
    servers: _Servers, settings: Config, progress: Progress, *, one_node: bool, rpc: bool
) -> AsyncIterator[tuple[Server, list[Server], dict[str, str]]]:
    """Yield the mesh and what it is compared with on its own nodes, and facts of both."""
    from agent.client import AgentClient
    from agent.comparing import contestants

    async with AsyncExitStack() as stack:
        client: AgentClient = await stack.enter_async_context(AgentClient(settings.socket))
        answer = await client.get("/v1/deployments")
        ring = contestants.choose(answer["deployments"], servers.model)
        ours = servers.gateway() if servers.mesh else contestants.head_of(ring)
        nodes = contestants.nodes_of(ring)
        facts = {"this mesh": f"{ring['name']} on {', '.join(nodes)}, {ring['context']} tokens"}
        found = []
        if one_node:
            progress.tell("loading the whole model on this node")
            alone, by = await stack.enter_async_context(
                contestants.one_node(client, ring, settings)
            )
            found.append(alone)
            facts[alone.title] = f"this one, by {by}"
        if rpc:
            spread, over = await stack.enter_async_context(
                contestants.over_rpc(client, ring, progress.tell, _warn)
            )
            found.append(spread)
            same = "the same nodes" if set(over) == set(nodes) else "not the same nodes"
            facts[spread.title] = f"{', '.join(over)}: {same}"
        yield ours, found, facts


def _bounded(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run it to its end; a signal has it let go of what it made, however often it comes."""

    async def guarded() -> _Result:
        task = asyncio.ensure_future(work)
        ended_by: list[int] = []

        def end(number: int) -> None:
            if not ended_by:
                task.cancel()
            ended_by.append(number)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, end, number)
        try:
            return await task
        except asyncio.CancelledError:
            if not ended_by:
                raise
            by_hand = ended_by[0] == signal.SIGINT
            code = exits.INTERRUPTED if by_hand else exits.TERMINATED
            raise click.exceptions.Exit(code) from None

    return asyncio.run(guarded())


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _warn(line: str) -> None:
    click.echo(line, err=True)
