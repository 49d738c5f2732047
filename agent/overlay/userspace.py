"""WireGuard in a process of its own, `wireguard-go`, for kernels that have none.

Shell; called from one worker thread only, and that thread must outlive the device: the process
ends with the thread that started it (launch.py), so a killed agent leaves none behind. It is
configured over its socket, /var/run/wireguard/NAME.sock, where `wg` finds it too. That path is
compiled into wireguard-go, so nodes that share /var/run need different interface names, also
when they are in different network namespaces.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from agent.errors import EnvironmentFault
from agent.overlay import launch, links, uapi
from agent.overlay.device import (
    DEFAULT_MTU,
    DeviceConfig,
    Interface,
    Network,
    PeerConfig,
    PeerState,
    check_config,
    check_name,
    check_peers,
)
from agent.overlay.reconcile import SetPeer, differences

_log = logging.getLogger(__name__)

PROGRAM = "wireguard-go"
SOCKET_DIRECTORY = Path("/var/run/wireguard")
_TUN = Path("/dev/net/tun")
# A request over the local socket takes under a millisecond; 5 s mean that the process hangs.
_REQUEST_TIMEOUT_S = 5.0
# Takes 30 ms on an idle machine; a loaded one may need a hundred times as long.
_START_TIMEOUT_S = 10.0
# How long a process may take to be seen to end when its interface or its answer is missing.
_END_PATIENCE_S = 0.5
_POLL_S = 0.005
_LINES_KEPT = 5


class UserspaceDevice:
    """A wireguard-go interface; see `Device`."""

    kind = "userspace"

    def __init__(self, name: str) -> None:
        check_name(name)
        self._name = name
        self._socket = SOCKET_DIRECTORY / f"{name}.sock"
        self._config: DeviceConfig | None = None
        self._process: _Process | None = None
        self._address_changes: links.AddressChanges | None = None
        self._listen_port = 0
        self._applied: dict[bytes, PeerConfig] = {}
        self._routed: dict[Network, int] = {}

    @property
    def name(self) -> str:
        """The interface's name."""
        return self._name

    @property
    def listen_port(self) -> int:
        """The UDP port in use; 0 while closed."""
        return self._listen_port

    def open(
        self,
        private_key: bytes,
        listen_port: int,
        addresses: Sequence[Interface],
        mtu: int = DEFAULT_MTU,
    ) -> None:
        """See `Device.open`; also an EnvironmentFault if wireguard-go is not installed."""
        if self._config is not None:
            raise ValueError(f"{self._name} is open already")
        config = DeviceConfig(private_key, listen_port, tuple(addresses), mtu)
        check_config(config)
        program = shutil.which(PROGRAM)
        if program is None:
            raise EnvironmentFault(
                "this kernel has no WireGuard and wireguard-go is not installed",
                hint="Install the package wireguard-go, or load `modprobe wireguard`.",
            )
        taken_over = self._take_over(private_key)
        links.check_port(listen_port, left_over=taken_over)
        self._config = config
        try:
            self._process = _Process(program, self._name)
            self._await_socket(self._process)
            self._bring_up(config)
            self._address_changes = links.AddressChanges()
        except BaseException:
            self.close()
            raise

    def apply(self, peers: Sequence[PeerConfig]) -> None:
        """See `Device.apply`."""
        check_peers(peers, links.public_key(self._opened().private_key))
        present = {state.public_key for state in self.peers()}
        for change, now in differences(self._applied, present, peers):
            # Forgotten first: a change that fails half-way is repeated whole.
            self._applied.pop(change.public_key, None)
            self._done(self._request(uapi.encode_change(change)), "set the peers of")
            if now is not None:
                self._applied[change.public_key] = now

    def route(self, mtus: Mapping[Network, int]) -> None:
        """See `Device.route`."""
        self._opened()
        links.route(self._name, self._routed, mtus)

    def peers(self) -> list[PeerState]:
        """See `Device.peers`."""
        self._opened()
        return list(self._done(self._request(uapi.GET), "read the peers of").peers)

    def failure(self) -> str | None:
        """See `Device.failure`: the process may have ended, someone may have removed the link."""
        if self._config is None or self._process is None:
            return "the device is closed"
        if links.exists(self._name):
            return self._process.ended()
        # The interface goes a moment before its process has ended, and with either the other.
        return self._process.ended(_END_PATIENCE_S) or f"interface {self._name} is gone"

    def refresh(self) -> None:
        """See `Device.refresh`.

        wireguard-go answers each peer from the address it was last reached at. Once that address
        is gone it should forget it, but waits for EINVAL, and newer kernels (seen on 6.18) say
        ENETUNREACH: it then never sends again. Setting the same endpoint again makes it forget.
        """
        if self._address_changes is None or not self._address_changes.since_last():
            return
        states = [state for state in self.peers() if state.endpoint is not None]
        for state in states:
            change = SetPeer(state.public_key, state.endpoint, None, None)
            self._done(self._request(uapi.encode_change(change)), "set the peers of")
        _log.info("underlay addresses changed interface=%s endpoints=%d", self._name, len(states))

    def close(self) -> None:
        """See `Device.close`."""
        if self._config is None:
            return
        if self._address_changes is not None:
            self._address_changes.close()
            self._address_changes = None
        if self._process is not None:
            self._process.stop()
            # A killed process leaves its socket; one that ended well has removed it.
            self._socket.unlink(missing_ok=True)
            links.wait_gone(self._name)
        self._process = None
        self._config = None
        self._applied.clear()
        self._routed.clear()
        self._listen_port = 0

    def _bring_up(self, config: DeviceConfig) -> None:
        links.claim(self._name, links.mark(config.private_key), config.mtu)
        links.address_and_raise(self._name, config.addresses)
        # Only an interface that is up binds its port, so only now does the answer tell.
        port = config.listen_port or None
        answer = self._request(uapi.encode_device(config.private_key, port))
        if answer.errno == errno.EADDRINUSE:
            raise links.port_in_use(config.listen_port)
        self._done(answer, "set up")
        deadline = time.monotonic() + _REQUEST_TIMEOUT_S
        while (bound := self._request(uapi.GET).listen_port) == 0:
            if time.monotonic() > deadline:
                raise links.port_in_use(config.listen_port)
            time.sleep(_POLL_S)
        self._listen_port = bound

    def _await_socket(self, process: _Process) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(self._socket):
            if process.ended() is not None:
                raise self._start_fault(process.last_lines())
            if time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"wireguard-go did not start within {_START_TIMEOUT_S:.0f} s"
                )
            time.sleep(_POLL_S)

    def _start_fault(self, lines: str) -> EnvironmentFault:
        if not _TUN.exists():
            return EnvironmentFault(
                f"cannot create the WireGuard interface {self._name}: there is no {_TUN}",
                hint="Load it with `modprobe tun`, or give the container the device.",
            )
        if not os.access(_TUN, os.R_OK | os.W_OK):
            return EnvironmentFault(
                f"cannot create the WireGuard interface {self._name}: {_TUN} may not be opened",
                hint=f"Run the agent as root, or allow it with `chmod 0666 {_TUN}`.",
            )
        if "TUN device: operation not permitted" in lines:
            return links.no_capability(self._name)
        if "UAPI" in lines or "uapi" in lines:
            return EnvironmentFault(
                f"wireguard-go cannot make its socket {self._socket}: {lines}",
                hint=f"Make {SOCKET_DIRECTORY} writable for the agent.",
            )
        return EnvironmentFault(f"wireguard-go did not start: {lines or 'it gave no reason'}")

    def _take_over(self, private_key: bytes) -> bool:
        """Remove what a killed agent of this node left; say whether there was anything.

        A left-over process is waited for: it removes the socket's path when it ends, and must not
        remove the path of the process that comes next. A stale path is replaced by wireguard-go.
        """
        left_over = self._left_over_process(private_key)
        try:
            taken_over = links.take_over(self._name, links.mark(private_key))
            if left_over is None:
                return taken_over
            self._socket.unlink(missing_ok=True)  # wireguard-go ends when its socket is removed
            if not select.select([left_over], [], [], links.SETTLE_S)[0]:
                raise EnvironmentFault(
                    f"a wireguard-go left over on {self._socket} does not end",
                    hint="Find it with `pgrep -a wireguard-go` and end it.",
                )
        finally:
            if left_over is not None:
                os.close(left_over)
        return True

    def _left_over_process(self, private_key: bytes) -> int | None:
        """Return a pidfd of the wireguard-go with our key that answers on our socket, or None."""
        try:
            with _connect(self._socket) as connection:
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                pidfd = os.pidfd_open(struct.unpack("iII", credentials)[0])
        except OSError:
            return None  # nobody listens, or it is ending just now
        try:
            answer = self._request(uapi.GET)
        except EnvironmentFault:
            answer = None
        # Public keys are compared: WireGuard changes some bits of a private key when it is set.
        own_key = links.public_key(private_key)
        key = answer.private_key if answer is not None else b""
        if key and links.public_key(key) == own_key:
            return pidfd
        try:
            if not key and select.select([pidfd], [], [], _END_PATIENCE_S)[0]:
                return None  # it was ending while we asked
        finally:
            os.close(pidfd)
        raise EnvironmentFault(
            f"another program answers on {self._socket}",
            hint="Give this node another interface name, or a /var/run/wireguard of its own.",
        )

    def _opened(self) -> DeviceConfig:
        if self._config is None:
            raise EnvironmentFault(f"interface {self._name} is not up")
        return self._config

    def _request(self, request: bytes) -> uapi.Answer:
        data = bytearray()
        try:
            with _connect(self._socket) as connection:
                connection.sendall(request)
                while not uapi.complete(bytes(data)):
                    part = connection.recv(65536)
                    if not part:
                        break
                    data += part
            return uapi.decode(bytes(data))
        except (OSError, ValueError) as error:
            raise EnvironmentFault(
                f"wireguard-go does not answer on {self._socket}: {error}",
                hint="Its last words are in the agent's log at level debug.",
            ) from error

    def _done(self, answer: uapi.Answer, doing: str) -> uapi.Answer:
        if answer.errno:
            raise EnvironmentFault(
                f"cannot {doing} the WireGuard interface {self._name}: {os.strerror(answer.errno)}"
            )
        return answer


