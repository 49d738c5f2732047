"""Read stored models against their manifests, and begin to repair what is damaged.

A repair makes the model a part again that has all pieces but the damaged ones; those are then
fetched as any pull fetches. Used by `service.py`.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from agent.errors import ModelError, UsageError
from agent.models import pieces, survey
from agent.models.fetch import Progress
from agent.models.jobs import Job
from agent.models.manifest import starts_of
from agent.models.store import Record, Store
from agent.models.wanted import Wanted


async def verify(
    store: Store, job: Job, names: Sequence[str], used: Callable[[], Mapping[str, str]],
    repair: Callable[[Wanted], object] | None,
) -> None:  # fmt: skip
    """Read these models; the job's result names what is damaged in each.

    `repair` begins a pull, None leaves what is damaged as it is. Raises UsageError for a damaged
    model that shall be repaired while a deployment uses it.
    """
    records = {name: store.records[name] for name in names}
    total, before = sum(record.manifest.size for record in records.values()), 0
    job.phase, job.progress = "checking", Progress(0, total, 0.0)
    found: list[dict[str, object]] = []
    job.result = {"models": found}
    for name, record in records.items():
        paths = store.files(name)
        wrong = await asyncio.to_thread(
            survey.damaged, paths[0], record.manifest, job.read_after(before)
        )
        before += record.manifest.size
        outcome = {"name": name, "damaged": wrong, "repairing": False}
        found.append(outcome)
        if not wrong or repair is None:
            continue
        if (deployment := used().get(name)) is not None:
            raise UsageError(
                f"{name} is damaged, and the deployment {deployment} uses it",
                hint=f"`agent undeploy {deployment}`, then verify it again.",
            )
        wanted = msgspec.structs.replace(record.wanted, name=name, repairs=True)
        store.begin_repair(name, wanted, await asyncio.to_thread(_right, paths, record))
        repair(wanted)
        outcome["repairing"] = True


def _right(paths: Sequence[Path], record: Record) -> list[int]:
    """Return the numbers of the pieces that are right as they are. Blocks."""
    right = []
    try:
        with ExitStack() as stack:
            starts = starts_of(record.manifest.sizes)
            files = [stack.enter_context(path.open("rb")) for path in paths]
            for index, piece in enumerate(pieces.of_manifest(record.manifest)):
                number = bisect.bisect_right(starts, piece.start) - 1
                files[number].seek(piece.start - starts[number])
                if not pieces.wrong(piece, files[number].read(piece.size)):
                    right.append(index)
    except OSError as error:
        raise ModelError(f"cannot read the model {paths[0]}: {error.strerror}") from None
    return right
