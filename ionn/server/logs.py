"""The server's log on standard error: for people, or as JSON, an object a line."""

from __future__ import annotations

import abc
import contextlib
import json
import logging
import os
import select
import sys
import time
from typing import Any

from ionn.errors import printable

_LINE_BYTES_MAX = 500


class Quoted:
    """Logs lines that another process writes. A stranger's net may control that process. So characters that cannot be
    printed are replaced, and at most `lines_max` lines are logged at once, and `per_s` per second in the long run."""

    def __init__(self, log: logging.Logger, lines_max: int, per_s: float) -> None:
        self._log = log
        self._lines_max, self._per_s = lines_max, per_s
        self._left = float(lines_max)
        self._counted_s = time.monotonic()
        self._begun = b""

    def take(self, data: bytes) -> None:
        """Log the lines that end in the data, and a last one without end if it is long enough."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > _LINE_BYTES_MAX:
            lines.append(self._begun)
            self._begun = b""
        now_s = time.monotonic()
        self._left = min(self._lines_max, self._left + self._per_s * (now_s - self._counted_s))
        self._counted_s = now_s
        for line in lines[: int(self._left)]:
            text = printable(line[:_LINE_BYTES_MAX].decode(errors="replace"))
            self._log.warning("a session's process says", extra={"fields": {"line": text}})
            self._left -= 1


def log_to_stderr(verbose: bool, as_json: bool) -> None:
    """Log to standard error: warnings and errors and, if `verbose`, what sessions do. Records may carry `fields`, a
    dict."""
    handler = _Patient(sys.stderr.fileno())
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING)


class _Patient(logging.Handler):
    """Writes a line only if its descriptor takes it at once, so that the server does not block if nobody reads its log.
    The next line says how many were lost."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._lost:
            record.__dict__["fields"] = {"lost_lines": self._lost, **_fields(record)}
        line = _encoded(self.format(record))
        with contextlib.suppress(OSError):  # it is closed, or its disk is full
            if select.select((), (self._descriptor,), (), 0)[1]:
                os.write(self._descriptor, line)
                self._lost = 0
                return
        self._lost += 1


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


class _Formatter(logging.Formatter, abc.ABC):
    """Makes lines that are no longer than what a pipe takes at once, by shortening the values of longer ones."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value if isinstance(value, int) else str(value) for name, value in _fields(record).items()}
        values: dict[str, int | str] = {"event": record.getMessage(), **fields}
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        for length in (4096, 1024, 256, 64, 16):
            line = self._line(record, _shortened(values, length)) + "\n"
            if len(_encoded(line)) <= select.PIPE_BUF:
                break
        return line

    @abc.abstractmethod
    def _line(self, record: logging.LogRecord, values: dict[str, int | str]) -> str:
        """Return the line of these values."""


def _encoded(line: str) -> bytes:
    return line.encode(errors="backslashreplace")


def _shortened(values: dict[str, int | str], length: int) -> dict[str, int | str]:
    """The values; a text of more than `length` characters is cut to its beginning and its end."""
    return {
        name: f"{value[: length // 2]}...{value[-length // 2 :]}"
        if isinstance(value, str) and len(value) > length
        else value
        for name, value in values.items()
    }


class _TextFormatter(_Formatter):
    def _line(self, record: logging.LogRecord, values: dict[str, int | str]) -> str:
        traceback = [str(values.pop("traceback"))] if "traceback" in values else []
        said = [self.formatTime(record), record.name, str(values.pop("event"))]
        said.extend(f"{name}={value!r}" for name, value in values.items())
        return "\n".join([" ".join(said), *traceback])


class _JsonFormatter(_Formatter):
    def _line(self, record: logging.LogRecord, values: dict[str, int | str]) -> str:
        time_and_place = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        return json.dumps({**time_and_place, **values})
