"""The server's log on standard error: for people, or as JSON, an object a line."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import sys
import time
from typing import Any, TextIO

from ionn.errors import printable

_LINE_BYTES_MAX = 500
# In characters of up to four bytes: the system's pipes are ready for 4096 bytes, or not ready.
_RECORD_MAX = 1000


class Quoted:
    """Lines that another process says, for the log. A stranger's net may have got hold of that process: what is not
    printable is replaced, and `lines_max` lines are logged at once, `per_s` a second in the long run."""

    def __init__(self, log: logging.Logger, speaker: str, lines_max: int, per_s: float) -> None:
        self._log = log
        self._speaker = speaker
        self._lines_max, self._per_s = lines_max, per_s
        self._left = float(lines_max)
        self._counted_s = time.monotonic()
        self._begun = b""

    def take(self, data: bytes) -> None:
        """Log the lines that end in the data, or that are too long to be waited for."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > _LINE_BYTES_MAX:
            lines.append(self._begun)
            self._begun = b""
        now_s = time.monotonic()
        self._left = min(self._lines_max, self._left + self._per_s * (now_s - self._counted_s))
        self._counted_s = now_s
        for line in lines[: int(self._left)]:
            text = printable(line[:_LINE_BYTES_MAX].decode(errors="replace"))
            self._log.warning("%s says", self._speaker, extra={"fields": {"line": text}})
            self._left -= 1


def log_to_stderr(verbose: bool, as_json: bool) -> None:
    """Log sessions and the like if `verbose`, else only what needs attention. Records may carry `fields`, a dict."""
    handler = _Patient(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING)


class _Patient(logging.StreamHandler[TextIO]):
    """Writes what its stream takes at once: a server does not stand still because nobody reads its log. Lines that are
    lost are counted in the next one."""

    _lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        # A pipe that can be written to takes a line of this length.
        with contextlib.suppress(OSError, ValueError):  # it is closed
            if select.select((), (self.stream,), (), 0)[1]:
                super().emit(record)
                return
        self._lost += 1

    def format(self, record: logging.LogRecord) -> str:
        lost, self._lost = self._lost, 0
        line = super().format(record)[:_RECORD_MAX]
        return f"{line} ({lost} lines before this one were lost)" if lost else line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join([super().format(record), *(f"{name}={value!r}" for name, value in _fields(record).items())])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
                "level": record.levelname.lower(),
                "logger": record.name,
                "event": record.getMessage(),
                **_fields(record),
            },
            default=str,
        )