class _Process:
    """A running wireguard-go; its words go to the log at level debug, the last few are kept."""

    def __init__(self, program: str, name: str) -> None:
        launcher = [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(os.getpid())]
        self._process = subprocess.Popen(
            [*launcher, program, "-f", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), "LOG_LEVEL": "error"},
            text=True,
            errors="replace",
            # Ctrl-C in the agent's terminal must not end it before the agent says so.
            start_new_session=True,
        )
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        assert self._process.stdout is not None  # noqa: S101 asked for just above
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name=f"{name}-words", daemon=True
        )
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                words = line.strip()
                if words and not words.startswith(("│", "┌", "└")):  # its advertisement
                    self._lines.append(words)
                    _log.debug("wireguard-go: %s", words)

    def ended(self, patience_s: float = 0.0) -> str | None:
        """Say how the process ended, None while it runs."""
        try:
            code = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return None
        return (
            f"wireguard-go ended (signal {-code})" if code < 0 else f"wireguard-go ended ({code})"
        )

    def last_lines(self) -> str:
        """Return the last words of an ended process on one line."""
        self._reader.join(_REQUEST_TIMEOUT_S)
        return "; ".join(self._lines)

    def stop(self) -> None:
        """End the process, by force if it does not end by itself."""
        self._process.terminate()
        try:
            self._process.wait(links.SETTLE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                self._process.wait(links.SETTLE_S)
            except subprocess.TimeoutExpired:
                raise EnvironmentFault("wireguard-go does not end, not even when killed") from None
        self._reader.join(_REQUEST_TIMEOUT_S)


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_REQUEST_TIMEOUT_S)
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _answers(path: Path) -> bool:
    with contextlib.suppress(OSError), _connect(path):
        return True
    return False
