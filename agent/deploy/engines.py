"""Starts this node's engine processes with what the configuration says: ports, threads, cache.

The one place that turns a deployment's words into an `EngineSpec`. Ring connections and HTTP bind
to the overlay address and to ports of `network.engine_ports` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.config import Config
from agent.deploy import machine
from agent.deploy.hardware import Hardware
from agent.deploy.logs import Logs
from agent.deploy.messages import FrameType
from agent.deploy.parts import PARTS
from agent.deploy.spare import Spare
from agent.engine.silence import Known
from agent.engine.spec import EngineSpec, Role, RpcServer
from agent.engine.supervisor import Engine
from agent.errors import CoveyError, EngineError, EnvironmentFault, ModelError
from agent.figures import Engined, EngineFigures
from agent.identity.addresses import overlay_ipv6
from agent.identity.keys import NodeId

_log = logging.getLogger(__name__)


_IN_RINGS: tuple[Role, ...] = ("head", "stage")
# The ring itself comes first; then whether it still wants a spare engine is looked at so often.
_SPARE_AFTER_S, _SPARE_INTERVAL_S = 1.0, 5.0
# An engine tells what it did between two batches; a prompt's may take seconds on a slow machine.
_TELL_S = 1.0
# As much of a ring's id as heads announce.
_RING_LETTERS = 8
# What is known of as many neighbours is handed on to new engines.
_LINKS_KEPT = 64


@dataclass(frozen=True)
class Place:
    """A process's place: the ring (16 bytes in hex) and its epoch, stage `index` of `stages`."""

    ring: str
    epoch: int
    index: int
    stages: int


