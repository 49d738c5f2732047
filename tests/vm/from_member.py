"""One appliance on a switch is updated from a URL, and the other one from the first, by its name.

Run in the sandbox of agent/demo/sandbox.py: `from_member.py IMAGE FOLDER UPDATES`; UPDATES has
good.update, which is newer than IMAGE. A member that is no appliance is beside them, and is asked
first; what the first appliance was flashed with is fetched from it before. Prints, as JSON, the
SHA-256 of that; what the member said; the bytes that WireGuard carried from the first appliance to
the other one meanwhile; and how each stands in the end.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from answer import Bench
from shell import Shell
from versions import COMMAND_S, UPDATE_S, asked, edit_menu, good, on, started

from agent.config import Config
from agent.demo.fleet import wait_until

_HOST, _FIRST, _SECOND = "host", "shed-1", "shed-2"
_JOIN_S = 1200.0
_PORT = 8000


def main() -> None:
    """Do that."""
    image, folder, updates = (Path(word) for word in sys.argv[1:4])
    bench = Bench(folder, image, 2)
    for appliance in bench.appliances.values():
        edit_menu(appliance, {"covey.slot=$slot": "covey.slot=$slot covey.trial=20:600"})
    host = bench.machine(_HOST)
    serve = [sys.executable, "-m", "http.server", "--directory", str(updates), str(_PORT)]
    server = host.spawn(serve)
    one, two = bench.appliances[_FIRST], bench.appliances[_SECOND]
    try:
        with on(one, folder / _FIRST) as first, on(two, folder / _SECOND) as second:
            for appliance in (one, two):
                started(appliance, 1, "Mesh: home", _JOIN_S)
            flashed = _given(bench, folder / "given.update")
            first.run(f"agent update --no-restart http://{host.address}:{_PORT}/good.update",
                      UPDATE_S)  # fmt: skip
            first.send("reboot")
            started(one, 2, "Covey 0.2.0, slot b:")
            started(one, 2, "Mesh: home", _JOIN_S)
            good(one, "b")
            wait_until("the second reaches it", lambda: _peer(second)["path"] == "direct", _JOIN_S)
            refused = second.run(f"! agent update --from {_HOST}", COMMAND_S)
            before, began = _peer(second)["rx_bytes"], time.monotonic()
            second.run(f"agent update --no-restart --from {_FIRST}", UPDATE_S)
            took_s = time.monotonic() - began
            received = _peer(second)["rx_bytes"] - before
            second.send("reboot")
            started(two, 2, "Covey 0.2.0, slot b:")
            started(two, 2, "Mesh: home", _JOIN_S)
            good(two, "b")
            standings = [asked(shell, "update --status") for shell in (first, second)]
    finally:
        server.terminate()
        server.wait(60)
    print(json.dumps({
        "flashed": flashed, "refused": refused, "received": received, "took_s": took_s,
        "standings": standings,
    }))  # fmt: skip


def _given(bench: Bench, out: Path) -> str:
    """Fetch what the first appliance gives, as a member does; return its SHA-256."""
    wait_until("WireGuard connects it", lambda: _FIRST in bench.connected(), _JOIN_S)
    peer = bench.connected()[_FIRST]
    url = f"http://[{peer['ipv6']}]:{Config().network.overlay_port}/appliance/update"
    done = bench.machine(_HOST).run(["curl", "-sSf", "-o", str(out), url], timeout_s=UPDATE_S)
    if done.returncode:
        raise SystemExit(done.stderr)
    with out.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _peer(shell: Shell) -> dict[str, Any]:
    """Return the first appliance, as another one sees it."""
    peers = asked(shell, "peers")["peers"]
    return next((peer for peer in peers if peer["name"] == _FIRST), {"path": "", "rx_bytes": 0})


if __name__ == "__main__":
    main()
