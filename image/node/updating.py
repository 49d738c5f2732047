"""Does one thing that takes rights over the disk: `python3 -m image.node.updating`. A shell.

`door.py` starts it for each caller at its socket, which is this process' input and output:

    caller   {"do": "install" | "back" | "reset" | "status", "restart": true}\\n, then the update
    it       {"phase": …, "done": …, "total": …}\\n …, then {"done": {…}}\\n or {"error": {…}}\\n

After `leave` this machine says that it is about to restart for as long as the caller stays.

It takes bytes and no address or file name; where an update comes from is the caller's affair
(`agent/appliance/`). Who is not root, as the agent is not, may look and have the update that runs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from agent.errors import CoveyError, EnvironmentFault, PeerError, StateError, UsageError, to_wire
from agent.unreadable import UNREADABLE
from image.node import locks, partial, trials
from image.node import machine as machines
from image.node.install import CHUNK_BYTES, Phase, install
from image.node.machine import Machine
from image.node.manifest import ROOT
from image.node.slots import Back, Bad, Good, ResetWanted, Slot, State, Trial, other, why_not
from image.node.startup import RUN, write_private

# A caller tries a source several times, each time for some seconds.
_STALL_S = 120.0
_LINGER_S = 10.0
_TELL_S = 0.5
_MAX_LINE_BYTES = 4096
_RESTART_S = 30.0
_LAST, _RESTARTS = "update-error", "restarts"


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a caller wants; `restart`: this machine restarts for it right afterwards.

    `start`: the byte of the update to begin at, or of its part, behind the manifest, which the
    caller begins at.
    """

    do: Literal["install", "back", "reset", "restart", "leave", "status", "give"]
    restart: bool = False
    start: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0


class Caller:
    """The other end of the socket; `root`: it may change this machine."""

    def __init__(
        self, sock: socket.socket, stall_s: float = _STALL_S, *, root: bool = True
    ) -> None:
        self.root = root
        sock.settimeout(stall_s)
        self._sock = sock
        self._file = sock.makefile("rb", buffering=CHUNK_BYTES)
        self._stall_s = stall_s
        self._told = 0.0

    def request(self) -> Request:
        """Return the line that it begins with; raises PeerError for another one."""
        try:
            return msgspec.json.decode(self._file.readline(_MAX_LINE_BYTES), type=Request)
        except (OSError, *UNREADABLE) as error:
            raise PeerError(f"the caller asks for nothing that is known: {error}") from None

    def read(self, limit: int) -> bytes:
        """Return at most `limit` bytes; b"" at the end. Raises PeerError for a silent caller."""
        try:
            return bytes(self._file.read(limit))
        except TimeoutError:
            raise PeerError(
                f"the update's source is silent for {self._stall_s:.0f} s",
                hint="The version that runs stays; update again when the source is there.",
            ) from None
        except OSError as error:
            raise PeerError(f"the update's source broke off: {error.strerror}") from None

    def tell(self, phase: Phase, done: int, total: int) -> None:
        """Say how far it is, not too often."""
        now = time.monotonic()
        if done == total or now - self._told >= _TELL_S:
            self._told = now
            self.say({"phase": phase, "done": done, "total": total})

    def finish(self) -> None:
        """End once the caller has, or soon; what it still sends would break the answer off."""
        until = time.monotonic() + min(_LINGER_S, self._stall_s)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            while (left := until - time.monotonic()) > 0:
                self._sock.settimeout(left)
                if not self._sock.recv(CHUNK_BYTES):
                    break

    def stay(self) -> None:
        """Return when the caller has ended."""
        self._sock.settimeout(None)
        with contextlib.suppress(OSError):
            while self._file.read(CHUNK_BYTES):
                pass

    def pour(self, raw: bytes) -> None:
        """Give bytes; raises PeerError where nobody takes them."""
        try:
            self._sock.sendall(raw)
        except OSError:
            raise PeerError("nobody takes the update any more") from None

    def say(self, answer: dict[str, Any]) -> None:
        """Write a line; a caller that left misses it."""
        with contextlib.suppress(OSError):
            self._sock.sendall(msgspec.json.encode(answer) + b"\n")


def serve(caller: Caller, machine: Machine, run: Path) -> bool:
    """Do what a caller wants and answer; return whether the machine has to restart now."""
    restarts = _serve(caller, machine, run)
    caller.finish()
    return restarts


