"""Models and planners of the user's own: planned, drawn and run like ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ionn.costs.loading import load_costs
from ionn.evaluation.plan_figure import draw_plans, expected_latency
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.paper import CLIENT, SERVER
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners.custom import checked
from ionn.protocol import messages
from ionn.server.limits import Limits
from ionn.server.worker import SessionState
from tests.support.command import ionn
from tests.support.forward import boundary_blobs, random_weights
from tests.support.nets import random_nets
from tests.support.raw import upload_messages

ROOT = Path(__file__).resolve().parents[2]


def replaying(plan: object) -> Callable[[ExecutionGraph], object]:
    """A planner that knows only this plan."""
    return lambda graph: plan


@settings(max_examples=60)
@given(random_nets(), st.sampled_from([1.0, 80.0, 100_000.0]))
def test_every_planner_plans_random_nets(text: str, mbps: float) -> None:
    network = Network.from_text(text, "random")
    graph = ExecutionGraph.from_network(network, load_costs(CLIENT), load_costs(SERVER), mbps)
    plans = [make_plan(network, graph, name, mbps) for name in ("original", "recursive-efficiency", "optimal")]
    for plan in plans:
        pieces = [partition.pieces for partition in plan.partitions]
        checked("same", replaying(pieces))(graph)  # raises if it is none
        assert expected_latency(plan)[1][-1] == plan.best_ms <= plan.local_ms
        assert all(partition.bytes > 0 for partition in plan.partitions) or len(plan.partitions) == 1
    weights = random_weights(network)
    blobs = boundary_blobs(network, weights, np.random.default_rng(2).standard_normal((1, 4, 8, 8)).astype(np.float32))
    for partition in plans[1].partitions:
        for partial in extract(network, partition.stages, weights).nets:
            net = StageNet(partial)
            net.load(weights)
            net.put(net.first, blobs[net.first])
            net.run(net.first, net.last)
            np.testing.assert_array_equal(net.outputs(net.last)[0], blobs[net.last + 1])


def test_the_nets_of_caffe() -> None:
    folder = os.environ.get("CAFFE_SOURCES")
    if folder is None:
        pytest.skip("Caffe's sources are not kept after the build; CAFFE_SOURCES=FOLDER names them")
    done = subprocess.run(
        [sys.executable, "bench/caffe_nets.py", folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    deploys = [line for line in done.stdout.splitlines() if "/deploy.prototxt" in line]
    assert len(deploys) >= 5
    assert all(line.endswith("| bit-equal |") for line in deploys)
    assert done.stdout in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_a_deploy_prototxt_has_the_name_of_its_folder(tiny_files: Path) -> None:
    deploy = tiny_files.with_name("deploy.prototxt")
    tiny_files.rename(deploy)
    assert Network.load(str(deploy)).name == tiny_files.parent.name


def test_plan_shows_the_chain(tiny_files: Path) -> None:
    chain = json.loads(ionn("plan", tiny_files, "--json").stdout)["chain"]
    network = Network.load(str(tiny_files))
    assert [row["stage"] for row in chain] == [stage.name for stage in network.stages]
    assert [layer for row in chain for layer in row["layers"]] == [layer.name for layer in network.layers]
    assert [row["pinned"] for row in chain] == [True, *[False] * 5, True]
    assert sum(row["client_ms"] for row in chain) == pytest.approx(load_costs(CLIENT).layer_ms(network).sum(), rel=1e-6)
    text = ionn("plan", tiny_files).stdout
    assert "data (1, stays at the client)" in text
    assert all(f"  {stage.name} (" in text for stage in network.stages)


# --- Figures of plans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_plans_are_drawn_as_the_file_is_named(tiny: Network, tmp_path: Path, kind: str) -> None:
    graph = ExecutionGraph.from_network(tiny, load_costs(CLIENT), load_costs(SERVER), 80)
    plans = [make_plan(tiny, graph, name, 80) for name in ("original", "optimal")]
    one, two = (draw_plans(plans, tmp_path / "new" / f"{name}.{kind}") for name in ("one", "two"))
    drawn = one.read_bytes()
    assert drawn.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert drawn == two.read_bytes()


def test_the_curve_of_a_plan_is_what_the_plan_says(tiny: Network) -> None:
    graph = ExecutionGraph.from_network(tiny, load_costs(CLIENT), load_costs(SERVER), 800)
    plan = make_plan(tiny, graph, "recursive-efficiency", 800)
    times_s, latencies_ms = expected_latency(plan)
    assert len(plan.partitions) >= 2
    assert times_s[0] == 0
    assert times_s[-1] == pytest.approx(sum(p.upload_ms for p in plan.partitions) / 1e3)
    assert latencies_ms == [plan.local_ms, *(p.latency_ms for p in plan.partitions)]


# --- Planners of the user's own -------------------------------------------------------------------------------------

LAST_FIRST = """
from helper import backwards