class Engines:
    """Makes engine processes on this node; whoever starts one stops it."""

    def __init__(self, settings: Config, mesh: bytes, own: NodeId) -> None:
        self._settings = settings
        self._mesh = mesh
        self._ports = settings.engine_ports
        self._running: list[Engine] = []
        self._starting: set[int] = set()  # ports of engines that do not listen yet
        self.own_address = self.address(own)
        self.hardware = Hardware(settings)
        self._spare = Spare()
        self._sparing: asyncio.Task[None] | None = None
        self._expects = False
        self.logs = Logs()
        self._links: dict[str, Known] = {}  # by overlay address
        self._started_ever: Counter[str] = Counter()  # by role
        self._failed_ever: Counter[str] = Counter()

    def address(self, node: NodeId) -> str:
        """Return a node's overlay address, computed from its id."""
        return str(overlay_ipv6(self._mesh, node))

    async def start_whole(
        self, path: Path, *, name: str, context: int, draft: Path | None = None,
        carried: Engine | None = None,
    ) -> Engine:  # fmt: skip
        """Load a whole model and serve it, with guesses of a draft model if there is one.

        `carried`: a head that is to go on with it, and with its answers.
        """
        return await self._started(self._whole(path, name, context, draft), carried)

    async def start_spread(
        self, path: Path, place: Place, servers: Sequence[RpcServer], *, name: str, context: int,
        draft: Path | None = None,
    ) -> Engine:  # fmt: skip
        """Load a whole model over RPC servers, which listen already, and serve it."""
        return await self._start(msgspec.structs.replace(
            self._whole(path, name, context, draft), ring=place.ring, epoch=place.epoch,
            stages=place.stages, listen=self.own_address, servers=tuple(servers),
            silence_s=self._settings.engine.frame_timeout_s,
            least_silence_s=self._settings.engine.frame_timeout_least_s,
        ))  # fmt: skip

    async def start_rpc_server(self, place: Place, head: NodeId) -> Engine:
        """Start an RPC server for a ring's head."""
        (port,) = self._free_ports(1)
        engine = self._settings.engine
        return await self._start(EngineSpec(
            role="rpc-server", files=(), ring=place.ring, epoch=place.epoch, stage=place.index,
            stages=place.stages, listen=self.own_address, port=port, predecessor=self.address(head),
            threads=engine.threads, silence_s=engine.frame_timeout_s, cache=self._cache(),
        ))  # fmt: skip

    def _later(self, *models: Path) -> tuple[str, ...]:
        """Return where the files lie that a head may have to go on with; made where they are not.

        It is allowed to read these alone, and before it knows of them.
        """
        folders = (self._settings.state_dir / PARTS, self._settings.models_dir)
        for folder in folders:
            with contextlib.suppress(OSError):  # then nothing can come to lie there either
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tuple(map(str, (*folders, *models)))

    def _whole(self, path: Path, name: str, context: int, draft: Path | None) -> EngineSpec:
        (http_port,) = self._free_ports(1)
        return EngineSpec(
            role="whole", files=(str(path),), model_name=name, n_ctx=context,
            threads=self._settings.engine.threads,
            flash_attention=self._settings.engine.flash_attention,
            http_address=self.own_address, http_port=http_port, cache=self._cache(),
            draft_file=str(draft or ""), confined=self._settings.engine.confine,
            later=self._later(),
        )  # fmt: skip

    async def start_head(
        self, paths: Sequence[Path], place: Place, predecessor: NodeId, *, name: str, context: int,
        frames: FrameType, draft: Path | None = None, model: Path | None = None,
        carried: Engine | None = None,
    ) -> Engine:  # fmt: skip
        """Load a head's first and last part; it listens for its predecessor and serves HTTP.

        `model`: of which these are parts; it may have to go on with all of it.
        `carried`: a head that is to go on with them, and with its answers.
        """
        port, http_port = self._free_ports(2)
        spec = self._in_ring("head", paths, place, predecessor, port, context, frames)
        spec = msgspec.structs.replace(
            spec, model_name=name, http_address=self.own_address, http_port=http_port,
            draft_file=str(draft or ""), later=self._later(*filter(None, [model])),
        )  # fmt: skip
        return await self._started(spec, carried)

    async def start_stage(
        self, path: Path, place: Place, predecessor: NodeId, *, context: int, frames: FrameType
    ) -> Engine:
        """Load a middle part; it listens for its predecessor."""
        (port,) = self._free_ports(1)
        spec = self._in_ring("stage", [path], place, predecessor, port, context, frames)
        return await self._start(spec)

    def _in_ring(
        self, role: Role, paths: Sequence[Path], place: Place, predecessor: NodeId, port: int,
        context: int, frames: FrameType,
    ) -> EngineSpec:  # fmt: skip
        engine = self._settings.engine
        return EngineSpec(
            role=role, files=tuple(str(path) for path in paths), n_ctx=context, row_type=frames,
            ring=place.ring, epoch=place.epoch, stage=place.index, stages=place.stages,
            listen=self.own_address, port=port, predecessor=self.address(predecessor),
            threads=engine.threads, flash_attention=engine.flash_attention,
            silence_s=engine.frame_timeout_s, least_silence_s=engine.frame_timeout_least_s,
            cache=self._cache(), links=dict(self._links), confined=engine.confine,
        )  # fmt: skip

    async def figures(self) -> Engined:
        """Ask every engine that runs what it did."""
        running = [engine for engine in self._running if engine.alive]
        await asyncio.gather(*(engine.tell(_TELL_S) for engine in running))
        told = []
        for engine in running:
            spec, used = engine.spec, machine.used(engine.pid)
            if used is not None:
                # A stage is told its ring, and no name.
                name = spec.model_name if spec.role in ("head", "whole") else ""
                told.append(EngineFigures(
                    name, spec.ring[:_RING_LETTERS], spec.stage, spec.role,
                    engine.ready, engine.stats, *used,
                ))  # fmt: skip
        return Engined(told, dict(self._started_ever), dict(self._failed_ever))

    def _made(self, engine: Engine) -> None:
        role = engine.spec.role

        def over(reason: CoveyError | None) -> None:
            self._failed_ever[role] += reason is not None

        self._started_ever[role] += 1
        engine.heard, engine.over = self._hear, over
        self.logs.add(engine)

    def _hear(self, links: dict[str, Known]) -> None:
        """Keep what an engine learned of links, for those that come after it."""
        for address, known in links.items():
            self._links.pop(address, None)  # the newest last
            self._links[address] = known
        self._links = dict(list(self._links.items())[-_LINKS_KEPT:])

    async def _started(self, spec: EngineSpec, carried: Engine | None) -> Engine:
        """Start an engine, or have one that runs go on by this spec, where it serves HTTP now."""
        if carried is not None and not _may_read(carried.first_spec, spec):
            _log.warning("%s may not read what it is to go on with; it starts anew", carried.name)
            await carried.stop()
            carried = None
        if carried is None:
            return await self._start(spec)
        before = carried.spec
        try:
            await carried.regroup(
                msgspec.structs.replace(
                    spec, http_port=carried.http_port, gpu_layers=before.gpu_layers
                ),
                load_timeout_s=self._settings.engine.load_timeout_s,
            )
        finally:
            self._starting -= {spec.port, spec.http_port}
        self._running = [*(e for e in self._running if not e.ended and e is not carried), carried]
        return carried

    async def _start(self, spec: EngineSpec) -> Engine:
        try:
            # Over RPC all compute on their CPUs: a driver would need the files that are given up.
            over_rpc = spec.role == "rpc-server" or bool(spec.servers)
            layers = 0 if over_rpc else await self.hardware.gpu_layers()
            engine = await self._try(msgspec.structs.replace(spec, gpu_layers=layers))
        finally:
            self._starting -= {spec.port, spec.http_port}
        _log.info("%s runs on %s; %s", spec.title, engine.runs_on, self.hardware.cpu())
        self._note_confined(engine)
        self._running = [*(e for e in self._running if not e.ended), engine]
        self._spare_if_wanted()
        return engine

    async def _try(self, spec: EngineSpec) -> Engine:
        """Start it on the GPUs where they are used, else or if that fails on the CPU."""
        timeout_s = self._settings.engine.load_timeout_s
        try:
            return await Engine.start(
                spec, load_timeout_s=timeout_s, made=self._made, spare=self._spare.take()
            )
        except (EngineError, ModelError) as error:
            if not spec.gpu_layers:
                raise
            _log.warning("%s is tried on the CPU, since on the GPU: %s", spec.title, error.line())
        engine = await Engine.start(
            msgspec.structs.replace(spec, gpu_layers=0), load_timeout_s=timeout_s,
            made=self._made,
        )  # fmt: skip
        engine.runs_on += ", since it did not start on the GPU"
        return engine

    def expect(self, *, parts: bool) -> None:
        """Say whether this node may get a part of a ring before long."""
        self._expects = parts
        self._spare_if_wanted()

    def _wants_spare(self) -> bool:
        return self._expects or any(not e.ended and e.spec.role in _IN_RINGS for e in self._running)

    def _spare_if_wanted(self) -> None:
        if self._wants_spare() and (self._sparing is None or self._sparing.done()):
            self._sparing = asyncio.create_task(self._keep_spare(), name="spare engine")

    async def _keep_spare(self) -> None:
        """Keep an engine process in advance as long as one may be wanted."""
        await asyncio.sleep(_SPARE_AFTER_S)
        while self._wants_spare():
            self._spare.wish()
            await asyncio.sleep(_SPARE_INTERVAL_S)
        await self._spare.drop()

    async def stop(self) -> None:
        """End the process that was started in advance; engines are ended by who started them."""
        self._expects = False
        if self._sparing is not None:
            self._sparing.cancel()
            await asyncio.wait([self._sparing])
        await self._spare.drop()

    def _note_confined(self, engine: Engine) -> None:
        """Say once what engines here cannot give up, and as long as it is so in the status."""
        if engine.unconfined and engine.unconfined != self.hardware.unconfined:
            _log.warning("engines here are not fully confined: %s", engine.unconfined)
        self.hardware.unconfined = engine.unconfined

    def _cache(self) -> str:
        return str(self._settings.engine_cache)

    def _free_ports(self, count: int) -> list[int]:
        """Return free TCP ports of the range, kept for the engine that is about to start.

        Whether they are free is decided by the engine's own bind in the end.
        """
        taken = {port for e in self._running if not e.ended for port in (e.port, e.http_port)}
        taken |= self._starting
        found: list[int] = []
        for port in self._ports:
            if port not in taken and self._is_free(port):
                found.append(port)
                if len(found) == count:
                    self._starting |= set(found)
                    return found
        raise EnvironmentFault(
            f"no free port is left in network.engine_ports ({self._settings.network.engine_ports})",
            hint="Make the range larger, or end what uses it.",
        )

    def _is_free(self, port: int) -> bool:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.own_address, port))
            except OSError:
                return False
            return True


def _may_read(spec: EngineSpec, other: EngineSpec) -> bool:
    """Say whether an engine that was started by `spec` can open all files of another."""
    if not spec.confined:
        return True
    allowed = [Path(name).resolve() for name in (*spec.files, spec.draft_file, *spec.later) if name]
    wanted = [Path(name).resolve() for name in (*other.files, other.draft_file) if name]
    return all(any(file.is_relative_to(each) for each in allowed) for file in wanted)
