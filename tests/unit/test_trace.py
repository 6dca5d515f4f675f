"""Traces on disk."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from ionn.errors import InputError
from ionn.evaluation.report import terminal_summary
from ionn.records import PartitionRecord, QueryRecord, Segment
from ionn.testbed import runner
from ionn.testbed.trace import RunInfo, Trace, load_traces
from tests.support.runs import make_trace

PARTITIONS = (PartitionRecord(0, ("fc",), 1000, 0.3, 0.9, 1.7), PartitionRecord(1, ("conv",), 10, 1.1, 2.3, 2.9))
SEGMENTS = (Segment("client", 0, 1, 0.7, 1.3, (0.3, 0.4)), Segment("both", 2, 2, 2.1, 3.3))
QUERIES = (QueryRecord(0, 0.1, 0.7, 1.9, SEGMENTS, 2, 0.7, True, False, 0.125),)


def times(trace: Trace) -> list[float]:
    """Every time of a trace, in its order; not the counts, the bytes and the difference."""
    return [
        *(time for p in trace.partitions for time in (p.start_s, p.end_s, p.ready_s)),
        *(time for q in trace.queries for time in (q.raised_s, q.start_s, q.end_s, q.overrun_ms)),
        *(ms for q in trace.queries for s in q.segments for ms in (s.compute_ms, s.total_ms, *s.stage_ms)),
    ]


def dilated(dilation: float) -> Trace:
    return Trace(make_trace(testbed="live", dilation=dilation).info, PARTITIONS, QUERIES)


@pytest.mark.parametrize("dilation", [1.0, 3.0, 8.0])
def test_a_trace_is_divided_once(dilation: float, tmp_path: Path) -> None:
    """By loading, whatever it has been through before."""
    raw = dilated(dilation)
    loaded = raw
    for step in range(4):
        path = tmp_path / f"{step}.jsonl"
        loaded.save(path)
        loaded = Trace.load(path)
        assert times(loaded) == [time / dilation for time in times(raw)]
        assert loaded == raw.undilated() == loaded.undilated()
        assert loaded.info.dilation == dilation
        assert [(q.overruns, q.difference, q.bit_equal) for q in loaded.queries] == [(2, 0.125, True)]
        assert [(p.bytes, p.stages) for p in loaded.partitions] == [(1000, ("fc",)), (10, ("conv",))]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_written(value: float, tmp_path: Path) -> None:
    trace = Trace(dilated(1.0).info, (), (dataclasses.replace(QUERIES[0], end_s=value),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        trace.save(tmp_path / "run.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("token", ["NaN", "Infinity", "1e999", "1" * 30, '"\\ud800"', "[" * 1000])
def test_what_is_not_json_is_not_read(token: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    dilated(1.0).save(path)
    text = path.read_text()
    assert text.count('"end_s": 1.9') == 1
    path.write_text(text.replace('"end_s": 1.9', f'"end_s": {token}'))
    with pytest.raises(InputError, match=r"run\.jsonl: not a trace of ionn"):
        Trace.load(path)


WRONG = ("null", "true", '"x"', "-5", "2.5", "1e300", "9223372036854775807", "[]", "[1]", "{}", '{"x": 1}', "[[]]")
# Where in a trace's lines a value may stand: the record, and the path to it.
PLACES = [
    *(("run", (each.name,)) for each in dataclasses.fields(RunInfo)),
    *(("run", ("plan", name)) for name in ("partitions", "model_bytes", "planning_ms")),
    *(("run", ("plan", "partitions", 0, name)) for name in ("stages", "bytes")),
    *(("partition", (each.name,)) for each in dataclasses.fields(PartitionRecord)),
    *(("query", (each.name,)) for each in dataclasses.fields(QueryRecord)),
    *(("query", ("segments", 0, each.name)) for each in dataclasses.fields(Segment)),
]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """The lines of a virtual run of AlexNet."""
    (trace,) = runner.run_virtual_all("alexnet", ["recursive-efficiency"], 1)
    records: list[dict[str, Any]] = json.loads(json.dumps(list(trace._records())))
    return records


@pytest.mark.parametrize(("kind", "place"), PLACES, ids=str)
def test_a_trace_whose_fields_are_not_what_they_should_be_is_refused_or_harmless(
    kind: str, place: tuple[str | int, ...], records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Whatever is in it: one line that names the file, or all that is made of traces."""
    path = tmp_path / "traces" / "virtual" / "alexnet" / "recursive-efficiency" / "run-01.jsonl"
    path.parent.mkdir(parents=True)
    refused = 0
    for value in WRONG:
        changed = copy.deepcopy(records)
        *way, last = place
        holder: Any = next(record for record in changed if record["record"] == kind)
        for step in way:
            holder = holder[step]
        holder[last] = json.loads(value)
        path.write_text("".join(json.dumps(record) + "\n" for record in changed))
        try:
            terminal_summary(load_traces(tmp_path))
        except InputError as error:
            message = str(error)
            assert message.startswith(str(path)) or "execution graph" in message
            refused += 1
    assert refused >= 5


def test_a_trace_without_a_query_is_interrupted(records: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records if each["record"] != "query"))
    with pytest.raises(InputError, match="an interrupted run"):
        Trace.load(path)
