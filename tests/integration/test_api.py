"""The library as its users import it, and `ionn classify`, which is made of it."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import data as photographs

import ionn
from ionn import api
from ionn.address import format_address
from ionn.model import engine
from ionn.model.caffemodel import serialise
from ionn.model.inputs import PHOTOGRAPHS, image_input, natural_images
from ionn.model.network import Network
from ionn.testbed import processes
from tests.support import machine
from tests.support.command import ionn as command
from tests.support.command import serving
from tests.support.forward import Weights, random_weights
from tests.support.world import wait_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fast_server(tiny: Network, tmp_path: Path) -> Iterator[str]:
    """The address of a server that says it takes no time."""
    path = tmp_path / "fast.txt"
    path.write_text("".join(f"{layer.index} {layer.name} 0\n" for layer in tiny.layers))
    with processes.process("serve", "--bind", "tcp://127.0.0.1:0", "--costs", str(path)) as address:
        yield address


# --- Names ----------------------------------------------------------------------------------------------------------


def test_names_are_loaded_when_they_are_used() -> None:
    code = """
import sys, ionn
assert not [name for name in sys.modules if name.startswith("ionn.")], "import ionn loads nothing"
plan = ionn.plan_upload(ionn.load_network("alexnet"))
assert {"caffe", "zmq", "click", "matplotlib", "skimage"}.isdisjoint(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_name_is_there_and_documented() -> None:
    assert dir(ionn) == ionn.__all__ == sorted([*api.__all__, "ClientKeys"])
    for name in ionn.__all__:
        thing = getattr(ionn, name)
        assert thing.__doc__, name
        if not isinstance(thing, type):
            assert "Raises" in thing.__doc__, name
            assert "return" in thing.__annotations__, name
    with pytest.raises(AttributeError, match="no attribute 'load_netwrk'"):
        ionn.load_netwrk  # noqa: B018


def test_a_plan(tiny_files: Path, slow_client: str) -> None:
    network = ionn.load_network(str(tiny_files))
    plan = ionn.plan_upload(network, client=slow_client, server=ionn.load_costs("gtx1080ti"), mbps=8)
    assert plan.partitions
    assert plan.best_ms < plan.local_ms == pytest.approx(3 * len(network.layers))
    with pytest.raises(ionn.InputError, match="did you mean efficiency"):
        ionn.plan_upload(network, algorithm="efficincy")


def test_runs_and_their_traces(tiny_files: Path, tmp_path: Path) -> None:
    (trace,) = ionn.run(str(tiny_files), "original", testbed="virtual", results=tmp_path)
    (read,) = ionn.read_traces(tmp_path)
    assert read == trace
    with pytest.raises(ionn.InputError, match="testbed 'real'"):
        ionn.run(str(tiny_files), testbed="real")


def test_runs_have_costs(tiny_files: Path, slow_client: str, tmp_path: Path) -> None:
    network = ionn.load_network(tiny_files)
    client = ionn.load_costs(slow_client)
    (plain,) = ionn.run(tiny_files)
    assert (plain.info.settings.client, plain.info.server) == ("odroid-xu4", "gtx1080ti")
    for given in (client, slow_client, Path(slow_client)):
        (trace,) = ionn.run(tiny_files, client=given, server="odroid-xu4")
        plan = ionn.plan_upload(network, client=client, server="odroid-xu4")
        assert trace.info.plan.partitions == plan.partitions
        assert trace.info.plan.local_ms == plan.local_ms == pytest.approx(3 * len(network.layers))
        assert trace.info.settings.client.startswith(client.name)
        assert trace.info.server == "odroid-xu4"
    with pytest.raises(ionn.InputError, match="other: not a profile of alexnet"):
        ionn.run("alexnet", client=dataclasses.replace(client, name="other"))
    with pytest.raises(ionn.InputError, match="client 5: give a path"):
        ionn.run(tiny_files, client=5)  # type: ignore[arg-type]

    (live,) = ionn.run(tiny_files, "original", testbed="live", client=client, server="gtx1080ti", results=tmp_path)
    assert live.info.settings.client.startswith(client.name)
    assert live.info.settings.server == live.info.server == "gtx1080ti"
    assert live.info.plan.local_ms == pytest.approx(3 * len(network.layers))
    assert live.queries[0].segments[0].where == "client"
    (paced,) = ionn.read_traces(tmp_path)
    assert paced.info.settings == live.info.settings


# --- Sessions -------------------------------------------------------------------------------------------------------


def test_runs_have_a_link(tiny_files: Path, tmp_path: Path) -> None:
    (ride := tmp_path / "ride.csv").write_text("0,8\n0.05,0\n0.15,4\n")
    given: dict[str, Any] = {"link": str(ride), "delay_ms": 10, "jitter_ms": 2.0, "upload": "yield"}
    (trace,) = ionn.run(tiny_files, **given)
    assert trace.info.settings.mbps is None, "a link is measured, as on the command line"
    assert trace.estimates
    (planned,) = ionn.run(tiny_files, **given, mbps=8)
    assert (planned.info.settings.mbps, planned.estimates) == (8.0, ())
    (constant,) = ionn.run(tiny_files, mbps=None)
    assert constant.info.settings.mbps == 80.0
    assert trace.info.bandwidth is not None
    assert trace.info.bandwidth.mbps == (8.0, 0.0, 4.0)
    assert (trace.info.settings.delay_ms, trace.info.settings.jitter_ms) == (10.0, 2.0)
    assert trace.info.settings.upload == "yield"
    ride.write_text("0,8\n1,0\n")
    for testbed in ("virtual", "live"):
        with pytest.raises(ionn.InputError, match=r"ride\.csv:2: ends in an outage"):
            ionn.run(tiny_files, testbed=testbed, **given)


def test_a_session_without_a_server_computes_here(tiny_files: Path, tiny: Network, tiny_weights: Weights) -> None:
    data = np.random.default_rng(3).standard_normal(tiny.input_shape).astype(np.float32)
    (expected,) = engine.forward(engine.load_network(tiny, tiny_weights), data)
    with ionn.connect(str(tiny_files)) as session:
        assert session.wait_uploaded()
        answer = session.query(data)
        with pytest.raises(ionn.InputError, match=r"data of shape \(3, 24, 24\): tiny takes \(1, 3, 24, 24\)"):
            session.query(data[0])
    np.testing.assert_array_equal(answer.outputs["prob"], expected)
    assert [(part.where, part.first, part.last) for part in answer.segments] == [("client", 0, 6)]
    assert (session.fault, session.uploaded, session.plan.partitions) == (None, 1.0, ())


def test_a_session_offloads(
    tiny_files: Path, slow_client: str, fast_server: str, tiny: Network, tiny_weights: Weights
) -> None:
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal(tiny.input_shape).astype(np.float32) for _ in range(3)]
    net = engine.load_network(tiny, tiny_weights)
    with ionn.connect(str(tiny_files), fast_server, client=slow_client, mbps=80.0) as session:
        answers = [session.query(inputs[0])]
        wait_for(session.wait_uploaded, "the upload")
        answers += [session.query(data) for data in inputs[1:]]
    for data, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["prob"], engine.forward(net, data)[0])
        assert answer.latency_ms > 0
        assert not answer.fallback
    assert session.uploaded == 1.0
    assert [part.where for part in answers[-1].segments] == ["client", "server", "client"]
    assert session.plan.partitions


