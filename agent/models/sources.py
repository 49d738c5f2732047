"""The source that an operator named: look at its files before anything is fetched.

A split model is named by any of its files; all of them must be there. Used by `pull.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from agent.errors import PeerError
from agent.models import survey
from agent.models.joined import joined
from agent.models.manifest import whole_sha256
from agent.models.origins import BrokenError, FileOrigin, Found, HttpOrigin, Origin, RefusedError
from agent.models.transfer import ATTEMPTS
from agent.models.wanted import Networks, Wanted

# Files of a split model that a server is asked for at once, to learn of them.
_PROBES = 8


@dataclass(frozen=True)
class Named:
    """The source that was named: what gives its files, and what it said of each."""

    origin: Origin
    files: Sequence[Found]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each file."""
        return [file.tag.size for file in self.files]

    @property
    def sha256(self) -> str:
        """That of the model, "" where it did not say it of each file."""
        hashes = [file.sha256 for file in self.files]
        return whole_sha256(hashes) if all(hashes) else ""

    @property
    def tags(self) -> str:
        """What tells these files from others of the source; "" where nothing would for one."""
        said = [file.tag.origin for file in self.files]
        return " ".join(said) if all(said) else ""


async def look(
    session: aiohttp.ClientSession, wanted: Wanted, networks: Networks, backoff_s: float
) -> Named | None:
    """Look at all files of the source that was named; None for a member's model.

    Raises CoveyError where one of them is not there, before anything is fetched.
    """
    if wanted.kind == "mesh":
        return None
    places = wanted.locations()
    if wanted.kind == "file":
        files = [FileOrigin(Path(place)) for place in places]
        if len(files) > 1:
            await asyncio.to_thread(survey.describe, Path(places[0]))
        found = [Found(file.tag) for file in files]
        return Named(joined(files, [one.tag.size for one in found]), found)
    https = [HttpOrigin(session, place, networks=networks) for place in places]
    # The first alone: whether there is anything at all.
    found = [await _probe(https[0], backoff_s)]
    asks = asyncio.Semaphore(_PROBES)

    async def ask(origin: HttpOrigin) -> Found | PeerError:
        async with asks:
            try:
                return await _probe(origin, backoff_s)
            except PeerError as error:
                return error

    for answer in await asyncio.gather(*map(ask, https[1:])):
        if isinstance(answer, PeerError):
            raise answer
        found.append(answer)
    return Named(joined(https, [one.tag.size for one in found]), found)


async def _probe(origin: HttpOrigin, backoff_s: float) -> Found:
    """Ask a URL for its file; raises PeerError at the third failure."""
    why = ""
    for attempt in range(ATTEMPTS):
        try:
            return await origin.probe()
        except RefusedError as error:
            raise PeerError(
                f"{origin.name}: {error}", hint="Check the address; nothing was fetched."
            ) from None
        except BrokenError as error:
            why = str(error)
            if attempt + 1 < ATTEMPTS:
                await asyncio.sleep(max(backoff_s * 2**attempt, min(error.rest_s, 10.0)))
    raise PeerError(
        f"{origin.name} failed {ATTEMPTS} times, the last time {why}",
        hint="Try again when it is there; what came before is kept.",
    )
