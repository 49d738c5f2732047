"""`agent members`, `revoke`, `leave`, `rename`, `grant`, `rotate`: who is in the mesh, as what."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli import completing
from agent.cli.common import ago, call, duration, echo_json, json_option, table, with_config
from agent.cli.mesh import ROLES
from agent.cli.progress import waiting
from agent.config import Config
from agent.errors import MembershipError, NotRunning, StateError, UsageError

if TYPE_CHECKING:
    from agent.membership.store import StateDir

# As long as `agent down` waits for the agent to be gone.
_STOP_TIMEOUT_S = 20.0
_LOOK_AGAIN_S = 0.1

_Command = Callable[..., Any]
root_key_option = click.option(
    "--root-key",
    "root_key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The mesh's root key, for what only it signs.",
)


@click.command(short_help="List who is in the mesh.")
@json_option
@with_config
def members(as_json: bool, settings: Config) -> None:
    """List all members and those who were: roles, tags, addresses, and how they stand."""
    answer: dict[str, Any] = call(settings, lambda client: client.get("/v1/members"))
    if as_json:
        echo_json(answer)
        return
    rows = [
        [m["name"] + (" *" if m["self"] else ""), _state(m), ",".join(m["roles"]),
         ",".join(m["tags"]) or "-", m["ipv6"], m["ipv4"], _left(m["certificate_left_s"]),
         m["node"]]
        for m in answer["members"]
    ]  # fmt: skip
    table(["name", "state", "roles", "tags", "ipv6", "ipv4", "certificate", "node"], rows)


@click.command(short_help="Put a node out of the mesh.")
@click.argument("node", shell_complete=completing.members)
@click.option("--reason", default="", help="Why, for the other members to read.")
@json_option
@with_config
def revoke(node: str, reason: str, as_json: bool, settings: Config) -> None:
    """Put NODE out of the mesh for good: its key is refused by every member at once.

    NODE is a name, a node id, or the end of one. It still knows the network key, which tells it
    no more than that the mesh is there: `agent rotate` takes that away too.
    """
    body = {"node": node, "reason": reason}
    answer = call(settings, lambda client: client.post("/v1/revoke", body))
    if as_json:
        echo_json(answer)
        return
    click.echo(f"{answer['name']} ({answer['node']}) is out of the mesh.")
    click.echo("It knows the network key; `agent rotate` changes that.", err=True)


@click.command(short_help="Take this node out of the mesh.")
@click.option("--force", is_flag=True, help="Even if the root key or the last issuer goes with it.")
@json_option
@with_config
def leave(force: bool, as_json: bool, settings: Config) -> None:
    """Take this node out of the mesh: tell the others, stop the agent, and forget all its keys.

    Without a running agent nobody is told, and this machine's part alone is forgotten.
    """
    try:
        answer = call(settings, lambda client: client.post("/v1/leave", {"force": force}))
    except NotRunning:
        answer = {"told": None}
    removed = _forget(settings, force or answer["told"] is not None, answer)
    answer = {**answer, "removed": removed}
    if as_json:
        echo_json(answer)
        return
    mesh = answer.get("mesh", "the mesh")
    if answer["told"] is None:
        click.echo(f"No agent runs, so no other member of {mesh} learns that this node is gone.")
        click.echo("It counts as a member until its certificate ends, or `agent revoke` there.")
    elif answer["told"]:
        click.echo(f"This node has left {mesh}: {answer['told']} members said that they know.")
    elif answer["others"]:
        click.echo(f"This node has left {mesh}, but no other member could be told.")
    else:
        click.echo(f"This node has left {mesh}, of which it was the last member.")
    click.echo(f"Removed here: {', '.join(removed)}.")


@click.command(short_help="Give a node another name.")
@click.argument("words", nargs=-1, required=True, metavar="[NODE] NAME",
                shell_complete=completing.members)  # fmt: skip
@json_option
@with_config
def rename(words: tuple[str, ...], as_json: bool, settings: Config) -> None:
    """Give this node another NAME, or give it to NODE if this one is an issuer or admin."""
    if len(words) > 2:
        raise UsageError("too many names were given", hint="`agent rename [NODE] NAME`.")
    body = {"name": words[-1], "node": words[0] if len(words) == 2 else ""}
    answer = call(settings, lambda client: client.post("/v1/rename", body))
    if as_json:
        echo_json(answer)
    else:
        click.echo(f"{answer['node']} is called {answer['name']} now.{_later(answer)}")


@click.command(short_help="Give a node roles and tags.")
@click.argument("node", shell_complete=completing.members)
@click.option("--role", "roles", multiple=True, type=ROLES, help="A role it has; repeatable.")
@click.option("--tag", "tags", multiple=True, help="A tag it has; repeatable.")
@click.option("--no-tags", is_flag=True, help="Take all its tags away.")
@root_key_option
@json_option
@with_config
def grant(
    node: str,
    roles: tuple[str, ...],
    tags: tuple[str, ...],
    no_tags: bool,
    root_key: Path | None,
    as_json: bool,
    settings: Config,
) -> None:
    """Give NODE exactly these roles and tags; what is not given stays as it is.

    The roles issuer and admin, and another year for an issuer, take the mesh's root key: it lies
    on this node, or in FILE.
    """
    if tags and no_tags:
        raise UsageError("both tags and --no-tags were given", hint="Give one.")
    if not (roles or tags or no_tags or root_key):
        raise UsageError("nothing to give was named", hint="Give --role, --tag or --root-key.")
    body: dict[str, Any] = {"node": node}
    if roles:
        body["roles"] = roles
    if tags or no_tags:
        body["tags"] = tags
    if root_key is not None:
        body["root_key"] = str(root_key.absolute())
    answer = call(settings, lambda client: client.post("/v1/grant", body))
    if as_json:
        echo_json(answer)
        return
    tags_text = f" with {', '.join(answer['tags'])}" if answer["tags"] else ""
    click.echo(
        f"{answer['name']} is {', '.join(answer['roles'])}{tags_text} "
        f"for {ago(answer['certificate_left_s'])}.{_later(answer)}"
    )


@click.command(short_help="Change the network key.")
@click.option(
    "--overlap",
    callback=duration,
    default="1d",
    show_default=True,
    metavar="DURATION",
    help="How long the old key is accepted, for members that are off now.",
)
@click.option("--force", is_flag=True, help="Allow an overlap so short that members are cut off.")
@json_option
@with_config
def rotate(overlap: float, force: bool, as_json: bool, settings: Config) -> None:
    """Change the key that keeps the mesh silent to outsiders; no member is cut off meanwhile.

    Tickets that were made before are void once the old key ends.
    """
    body = {"overlap_s": overlap, "force": force}
    answer = call(settings, lambda client: client.post("/v1/rotate", body))
    if as_json:
        echo_json(answer)
        return
    now = time.time()
    click.echo(
        f"Network key {answer['generation']} is used in {ago(answer['active_at'] - now)}; "
        f"the old one ends in {ago(answer['retired_at'] - now)}."
    )


def _forget(settings: Config, sure: bool, facts: dict[str, Any]) -> list[str]:
    """Wipe the state directory once no agent holds it; return what was removed.

    `facts` gets the mesh's name if it lacks it. Raises MembershipError, unless `sure`, when
    something would be lost for all; StateError while an agent runs.
    """
    from agent import leftovers
    from agent.membership.store import StateDir

    gone: list[str] = []
    state = StateDir(settings.state_dir)
    with waiting("waiting for the agent to end"):
        _lock(state, _STOP_TIMEOUT_S if facts["told"] is not None else 0.0)
    with state:
        if facts["told"] is None:
            try:
                membership = state.membership()
            except StateError:
                if not sure:
                    raise
            else:
                if membership is None:
                    raise MembershipError("this node is in no mesh")
                facts["mesh"] = membership.mesh.name
                if not sure:
                    membership.check_departure(time.time())
                gone = leftovers.of(state, settings)
        interface = settings.network.interface
        files = state.wipe((f"{interface}.conf", "discovery", "deployments.json", "drain.json"))
        return [*gone, *files]


def _lock(state: StateDir, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            state.lock()
            break
        except StateError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_LOOK_AGAIN_S)


def _state(member: dict[str, Any]) -> str:
    reason = f" ({member['reason']})" if member["state"] == "revoked" and member["reason"] else ""
    draining = ", draining" if member.get("draining") else ""
    return f"{member['state']}{reason}{draining}"


def _left(seconds: float) -> str:
    return ago(seconds) if seconds > 0 else "ended"


def _later(answer: dict[str, Any]) -> str:
    return "" if answer["told"] else " It is off, and learns it when it is back."
