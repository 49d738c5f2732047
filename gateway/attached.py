"""What the middlewares leave in a request for those who serve it."""

from __future__ import annotations

from aiohttp import web

from gateway.keys.key import Key
from gateway.usage import Meter

# Whose request it is; missing where it is nobody's, as on the loopback.
KEY = web.RequestKey("key", Key)
# To be fed with the answer's bytes as they pass; missing where nobody counts.
METER = web.RequestKey("meter", Meter)
# There once the answer's status has left.
ANSWERED = web.RequestKey("answered", bool)
