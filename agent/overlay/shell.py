"""The overlay as the daemon uses it: one WireGuard device behind an asyncio face.

Shell. Every call to the device runs in one worker thread (pyroute2 cannot run inside an event
loop), one at a time. A watch task looks after the device and makes a broken one anew with its last
configuration. Not for choosing endpoints or peers: the daemon computes those.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, TypeVar

from agent.errors import CoveyError, EnvironmentFault
from agent.overlay import routes
from agent.overlay.alias import NOT_KEPT, Keeping
from agent.overlay.device import (
    DEFAULT_MTU,
    Device,
    DeviceConfig,
    Interface,
    Network,
    Opened,
    PeerConfig,
    PeerState,
    check_name,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Backend = Literal["auto", "kernel", "userspace"]

# A broken device is silent for at most this long; a look costs one system call or two.
CHECK_INTERVAL_S = 1.0
# After a restart that failed the wait doubles up to this.
RETRY_MAX_S = 30.0
# Longer than every wait inside a device put together; past it the kernel hangs.
OPERATION_TIMEOUT_S = 30.0


class Overlay:
    """The node's WireGuard interface. `device` replaces the backend, for tests."""

    def __init__(
        self,
        name: str = "covey0",
        backend: Backend = "auto",
        keeping: Keeping = NOT_KEPT,
        *,
        device: Device | None = None,
    ) -> None:
        check_name(name)
        self._name = name
        self._backend = backend
        self._keeping = keeping
        self._opened = Opened(0)
        self._device = device
        self._worker: ThreadPoolExecutor | None = None
        self._lock = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._config: DeviceConfig | None = None
        self._wanted: tuple[PeerConfig, ...] = ()
        self._mtus: Mapping[Network, int] = {}
        self._fault: CoveyError | None = None

    @property
    def name(self) -> str:
        """The interface's name."""
        return self._name

    @property
    def kind(self) -> str:
        """`kernel`, `userspace` or `fake`; empty before the start."""
        return self._device.kind if self._device is not None and self._config is not None else ""

    @property
    def listen_port(self) -> int:
        """WireGuard's UDP port; 0 before the start."""
        return self._config.listen_port if self._config is not None else 0

    @property
    def opened(self) -> Opened:
        """What the start came upon: an interface made anew, or one adopted, with its peers."""
        return self._opened

    @property
    def fault(self) -> CoveyError | None:
        """Why the overlay does not work just now (a restart failed); None while it works."""
        return self._fault

    async def start(
        self,
        private_key: bytes,
        listen_port: int,
        addresses: Sequence[Interface],
        mtu: int = DEFAULT_MTU,
    ) -> None:
        """Make the interface and bring it up without peers, or adopt what a killed agent left.

        `addresses` carry the mesh's prefix lengths, so the mesh becomes on-link. `listen_port` 0
        takes a free port, which restarts keep. EnvironmentFault as in `Device.open`; on a fault or
        a cancellation nothing is left.
        """
        async with self._lock:
            if self._worker is not None:
                raise ValueError("the overlay is started already")
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="overlay")
            try:
                device = await self._call(self._make_device)
                self._opened = await self._call(
                    device.open, private_key, listen_port, tuple(addresses), mtu
                )
                port = device.listen_port
            except BaseException:
                await self._to_the_end(self._close())
                raise
            self._config = DeviceConfig(private_key, port, tuple(addresses), mtu)
            self._watcher = asyncio.create_task(self._watch(), name="overlay-watch")
        _log.info("overlay up interface=%s kind=%s port=%d mtu=%d adopted=%s",
                  self._name, device.kind, port, mtu, self._opened.adopted)  # fmt: skip

    async def set_addresses(self, addresses: Sequence[Interface]) -> None:
        """Give the interface other addresses, with the peers it has.

        Rare (two issuers gave one IPv4 address to two nodes), so the device is simply made anew,
        which breaks sessions for a moment. EnvironmentFault when that fails; it is tried again.
        """
        async with self._lock:
            device = self._started()
            config = self._config
            if config is None or config.addresses == tuple(addresses):
                return
            config = self._config = replace(config, addresses=tuple(addresses))
            await self._call(device.close)
            await self._call(
                device.open, config.private_key, config.listen_port, config.addresses, config.mtu
            )
            await self._call(device.apply, self._wanted)
            await self._call(device.route, self._mtus)
        _log.info("overlay addresses changed interface=%s", self._name)

    async def set_peers(self, peers: Sequence[PeerConfig]) -> None:
        """Make `peers` the device's peers; what did not change is not touched.

        Raises ValueError for wrong peers, EnvironmentFault if the device is broken: the peers are
        remembered then, and set as soon as it works again.
        """
        async with self._lock:
            device = self._started()
            before, self._wanted = self._wanted, tuple(peers)
            try:
                await self._call(device.apply, self._wanted)
            except ValueError:
                self._wanted = before
                raise
            except EnvironmentFault:
                if not await self._restarted():
                    raise

    async def set_mtus(self, peers: Iterable[tuple[tuple[Network, ...], int]]) -> None:
        """Say what each peer's path carries, by its addresses: larger packets are not sent to it.

        All others get at most 1280, and nobody more than the interface's MTU. EnvironmentFault as
        in `set_peers`.
        """
        async with self._lock:
            device = self._started()
            most = self._config.mtu if self._config is not None else DEFAULT_MTU
            mtus = routes.wanted(peers, most)
            if mtus == self._mtus:
                return
            # Remembered once it stands, so that what fails half-way is done again.
            before, self._mtus = self._mtus, mtus
            try:
                await self._call(device.route, mtus)
            except EnvironmentFault:
                if not await self._restarted():
                    self._mtus = before
                    raise

    async def states(self) -> list[PeerState]:
        """Return the state of every peer; EnvironmentFault if the device is broken."""
        async with self._lock:
            device = self._started()
            try:
                return await self._call(device.peers)
            except EnvironmentFault:
                if not await self._restarted():
                    raise
                return await self._call(device.peers)

    async def stop(self) -> None:
        """Remove the interface, whatever cancels us; stopping twice does nothing."""
        await self._to_the_end(self._stop())

    async def _stop(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait({watcher})
        async with self._lock:
            if self._worker is None:
                return
            await self._close()
        _log.info("overlay down interface=%s", self._name)

    def _make_device(self) -> Device:
        """Return the backend's device; runs in the worker, where pyroute2 may be imported."""
        if self._device is None:
            match self._backend:
                case "kernel":
                    from agent.overlay.kernel import KernelDevice

                    self._device = KernelDevice(self._name, self._keeping)
                case "userspace":
                    from agent.overlay.userspace import UserspaceDevice

                    self._device = UserspaceDevice(self._name, self._keeping)
                case "auto":
                    from agent.overlay.auto import AutoDevice

                    self._device = AutoDevice(self._name, self._keeping)
        return self._device

    def _started(self) -> Device:
        if self._device is None or self._config is None:
            raise EnvironmentFault("the overlay is not up")
        return self._device

    async def _call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run in the worker. A cancelled call ends in the worker before the next one begins."""
        if self._worker is None:
            raise EnvironmentFault("the overlay is not up")
        future = asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                return await asyncio.shield(future)
        except TimeoutError:
            raise EnvironmentFault(
                f"interface {self._name} did not answer within {OPERATION_TIMEOUT_S:.0f} s",
                hint="Look at the kernel's log with `dmesg`.",
            ) from None

    async def _close(self) -> None:
        """Close the device and end the worker."""
        worker, device = self._worker, self._device
        try:
            if device is not None:
                await self._call(device.close)
        finally:
            self._worker = self._config = self._fault = None
            self._wanted, self._mtus = (), {}
            if worker is not None:
                worker.shutdown(wait=False, cancel_futures=True)

    async def _to_the_end(self, work: Coroutine[None, None, None]) -> None:
        """Await bounded work to its end even when cancelled, then pass the cancellation on."""
        task = asyncio.ensure_future(work)
        cancelled = False
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                cancelled = True
        task.result()
        if cancelled:
            raise asyncio.CancelledError

    async def _watch(self) -> None:
        wait_s = CHECK_INTERVAL_S
        while True:
            await asyncio.sleep(wait_s)
            try:
                async with self._lock:
                    await self._look_after()
            except CoveyError as fault:
                _log.warning("overlay check failed interface=%s fault=%s", self._name, fault)
            except Exception:
                _log.exception("overlay check failed interface=%s", self._name)
            works = self._fault is None
            wait_s = CHECK_INTERVAL_S if works else min(2 * wait_s, RETRY_MAX_S)

    async def _look_after(self) -> None:
        """Find out how the device does, in one visit to the worker: this is done each second."""
        device = self._device
        if device is None:
            return

        def look() -> str | None:
            reason = device.failure()
            if reason is None:
                device.refresh()
            return reason

        reason = await self._call(look)
        if reason is not None:
            await self._made_anew(device, reason)

    async def _restarted(self) -> bool:
        """Make the device anew if it broke; say whether that was done. The lock is held."""
        device = self._device
        if device is None:
            return False
        reason = await self._call(device.failure)
        return reason is not None and await self._made_anew(device, reason)

    async def _made_anew(self, device: Device, reason: str) -> bool:
        """Make the broken device anew; say whether that could be done. The lock is held."""
        config = self._config
        if config is None:
            return False
        try:
            await self._call(device.close)
            await self._call(
                device.open, config.private_key, config.listen_port, config.addresses, config.mtu
            )
            await self._call(device.apply, self._wanted)
            await self._call(device.route, self._mtus)
        except CoveyError as fault:
            if self._fault is None or self._fault.message != fault.message:
                _log.error("overlay broken interface=%s fault=%s", self._name, fault.message)
            self._fault = fault
            # Closed, it counts as broken, so the next look begins from the start.
            with contextlib.suppress(CoveyError):
                await self._call(device.close)
            return False
        self._fault = None
        _log.warning("overlay restarted interface=%s reason=%s", self._name, reason)
        return True
