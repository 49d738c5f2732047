"""A TCP proxy that hands on each piece a fixed time later, in both directions.

    python delay.py PORT ONE_WAY_S      prints the port that it listens on

Delaying packets in the kernel needs netem, which not every kernel has.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

PIECE_BYTES = 1 << 20


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Hand on until one side ends."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def hand_on() -> None:
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hand_on())
        data = b"-"
        while data:
            data = await reader.read(PIECE_BYTES)
            pieces.put_nowait((loop.time() + delay_s, data))


async def main(port: int, delay_s: float) -> None:
    """Serve until killed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        for end in (writer, to_writer):
            sock: socket.socket = end.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ExceptionGroup):  # an end that is reset ends both
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pump(reader, to_writer, delay_s))
                tasks.create_task(pump(to_reader, writer, delay_s))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
