"""`agent catalogue`: models that Covey knows, and what this mesh could run of them now."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from agent.cli.common import call, echo_json, json_option, table, with_config
from agent.config import Config


@click.command(short_help="List models that Covey knows, and what fits this mesh.")
@click.argument("name", default="")
@json_option
@with_config
def catalogue(name: str, as_json: bool, settings: Config) -> None:
    """List models that Covey knows, or tell all of NAME: sizes, sources, and whether it fits.

    What fits goes by the memory that the workers have free now, with the context that a model
    gets by default. Nothing is fetched.
    """
    path = f"/v1/catalogue/{quote(name, safe='')}" if name else "/v1/catalogue"
    answer = call(settings, lambda client: client.get(path))
    if as_json:
        echo_json(answer)
        return
    if name:
        for line in _told(answer["models"][0]):
            click.echo(line)
    else:
        table(
            ["name", "quantisation", "parameters", "size", "layers", "context", "cut", "here"],
            [_row(model, file) for model in answer["models"] for file in model["files"]],
        )
    click.echo(_free(answer["workers"]))


def _row(model: dict[str, Any], file: dict[str, Any]) -> list[str]:
    shape = model["shape"]
    return [
        model["name"], file["quantisation"], _count(model["parameters"]), _size(file),
        str(shape["layers"]), _tokens(shape["context"]), "yes" if model["cuttable"] else "no",
        file["fit"],
    ]  # fmt: skip


def _told(model: dict[str, Any]) -> list[str]:
    shape = model["shape"]
    heads = f"{shape['heads']} heads" + (
        f", keys and values of rank {shape['kv_rank']}" if shape.get("kv_rank")
        else f" over {shape['kv_heads']} of keys and values"
    )  # fmt: skip
    feeds = f"feed forward {shape['feed_forward']}"
    if shape.get("experts"):
        feeds = (
            f"{shape['experts']} experts of {shape['expert_feed_forward']}, "
            f"{shape['experts_used']} used for a token"
        )
    ends = "embedding and output tied" if shape.get("tied") else "embedding and output apart"
    cut = "can be cut over nodes" if model["cuttable"] else (
        f"stays in one piece: {model['uncut']}; `--engine rpc` may spread it"
    )  # fmt: skip
    lines = [
        f"{model['name']}: {model['title']}, {_count(model['parameters'])} parameters",
        f"  {model['architecture']}, {shape['layers']} layers of {shape['n_embd']}, {heads}",
        f"  {feeds}",
        f"  context {_tokens(shape['context'])}, {shape['vocabulary']} tokens known, {ends}",
        f"  {cut}",
    ]
    for file in model["files"]:
        split = f" in {file['parts']} files" if file["parts"] > 1 else ""
        unseen = "" if file["seen"] else " (the file may be called otherwise)"
        lines += [
            f"  {file['quantisation']}, {_size(file)}{split}: {file['fit']}",
            f"    {file['source']}{unseen}",
        ]
    return lines


def _free(workers: list[dict[str, Any]]) -> str:
    if not workers:
        return "No worker told what memory it has free."
    told = ", ".join(f"{w['name']} {w['free_bytes'] / 2**30:.1f} GiB" for w in workers)
    return f"Free now: {told}."


def _size(file: dict[str, Any]) -> str:
    """Return a size in GB, as the places where models are kept count."""
    about = "" if file["exact"] else "about "
    size, unit = (
        (file["bytes"] / 1e9, "GB") if file["bytes"] >= 1e9 else (file["bytes"] / 1e6, "MB")
    )
    return f"{about}{size:.0f} {unit}" if size >= 10 else f"{about}{size:.1f} {unit}"


def _count(parameters: int) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return str(parameters)


def _tokens(count: int) -> str:
    return f"{count >> 10} Ki" if count >= 1024 else str(count)