def test_a_session_whose_server_is_not_there(tiny_files: Path, slow_client: str) -> None:
    with ionn.connect(str(tiny_files), "tcp://127.0.0.1:1", client=slow_client, server="gtx1080ti") as session:
        assert not session.wait_uploaded(timeout_s=30)
        answer = session.query(np.zeros((1, 3, 24, 24), np.float32))
        assert session.uploaded == 0.0
    assert "no server there" in str(session.fault)
    assert [part.where for part in answer.segments] == ["client"]


@pytest.fixture
def vacant() -> Iterator[str]:
    with machine.vacant() as address:
        yield f"tcp://{format_address(address)}"


@pytest.mark.parametrize("costs", ["those that it sends", "given"])
def test_a_server_that_appears_later_is_used(
    costs: str, vacant: str, tiny_files: Path, slow_client: str, tiny: Network, tiny_weights: Weights, tmp_path: Path
) -> None:
    path = tmp_path / "fast.txt"
    path.write_text("".join(f"{layer.index} {layer.name} 0\n" for layer in tiny.layers))
    given = "gtx1080ti" if costs == "given" else None
    data = np.random.default_rng(3).standard_normal(tiny.input_shape).astype(np.float32)
    (expected,) = engine.forward(engine.load_network(tiny, tiny_weights), data)
    with ionn.connect(str(tiny_files), vacant, client=slow_client, mbps=80.0, server=given) as session:
        assert "no server there" in str(session.fault)
        before = session.query(data)
        assert bool(session.plan.partitions) == (costs == "given")  # else nobody knows what a server is worth
        assert session.uploaded == 0.0
        told = [] if costs == "given" else ["--costs", str(path)]
        with processes.process("serve", "--bind", vacant, *told):
            wait_for(session.wait_uploaded, "the upload")
            after = session.query(data)
            assert session.fault is None
            assert session.uploaded == 1.0
            assert session.plan.partitions
    assert [part.where for part in before.segments] == ["client"]
    assert [part.where for part in after.segments] == ["client", "server", "client"]
    assert not after.fallback
    for answer in (before, after):
        np.testing.assert_array_equal(answer.outputs["prob"], expected)


