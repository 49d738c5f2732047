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
from gateway.drain import LEAST_S, drain
from gateway.errors import GatewayError
from gateway.keys.start import keys_required
from gateway.keys.store import Store
from gateway.listen import BACKLOG, Listener, address
from gateway.process import files_for_clients, keep_trimmed, raise_file_limit, trimmer
from gateway.tls import Certificate
from gateway.watch import Source

_log = logging.getLogger(__name__)

# Who is answered before all of its body is there may need so long to see it, and stop sending:
# closed at once, the connection would be reset before the answer is read. (aiohttp: 10 s.)
LINGER_S = 2.0


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
    files = raise_file_limit()
    clients = files_for_clients(files, config.max_requests)
    listeners = [Listener(sock, clients, plain=certificate is None) for sock in sockets]
    app = make_app(config, make_source, store, require_keys=keys_required(config, listeners))
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,  # upstream.py writes one line a request
        shutdown_timeout=LEAST_S,  # what runs has had its time by then (`drain.py`)
        keepalive_timeout=config.head_timeout_s,
        lingering_time=LINGER_S,
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
        taken, fixed = app[GATEWAY].reload(new, require_keys=keys_required(new, listeners))
        _log.info("configuration read; in force now: %s", ", ".join(taken) or "nothing new")
        if fixed:
            _log.warning("these settings need a restart: %s", ", ".join(fixed))
        if certificate is not None and new.tls_cert:
            certificate.use(new.tls_cert, new.tls_key)

    await runner.setup()
    tasks = [asyncio.create_task(keep_trimmed(trimmer()))]
    if certificate is not None:
        tasks.append(asyncio.create_task(certificate.watch()))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    try:
        _log.info("open files: %d at most, %d of them for clients", files, clients)
        for sock in listeners:
            await web.SockSite(
                runner, sock, ssl_context=certificate.context if certificate else None
            ).start()
            sock.listen(BACKLOG)  # aiohttp asks for 128, and takes as many before it serves again
            _log.info("listening address=%s", address(sock, "https" if certificate else "http"))
        await stop.wait()
        _log.info("stopping: running requests get %.0f s", config.drain_s)
        await drain(runner, app[GATEWAY].bounds, config.drain_s)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
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
