"""Run the gateway until it is told to stop, then let what runs finish. Used by `cli.py`.

SIGTERM and SIGINT end it, SIGHUP makes it read its configuration and its certificate again. A
worker's supervisor (`workers.py`) does the same to it by orders.
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
from gateway.config import Config, share
from gateway.drain import LEAST_S, drain
from gateway.errors import GatewayError
from gateway.keys.start import keys_required
from gateway.keys.store import Store
from gateway.listen import BACKLOG, Listener, address
from gateway.process import files_for_clients, keep_trimmed, raise_file_limit, trimmer
from gateway.tls import Certificate
from gateway.watch import Source
from gateway.worker import Reload, Stop, Worker

_log = logging.getLogger(__name__)

# A worker gets its first connection when it knows its replicas, or after this at the latest.
BEGIN_S = 5.0
# Who is answered before all of its body is there may need so long to see it, and stop sending:
# closed at once, the connection would be reset before the answer is read. (aiohttp: 10 s.)
LINGER_S = 2.0


async def run(
    config: Config,
    sockets: Sequence[socket.socket],
    make_source: Callable[[], Source] | None,
    store: Store | None = None,
    read_again: Callable[[], Config] | None = None,
    worker: Worker | None = None,
) -> None:
    """Serve on `sockets`; SIGTERM or SIGINT ends it, a second one at once (CancelledError).

    `read_again` returns the configuration as it is now, for SIGHUP; `worker` is which of several
    processes this is. Raises EnvironmentFault when the certificate cannot be used.
    """
    certificate = Certificate(config.tls_cert, config.tls_key) if config.tls_cert else None
    files = raise_file_limit()
    most = share(config, worker.number).max_requests if worker is not None else config.max_requests
    clients = files_for_clients(files, most)
    listeners = [Listener(sock, clients, plain=certificate is None) for sock in sockets]
    app = make_app(
        config, make_source, store, require_keys=keys_required(config, listeners), worker=worker
    )
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
    stop = _Stop()

    def reload() -> None:
        _log.info("told to read the configuration again")
        try:
            new = read_again() if read_again else config
        except GatewayError as error:
            _log.error("the old configuration stays in force: %s", error.line())
            return
        take(new)

    def take(new: Config) -> None:
        taken, fixed = app[GATEWAY].reload(new, require_keys=keys_required(new, listeners))
        _log.info("configuration read; in force now: %s", ", ".join(taken) or "nothing new")
        if fixed:
            _log.warning("these settings need a restart: %s", ", ".join(fixed))
        if certificate is not None and new.tls_cert:
            certificate.use(new.tls_cert, new.tls_key)

    def obey(worker: Worker) -> None:
        for order in worker.orders():
            match order:
                case Reload(new):
                    take(new)
                case Stop(at_once):
                    stop.stop(at_once=at_once)

    await runner.setup()
    tasks = [asyncio.create_task(keep_trimmed(trimmer()))]
    if certificate is not None:
        tasks.append(asyncio.create_task(certificate.watch()))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    if worker is not None:
        loop.add_reader(worker.channel, obey, worker)
    try:
        if worker is not None:  # others serve meanwhile, and know the replicas
            await app[GATEWAY].begun(BEGIN_S)
        _log.info("open files: %d at most, %d of them for clients", files, clients)
        for sock in listeners:
            await web.SockSite(
                runner, sock, ssl_context=certificate.context if certificate else None
            ).start()
            sock.listen(BACKLOG)  # aiohttp asks for 128, and takes as many before it serves again
            _log.info("listening address=%s", address(sock, "https" if certificate else "http"))
        if worker is not None:
            worker.ready()
        await stop.told.wait()
        _log.info("stopping: running requests get %.0f s", config.drain_s)
        await drain(runner, app[GATEWAY].bounds, config.drain_s)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await runner.cleanup()
    _log.info("stopped")


class _Stop:
    """Whether to end: by a signal or an order, and at once by a second signal or such an order.

    One signal and one order are one wish: a service manager signals all processes.
    """

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self._task = asyncio.current_task()
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signal)

    def stop(self, *, at_once: bool) -> None:
        """Have the gateway end."""
        if at_once and self._task is not None:
            self._task.cancel()
        self.told.set()

    def _signal(self) -> None:
        again, self._signalled = self._signalled, True
        self.stop(at_once=again)
