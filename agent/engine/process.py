"""An engine process: `python -m agent.engine.process`, told what to be by one JSON line.

It proves llama.cpp (`means.py`), gives up what it does not need (`enclose.py`), loads its part,
joins the ring and works until it is told to stop, its input ends (the agent died), or the ring
breaks; a head then waits for another ring (`head_process.py`). Started by `supervisor.py` alone.
Events are JSON lines on standard output, logs go to standard error (`spec.py` has the types).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from agent.engine import confine, enclose, means
from agent.engine.channel import STDIN, Channel
from agent.engine.gguf_file import GgufFile
from agent.engine.join import Listener
from agent.engine.loaded import Loaded, join
from agent.engine.means import Means
from agent.engine.place import blamed
from agent.engine.purpose import Purpose
from agent.engine.rpc_server import run_rpc_server
from agent.engine.spec import EngineSpec, Event
from agent.errors import CoveyError

_PR_SET_PDEATHSIG = 1


def run_stage(spec: EngineSpec, found: Means, channel: Channel) -> None:
    """Be a middle stage until told to stop; raises CoveyError when it fails or the ring breaks."""
    from agent.engine.stage import Stage
    from agent.engine.watch import Heard

    try:
        loaded = Loaded(spec, found)
        member = loaded.member(spec)
        listener = Listener(spec.listen, spec.port)
        channel.emit(
            Event(
                "listening",
                port=listener.port,
                load_s=loaded.load_s,
                use_extra_bufts=loaded.means.use_extra_bufts,
                runs_on=loaded.means.words,
            )
        )
        joined = join(spec, loaded, member, listener, channel, channel.poll)
    except CoveyError as error:
        channel.emit_error("failed", error)
        raise
    if joined is None:
        return
    enclose.close_door(spec)
    inlet, outlet = joined
    channel.emit(Event("ready", rows=str(outlet.types)))
    heard = Heard(spec.links, lambda links: channel.emit(Event("heard", links=links)))
    stage = Stage(loaded.contexts[0], member, inlet, outlet, heard)
    channel.stats = lambda: asdict(stage.stats)
    try:
        stage.run(STDIN, channel.poll)
    except CoveyError as error:
        channel.emit_error("broken", error, blamed(error))
        raise
    finally:
        channel.emit(Event("stats", stats=channel.stats()))


def _purpose(spec: EngineSpec) -> Purpose:
    """Return what the engine's model is for; rings are for text alone."""
    if spec.role != "whole":
        return "text"
    with GgufFile(Path(spec.files[0])) as file:
        return file.purpose


def _die_with_agent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _enclose(spec: EngineSpec, purpose: Purpose, found: Means, channel: Channel) -> None:
    missing = enclose.enclose(spec, purpose, found)
    if missing:
        channel.emit(Event("unconfined", message=missing))


def _serve(spec: EngineSpec, purpose: Purpose, found: Means, channel: Channel) -> None:
    import asyncio

    if purpose == "text":
        from agent.engine.head_process import run_head

        asyncio.run(run_head(spec, found, channel))
    else:
        from agent.engine.embedding_process import run_embedder

        asyncio.run(run_embedder(spec, purpose, found, channel))


def main() -> int:
    """Run one engine; the exit code is 0 when it was stopped, else that of its error."""
    _die_with_agent()
    # A terminal's Ctrl-C reaches every process of the group: the agent alone decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(
        level=os.environ.get("COVEY_ENGINE_LOG", "INFO"),
        stream=sys.stderr,
        format="%(levelname)s %(name)s: %(message)s",
    )
    if os.geteuid():
        # Those of an agent that is no root but may change the network. Root's are missed until all
        # is proven, and one of them longer: a model's file may belong to somebody else.
        confine.give_up_rights()
    channel = Channel()
    code = 0
    try:
        try:
            spec = channel.read_spec()
            purpose = _purpose(spec)
            # Before anything imports llama.cpp: that alone loads the drivers that are not hidden.
            found = means.find(spec)
            if spec.role != "rpc-server":  # which gives up more, but later
                _enclose(spec, purpose, found, channel)
        except CoveyError as error:
            channel.emit_error("failed", error)
            raise
        if spec.role == "stage":
            run_stage(spec, found, channel)
        elif spec.role == "rpc-server":
            run_rpc_server(spec, found, channel)
        else:
            _serve(spec, purpose, found, channel)
    except CoveyError as error:
        code = error.exit_code
    sys.stderr.flush()
    # llama.cpp's threads may still compute; the system frees everything faster than they end.
    os._exit(code)


if __name__ == "__main__":
    main()
