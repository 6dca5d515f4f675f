"""Traces on disk."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gzip
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from ionn.costs.models import CostModel
from ionn.errors import InputError
from ionn.evaluation.report import make_report
from ionn.evaluation.validation import validate
from ionn.planning.coding_costs import CodedTransfer, CodedWeights
from ionn.planning.graph import GraphDocument
from ionn.planning.plan import PartitionDocument, PlanDocument
from ionn.planning.slice_costs import SlicePlan
from ionn.records import LoadRecord, PartitionRecord, QueryRecord, Segment
from ionn.testbed import runner, trace
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.settings import Settings
from ionn.testbed.trace import Trace, load_traces
from ionn.testbed.virtual import run_virtual
from tests.support.runs import make_trace

PARTITIONS = (PartitionRecord(0, ("fc",), 1000, 0.3, 0.9, 1.7), PartitionRecord(1, ("conv",), 10, 1.1, 2.3, 2.9))
SEGMENTS = (Segment("client", 0, 0, 0.7, 1.3, (0.7,)), Segment("both", 1, 1, 2.1, 3.3))
QUERIES = (QueryRecord(0, 0.1, 0.7, 1.9, SEGMENTS, 2, 0.7, True, False, 0.125),)
LOADS = (LoadRecord(0.0, 1.1, 0.9, 0.3), LoadRecord(1.1, 2.3, 0.5, 0.5))


def times(trace: Trace) -> list[float]:
    """Every time of a trace, in its order; not the counts, the bytes and the difference."""
    return [
        *(time for p in trace.partitions for time in (p.start_s, p.end_s, p.ready_s)),
        *(time for q in trace.queries for time in (q.raised_s, q.start_s, q.end_s, q.overrun_ms)),
        *(ms for q in trace.queries for s in q.segments for ms in (s.compute_ms, s.total_ms, *s.stage_ms)),
        *(time for load in trace.loads for time in (load.start_s, load.end_s)),
    ]


def dilated(dilation: float) -> Trace:
    return Trace(make_trace(testbed="live", dilation=dilation).info, PARTITIONS, QUERIES, loads=LOADS)


def test_a_link_is_kept_with_its_bandwidth(tmp_path: Path) -> None:
    made = make_trace(link="ride.csv (0a)", delay_ms=20.0, jitter_ms=2.5, upload="yield")
    bandwidth = Bandwidth((0.0, 1.5), (0.0, 40.25), 3.0)
    made = dataclasses.replace(made, info=dataclasses.replace(made.info, bandwidth=bandwidth))
    made.save(path := tmp_path / "run.jsonl")
    loaded = Trace.load(path)
    assert loaded == made
    assert loaded.info.bandwidth == bandwidth
    for change in (
        {"bandwidth": None},
        {"link": ""},
        {"bandwidth": {"begins_s": [1.0], "mbps": [1.0]}},
        {"bandwidth": {"begins_s": [0.0], "mbps": [1.0], "period_s": 5e-324}},
    ):
        run, *rest = path.read_text().splitlines()
        (tmp_path / "other.jsonl").write_text("\n".join([json.dumps(json.loads(run) | change), *rest]))
        with pytest.raises(InputError, match="not a trace of ionn"):
            Trace.load(tmp_path / "other.jsonl")


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
        assert loaded.info.settings.dilation == dilation
        assert [(load.busy, load.own) for load in loaded.loads] == [(0.9, 0.3), (0.5, 0.5)]
        assert [(q.overruns, q.difference, q.bit_equal) for q in loaded.queries] == [(2, 0.125, True)]
        assert [(p.bytes, p.stages) for p in loaded.partitions] == [(1000, ("fc",)), (10, ("conv",))]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_written(value: float, tmp_path: Path) -> None:
    trace = Trace(dilated(1.0).info, (), (dataclasses.replace(QUERIES[0], end_s=value),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        trace.save(tmp_path / "run.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("token", ["NaN", "Infinity", "1e999", "1" * 50, '"\\ud800"', "[" * 1000])
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
    *(("run", (name,)) for name in trace._RunDocument.__struct_fields__),
    ("run", ("environment", "noise")),
    ("run", ("environment", "fault")),
    *(("run", ("plan", name)) for name in PlanDocument.__struct_fields__),
    *(("run", ("plan", "partitions", 0, name)) for name in PartitionDocument.__struct_fields__),
    *(("run", ("graph", name)) for name in GraphDocument.__struct_fields__),
    *(("run", ("graph", "cuts", 0, each.name)) for each in dataclasses.fields(SlicePlan)),
    *(("run", ("graph", "coded", 0, each.name)) for each in dataclasses.fields(CodedTransfer)),
    *(("run", ("graph", "coded_weights", 0, each.name)) for each in dataclasses.fields(CodedWeights)),
    *(("partition", (each.name,)) for each in dataclasses.fields(PartitionRecord)),
    *(("query", (each.name,)) for each in dataclasses.fields(QueryRecord)),
    *(("query", ("segments", 0, each.name)) for each in dataclasses.fields(Segment)),
    *(("load", (each.name,)) for each in dataclasses.fields(LoadRecord)),
]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """The lines of a virtual run of AlexNet, and the load lines of a live one."""
    (trace,) = runner.run_virtual_all("alexnet", ["recursive-efficiency"], 1, coding="lossless", window_s=20.0)
    trace = dataclasses.replace(trace, loads=LOADS)
    records: list[dict[str, Any]] = json.loads(json.dumps(list(trace._records())))
    return records


@pytest.mark.parametrize(("kind", "place"), PLACES, ids=str)
def test_a_trace_whose_fields_are_not_what_they_should_be_is_refused_or_harmless(
    kind: str, place: tuple[str | int, ...], records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Whatever is in it: one line that names the file, or all that is made of traces."""
    path = tmp_path / "traces" / "virtual" / "alexnet" / "recursive-efficiency" / "run-01.jsonl"
    path.parent.mkdir(parents=True)
    refusals = []
    for value in WRONG:
        changed = copy.deepcopy(records)
        *way, last = place
        holder: Any = next(record for record in changed if record["record"] == kind)
        for step in way:
            holder = holder[step]
        holder[last] = json.loads(value)
        path.write_text("".join(json.dumps(record) + "\n" for record in changed))
        try:
            make_report(load_traces(tmp_path)).text()
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) >= 5
    assert all(refusal.startswith(str(path)) for refusal in refusals)


