"""Run the gateway until it is told to stop, then let what runs finish. Used by `cli.py`."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence

from aiohttp import web

from gateway.app import make_app
from gateway.config import Config
from gateway.listen import address
from gateway.watch import Source

_log = logging.getLogger(__name__)


async def run(
    config: Config,
    sockets: Sequence[socket.socket],
    make_source: Callable[[], Source] | None,
) -> None:
    """Serve on `sockets`; SIGTERM or SIGINT ends it, a second one at once (CancelledError)."""
    runner = web.AppRunner(
        make_app(config, make_source),
        handler_cancellation=True,
        access_log=None,  # upstream.py writes one line a request
        shutdown_timeout=config.drain_s,
    )
    stop = _stop_signal()
    await runner.setup()
    try:
        for sock in sockets:
            await web.SockSite(runner, sock).start()
            _log.info("listening address=%s", address(sock))
        await stop.wait()
        _log.info("stopping: running requests get %.0f s", config.drain_s)
    finally:
        await runner.cleanup()
    _log.info("stopped")


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def told() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    return stop
