"""Several processes that serve one gateway, and the one that supervises them.

A shell around `supervision.py`, used by `cli.py` where there are more workers than one. The
supervisor does nothing else: it has no loop, no thread and no connection, so that it may fork
whenever a worker has died. Workers hear of stops and reloads from it, on a socket each, and not by
signals, which a service manager or a terminal sends to all processes by itself.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from gateway import access_log, listen, logs, supervision
from gateway.board import Board
from gateway.config import Config, reloaded
from gateway.errors import EnvironmentFault, GatewayError
from gateway.supervision import Supervision
from gateway.tls import Certificate
from gateway.worker import Order, Reload, Stop, Worker

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
# What a worker does, with its configuration and sockets, until it is told to end.
Serve = Callable[[Config, Sequence[socket.socket], Worker], None]


@dataclass
class _Process:
    pid: int
    channel: socket.socket
    killed: bool = False


def supervise(
    config: Config,
    sockets: Sequence[socket.socket],
    read_again: Callable[[], Config],
    serve: Serve,
) -> None:
    """Run `config.workers` processes that serve on `sockets`, until SIGTERM or SIGINT.

    A second signal ends them at once, SIGHUP has them take what `read_again` returns. Raises
    EnvironmentFault when the certificate or the access log cannot be used or no worker can start,
    and GatewayError when requests still ran at the end.
    """
    if config.tls_cert:
        Certificate(config.tls_cert, config.tls_key)
    access_log.check(config.access_log)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # For good: one more signal at the very end changes nothing.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _Supervisor(config, sockets, read_again, serve, mask).run()


class _Supervisor:
    def __init__(
        self,
        config: Config,
        sockets: Sequence[socket.socket],
        read_again: Callable[[], Config],
        serve: Serve,
        mask: set[int | signal.Signals],
    ) -> None:
        self._config = config
        self._sockets = sockets
        self._read_again = read_again
        self._serve = serve
        self._mask = mask
        self._rules = Supervision(config.workers, config.drain_s, time.monotonic())
        self._board = Board(config.workers)
        self._lock = os.memfd_create("covey-gateway-workers")
        self._processes: dict[int, _Process] = {}
        self._cut = False  # running requests were not waited for

    def run(self) -> None:
        """Supervise until all have ended."""
        while not self._rules.over:
            now = time.monotonic()
            for number in self._rules.overdue(now):
                self._kill(number, "does not end")
            for number in self._rules.still(self._board.beats(), now):
                self._kill(number, "stands still")
            for number in self._rules.due(now):
                self._start(number)
            # Children are looked after so often even where no signal says that one has ended.
            wait_s = min(self._rules.wait_s(time.monotonic()), supervision.LOOK_S)
            self._heed(signal.sigtimedwait(_SIGNALS, wait_s))
            self._look_after()
        if self._rules.failed:
            raise EnvironmentFault("no worker could start", hint="The lines above say why.")
        if self._cut:
            raise GatewayError("stopped before running requests had ended")
        _log.info("stopped")

    def _heed(self, heard: signal.struct_siginfo | None) -> None:
        if heard is None or heard.si_signo == signal.SIGCHLD:
            return
        if heard.si_signo == signal.SIGHUP:
            self._reload()
            return
        at_once = self._rules.stop(time.monotonic())
        self._cut = self._cut or at_once
        if not at_once:
            _log.info("stopping: running requests get %.0f s", self._config.drain_s)
        self._close()
        self._tell(Stop(at_once))

    def _reload(self) -> None:
        _log.info("told to read the configuration again")
        try:
            new = self._read_again()
        except GatewayError as error:
            _log.error("the old configuration stays in force: %s", error.line())
            return
        self._config, _, _ = reloaded(self._config, new)
        self._tell(Reload(new))

    def _tell(self, order: Order) -> None:
        message = msgspec.msgpack.encode(order)
        for number, process in self._processes.items():
            try:
                process.channel.send(message)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has just ended
            except OSError as error:
                _log.error("worker %d cannot be told: %s", number, error.strerror)

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        try:
            pid = os.fork()
        except OSError as error:
            _log.error("worker %d cannot be started: %s", number, error.strerror)
            ours.close()
            theirs.close()
            if self._rules.ended(number, time.monotonic()) is None:
                self._tell(Stop(at_once=False))
            return
        if pid == 0:
            ours.close()
            self._become(Worker(number, theirs, self._board, self._lock))
        theirs.close()
        self._processes[number] = _Process(pid, ours)
        _log.info("started worker=%d pid=%d", number, pid)

    def _become(self, worker: Worker) -> NoReturn:
        """Be a worker from now on; this process has nothing of the supervisor's to do."""
        status = 1
        try:
            logs.set_up(json=self._config.json_logs, worker=worker.number)
            # Were they open here, a worker could not see that the supervisor is gone.
            for other in self._processes.values():
                other.channel.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._serve(self._config, [listen.sibling(sock) for sock in self._sockets], worker)
            status = 0
        except GatewayError as error:
            _log.error("%s", error.line())
            status = error.exit_code
        except KeyboardInterrupt:
            pass  # before there was anything to end
        except BaseException:
            _log.exception("internal error")
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(status)

    def _look_after(self) -> None:
        """Take note of workers that began to serve, and of those that have ended."""
        for process in self._processes.values():
            with suppress(OSError):
                if process.channel.recv(16):
                    self._rules.ready()
        for number, process in list(self._processes.items()):
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                self._ended(number, os.waitstatus_to_exitcode(status))

    def _ended(self, number: int, code: int) -> None:
        process = self._processes.pop(number)
        process.channel.close()
        self._board.leave(number)
        wait_s = self._rules.ended(number, time.monotonic())
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        if wait_s is not None:
            _log.warning(
                "worker %d (pid %d) %s and is started again in %.2f s",
                number, process.pid, how, wait_s,
            )  # fmt: skip
        elif self._rules.failed:
            self._tell(Stop(at_once=False))
        elif code:
            self._cut = True
            _log.error("worker %d (pid %d) %s", number, process.pid, how)

    def _kill(self, number: int, why: str) -> None:
        process = self._processes[number]
        if not process.killed:
            process.killed = True
            _log.error("worker %d (pid %d) %s, and is killed", number, process.pid, why)
            os.kill(process.pid, signal.SIGKILL)

    def _close(self) -> None:
        """Listen no more: who comes now is refused, and does not wait for nobody."""
        for sock in self._sockets:
            sock.close()
