"""The server's log: a line per record that a pipe takes at once, whatever is in it."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.server.logs import _encoded, _JsonFormatter, _Patient, _TextFormatter

LONG = ["\u00e9" * 240, '"' * 499, "\\" * 3000, "\U0001f600" * 1000, "x" * 100_000, "\ud800" * 700]
TEXTS = st.one_of(st.text(max_size=2000), st.sampled_from(LONG))
FIELDS = st.dictionaries(st.sampled_from(["line", "reason", "address", "session"]), st.one_of(TEXTS, st.integers()))


def record(fields: dict[str, Any], failed: bool = False) -> logging.LogRecord:
    try:
        raise ValueError("\ud800" + "x" * 5000)
    except ValueError:
        raised = sys.exc_info() if failed else None
    made = logging.LogRecord("ionn.server.front", logging.WARNING, __file__, 1, "%s says", ("it",), raised)
    made.__dict__["fields"] = fields
    return made


@given(FIELDS, st.booleans())
def test_json_is_json_at_any_length(fields: dict[str, Any], failed: bool) -> None:
    line = _JsonFormatter().format(record(fields, failed))
    assert len(_encoded(line)) <= select.PIPE_BUF
    assert line.index("\n") == len(line) - 1
    said = json.loads(line)
    assert (said["event"], said["level"], set(fields) - set(said)) == ("it says", "warning", set())
    for name, value in fields.items():
        text = str(value)
        assert said[name] == value or ("..." in said[name] and said[name].startswith(text[:8]))
    assert ("traceback" in said) == failed


@given(FIELDS, st.booleans())
def test_text_has_a_line_a_record_and_a_traceback(fields: dict[str, Any], failed: bool) -> None:
    line = _TextFormatter().format(record(fields, failed))
    assert len(_encoded(line)) <= select.PIPE_BUF
    assert line.count("\n") == 1 or failed
    assert line.endswith("xxxx\n") or not failed


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_lost_lines_are_counted_once(pipe: tuple[int, int]) -> None:
    """Those that found the pipe full, in the next one; the fields of a record are kept."""
    reader, writer = pipe
    handler = _Patient(writer)
    handler.setFormatter(_JsonFormatter())
    sent = 0
    while select.select((), (writer,), (), 0)[1]:
        handler.handle(record({"number": sent}))
        sent += 1
    for _ in range(3):
        handler.handle(record({}))
    lines = os.read(reader, 1 << 20).splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(sent))
    for _ in range(2):
        handler.handle(record({"number": 7}))
    said = [json.loads(line) for line in os.read(reader, 1 << 20).splitlines()]
    assert [(line.get("lost_lines"), line["number"]) for line in said] == [(3, 7), (None, 7)]


def test_a_log_that_cannot_be_written(pipe: tuple[int, int]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    handler = _Patient(full)
    handler.setFormatter(_TextFormatter())
    handler.handle(record({}))
    os.dup2(pipe[1], full)
    handler.handle(record({}))
    os.close(full)
    assert b" lost_lines=1" in os.read(pipe[0], 1 << 16)
    handler.handle(record({}))
