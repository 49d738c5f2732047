"""The demo's inner half: it runs in the sandbox, brings the mesh up and keeps it until told to end.

Started by `agent demo` (`agent/cli/demo.py`), which asks the questions from outside. Writes one
JSON line to the ready descriptor: {"ready": {…}} or {"error": {…}}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from agent.demo.mesh import MODEL, WORKERS, DemoMesh
from agent.errors import CoveyError, to_wire

# A private tmpfs in the sandbox, so that it goes with it.
ROOT = Path("/run/covey-demo")


def bring_up(gateway_fd: int, started: float) -> dict[str, Any]:
    """Bring the mesh up with progress on stdout; return who holds which layers."""

    def report(text: str) -> None:
        print(f"  {time.monotonic() - started:5.1f} s  {text}", flush=True)

    mesh = DemoMesh(ROOT)
    report("4 machines on 4 subnets behind a router, each in a network namespace")
    mesh.up(report)
    deployment = mesh.deploy(len(WORKERS), report, name=MODEL)
    mesh.gateway(["--fd", str(gateway_fd)], pass_fds=[gateway_fd])
    return deployment


def main() -> int:
    """Bring it up, say so, and wait for SIGTERM."""
    gateway_fd, ready_fd, started = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    stop = {signal.SIGTERM, signal.SIGINT}
    with os.fdopen(ready_fd, "w") as ready:
        try:
            answer: dict[str, Any] = {"ready": bring_up(gateway_fd, started)}
        except CoveyError as error:
            answer = {"error": to_wire(error)}
        signal.pthread_sigmask(signal.SIG_BLOCK, stop)
        ready.write(json.dumps(answer) + "\n")
    if "error" in answer:
        return 1
    signal.sigwait(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