def test_a_server_that_appears_later_without_costs(vacant: str, tiny_files: Path, slow_client: str) -> None:
    with (
        ionn.connect(str(tiny_files), vacant, client=slow_client, mbps=80.0) as session,
        processes.process("serve", "--bind", vacant),
    ):
        wait_for(lambda: "sends no cost model" in str(session.fault), "the fault")
        assert not session.wait_uploaded(timeout_s=30)
        answer = session.query(np.zeros((1, 3, 24, 24), np.float32))
        assert not session.plan.partitions
        assert session.uploaded == 0.0
    assert [part.where for part in answer.segments] == ["client"]


def test_a_sliced_plan_is_made_while_queries_run(
    vacant: str, tiny_files: Path, slow_client: str, tmp_path: Path
) -> None:
    """Which takes Caffe itself, to see that the slices are exact."""
    wide = tiny_files.read_text().replace("num_output: 400", "num_output: 6000")
    network = Network.from_text(wide, "wide")
    weights = random_weights(network, scale=0.1)
    path = tmp_path / "wide.prototxt"
    path.write_text(wide)
    path.with_suffix(".caffemodel").write_bytes(serialise("wide", network.layers, weights).tobytes())
    costs = tmp_path / "costs.txt"
    costs.write_text("".join(f"{layer.index} {layer.name} 0\n" for layer in network.layers))
    data = np.random.default_rng(3).standard_normal(network.input_shape).astype(np.float32)
    (expected,) = engine.forward(engine.load_network(network, weights), data)
    answers = []
    with ionn.connect(str(path), vacant, client=slow_client, mbps=80.0, algorithm="sliced-efficiency") as session:
        with processes.process("serve", "--bind", vacant, "--costs", str(costs)):

            def planned() -> bool:
                answers.append(session.query(data))
                return bool(session.plan.partitions)

            wait_for(planned, "a plan")
            wait_for(session.wait_uploaded, "the upload")
            answers.append(session.query(data))
        assert any(partition.slices for partition in session.plan.partitions)
    for answer in answers:
        np.testing.assert_array_equal(answer.outputs["prob"], expected)
    assert any(part.where == "server" for part in answers[-1].segments)


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads are switched as often as possible."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("restless")
def test_threads_share_a_session(
    vacant: str, tiny_files: Path, slow_client: str, tiny: Network, tiny_weights: Weights, tmp_path: Path
) -> None:
    """Each gets the answer to its own data: alone, while a server is found and planned for, and with it."""
    path = tmp_path / "fast.txt"
    path.write_text("".join(f"{layer.index} {layer.name} 0\n" for layer in tiny.layers))
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal(tiny.input_shape).astype(np.float32) for _ in range(4)]
    net = engine.load_network(tiny, tiny_weights)
    expected = [engine.forward(net, data)[0] for data in inputs]
    answered, wrong, used = Counter[int](), Counter[int](), threading.Event()
    stop = threading.Event()

    def ask(index: int, session: ionn.Session) -> None:
        while not stop.is_set():
            answer = session.query(inputs[index])
            answered[index] += 1
            wrong[index] += answer.outputs["prob"].tobytes() != expected[index].tobytes()
            if any(part.where == "server" for part in answer.segments):
                used.set()

    with ionn.connect(str(tiny_files), vacant, client=slow_client, mbps=80.0) as session, ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask, index, session) for index in range(len(inputs))]
        try:
            wait_for(lambda: sum(answered.values()) > 1000, "queries")
            with processes.process("serve", "--bind", vacant, "--costs", str(path)):
                wait_for(used.is_set, "the server to be used")
                before = sum(answered.values())
                wait_for(lambda: sum(answered.values()) > before + 100, "queries with it")
        finally:
            stop.set()
        for each in asking:
            each.result()
    assert set(answered) == set(range(len(inputs)))
    assert not wrong.total()


