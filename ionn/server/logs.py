"""The server's log on standard error: for people, or as JSON, an object a line."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


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
