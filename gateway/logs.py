"""What the gateway's log lines look like: text for people, or one JSON object a line."""

from __future__ import annotations

import logging
import time

import msgspec


class JsonFormatter(logging.Formatter):
    """One object: time (unix seconds), level, logger, event, and the trace of an exception.

    `worker` is which of several processes this is, None: there is one.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if self._worker is not None:
            line["worker"] = self._worker
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """Lines for people; the time is written out once a second, not for each of its lines."""

    def __init__(self, who: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {who}%(message)s")
        self._second = -1
        self._written = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's own name
        """Return the local time of a record, with its milliseconds."""
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._written},{int(record.msecs):03d}"


def set_up(*, json: bool, worker: int | None = None) -> None:
    """Send the log to stderr; of several processes each says which `worker` it is."""
    # Each request is a line, and none of these is in it: https://docs.python.org/3/howto/logging.html
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = logging.StreamHandler()
    who = "" if worker is None else f"worker {worker}: "
    handler.setFormatter(JsonFormatter(worker) if json else TextFormatter(who))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
