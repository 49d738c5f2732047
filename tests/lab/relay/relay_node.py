"""A relay as a program, for a machine of the lab: `relay_node.py '{"kernel": true, …}'`.

A unix socket stands for the control plane: a request is one line of JSON, and so is the answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "relay"))

from relay_ends import ANNA, BERT, KEYS, MESH, RELAY
from relay_net import ROOT

from agent.errors import CoveyError
from agent.identity.keys import NodeId
from agent.relay.allocation import Limits
from agent.relay.service import Relay, Settings

INTERFACE = "covey0"
SOCKET = ROOT / "relay.sock"


async def main(arguments: dict[str, Any]) -> None:
    limits = replace(Limits(rate_bytes_s=10**9), **arguments.get("limits", {}))
    settings = Settings(limits, arguments.get("kernel", True), arguments.get("tunnel_port"))
    relay = Relay(RELAY, MESH, KEYS, INTERFACE, settings)
    relay.set_members([ANNA.id, BERT.id, RELAY.id])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())
        reply: dict[str, Any] = {}
        try:
            match request["do"]:
                case "ask":
                    node = NodeId(bytes.fromhex(request["node"]))
                    raw = await relay.answer(node, bytes.fromhex(request["payload"]))
                    reply = {"payload": raw.hex()}
                case "describe":
                    reply = relay.describe()
                case "revoke":
                    relay.set_members([ANNA.id, RELAY.id])
        except CoveyError as error:
            reply = {"error": error.line()}
        writer.write(json.dumps(reply).encode() + b"\n")
        writer.close()

    await relay.start()
    SOCKET.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(serve, SOCKET)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(json.dumps({"event": "up"}), flush=True)
    await stop.wait()
    server.close()
    await relay.stop()
    print(json.dumps({"event": "down"}), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    asyncio.run(main(json.loads(sys.argv[1])))
