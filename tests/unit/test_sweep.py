"""Sweeps: what is in the grid, what is run, and that a row says what a run of its own does."""

from __future__ import annotations

import itertools
import math
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distributed.protocol import pickle as dask_pickle
from hypothesis import given
from hypothesis import strategies as st

import ionn
from ionn.errors import InputError
from ionn.evaluation.summary import summary
from ionn.model import coded_weights
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners import add_planner
from ionn.testbed import runner, sweep
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.sweep import Failure, Grid, expand, run_sweep, run_task
from ionn.testbed.sweep_table import SweepRow, read_table
from tests.unit.test_custom import WITH_A_DATACLASS

OWN = """
def one_by_one(graph):
    return [[stage] for stage in sorted(graph.shortest_path([0.0] * len(graph.stages)))]

def none(graph):
    raise ValueError("today not")
"""
CHAIN = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 64 dim: 64 } } }\n'
CHAIN += "".join(
    f'layer {{ name: "c{i}" type: "Convolution" bottom: "{f"c{i - 1}" if i else "data"}" top: "c{i}" '
    f"convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 }} }}\n"
    for i in range(24)
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("80", ["80"]),
        ("1:1000:4", ["1", "10", "100", "1000"]),
        ("0.1:10:3*gtx1080ti", ["0.1*gtx1080ti", "1*gtx1080ti", "10*gtx1080ti"]),
        ("1:2:2*my:costs.csv:ms", ["1*my:costs.csv:ms", "2*my:costs.csv:ms"]),
        ("1:3:3", ["1", "1.73205", "3"]),
        ("costs.csv:ms", ["costs.csv:ms"]),
        ("2*costs.csv:ms", ["2*costs.csv:ms"]),
    ],
)
def test_ranges(text: str, values: list[str]) -> None:
    assert expand(text) == values


@given(st.floats(1e-3, 1e3), st.floats(1.01, 1e3), st.integers(2, 50))
def test_a_range_ascends_in_equal_ratios(first: float, ratio: float, count: int) -> None:
    values = list(map(float, expand(f"{first!r}:{first * ratio!r}:{count}")))
    assert (values[0], values[-1], len(values)) == (first, first * ratio, count)
    step = ratio ** (1 / (count - 1))
    assert [b / a for a, b in itertools.pairwise(values)] == pytest.approx([step] * (count - 1), rel=2e-5)


