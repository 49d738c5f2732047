"""What the middlewares leave in a request for those who serve it."""

from __future__ import annotations

from aiohttp import web

from gateway.keys.key import Key
from gateway.record import Record
from gateway.usage import Meter

# The request's body, read and unpacked; missing where its method has none.
BODY = web.RequestKey("body", bytes)
# Whose request it is; missing where it is nobody's, as on the loopback.
KEY = web.RequestKey("key", Key)
# Fed with the answer's bytes as they pass; missing before there are any, unless a key pays.
METER = web.RequestKey("meter", Meter)
# What is noted of it; there always.
RECORD = web.RequestKey("record", Record)
# There once the answer's status has left.
ANSWERED = web.RequestKey("answered", bool)