def last_first(graph):
    return backwards(i for i in range(len(graph.stages)) if graph.offloadable[i])
"""


@pytest.fixture
def planner(tmp_path: Path) -> str:
    """A planner that uploads one stage at a time, the last first; it imports a module beside it."""
    (tmp_path / "mine.py").write_text(LAST_FIRST)
    (tmp_path / "helper.py").write_text("def backwards(stages):\n    return [[s] for s in reversed(list(stages))]\n")
    return f"{tmp_path / 'mine.py'}:last_first"


def test_a_planner_takes_part_in_every_command(planner: str, tiny_files: Path, tmp_path: Path) -> None:
    plan = json.loads(ionn("plan", tiny_files, "--planner", planner, "--json").stdout)
    assert plan["algorithm"] == "last_first"
    stages = [partition["stages"] for partition in plan["partitions"]]
    assert stages == [["fc2"], ["fc1"], ["pool"], ["join"], ["conv1"]]
    drawn = tmp_path / "plan.svg"
    assert ionn("plan", tiny_files, "--planner", planner, "--plot", drawn).returncode == 0
    assert "last_first: 5 partitions" in drawn.read_text(encoding="utf-8")
    results = tmp_path / "results"
    for testbed in ("virtual", "live"):
        done = ionn("run", tiny_files, "--planner", planner, "--testbed", testbed, "--results", results, "--json")
        assert done.returncode == 0, done.stderr
        (run,) = json.loads(done.stdout)["runs"]
        assert run["partitions"] == 5
        assert run["bit_equal"] is (True if testbed == "live" else None)
    assert ionn("figures", "--results", results).returncode == 0
    assert "last_first" in (results / "report.md").read_text(encoding="utf-8")


def test_a_planner_in_a_module_of_this_folder(planner: str, tiny_files: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ionn", "plan", str(tiny_files), "--planner", "mine:last_first"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "last_first" in done.stdout


BAD_PLANNERS = {
    "not Python": ("def mine(graph:", "cannot import it: SyntaxError"),
    "fails to import": ("1 / 0", "cannot import it: ZeroDivisionError: division by zero (mine.py:1)"),
    "fails": ("def mine(graph):\n    return graph.nothing", "planner mine: AttributeError: "),
    "no stage": ("def mine(graph): return [[99]]", "planner mine: not a plan: there is no stage 99; they are 0 to 6"),
}


@pytest.mark.parametrize("case", BAD_PLANNERS, ids=list(BAD_PLANNERS))
def test_a_bad_planner_is_one_clear_line(case: str, tiny_files: Path, tmp_path: Path) -> None:
    code, message = BAD_PLANNERS[case]
    (tmp_path / "mine.py").write_text(code)
    done = ionn("plan", tiny_files, "--planner", f"{tmp_path / 'mine.py'}:mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_bad_names_of_planners(tiny_files: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def optimal(graph): return []")
    mine = f"{tmp_path / 'mine.py'}:optimal"
    for arguments, message in {
        ("--planner", mine): "optimal is one of ionn's own planners",
        ("--planner", "mine.py"): "FILE.py:FUNCTION",
        ("--planner", "no/such.py:mine"): "no/such.py: cannot read the planner: No such file",
        ("--planner", "nosuchmodule:mine"): "ModuleNotFoundError",
        ("--planner", mine, "--algorithm", "original"): "give either",
    }.items():
        done = ionn("plan", tiny_files, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


SLICED = """
name: "sliced"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 32 dim: 16 dim: 16 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 192 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "conv2" type: "Convolution" bottom: "conv" top: "conv2"
        convolution_param { num_output: 96 kernel_size: 1 } }
"""


@pytest.mark.parametrize(
    "made", [[[(1, 0, 48), (1, 48, 96)], [(1, 96, 192)]], [[(1, 0, 48), (1, 48, 192), 2]], [[2, (1, 0, 192)]]]
)
def test_a_server_takes_what_the_check_of_plans_takes(made: list[list[object]]) -> None:
    """Slices of a stage in one partition, and slices with all channels."""
    network = Network.from_text(SLICED, "sliced")
    graph = ExecutionGraph.from_network(network, load_costs(CLIENT), load_costs(SERVER), 80.0)
    weights = random_weights(network)
    data = np.random.default_rng(3).standard_normal(network.input_shape).astype(np.float32)
    blobs = boundary_blobs(network, weights, data)
    session = SessionState("", {}, Limits(), lambda text: None)
    for index, pieces in enumerate(checked("mine", replaying(made))(graph)):
        header, chunks, end = upload_messages(extract(network, pieces, weights), index)
        for message in (header, *chunks, end):
            answer = session.handle(messages.decode(message.frames()))
            assert not isinstance(answer, messages.Error), answer
    result = session.handle(messages.Query(1, 1, 1, (data.tobytes(),)))
    assert isinstance(result, messages.Result), result
    np.testing.assert_array_equal(np.frombuffer(result.payload[0], "<f4"), blobs[2].ravel())
