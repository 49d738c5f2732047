"""WireGuard in a process of its own, `wireguard-go`, for kernels that have none.

Shell; called from one worker thread only. It is configured over its socket,
/var/run/wireguard/NAME.sock, where `wg` finds it too. That path is compiled into wireguard-go, so
nodes that share /var/run need different interface names, also when they are in different network
namespaces. The process goes on when the agent is killed (`afterwards.py` ends it after a while),
and is adopted by the next one if it answers on that socket with this node's key, in this network
namespace, and the interface is this node's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import select
import shutil
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.errors import EnvironmentFault
from agent.overlay import alias, links, uapi
from agent.overlay.afterwards import Afterwards
from agent.overlay.alias import NOT_KEPT, Alias, Keeping
from agent.overlay.device import (
    DEFAULT_MTU,
    DeviceConfig,
    Interface,
    Network,
    Opened,
    PeerConfig,
    PeerState,
    check_config,
    check_name,
    check_peers,
)
from agent.overlay.reconcile import SetPeer, differences
from agent.overlay.wireguardgo import WireguardGo

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


class UserspaceDevice:
    """A wireguard-go interface; see `Device`."""

    kind = "userspace"

    def __init__(self, name: str, keeping: Keeping = NOT_KEPT) -> None:
        check_name(name)
        self._name = name
        self._keeping = keeping
        self._socket = SOCKET_DIRECTORY / f"{name}.sock"
        self._config: DeviceConfig | None = None
        self._process: WireguardGo | None = None
        self._afterwards: Afterwards | None = None
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
    ) -> Opened:
        """See `Device.open`; also an EnvironmentFault if wireguard-go is not installed."""
        adopted = self.try_adopt(private_key, listen_port, addresses, mtu)
        if adopted is not None:
            return adopted
        config = DeviceConfig(private_key, listen_port, tuple(addresses), mtu)
        program = shutil.which(PROGRAM)
        if program is None:
            raise EnvironmentFault(
                "this kernel has no WireGuard and wireguard-go is not installed",
                hint="Install the package wireguard-go, or load `modprobe wireguard`.",
            )
        own = alias.of(links.public_key(private_key), self._keeping, secrets.randbits(32))
        taken_over = self._take_over(private_key, own)
        links.check_port(listen_port, left_over=taken_over)
        self._config = config
        try:
            self._process = WireguardGo.start(program, self._name)
            self._await_socket(self._process)
            self._bring_up(config, own)
            self._watch(own)
        except BaseException:
            self.close()
            raise
        return Opened(own.birth)

    def clear(self, private_key: bytes) -> bool:
        """Remove what a killed agent of ours left, of either kind; say whether there was any."""
        own = alias.of(links.public_key(private_key), self._keeping, 0)
        link = links.find(self._name)
        found = alias.parse(link.alias) if link is not None else None
        if found is None or not found.same_owner(own):
            return False
        return self._take_over(private_key, own)

    def try_adopt(
        self,
        private_key: bytes,
        listen_port: int,
        addresses: Sequence[Interface],
        mtu: int = DEFAULT_MTU,
    ) -> Opened | None:
        """Do as `open` if a killed agent left a device to be adopted, else nothing: None.

        EnvironmentFault if it has what is not ours.
        """
        if self._config is not None:
            raise ValueError(f"{self._name} is open already")
        config = DeviceConfig(private_key, listen_port, tuple(addresses), mtu)
        check_config(config)
        own = alias.of(links.public_key(private_key), self._keeping, secrets.randbits(32))
        link = links.ours(self._name, own)
        left = alias.parse(link.alias) if link is not None else None
        if link is None or left is None or link.kind == "wireguard":
            return None
        found = self._left_over_process(private_key)
        if found is None:
            return None
        pid, pidfd = found
        answer = self._request(uapi.GET)
        here = _namespace("/proc/thread-self") == _namespace(f"/proc/{pid}")
        if not here or answer.listen_port == 0 or listen_port not in (0, answer.listen_port):
            os.close(pidfd)
            return None
        self._config, self._process = config, WireguardGo.adopt(pid, pidfd)
        try:
            own = left.claimed(own.claim)
            links.claim(self._name, own, config.mtu)
            links.readdress(self._name, config.addresses)
            self._listen_port = answer.listen_port
            self._applied = {peer.node_public: peer for peer in answer.configs}
            self._watch(own)
        except BaseException:
            self.close()
            raise
        _log.info("wireguard-go adopted interface=%s pid=%d peers=%d", self._name, pid,
                  len(answer.configs))  # fmt: skip
        return Opened(own.birth, answer.configs, adopted=True)

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
        self._process.hear()
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
        if self._afterwards is not None:
            self._afterwards.tend()
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
        if self._process is not None:
            self._process.stop()
            # A killed process leaves its socket; one that ended well has removed it.
            self._socket.unlink(missing_ok=True)
            links.wait_gone(self._name)
        if self._afterwards is not None:
            self._afterwards.stop()
        self._forget()

    def _forget(self) -> None:
        if self._address_changes is not None:
            self._address_changes.close()
        self._address_changes = self._process = self._afterwards = self._config = None
        self._applied.clear()
        self._routed.clear()
        self._listen_port = 0

    def _watch(self, own: Alias) -> None:
        self._address_changes = links.AddressChanges()
        self._afterwards = Afterwards(self._name, own.text(), self._keeping.outlive_s)
        self._afterwards.tend()

    def _bring_up(self, config: DeviceConfig, own: Alias) -> None:
        links.claim(self._name, own, config.mtu)
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

    def _await_socket(self, process: WireguardGo) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(self._socket):
            if process.ended() is not None:
                raise self._start_fault(process.last_words())
            if time.monotonic() > deadline:
                raise EnvironmentFault(
                    f"wireguard-go did not start within {_START_TIMEOUT_S:.0f} s"
                )
            time.sleep(_POLL_S)

    def _start_fault(self, lines: str) -> EnvironmentFault:
        if not _TUN.exists():
            return EnvironmentFault(
                f"cannot create the WireGuard interface {self._name}: there is no {_TUN}",
                hint="Load it with `modprobe tun`, or give the container `--device /dev/net/tun`.",
            )
        if not os.access(_TUN, os.R_OK | os.W_OK):
            return EnvironmentFault(
                f"cannot create the WireGuard interface {self._name}: {_TUN} may not be opened",
                hint=f"Run the agent as root, or allow it with `chmod 0666 {_TUN}`; give a "
                "container `--device /dev/net/tun`.",
            )
        if "TUN device: operation not permitted" in lines:
            return links.no_capability(self._name)
        if "UAPI" in lines or "uapi" in lines:
            return EnvironmentFault(
                f"wireguard-go cannot make its socket {self._socket}: {lines}",
                hint=f"Make {SOCKET_DIRECTORY} writable for the agent.",
            )
        return EnvironmentFault(f"wireguard-go did not start: {lines or 'it gave no reason'}")

    def _take_over(self, private_key: bytes, own: Alias) -> bool:
        """Remove what a killed agent of this node left; say whether there was anything.

        A left-over process is waited for: it removes the socket's path when it ends, and must not
        remove the path of the process that comes next. A stale path is replaced by wireguard-go.
        """
        found = self._left_over_process(private_key)
        try:
            taken_over = links.take_over(self._name, own)
            if found is None:
                return taken_over
            self._socket.unlink(missing_ok=True)  # wireguard-go ends when its socket is removed
            if not select.select([found[1]], [], [], links.SETTLE_S)[0]:
                raise EnvironmentFault(
                    f"a wireguard-go left over on {self._socket} does not end",
                    hint="Find it with `pgrep -a wireguard-go` and end it.",
                )
        finally:
            if found is not None:
                os.close(found[1])
        return True

    def _left_over_process(self, private_key: bytes) -> tuple[int, int] | None:
        """Return pid and pidfd of the wireguard-go with our key that answers here, or None."""
        try:
            with _connect(self._socket) as connection:
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                pid = struct.unpack("iII", credentials)[0]
                pidfd = os.pidfd_open(pid)
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
            return pid, pidfd
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


def _namespace(process: str) -> str:
    """Return which network namespace a process (its folder in /proc) is in; "" if none can say."""
    with contextlib.suppress(OSError):
        return str(Path(f"{process}/ns/net").readlink())
    return ""


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