@pytest.mark.parametrize("text", ["9:1:3", "0:1:3", "1:1:3", "1:2:1", "a:2:3", "1:inf:3", "nan:2:3", "1:2:9999999"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="FIRST:LAST:COUNT"):
        expand(text)


@pytest.mark.parametrize("text", ["1:1.0000001:40", "1.23456789:1.2345679:4", "999999.5:1000000:3*gtx1080ti"])
def test_a_range_whose_numbers_are_the_same_in_six_digits_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not told apart by six digits; give fewer"):
        expand(text)


def test_a_grid_is_in_the_order_of_its_columns_and_has_nothing_twice() -> None:
    grid = Grid.of(
        ["mobilenet", "alexnet", "mobilenet"], ["original", "efficiency"], [80, 5, 80.0],
        servers=["gtx1080ti", "2*gtx1080ti", "1*gtx1080ti"], arrivals=["closed", "poisson:2"], seeds=[3, 1],
    )  # fmt: skip
    cells = list(grid.cells())
    assert len(cells) == len(grid) == 2 * 2 * 2 * 2 * 2 * 2
    assert cells[0] == ("mobilenet", "original", 80, "odroid-xu4", "gtx1080ti", "none", "closed", 3)
    assert cells[1][-1] == 1
    order = [list(dict.fromkeys(values)) for values in zip(*cells, strict=True)]
    assert cells == list(itertools.product(*order))
    tasks = grid.tasks(cells)
    assert sorted(run.cell for task in tasks for run in task.runs) == sorted(cells)
    assert all(len(task.runs) <= sweep.RUNS_PER_TASK for task in tasks)


def test_a_row_has_what_the_summary_says_of_the_same_run(tmp_path: Path) -> None:
    grid = Grid.of(
        ["alexnet", "mobilenet"], ["original", "sliced-efficiency"], [7, 80], ["odroid-xu4", "3*odroid-xu4"],
        ["0.1*gtx1080ti", "gtx1080ti"], ["none", "lossless"], ["closed", "poisson:3"], [0, 4],
    )  # fmt: skip
    rows, failures = run_sweep(grid, tmp_path / "sweep.csv", jobs=1)
    assert not failures
    assert [row.cell for row in rows] == list(grid.cells())
    for row in rows:
        (trace,) = runner.run_virtual_all(
            row.model, [row.algorithm], client=row.client, server=row.server, mbps=row.mbps, seed=row.seed,
            coding=row.coding, arrivals=Arrivals(row.arrivals),
        )  # fmt: skip
        (said,) = summary([trace])
        columns = ("partitions", "upload_s", "queries", "mean_ms", "p90_ms", "first_ms", "last_ms", "energy_j")
        expected = [getattr(said, column).mean for column in columns]
        assert repr([float(getattr(row, column)) for column in columns]) == repr(list(map(float, expected)))
        assert (row.local_ms, row.best_ms) == (trace.info.plan.local_ms, trace.info.plan.best_ms)
    # Seeds are those of the arrivals.
    by_cell = {row.cell: row.p90_ms for row in rows}
    changes = dict.fromkeys(("closed", "poisson:3"), 0)
    for row in rows:
        changes[row.arrivals] += row.p90_ms != by_cell[row.cell._replace(seed=0)]
    assert changes["closed"] == 0
    assert changes["poisson:3"] > 20


def test_what_is_there_is_not_run_again_and_what_was_of_another_grid_stays(tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    small = Grid.of(["mobilenet"], ["efficiency"], [20, 80])
    run_sweep(small, out, jobs=1)
    marked = out.read_text().replace("mobilenet,efficiency,80,", "mobilenet,efficiency,80,", 1)
    first, *lines = marked.splitlines()
    parts = lines[1].split(",")
    parts[first.split(",").index("mean_ms")] = "12345"  # by this it is known again
    out.write_text("\n".join([first, lines[0], ",".join(parts)]) + "\n")
    told: list[int] = []

    def begin(total: int) -> Any:
        told.append(total)
        return told.append

    rows, _ = run_sweep(Grid.of(["mobilenet"], ["original", "efficiency"], [80, 300]), out, 1, begin=begin)
    assert told[0] == sum(told[1:]) == 3
    assert [(row.algorithm, row.mbps) for row in rows] == list(itertools.product(["original", "efficiency"], [80, 300]))
    assert rows[2].mean_ms == 12345
    assert [row.mbps for row in read_table(out)] == [20, 80, 300, 80, 300]
    before = out.read_bytes()
    run_sweep(small, out, jobs=1, begin=begin)
    assert told[-1] == 0
    assert sorted(out.read_bytes().splitlines()) == sorted(before.splitlines())


def test_a_run_that_cannot_be_made_does_not_lose_the_others(tmp_path: Path) -> None:
    model = tmp_path / "chain.prototxt"
    model.write_text(CHAIN)
    (tmp_path / "own.py").write_text(OWN)
    grid = Grid.of([model], ["optimal", "original", add_planner(f"{tmp_path / 'own.py'}:none")], [800, 900, 1000],
                   ["0.001*odroid-xu4"])  # fmt: skip
    rows, failures = run_sweep(grid, tmp_path / "sweep.csv", jobs=1)
    assert {row.algorithm for row in rows} == {"original"}
    reasons = {(failure.cell.algorithm.partition(" ")[0], failure.reason) for failure in failures}
    assert {name for name, _ in reasons} == {"optimal", "none"}
    assert any("more than the 20" in reason for _, reason in reasons)
    assert any("today not" in reason for _, reason in reasons)
    assert len(rows) + len(failures) == len(grid)
    with pytest.raises(InputError, match=f"{len(failures)} of 9 runs cannot be made, such as chain "):
        ionn.sweep([model], ["optimal", "original", "none"], tmp_path / "sweep.csv", mbps=[800, 900, 1000],
                   clients=["0.001*odroid-xu4"], jobs=1)  # fmt: skip


def test_a_worker_with_another_ionn_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid.of(["mobilenet"], ["original"])
    task = grid.task(list(grid.cells()))
    monkeypatch.setattr(sweep, "own_digest", lambda: "of another one")
    with pytest.raises(InputError, match="another version of ionn; install the same one there"):
        run_task(task)


def test_costs_beyond_what_can_be_planned_are_a_failure() -> None:
    grid = Grid.of(["alexnet"], ["original", "efficiency"], [1e-30])
    (task,) = grid.tasks(list(grid.cells()))
    found = run_task(task)
    assert all(isinstance(each, Failure) and "check the costs" in each.reason for each in found)
    assert len(found) == 2


def test_what_is_a_users_own_is_told_from_others_and_taken_along(tmp_path: Path) -> None:
    def named(text: str) -> Grid:
        model, costs, planner = tmp_path / "alexnet.prototxt", tmp_path / "phone.txt", tmp_path / "own.py"
        model.write_text(CHAIN.replace("num_output: 8", f"num_output: {len(text)}"))
        costs.write_text(
            "".join(f"{i} {name} {len(text)}\n" for i, name in enumerate(["data", *(f"c{i}" for i in range(24))]))
        )
        planner.write_text(OWN.replace("[0.0]", f"[{len(text) * 2.0 - 2:.1f}]"))
        times = tmp_path / "times"
        times.write_text(f"0\n{len(text)}\n")
        return Grid.of([model], [add_planner(f"{planner}:one_by_one")], [80], [f"2*{costs}"], arrivals=[str(times)])

    first, second = named("a"), named("bb")
    (a,), (b,) = first.cells(), second.cells()
    assert a.model.startswith("alexnet (")
    assert a.algorithm.startswith("one_by_one (")
    assert a.client.startswith("2*phone.txt (")
    assert a.arrivals.startswith("times (")
    assert all(getattr(a, name) != getattr(b, name) for name in ("model", "algorithm", "client", "arrivals"))
    # A task needs no file, and the planner that the grid was made with counts.
    (task,) = first.tasks([a])
    (here,) = run_task(task)
    for file in tmp_path.iterdir():
        file.unlink()
    dumps: Any = dask_pickle.dumps
    (again,) = run_task(pickle.loads(dumps(task)))
    assert again == here
    (other,) = run_task(second.tasks([b])[0])
    assert isinstance(here, SweepRow)
    assert isinstance(other, SweepRow)
    assert here.partitions > other.partitions  # the second planner uploads less


def test_planners_of_one_factory_have_rows_of_their_own(tmp_path: Path) -> None:
    def first_stages(count: int) -> Callable[[ExecutionGraph], list[list[int]]]:
        def planner(graph: ExecutionGraph) -> list[list[int]]:
            return [[stage] for stage in sorted(graph.shortest_path([0.0] * len(graph.stages)))][:count]

        return planner

    found = []
    for count in (1, 4, 1):
        (row,) = ionn.sweep(["mobilenet"], [add_planner(first_stages(count))], tmp_path / "sweep.csv", jobs=1)
        found.append(row.partitions)
    assert found == [1, 4, 1]
    assert len(read_table(tmp_path / "sweep.csv")) == 2


def test_a_planner_with_a_dataclass_is_sent_to_other_processes(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(WITH_A_DATACLASS)
    planner = add_planner(f"{tmp_path}/own.py:chosen")
    models = ["alexnet", "mobilenet"]  # a task each
    here = ionn.sweep(models, [planner], tmp_path / "here.csv", jobs=1)
    assert ionn.sweep(models, [planner], tmp_path / "there.csv", jobs=2) == here


def test_tasks_in_threads_of_a_worker_do_not_mix_planners_of_one_name() -> None:
    """Each begins before the other has planned."""
    begun = threading.Barrier(2, timeout=60)

    def task(count: int) -> sweep.Task:
        def most(graph: ExecutionGraph) -> list[list[int]]:
            begun.wait()
            return [[stage] for stage in sorted(graph.shortest_path([0.0] * len(graph.stages)))][:count]

        grid = Grid.of(["mobilenet"], [add_planner(most)], [80, 300])
        return grid.task(list(grid.cells()))

    tasks = [task(1), task(4)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(run_task, tasks))
    assert [[row.partitions for row in rows if isinstance(row, SweepRow)] for rows in found] == [[1, 1], [4, 4]]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"models": []}, "a sweep needs a model"),
        ({"models": ["alexnot"]}, "did you mean alexnet"),
        ({"algorithms": ["originl"]}, "did you mean original"),
        ({"mbps": [-1.0]}, "bandwidth -1"),
        ({"mbps": [math.nan]}, "bandwidth nan"),
        ({"clients": ["odroid"]}, "did you mean odroid-xu4"),
        ({"servers": ["0*gtx1080ti"]}, "how many times as fast"),
        ({"codings": ["lossles"]}, "lossless"),
        ({"arrivals": ["fps:0"]}, "queries a second"),
        ({"seeds": [-1]}, "seed -1"),
        ({"seeds": range(1_000_001)}, "at most 1000000"),
        ({"seeds": range(1_000), "servers": ["none.txt"] * 1_001}, "a sweep of 1001000 runs"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Grid.of(**({"models": ["alexnet"], "algorithms": ["original"]} | changed))


def test_costs_of_another_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "phone.txt").write_text("0 data 1\n")
    with pytest.raises(InputError, match="not a profile of alexnet"):
        Grid.of(["alexnet"], ["original"], clients=[tmp_path / "phone.txt"])


def test_the_library_takes_lists(tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    rows = ionn.sweep(["mobilenet"], ["original"], out, mbps=[80], jobs=1)
    assert rows == read_table(out)
    for wrong in (
        {"mbps": 80},
        {"mbps": ["80"]},
        {"seeds": [1.5]},
        {"seeds": [True]},
        {"codings": "none"},
        {"jobs": 0},
    ):
        with pytest.raises(InputError):
            ionn.sweep(["mobilenet"], ["original"], out, **wrong)
    with pytest.raises(InputError, match="models 'mobilenet': give a list"):
        ionn.sweep("mobilenet", ["original"], out)


def test_a_scheduler_that_is_lost_counts_as_one_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its client says of it then has no word of workers."""
    closed = threading.Event()

    class Lost:
        def scheduler_info(self) -> dict[str, Any]:
            return {"type": "Scheduler"}

        def close(self) -> None:
            closed.set()

    def wait_for_results() -> None:
        with sweep._watched(Lost()):
            assert closed.wait(60)
            raise CancelledError

    monkeypatch.setattr(sweep, "CLUSTER_S", 0)
    with pytest.raises(OSError, match="no workers are left"):
        wait_for_results()


def test_rows_of_other_coded_weights_are_told_apart(tiny: Network, tiny_files: Path, tmp_path: Path) -> None:
    def swept(name: str) -> list[SweepRow]:
        codings = ["none", "lossless"]
        return ionn.sweep([tiny_files], ["original"], tmp_path / name, mbps=[80], codings=codings, jobs=1)

    raw = swept("table.csv")
    assert swept("table.csv") == raw
    assert [row.coding for row in raw] == ["none", "lossless"]
    coded_weights.update(tiny_files.with_suffix(".caffemodel"), tiny)
    none, lossless = swept("table.csv")
    assert [none, lossless] == swept("new.csv")
    assert none == raw[0]
    assert lossless.coding.startswith("lossless (")
    assert lossless.upload_s < raw[1].upload_s
    assert len(read_table(tmp_path / "table.csv")) == 3