@pytest.mark.parametrize(
    "times_s",
    [[(1.0, 1.0)], [(2.0, 1.0)], [(1.0, 2.0), (0.0, 1.0)], [(0.0, 1.5), (1.0, 2.0)], [(0.0, 2.0), (0.5, 1.5)]],
    ids=str,
)
def test_loads_that_are_not_one_after_the_other_are_refused(times_s: list[tuple[float, float]], tmp_path: Path) -> None:
    loads = tuple(LoadRecord(start_s, end_s, 0.5, 0.25) for start_s, end_s in times_s)
    dataclasses.replace(dilated(1.0), loads=loads).save(path := tmp_path / "run.jsonl")
    refused = r"run\.jsonl: not a trace of ionn \(its loads are not in the order of time\); delete it and run again$"
    with pytest.raises(InputError, match=refused):
        Trace.load(path)


@pytest.mark.parametrize(("first", "last"), [(0, 99), (1, 0), (2, 2), (2**63 - 1, 2**63 - 1)])
@pytest.mark.parametrize("where", ["client", "server", "both"])
def test_a_query_at_stages_that_there_are_not_is_refused(where: str, first: int, last: int, tmp_path: Path) -> None:
    made = make_trace(testbed="live")
    *queries, after = made.queries  # of whose time at the server the overhead of an exchange is computed
    wrong = dataclasses.replace(after, segments=(Segment(where, first, last, 1.0, 2.0),))
    dataclasses.replace(made, queries=(*queries, wrong)).save(path := tmp_path / "run.jsonl")
    refused = (
        rf"run\.jsonl: not a trace of ionn \(a query has stages {first} to {last}, which its graph has not\); delete"
    )
    with pytest.raises(InputError, match=refused):
        Trace.load(path)


@pytest.mark.parametrize("link", ["", "ride.csv (0a)"])
@pytest.mark.parametrize(
    "change", [{"mbps": 1e-300}, {"mbps": 1.7e308}, {"delay_ms": 5.0, "jitter_ms": 5e-324}], ids=str
)
def test_numbers_that_no_link_has_are_refused_or_harmless(change: dict[str, Any], link: str) -> None:
    made = make_trace(testbed="live", link=link, **change)
    bandwidth = Bandwidth((0.0, 1e-9, 1.0), (1e6, 0.0, 0.001), 2.0) if link else None
    made = dataclasses.replace(made, info=dataclasses.replace(made.info, bandwidth=bandwidth))
    with contextlib.suppress(InputError):
        assert make_report([made]).text()