@pytest.mark.parametrize("address", [None, "where nobody listens"])
def test_there_is_no_plan_without_the_costs_of_a_server(
    address: str | None, vacant: str, tiny_files: Path, slow_client: str, tmp_path: Path
) -> None:
    path = tmp_path / "planner.py"
    path.write_text("def everything(graph):\n    return [[s] for s, on in enumerate(graph.offloadable) if on]\n")
    algorithm = ionn.add_planner(f"{path}:everything")
    where = address and vacant
    with ionn.connect(str(tiny_files), where, client=slow_client, mbps=80.0, algorithm=algorithm) as session:
        assert session.plan.partitions == ()
        assert session.plan.best_ms == session.plan.local_ms > 0
    with pytest.raises(ionn.InputError, match="unknown algorithm 'everythin'"):
        ionn.connect(str(tiny_files), where, client=slow_client, algorithm="everythin").__enter__()


# --- Mistakes -------------------------------------------------------------------------------------------------------

HUGE = 10**400
ANYTHING: list[Any] = [
    None, True, -1, 0, 2, 1.5, -0.0, float("nan"), float("inf"), HUGE, "80", "", "a", "a\0b", "a\nb", "\ud800",
    "x" * 5000, "a\0b.prototxt", "\ud800.prototxt", "a\0b.csv:x", "a\0b.py:f", ":f", "..:f", b"x",
    Path("a"), Path("a\0b"), [], [[1], [2, 3]], [1, "a"], {}, (1, 3, -4, 4), (0, 3, 4, 4), (1, 3, 10**9, 10**9),
    (1, 3.5, 4, 4), object(), int, len,
    np.zeros((5, 5), np.uint8), np.zeros((0, 0, 3), np.uint8), np.zeros((5, 5, 2), np.uint8), np.zeros((4, 4, 3)),
    np.ones((1, 3, 24, 24), complex), np.full((1, 3, 24, 24), 1e300), np.full((1, 3, 24, 24), "1"),
    np.full((1, 3, 24, 24), None), np.zeros((1, 3, 24, 24), "datetime64[s]"), np.float32(3), np.array(3),
]  # fmt: skip


def connected(*arguments: Any, **named: Any) -> None:
    with ionn.connect(*arguments, **named):
        pass


def naming(name: str, call: Callable[..., object]) -> Callable[[Any], object]:
    """A call that gives what it is given as the argument `name`."""
    return lambda given: call(**{name: given})


