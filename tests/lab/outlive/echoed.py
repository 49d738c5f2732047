"""A stream over the overlay that notices each pause: `echoed.py serve HOST PORT`, or `ask`.

`serve` sends back what comes. `ask` sends a numbered piece each STEP_S over one TCP connection and
waits for nothing; each second, and at the end of its input, it prints a line of JSON:
{"echoed": how many pieces came back, "gap_s": the longest pause between two of them so far}.
A connection that ends makes it exit with 1.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

STEP_S = 0.02
PIECE_BYTES = 1000
SAY_S = 1.0


async def back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(host: str, port: int) -> None:
    server = await asyncio.start_server(back, host, port)
    print("listening", flush=True)
    await server.serve_forever()


async def ask(host: str, port: int) -> None:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(host, port)
    echoed, gap_s, last = 0, 0.0, time.monotonic()

    def say() -> None:
        print(json.dumps({"echoed": echoed, "gap_s": max(gap_s, time.monotonic() - last)}),
              flush=True)  # fmt: skip

    async def send() -> None:
        number = 0
        while True:
            writer.write(number.to_bytes(8, "big") * (PIECE_BYTES // 8))
            await writer.drain()
            number += 1
            await asyncio.sleep(STEP_S)

    async def receive() -> None:
        nonlocal echoed, gap_s, last
        while True:
            piece = await reader.readexactly(PIECE_BYTES)
            if int.from_bytes(piece[:8], "big") != echoed:
                raise ConnectionError("a piece is missing")
            now = time.monotonic()
            echoed, gap_s, last = echoed + 1, max(gap_s, now - last), now

    async def speak() -> None:
        while True:
            await asyncio.sleep(SAY_S)
            say()

    tasks = [asyncio.create_task(work()) for work in (send, receive, speak)]
    told = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([*tasks, told], return_when=asyncio.FIRST_COMPLETED)
    say()
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()


if __name__ == "__main__":
    asyncio.run({"serve": serve, "ask": ask}[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
