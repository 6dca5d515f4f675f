"""What a server says of its costs, and what it gives for results: plans, traces and terminals survive it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from ionn.client.offloading import open_offloading
from ionn.costs.models import CostModel, Profile
from ionn.errors import InputError, ProtocolError, printable
from ionn.model import engine
from ionn.model.caffemodel import serialise
from ionn.model.network import Network
from ionn.protocol import messages
from ionn.testbed import live
from ionn.testbed.live_session import DIFFERENCE_MAX, LiveSession
from ionn.testbed.trace import Trace
from tests.malicious.hostile import INPUTS, NETWORK, WEIGHTS, Connection, Hostile, often
from tests.support.runs import run_live

NASTY = "\x1b]0;mine\x07\x1b[31m\r\n\u202e" + "x" * 3000
FAST = CostModel("fast", {}, {"constant": 1e-3}).to_json()
PROFILE = Profile.of(NETWORK, 1e-3).to_json()


def deep(levels: int) -> Any:
    return {"a": deep(levels - 1)} if levels else 1


# Costs that cannot be used.
BAD: dict[str, Any] = {
    "a coefficient of 1e308": {**FAST, "default": {"constant": 1e308}},
    "a coefficient of NaN": {**FAST, "default": {"constant": math.nan}},
    "a coefficient that is infinite": {**FAST, "layers": {"Convolution": {"operations": math.inf}}},
    "a negative coefficient": {**FAST, "loads": {"Convolution": {"operations": -1}}},
    "a coefficient of 400 digits": {**FAST, "default": {"constant": 10**400}},
    "no coefficient": {**FAST, "default": {"constant": None}},
    "an unknown feature": {**FAST, "default": {NASTY: 1}},
    "a type of layers with no object": {**FAST, "layers": {NASTY: 1}},
    "a machine that is no text": {**FAST, "machine": {NASTY: 1}},
    "no name": {**FAST, "name": None},
    "half a character for a name": {**FAST, "name": "\ud83d"},
    "another kind": {**FAST, "kind": NASTY},
    "another version": {**FAST, "schema": 99},
    "nearly nothing": {"kind": "cost-model"},
    "a profile of another network": Profile.of(Network.load("alexnet"), 1.0).to_json(),
    "a profile without layers": {**PROFILE, "layers": []},
    "a layer without times": {**PROFILE, "layers": [{"name": NASTY, "type": NASTY}]},
    "a layer with another name": {**PROFILE, "layers": [{**PROFILE["layers"][0], "name": NASTY}]},
    "a time of 1e308": {**PROFILE, "layers": [{**each, "ms": 1e308} for each in PROFILE["layers"]]},
    "deep": {**FAST, "layers": deep(200)},
}
# Costs that can, whatever they are called.
GOOD: dict[str, Any] = {
    "a cost model": {**FAST, "name": NASTY, "machine": {NASTY[:20]: NASTY[:20]}},
    "a profile": {**PROFILE, "name": NASTY},
    "the most there can be": {**FAST, "default": {"constant": 1e9, "operations": 1e9, "output_bytes": 1e9}},
}


@contextlib.contextmanager
def opened(server: Hostile, may_be_lost: bool) -> Iterator[LiveSession]:
    net, here = engine.load_network(NETWORK, WEIGHTS), Profile.of(NETWORK, 40.0)
    with open_offloading(
        NETWORK, net, here, server.address, 80, "sliced-efficiency", may_be_lost=may_be_lost
    ) as offloading:
        yield LiveSession(offloading, net, INPUTS)


@pytest.fixture(params=[True, False], ids=["may be lost", "must be there"])
def may_be_lost(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("which", BAD)
def test_costs_that_cannot_be_used_are_a_fault(which: str, may_be_lost: bool) -> None:
    server = Hostile(costs=BAD[which])
    try:
        with opened(server, may_be_lost) as session:
            session.start_upload()
            fault = session.offloading.fault
            record = session.query()
    finally:
        server.close()
    assert isinstance(fault, ProtocolError)
    assert str(fault).startswith(server.address)
    assert printable(str(fault)) == str(fault)
    assert len(str(fault)) < 1000
    assert [segment.where for segment in record.segments] == ["client"]
    assert record.bit_equal
    assert session.offloading.plan is not None
    assert not session.offloading.plan.partitions


@pytest.mark.parametrize("which", GOOD)
def test_costs_with_odd_names_are_used(which: str, may_be_lost: bool) -> None:
    server = Hostile(costs=GOOD[which])
    try:
        with opened(server, may_be_lost) as session:
            session.start_upload()
            while not session.uploaded():
                time.sleep(0.01)
            record = session.query()
            assert session.offloading.fault is None
    finally:
        server.close()
    offloading = session.offloading
    assert offloading.server is not None
    assert offloading.plan is not None
    assert printable(offloading.server.name) == offloading.server.name
    assert len(offloading.server.name) <= 200
    assert record.difference < 1e-4
    assert bool(offloading.plan.partitions) == (which != "the most there can be")


def test_a_server_without_costs_is_the_callers_matter(may_be_lost: bool) -> None:
    server = Hostile()
    try:
        with pytest.raises(InputError, match="sends no cost model"), opened(server, may_be_lost):
            pass
    finally:
        server.close()


# --- Results ---------------------------------------------------------------------------------------------------------


def lie(values: float, stage_ms: float, connection: Connection, answer: messages.Message) -> bool:
    assert isinstance(answer, messages.Result)
    payload = tuple(np.full(shape, values, "<f4") for shape in answer.shapes)
    connection.send(dataclasses.replace(answer, payload=payload, stage_ms=(stage_ms,) * len(answer.stage_ms)))
    return True


TIMES = (0.0, 1e9, 1e308, math.inf, math.nan, -1.0)
VALUES = (math.nan, math.inf, -math.inf, 3.4e38, 0.0)
RESULTS = often(itertools.product(VALUES, TIMES), lambda value, ms: value != value or ms == 0)


@pytest.mark.parametrize(("values", "stage_ms"), RESULTS)
def test_no_result_costs_a_run_its_trace(values: float, stage_ms: float, tmp_path: Path) -> None:
    server = Hostile("query", lambda *said: lie(values, stage_ms, *said), costs=FAST)
    try:
        subject = live.Subject(NETWORK, engine.load_network(NETWORK, WEIGHTS), Profile.of(NETWORK, 4.0))
        (trace,) = run_live(subject, ["efficiency"], 1, results=tmp_path, address=server.address)
    finally:
        server.close()
    (path,) = tmp_path.rglob("run-*.jsonl")
    assert Trace.load(path) == trace
    assert trace.queries
    for query in trace.queries:
        assert query.bit_equal or 0 < query.difference <= DIFFERENCE_MAX
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    lied = [query for query in trace.queries if any(s.where == "server" for s in query.segments)]
    assert bool(lied) == (0 <= stage_ms <= 1e9)


def test_what_is_printed_can_be_shown(tmp_path: Path) -> None:
    """By the commands themselves, of a server that is named like an attack."""
    path = tmp_path / "mine.prototxt"
    path.write_text(text_format.MessageToString(NETWORK.param))
    path.with_suffix(".caffemodel").write_bytes(serialise("mine", NETWORK.layers, WEIGHTS).tobytes())
    (tmp_path / "slow.txt").write_text("".join(f"{layer.index} {layer.name} 3\n" for layer in NETWORK.layers))
    for costs, code in ((GOOD["a cost model"], 0), (BAD["an unknown feature"], 2)):
        server = Hostile(costs=costs)
        arguments = [
            "run",
            str(path),
            "--connect",
            server.address,
            "--client",
            str(tmp_path / "slow.txt"),
            "--mbps",
            "80",
        ]
        try:
            for extra in ([], ["--json"]):
                command = [sys.executable, "-m", "ionn", *arguments, *extra]
                done = subprocess.run(command, capture_output=True, timeout=60, check=False)
                assert done.returncode == code, done.stderr
                shown = (done.stdout + done.stderr).decode()
                assert all(printable(line) == line for line in shown.split("\n"))
                assert ("cannot be used" in shown) == (code == 2)
        finally:
            server.close()
