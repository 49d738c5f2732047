"""What `agent models` lists: the models here, those on their way, and those of other members.

Used by `service.py`; sizes in bytes, times in unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.models.jobs import Job
from agent.models.mesh import Holder
from agent.models.store import Store


def listed(
    store: Store, pulls: Mapping[str, Job], held: Sequence[Holder], used: Mapping[str, str]
) -> dict[str, Any]:
    """Return every model; `used` names the deployment that uses one, by its name."""
    wishes = store.wishes()
    elsewhere: dict[str, list[str]] = {}
    for holder in held:
        elsewhere.setdefault(holder.held.id, []).append(holder.member)
    models = []
    for name in sorted({*store.records, *wishes}):
        record, job = store.records.get(name), pulls.get(name)
        whole = store.whole(name) is not None
        progress = job.progress if job is not None else None
        size = record.manifest.size if record else (progress.total if progress else 0)
        phase = "whole" if whole else (job.phase if job is not None else "waiting")
        wanted = record.wanted if record else wishes[name]
        models.append({
            "name": name, "here": True, "phase": phase, "size": size,
            "files": len(record.manifest.sizes) if record else None,
            "done": size if whole else (progress.done if progress else 0),
            "id": store.ids.get(name, ""),
            "sha256": record.manifest.sha256 if record else "",
            "architecture": record.architecture if record else "",
            "quantisation": record.quantisation if record else "",
            "layers": record.layers if record else None,
            "tensors": sum(not s.name.startswith("@") and s.name != ""
                           for s in record.manifest.spans) if record else None,
            "source": wanted.shown, "trust": record.trust if record else "",
            "fetched_at": record.fetched_at if record else None,
            "used_at": store.used_at(name), "used_by": used.get(name),
            "pinned": record.pinned if record else wanted.pinned,
            "elsewhere": sorted(elsewhere.pop(store.ids.get(name, ""), [])),
            "error": job.error.line() if job is not None and job.error else "",
        })  # fmt: skip
    known = {holder.held.id: holder.held for holder in held}
    for model_id, members in sorted(elsewhere.items(), key=lambda item: known[item[0]].name):
        one = known[model_id]
        models.append({
            "name": one.name, "here": False, "phase": "elsewhere", "size": one.size,
            "files": None, "done": 0,
            "id": model_id, "sha256": one.sha256, "architecture": "", "quantisation": "",
            "layers": None, "tensors": None, "source": "", "trust": "", "fetched_at": None,
            "used_at": None, "used_by": None, "pinned": False, "elsewhere": sorted(members),
            "error": "",
        })  # fmt: skip
    used_bytes = sum(model.size for model in store.stored({}))
    return {"models": models, "used_bytes": used_bytes}
