"""`agent demo`: a whole mesh on this machine, asked two questions through its gateway.

This is the outer half: it owns the listening socket (made here, so that it belongs to this
machine's loopback, and handed to the gateway inside) and asks as any client would. The inner half
is `agent/demo/run.py`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import click

from agent.cli.picture import picture
from agent.demo import sandbox
from agent.demo.mesh import GATEWAY_PORT, MODEL
from agent.errors import EngineError, EnvironmentFault, from_wire

QUESTIONS = ("What is 27 + 15?", "What is a ring?")
_READY_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 60.0
_POLL_S = 0.1


@click.command(short_help="Try a whole mesh on this machine.")
@click.option("--keep", is_flag=True, help="Leave it running after the questions, until Ctrl-C.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=None,
    help=f"Port on 127.0.0.1 for the gateway (else {GATEWAY_PORT}, or a free one).",
)
def demo(keep: bool, port: int | None) -> None:
    """Bring up three nodes and a gateway in namespaces here, and ask them two questions.

    Everything it makes (namespaces, interfaces, processes, files) ends with it.
    """
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    started = time.monotonic()
    click.echo("Covey demo: three nodes, one model cut in three, one OpenAI endpoint")
    with _listen(port) as listener:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ready_read, ready_write = os.pipe()
        inner = [sys.executable, "-m", "agent.demo.run", str(listener.fileno()), str(ready_write),
                 str(started)]  # fmt: skip
        with sandbox.start(inner, pass_fds=[listener.fileno(), ready_write]) as process:
            os.close(ready_write)
            deployment = _wait_ready(ready_read, process)
            _wait_model(base)
            click.echo(f"  {time.monotonic() - started:5.1f} s  the gateway serves it\n")
            for line in picture(deployment["stages"]):
                click.echo(line)
            for question in QUESTIONS:
                _ask(base, question)
            click.echo("\nTry it from another terminal" + (":" if keep else " (with --keep):"))
            click.echo(_curl(base))
            click.echo(f"or look at it in a browser: {base}/dashboard/")
            if keep:
                click.echo("Ctrl-C ends it and removes everything.")
                _keep(process)


def _curl(base: str) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Spell covey."}]}
    return (
        f"  curl {base}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps(body)}'"
    )


def _terminated(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _listen(port: int | None) -> socket.socket:
    """Listen on 127.0.0.1, on the usual port if nobody said which and it is free."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for candidate in [port] if port else [GATEWAY_PORT, 0]:
        try:
            listener.bind(("127.0.0.1", candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            reason = error.strerror
    listener.close()
    raise EnvironmentFault(
        f"port {port} on 127.0.0.1 cannot be used: {reason}.", hint="Name another with --port."
    )


def _wait_ready(pipe: int, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return the deployment once the mesh is up; raises what went wrong inside."""
    with os.fdopen(pipe, "rb") as answers:
        readable, _, _ = select.select([answers], [], [], _READY_TIMEOUT_S)
        line = answers.readline() if readable else b""
    if not line:
        if process.poll() is None:
            raise EnvironmentFault(f"the mesh was not up within {_READY_TIMEOUT_S:.0f} s.")
        raise EnvironmentFault(f"the mesh ended while it came up (exit {process.returncode}).")
    answer = json.loads(line)
    if "error" in answer:
        raise from_wire(answer["error"])
    deployment: dict[str, Any] = answer["ready"]
    return deployment


def _wait_model(base: str) -> None:
    """Wait until the gateway has found the head by itself."""
    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{base}/v1/models", timeout=5) as response:  # noqa: S310 - our own http address
                if any(model["id"] == MODEL for model in json.load(response)["data"]):
                    return
        except (urllib.error.URLError, OSError):
            pass  # it is not serving yet: that is what this waits for
        time.sleep(_POLL_S)
    raise EngineError(f"the gateway did not find {MODEL} within {_ANSWER_TIMEOUT_S:.0f} s.")


def _ask(base: str, question: str) -> None:
    """Ask as any OpenAI client would, and print the answer as it streams."""
    click.echo(f"\n> {question}")
    body = {
        "model": MODEL, "stream": True, "stream_options": {"include_usage": True},
        "temperature": 0, "messages": [{"role": "user", "content": question}],
    }  # fmt: skip
    request = urllib.request.Request(  # noqa: S310 - our own http address
        f"{base}/v1/chat/completions", data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    began = time.monotonic()
    first: float | None = None
    tokens = 0
    with urllib.request.urlopen(request, timeout=_ANSWER_TIMEOUT_S) as response:  # noqa: S310 - the same
        for raw in response:
            if not raw.startswith(b"data: ") or raw.strip() == b"data: [DONE]":
                continue
            event = json.loads(raw[6:])
            if "error" in event:
                raise EngineError(f"the answer broke off: {event['error'].get('message')}")
            for choice in event["choices"]:
                text = choice["delta"].get("content") or ""
                if text and first is None:
                    first = time.monotonic()
                click.echo(text, nl=False)
                sys.stdout.flush()
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if first is None:
        raise EngineError("the answer was empty.")
    rate = (tokens - 1) / max(time.monotonic() - first, 1e-9)
    click.echo(f"\n  {tokens} tokens, first after {(first - began) * 1000:.0f} ms, "
               f"then {rate:.0f} tokens/s")  # fmt: skip


def _keep(process: subprocess.Popen[bytes]) -> None:
    code = process.wait()
    raise EnvironmentFault(f"the mesh ended by itself (exit {code}).")