def calls(model: Path) -> dict[str, Callable[[Any], object]]:
    """A call of everything public for each of its arguments, which gets what is given, all others being right."""
    network = ionn.load_network(model)
    there = "tcp://127.0.0.1:1"  # nobody is there
    client = "odroid-xu4"
    swept: dict[str, Any] = {"algorithms": ["original"], "out": "sweep.csv"}

    def ask(data: Any) -> object:
        with ionn.connect(model) as session:
            return session.query(data)

    def wait(timeout_s: Any) -> object:
        with ionn.connect(model, there, client=client, server="gtx1080ti") as session:
            return session.wait_uploaded(timeout_s)

    return {
        "load_network": ionn.load_network,
        "Network.load": ionn.Network.load,
        "Network.from_text": lambda given: ionn.Network.from_text(given, "net"),
        "Network.from_text name": lambda given: ionn.Network.from_text(model.read_text(), given),
        "load_costs": ionn.load_costs,
        "ClientKeys secret": lambda given: ionn.ClientKeys(given, "0" * 40),
        "ClientKeys server_public": lambda given: ionn.ClientKeys("0" * 40, given),
        "add_planner": ionn.add_planner,
        "read_traces": ionn.read_traces,
        "read_table": ionn.read_table,
        "Trace.load": ionn.Trace.load,
        "image_input": lambda given: image_input(given, (1, 3, 4, 4)),
        "image_input shape": lambda given: image_input("coffee", given),
        "plan_upload": ionn.plan_upload,
        **{
            f"plan_upload {name}": naming(name, partial(ionn.plan_upload, network))
            for name in ("client", "server", "mbps", "algorithm", "coding", "weight_ratio")
        },
        "run": ionn.run,
        **{
            f"run {name}": naming(name, partial(ionn.run, model))
            for name in (
                "algorithm",
                "testbed",
                "runs",
                "mbps",
                "client",
                "server",
                "results",
                "weights",
                "coding",
                "weight_ratio",
                "window_s",
                "link",
                "delay_ms",
                "jitter_ms",
                "upload",
                "arrivals",
                "busy",
                "deadline_ms",
            )
        },
        "sweep": lambda given: ionn.sweep(given, ["original"], "sweep.csv"),
        **{
            f"sweep {name}": naming(name, partial(ionn.sweep, models=[model], **swept))
            for name in inspect.signature(ionn.sweep).parameters
        },
        "connect": connected,
        **{
            f"connect {name}": naming(name, partial(connected, model))
            for name in (
                "address",
                "weights",
                "client",
                "server",
                "mbps",
                "algorithm",
                "coding",
                "keys",
                "audit",
                "audit_tolerance",
            )
        },
        **{
            f"connect to nobody, {name}": naming(name, partial(connected, model, there, client=client))
            for name in ("server", "mbps", "algorithm", "coding", "keys", "audit", "audit_tolerance")
        },
        "query": ask,
        "wait_uploaded": wait,
    }


