"""The server's log on standard error: for people, or as JSON, an object a line."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from ionn.errors import printable

_LINE_BYTES_MAX = 500


class Quoted:
    """Lines that another process says, for the log. A stranger's net may have got hold of that process: what is not
    printable is replaced, and of what it says between two calls of `refill` only so many lines are logged."""

    def __init__(self, log: logging.Logger, speaker: str, lines_max: int) -> None:
        self._log = log
        self._speaker = speaker
        self._lines_max = self._left = lines_max
        self._begun = b""

    def take(self, data: bytes) -> None:
        """Log the lines that end in the data, or that are too long to be waited for."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > _LINE_BYTES_MAX:
            lines.append(self._begun)
            self._begun = b""
        for line in lines[: self._left]:
            text = printable(line[:_LINE_BYTES_MAX].decode(errors="replace"))
            self._log.warning("%s says", self._speaker, extra={"fields": {"line": text}})
        self._left -= min(self._left, len(lines))

    def refill(self) -> None:
        self._left = self._lines_max


def log_to_stderr(verbose: bool, as_json: bool) -> None:
    """Log sessions and the like if `verbose`, else only what needs attention. Records may carry `fields`, a dict."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING)


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
