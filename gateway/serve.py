"""Run the gateway until it is told to stop, then let what runs finish. Used by `cli.py`.

SIGTERM and SIGINT end it, SIGHUP makes it read its configuration and its certificate again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from aiohttp import web

from gateway.app import GATEWAY, make_app
from gateway.config import Config
from gateway.errors import GatewayError
from gateway.keys.start import keys_required
from gateway.keys.store import Store
from gateway.listen import address
from gateway.tls import Certificate
from gateway.watch import Source

_log = logging.getLogger(__name__)


async def run(
    config: Config,
    sockets: Sequence[socket.socket],
    make_source: Callable[[], Source] | None,
    store: Store | None = None,
    read_again: Callable[[], Config] | None = None,
) -> None:
    """Serve on `sockets`; SIGTERM or SIGINT ends it, a second one at once (CancelledError).

    `read_again` returns the configuration as it is now, for SIGHUP. Raises EnvironmentFault when
    the certificate cannot be used.
    """
    certificate = Certificate(config.tls_cert, config.tls_key) if config.tls_cert else None
    app = make_app(config, make_source, store, require_keys=keys_required(config, sockets))
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,  # upstream.py writes one line a request
        shutdown_timeout=config.drain_s,
        max_line_size=config.max_header_bytes,
        max_field_size=config.max_header_bytes,
    )
    stop = _stop_signal()

    def reload() -> None:
        _log.info("told to read the configuration again")
        try:
            new = read_again() if read_again else config
        except GatewayError as error:
            _log.error("the old configuration stays in force: %s", error.line())
            return
        taken, fixed = app[GATEWAY].reload(new, require_keys=keys_required(new, sockets))
        _log.info("configuration read; in force now: %s", ", ".join(taken) or "nothing new")
        if fixed:
            _log.warning("these settings need a restart: %s", ", ".join(fixed))
        if certificate is not None and new.tls_cert:
            certificate.use(new.tls_cert, new.tls_key)

    await runner.setup()
    watching = asyncio.create_task(certificate.watch()) if certificate else None
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    try:
        for sock in sockets:
            await web.SockSite(
                runner, sock, ssl_context=certificate.context if certificate else None
            ).start()
            _log.info("listening address=%s", address(sock, "https" if certificate else "http"))
        await stop.wait()
        _log.info("stopping: running requests get %.0f s", config.drain_s)
    finally:
        if watching is not None:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
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