@pytest.mark.filterwarnings("error")
def test_a_mistake_is_said_in_one_line(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        # What earlier tests left open is not this test's.
        warnings.simplefilter("ignore")
        gc.collect()
    wrong = []
    for name, call in calls(tiny_files).items():
        for given in ANYTHING:
            if name == "run runs" and given is HUGE:  # who asks for that gets it
                continue
            try:
                call(given)
            except ionn.InputError as error:
                if not str(error).isprintable():
                    wrong.append((name, repr(given)[:40], str(error)))
            except Exception as error:
                wrong.append((name, repr(given)[:40], repr(error)))
    assert not wrong, "\n".join(map(str, wrong))


def test_every_argument_is_mistaken(tiny_files: Path) -> None:
    tried = " ".join(calls(tiny_files))
    # What is not made by its users has no arguments to be mistaken in.
    for name in set(ionn.__all__) - {"Answer", "ExecutionGraph", "InputError", "IonnError", "Plan", "Session", "Slice"}:
        assert name in tried
    for function in (ionn.plan_upload, ionn.run, ionn.sweep, ionn.connect):
        for parameter in list(inspect.signature(function).parameters)[1:]:
            assert f"{function.__name__} {parameter}" in tried


def test_what_is_wrong_is_said_and_what_is_right_is_taken(tiny_files: Path, tiny: Network, tmp_path: Path) -> None:
    # Of types that are taken, or refused, only when it runs.
    data: Any = np.ones(tiny.input_shape)
    mbps: Any = np.float32(80)
    with ionn.connect(tiny_files, weights=tiny_files.with_suffix(".caffemodel"), mbps=mbps) as session:
        expected = session.query(data).outputs["prob"]
        for same in (data.tolist(), data.astype(int), data.astype(bool), data.astype(np.float16)):
            np.testing.assert_array_equal(session.query(same).outputs["prob"], expected)
        wrongs: dict[Any, str] = {
            "abc": r"data of shape \(\): tiny takes \(1, 3, 24, 24\)",
            ((1,), (2, 3)): r"data \(\(1,\), \(2, 3\)\): give an array of the shape \(1, 3, 24, 24\)",
        }
        for wrong, message in wrongs.items():
            with pytest.raises(ionn.InputError, match=message):
                session.query(wrong)
        with pytest.raises(ionn.InputError, match="data of type complex128: tiny takes float32"):
            session.query(data * 1j)
        with pytest.raises(ionn.InputError, match="too large for float32"):
            session.query(data * 1e300)
        with pytest.raises(ionn.InputError, match="timeout_s 'soon': give a number"):
            session.wait_uploaded("soon")  # type: ignore[arg-type]
    with pytest.raises(ionn.InputError, match="mbps '80': give a number"):
        connected(tiny_files, mbps="80")
    with pytest.raises(ionn.InputError, match="runs 0: give a whole number from 1 to 1000000"):
        ionn.run(tiny_files, runs=0)
    with pytest.raises(ionn.InputError, match=r"keys: give ionn\.ClientKeys"):
        connected(tiny_files, keys="secret")
    assert len(ionn.run(tiny_files, results=str(tmp_path), mbps=80)) == len(ionn.read_traces(str(tmp_path))) == 1


def test_coding_is_an_argument_of_plans_and_of_virtual_runs(tiny_files: Path) -> None:
    network = ionn.load_network("alexnet")
    raw, coded = (ionn.plan_upload(network, coding=coding) for coding in ("none", "features"))
    assert coded.best_ms < raw.best_ms / 3
    lossless = ionn.plan_upload(network, coding="lossless", weight_ratio=0.5)
    assert sum(part.wire_bytes for part in lossless.partitions) == pytest.approx(raw.model_bytes / 2, rel=1e-3)
    (trace,) = ionn.run("alexnet", coding="lossless", weight_ratio=0.5, window_s=20.0)
    weight_bytes, weight_wire_bytes = trace.weight_bytes
    assert weight_bytes == raw.model_bytes
    assert weight_wire_bytes == pytest.approx(raw.model_bytes / 2, rel=1e-3)
    assert len(trace.in_window) > trace.queries_before_upload
    (camera,) = ionn.run("alexnet", arrivals="fps:5", busy="drop", deadline_ms=200, window_s=30)
    assert camera.responses.raised == 150
    assert sum(span.dropped for span in camera.responses_over_time) == len(camera.dropped_s) > 50
    times = tiny_files.with_name("times.txt")
    times.write_text("0.5\n0.75\n")
    (listed,) = ionn.run(tiny_files, arrivals=times)
    assert [query.raised_s for query in listed.queries] == [0.5, 0.75]
    for wrong, reason in (
        ({"arrivals": 5}, "arrivals 5: give a path"), ({"arrivals": "fps:0"}, "fps:0"), ({"busy": None}, "busy None"),
        ({"deadline_ms": 100.0}, "give --arrivals too"), ({"arrivals": "fps:1", "busy": "x"}, "may 'wait', or 'drop'"),
    ):  # fmt: skip
        with pytest.raises(ionn.InputError, match=reason):
            ionn.run(tiny_files, testbed="live", **wrong)
    with pytest.raises(ionn.InputError, match="a weight ratio is for the virtual testbed"):
        ionn.run(tiny_files, testbed="live", coding="lossless", weight_ratio=0.5)
    with pytest.raises(ionn.InputError, match="a weight ratio is for the coding lossless"):
        ionn.plan_upload(network, weight_ratio=0.5)


# --- Images ---------------------------------------------------------------------------------------------------------


def test_an_image_is_the_same_by_name_as_pixels_and_from_a_file() -> None:
    shape = (2, 3, 50, 40)
    by_name = image_input("coffee", shape)
    assert by_name.dtype == np.float32
    assert by_name.shape == shape
    np.testing.assert_array_equal(by_name[0], natural_images(shape, 3)[PHOTOGRAPHS.index("coffee")])
    np.testing.assert_array_equal(by_name[0], by_name[1])
    file = Path(photographs.__file__).with_name("coffee.png")
    np.testing.assert_array_equal(image_input(file, shape), by_name)
    pixels = photographs.coffee()  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(image_input(pixels, shape), by_name)


def test_gray_and_transparent_images(tmp_path: Path) -> None:
    from skimage import io

    pixels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    colors = np.repeat(pixels[..., None], 3, axis=2)
    for name, image in {
        "gray": pixels,
        "deep": pixels.astype(np.uint16) * 257,
        "rgba": np.concatenate([colors, np.full((10, 10, 1), 9, np.uint8)], axis=2),
    }.items():
        path = tmp_path / f"{name}.png"
        io.imsave(path, image, check_contrast=False)
        np.testing.assert_array_equal(image_input(path, (1, 3, 10, 10)), image_input(colors, (1, 3, 10, 10)))


# --- ionn classify --------------------------------------------------------------------------------------------------


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"class {letter}\n" for letter in "abcdefghij"))
    return path


