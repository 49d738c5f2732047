"""Serve an application on an engine's address until the engine stops. For engine processes."""

from __future__ import annotations

from aiohttp import web

from agent.errors import EnvironmentFault

# How long open HTTP answers may take to end once the engine stops.
_SHUTDOWN_S = 1.0


async def serve(
    app: web.Application, address: str, port: int, *, cancels: bool = False
) -> tuple[web.AppRunner, int]:
    """Return the runner, which the caller cleans up, and the port (a free one for port 0).

    `cancels`: a client that leaves cancels its handler. Raises EnvironmentFault when the address
    cannot be bound.
    """
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=_SHUTDOWN_S, handler_cancellation=cancels
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
    except OSError as error:
        await runner.cleanup()
        raise EnvironmentFault(
            f"cannot serve HTTP on {address} port {port}: {error.strerror}.",
            hint="Is the overlay up, and is the port free?",
        ) from None
    return runner, int(runner.addresses[0][1])