def _serve(caller: Caller, machine: Machine, run: Path) -> bool:
    try:
        request = caller.request()
        if request.do == "status":
            caller.say({"done": status(machine, run)})
            return False
        if request.do == "give":
            _give(caller, machine, request.start)
            return False
        if not caller.root:
            raise UsageError("only root may change an appliance", hint="Run this as root.")
        if request.do == "leave":
            with locks.alone(run, locks.LEAVING):
                caller.say({"done": {}})
                caller.stay()
            return False
        with locks.alone(run, locks.CHANGING):
            answer = _change(request, caller, machine, run)
        if request.restart:
            (run / _RESTARTS).touch()
        caller.say({"done": answer | {"restarts": request.restart}})
        return request.restart
    except CoveyError as error:
        caller.say({"error": to_wire(error)})
    except OSError as error:
        fault = EnvironmentFault(f"{error.filename or 'the disk'}: {error.strerror or error}")
        caller.say({"error": to_wire(fault)})
    return False


def _change(request: Request, caller: Caller, machine: Machine, run: Path) -> dict[str, Any]:
    slot = machine.target
    match request.do:
        case "install":
            last = run / _LAST
            try:
                found, _ = install(caller.read, machine, caller.tell, run, request.start)
            except CoveyError as error:
                write_private(last, error.line().encode())
                raise
            last.unlink(missing_ok=True)
            return {"version": found.version, "slot": slot}
        case "back":
            machine.store.change(Back(machine.running))
            return {"version": machine.version(slot), "slot": slot}
        case "reset":
            machine.store.change(ResetWanted())
        case _:
            slot = machine.store.read().state.first
            return {"version": machine.version(slot), "slot": slot}
    return {"version": machine.release.version, "slot": machine.running}


def _give(caller: Caller, machine: Machine, start: int) -> None:
    """Give the signed update to the version that runs, as it was installed or flashed.

    Raises StateError where that has not proved itself, or nobody signed it.
    """
    head = machine.head(machine.running)
    found = machine.written(machine.running)
    if machine.store.read().state.of(machine.running) != Good():
        raise StateError("the version that runs here has not yet proved itself")
    if head is None or found is None or found.version != machine.release.version:
        raise StateError(
            f"version {machine.release.version} came neither by an update nor with an image that"
            " was signed, so there is no signed file of it here",
            hint="Ask a member that was updated to it, or give the file.",
        )
    size = found.part(ROOT).size
    etag = partial.etag(head)
    caller.say({"done": {"version": found.version, "size": len(head) + size, "etag": etag}})
    caller.pour(head[start:])
    with machine.device(machine.running).open("rb") as disk:
        at = max(0, start - len(head))
        disk.seek(at)
        while at < size and (chunk := disk.read(min(CHUNK_BYTES, size - at))):
            caller.pour(chunk)
            at += len(chunk)


def status(machine: Machine, run: Path) -> dict[str, Any]:
    """Describe the slots, the trial, and why the last update was left."""
    state = machine.store.read().state
    last, came = run / _LAST, partial.read(run)
    return {
        "version": machine.release.version,
        "slot": machine.running,
        "slots": {slot: _slot(machine, state, slot) for slot in ("a", "b")},
        "next": state.first,
        "trial": _trial(machine, state, run),
        "writing": locks.taken(run, locks.CHANGING),
        "leaving": locks.taken(run, locks.LEAVING) or (run / _RESTARTS).exists(),
        "why_not": why_not(state, machine.running, machine.version(other(machine.running))),
        "last_error": last.read_text() if last.exists() else "",
        "partial": {"etag": came.etag, "size": came.size} if came else None,
        "floor": machine.floor(),
        "takes_updates": bool(machine.release.keys),
        "reset": state.reset,
    }


def _slot(machine: Machine, state: State, slot: Slot) -> dict[str, Any]:
    standing = state.of(slot)
    return {
        "standing": type(standing).__name__.lower(),
        "tries_left": standing.left if isinstance(standing, Trial) else None,
        "why": standing.why if isinstance(standing, Bad) else "",
        "version": machine.version(slot),
    }


def _trial(machine: Machine, state: State, run: Path) -> dict[str, Any] | None:
    """Describe the trial of the running version; None where it is on none."""
    if not isinstance(state.of(machine.running), Trial):
        return None
    return trials.read(run, time.monotonic())


def main() -> None:
    """Serve the socket that is this process' input."""
    with socket.socket(fileno=os.dup(0)) as sock:
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        caller = Caller(sock, root=uid == 0)
        try:
            machine = machines.find()
        except (CoveyError, OSError) as error:
            fault = error if isinstance(error, CoveyError) else EnvironmentFault(str(error))
            caller.say({"error": to_wire(fault)})
            return
        restarts = serve(caller, machine, RUN)
    if restarts:
        subprocess.run(["reboot"], check=False, timeout=_RESTART_S)


if __name__ == "__main__":
    main()