def test_classify(tiny_files: Path, tiny: Network, tiny_weights: Weights, labels: Path) -> None:
    scores = engine.forward(engine.load_network(tiny, tiny_weights), image_input("chelsea", tiny.input_shape))[0][0]
    best = scores.argsort()[::-1][:3].tolist()
    done = command("classify", "chelsea", "--model", tiny_files, "--top", "3", "--labels", labels, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [row["class"] for row in shown["classes"]] == best
    assert [row["label"] for row in shown["classes"]] == [f"class {'abcdefghij'[index]}" for index in best]
    assert [row["score"] for row in shown["classes"]] == pytest.approx(scores[best].tolist())
    (segment,) = shown["segments"]
    assert segment["stages"] == [stage.name for stage in tiny.stages]
    text = command("classify", "chelsea", "--model", tiny_files, "--labels", labels).stdout
    assert f"  class {'abcdefghij'[best[0]]}\n" in text
    assert "uploaded" not in text


def test_classify_at_a_server(tiny_files: Path, slow_client: str, fast_server: str) -> None:
    local = json.loads(command("classify", "coffee", "--model", tiny_files, "--json").stdout)
    done = command(
        "classify", "coffee", "--model", tiny_files, "--connect", fast_server, "--client", slow_client, "--mbps", "80",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    remote = json.loads(done.stdout)
    assert remote["classes"] == local["classes"]
    assert remote["uploaded"] == 1
    assert [part["where"] for part in remote["segments"]] == ["client", "server", "client"]


def test_classify_says_what_is_wrong(tiny_files: Path, labels: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("one\n")
    mistakes: dict[tuple[str | Path, ...], str] = {
        ("chelse", "--model", tiny_files): "did you mean chelsea?",
        (labels, "--model", tiny_files): "not an image",
        (tmp_path / "no.png", "--model", tiny_files): "no.png: no such image",
        ("chelsea", "--model", "alexnett"): "did you mean alexnet?",
        ("chelsea", "--model", tiny_files, "--labels", short): "1 labels for the 10 classes of tiny",
        ("chelsea", "--model", tiny_files, "--connect", "box:7675", "--audit-tolerance", "0.1"): "--audit-tolerance is",
        ("chelsea",): "--model",
    }
    for arguments, message in mistakes.items():
        done = command("classify", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.count("\n") == 1
        assert message in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    {
        "--key": "phone.secret",
        "--server-key": "box.public",
        "--wait-s": "1",
        "--audit": "0",
        "--audit-tolerance": "0.1",
        "--algorithm": "recursive-efficiency",
        "--planner": "examples/cheapest_first.py:cheapest_first",
        "--mbps": "80",
        "--coding": "none",
        "--client": "odroid-xu4",
        "--server": "gtx1080ti",
    }.items(),
)
def test_classify_without_a_server_takes_no_option_for_one(option: str, value: str, tiny_files: Path) -> None:
    done = command("classify", "chelsea", "--model", tiny_files, option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ionn: {option} is for a server; give --connect too, or leave it out\n"


def test_classify_without_its_server_answers_and_fails(tiny_files: Path, slow_client: str) -> None:
    options = ("--client", slow_client, "--server", "gtx1080ti")
    done = command("classify", "coffee", "--model", tiny_files, "--connect", "tcp://127.0.0.1:1", *options)
    assert done.returncode == 2
    assert "score  class" in done.stdout
    assert done.stderr == (
        "ionn: tcp://127.0.0.1:1: no server there (Connection refused); the query ran at the client\n"
    )


def test_classify_with_a_part_of_the_plan_answers_and_fails(tiny_files: Path, slow_client: str, tmp_path: Path) -> None:
    """The server refuses the last partition; the others are used."""
    options = ("--client", slow_client, "--server", "gtx1080ti", "--mbps", "80")
    with serving("--weights-mb", "1") as server:
        arguments = ("--model", tiny_files, "--connect", server.address, *options)
        done = command("classify", "coffee", *arguments, "--json")
        run = command(
            "run", tiny_files, "--connect", server.address, "--client", slow_client, "--server", "gtx1080ti",
            "--results", tmp_path / "results",
        )  # fmt: skip
    assert "server" in {part["where"] for part in json.loads(done.stdout)["segments"]}
    assert done.returncode == run.returncode == 2
    assert re.search(r"--weights-mb is 1.*; the query used what was uploaded\n$", done.stderr), done.stderr
    assert re.search(r"--weights-mb is 1.*; \d+ of \d+ queries ran at the client alone\n$", run.stderr), run.stderr


# --- Examples -------------------------------------------------------------------------------------------------------


def example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, f"examples/{name}", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_every_example_is_run() -> None:
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert names == {"cheapest_first.py", "compare_planners.py", "offload_queries.py", "plan_my_model.py"}


def test_examples_that_need_no_server(tiny_files: Path) -> None:
    planned = example("plan_my_model.py", str(tiny_files))
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.startswith("tiny: 12 layers, 7 stages, input (1, 3, 24, 24)\n")
    compared = example("compare_planners.py", "alexnet")
    assert compared.returncode == 0, compared.stderr
    rows = {line.split()[0]: line.split()[1:] for line in compared.stdout.splitlines()[1:]}
    assert list(rows) == ["original", "efficiency", "recursive-efficiency", "cheapest_first"]
    assert len({last_ms for _, _, last_ms in rows.values()}) == 1  # all upload the same stages
    failed = example("plan_my_model.py", "alexnett")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)


def test_the_example_with_a_server(tiny_files: Path, slow_client: str, fast_server: str) -> None:
    done = example("offload_queries.py", fast_server, str(tiny_files), slow_client)
    assert done.returncode == 0, done.stderr
    # The client measures: where each query runs is up to what a busy machine has it believe.
    *_, last = done.stdout.splitlines()
    assert re.fullmatch(r"100% uploaded, +[0-9.]+ ms: class \d, [1-7] stages at the (client|server).*", last)
