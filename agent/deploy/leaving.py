"""When a ring may leave those of its nodes that are draining; for `rings.py`, whose head it is.

It may once a ring of the nodes that stay would fit. Its answers go on over that one; where they
cannot (llama.cpp's RPC), it waits for a moment in which nobody is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from agent.deploy import answering
from agent.deploy.build import Build
from agent.errors import CoveyError, ModelError, PeerError, UsageError

_log = logging.getLogger(__name__)

# A ring that cannot do without a node looks so often whether it can by now.
_PAUSE_S = 4.0
# For so long it waits at once until nobody is answered.
_IDLE_WITHIN_S = 60.0


async def until_it_may(
    build: Build, url: str, names: Callable[[], Sequence[str]], stays: Callable[[str], None]
) -> str:
    """Return why to build again now, as a sentence; "" once there is no node to leave any more.

    `names()` are the nodes of the ring that are draining, `stays(why)` hears why it does not leave
    them yet.
    """
    while leaving := names():
        named = " and ".join(leaving)
        try:
            await build.check_without_draining()
        except (ModelError, PeerError, UsageError) as error:
            _log.info("the ring stays on %s: %s", named, error.line())
            stays(f"it does not fit without {named}")
        except CoveyError as error:
            stays(error.line())
        else:
            drain = "is draining" if len(leaving) == 1 else "are draining"
            if build.carriable or await answering.until_idle(url, _IDLE_WITHIN_S):
                return f"{named} {drain}; its answers go on elsewhere" if names() else ""
            stays("its answers would break, so it waits until there are none")
        await asyncio.sleep(_PAUSE_S)
    return ""