def test_a_trace_without_a_query_is_interrupted(records: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records if each["record"] != "query"))
    with pytest.raises(InputError, match="an interrupted run"):
        Trace.load(path)


def test_a_trace_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: cannot read the trace: No such file or directory$"):
        Trace.load(tmp_path / "none.jsonl")


@pytest.mark.parametrize("depth", range(4))
def test_a_folder_that_cannot_be_read_is_named(depth: int, tmp_path: Path) -> None:
    """Its traces are not left out: at each depth, a link to itself is a folder that nobody can read."""
    made = make_trace()
    made.save(trace.trace_path(tmp_path, made.info.settings, made.info.model, made.info.algorithm, 1))
    way = ["traces", "live", "alexnet", "original"]
    broken = tmp_path.joinpath(*way[: depth + 1])
    if depth == 0:
        (tmp_path / "traces").rename(tmp_path / "others")
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.symlink_to(broken)
    with pytest.raises(InputError, match=rf"{re.escape(str(broken))}: cannot read the folder: Too many levels"):
        load_traces(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read any folder")
def test_a_folder_that_only_others_can_read_is_named(tmp_path: Path) -> None:
    made = make_trace()
    path = trace.trace_path(tmp_path, made.info.settings, made.info.model, made.info.algorithm, 1)
    made.save(path)
    path.parent.chmod(0)
    with pytest.raises(InputError, match=rf"{re.escape(str(path.parent))}: cannot read the folder: Permission denied"):
        load_traces(tmp_path)
    path.parent.chmod(0o700)
    assert load_traces(tmp_path) == [made]


def test_only_traces_are_read_as_traces(tmp_path: Path) -> None:
    """Other files, at any depth, do not matter, and nor does a folder that is not there."""
    assert load_traces(tmp_path) == []
    made = make_trace()
    path = trace.trace_path(tmp_path, made.info.settings, made.info.model, made.info.algorithm, 1)
    made.save(path)
    for folder in path.relative_to(tmp_path).parents:
        (tmp_path / folder / "essay.txt").write_text("mine")
    assert load_traces(tmp_path) == [made]


def test_a_trace_of_a_later_version_is_refused(records: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    later = [{**each, "schema": 2} if each["record"] == "run" else each for each in records]
    path.write_text("".join(json.dumps(each) + "\n" for each in later))
    with pytest.raises(InputError, match=r"run\.jsonl: not a trace of ionn \(written by another version\); delete it"):
        Trace.load(path)


# Written by earlier versions of ionn, when the part of that number was done. The first have no model_bytes,
# planning_ms and cuts, none before part 8 have server_given and connect.
OLD = {
    "part1-live": (Settings("live"), 4, 5, 11),
    "part1-virtual": (Settings("virtual"), 4, 9, 15),
    "part2-live": (Settings("live"), 4, 6, 12),
    "part2-sliced-noise": (Settings("virtual", noise=0.1), 53, 130, 136),
    "part5-live": (Settings("live"), 4, 6, 12),
    "part5-sliced-noise": (Settings("virtual", noise=0.1), 53, 130, 136),
    "part7-live": (Settings("live"), 4, 6, 12),
}


@pytest.mark.parametrize("name", OLD)
def test_traces_of_earlier_versions_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "traces" / "old" / "any" / "any" / "run-01.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.decompress(Path(__file__).with_name("traces").joinpath(f"{name}.jsonl.gz").read_bytes()))
    (old,) = load_traces(tmp_path)
    settings, partitions, before_upload, queries = OLD[name]
    assert old.info.settings == settings
    assert (len(old.partitions), len(old.queries), old.queries_before_upload) == (partitions, queries, before_upload)
    assert [part.stage_names for part in old.info.plan.partitions] == [part.stages for part in old.partitions]
    assert old.info.plan.model_bytes in (17_015_564, 243_860_896)
    assert make_report([old]).text()
    assert (old.weight_bytes[1], old.feature_bytes) == (None, (None, None))
    assert (old.info.graph.boundary_bytes, old.info.graph.coded) == ((), ())
    if settings.testbed == "virtual":
        assert run_virtual(old.info).queries == old.queries
    else:
        assert validate(old).latency_error < 0.3
    old.save(tmp_path / "again.jsonl")
    assert Trace.load(tmp_path / "again.jsonl") == old


def test_a_run_with_coding_comes_back_from_disk(tmp_path: Path) -> None:
    (made,) = runner.run_virtual_all(
        "mobilenet", ["original"], 1, results=tmp_path, coding="lossless", weight_ratio=0.85, window_s=4.0
    )
    (read,) = load_traces(tmp_path)
    assert read == made
    assert read.info.plan.planning_ms == made.info.plan.planning_ms > 0
    assert read.info.settings == Settings("virtual", coding="lossless", weight_ratio=0.85, window_s=4.0)
    assert run_virtual(read.info) == made
    assert made.queries[-1].end_s >= 4.0
    weight_bytes, weight_wire_bytes = made.weight_bytes
    feature_bytes, feature_wire_bytes = made.feature_bytes
    assert weight_bytes is not None
    assert weight_wire_bytes == pytest.approx(0.85 * weight_bytes, rel=0.001)
    # Nearly all is the input: 224 x 224 x 3 floats.
    assert feature_bytes is not None
    assert feature_bytes >= len(made.queries) * 4 * 224 * 224 * 3
    assert feature_wire_bytes is not None
    assert 1 / 5 < feature_wire_bytes / feature_bytes < 1 / 4


NO_NAMES = ["", ".", "..", "a/b", "/../../../x", "\x1b[31m", "a\nb", "\u202e", "x" * 201, "\xe9" * 101]


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("whose", ["model", "algorithm"])
def test_names_that_cannot_be_folders_are_refused(name: str, whose: str, tmp_path: Path) -> None:
    """When a trace is read, and before one is written."""
    path = tmp_path / "run.jsonl"
    model, algorithm = (name, "original") if whose == "model" else ("alexnet", name)
    make_trace(algorithm, model=model).save(path)
    with pytest.raises(InputError, match=r"run\.jsonl: not a trace of ionn \(.* cannot be the name of"):
        Trace.load(path)
    with pytest.raises(InputError, match="cannot be the name of"):
        trace.trace_path(tmp_path, Settings("live"), model, algorithm, 1)


def test_texts_of_a_trace_can_be_shown(tmp_path: Path) -> None:
    odd = "a\x1b[31m\n\u202eb"
    info = make_trace(testbed="live", client=odd, environment={"cpu": odd, odd: 3}, fault=odd).info
    path = tmp_path / "run.jsonl"
    Trace(dataclasses.replace(info, sent=odd), (), QUERIES).save(path)
    read = Trace.load(path).info
    texts = [read.settings.client, read.server, read.fault or "", *map(str, read.environment), read.environment["cpu"]]
    assert all(text.isprintable() and text for text in texts)


def test_what_the_largest_costs_make_can_be_read(tmp_path: Path) -> None:
    """A coefficient of any feature may be as large as costs may have it."""
    coefficients = {"operations": 1e9, "output_bytes": 1e9, "constant": 1e9}
    CostModel("slow", {}, coefficients, {"Convolution": {"weight_bytes": 1e9}}).save(tmp_path / "slow.json")
    for client, server in (("slow.json", "gtx1080ti"), ("slow.json", "slow.json"), ("odroid-xu4", "slow.json")):
        specs = [str(tmp_path / spec) if spec == "slow.json" else spec for spec in (client, server)]
        made = runner.run_virtual_all("alexnet", ["original"], 1, client=specs[0], server=specs[1], results=tmp_path)
        assert made[0] in load_traces(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(InputError, match=r"run\.jsonl: cannot read the trace: "):
        Trace.load(path)


def test_what_was_sent_and_what_was_held_come_back_from_disk(tmp_path: Path) -> None:
    """A trace of an earlier version has nothing that was held."""
    trace = make_trace()
    first, second = trace.partitions
    trace = dataclasses.replace(trace, partitions=(first, dataclasses.replace(second, stored_bytes=2000)))
    trace.save(tmp_path / "run-01.jsonl")
    assert Trace.load(tmp_path / "run-01.jsonl") == trace
    assert (trace.weight_bytes[0], trace.weight_bytes_held) == (4000, 2000)
    text = (tmp_path / "run-01.jsonl").read_text()
    assert text.count('"stored_bytes"') == 2
    (tmp_path / "old.jsonl").write_text(re.sub(r', "stored_bytes": \d+', "", text))
    assert Trace.load(tmp_path / "old.jsonl").weight_bytes_held == 0
