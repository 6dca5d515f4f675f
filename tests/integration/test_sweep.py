"""`ionn sweep` as a user runs it: in processes here and on a Dask cluster, killed, resumed, given what cannot be."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import psutil
import pytest

from ionn import sweep
from ionn.evaluation.sweep_figures import gains_text
from ionn.paper import MODELS
from ionn.testbed.sweep import expand
from ionn.testbed.sweep_table import HEADER, read_table
from tests.support.command import ionn

GRID = ["--model", "mobilenet", "--model", "resnet", "--algorithm", "original", "--algorithm", "sliced-efficiency",
        "--mbps", "2:600:60"]  # fmt: skip
# Far too large to end before a test ends it.
LARGE_GRID = [*GRID[:-1], "2:600:20000"]
CHAIN = "".join(
    f'layer {{ name: "c{i}" type: "Convolution" bottom: "{f"c{i - 1}" if i else "data"}" top: "c{i}" '
    f"convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 }} }}\n"
    for i in range(24)
)
OWN = """
from ionn.model.slices import Slice
import helper_of_mine_that_nobody_has as helper

def backwards(graph):
    stages = sorted(graph.shortest_path([0.0] * len(graph.stages)), reverse=True)
    return [[stage] for stage in stages if helper.wanted(stage)]
"""

WAITING = """
import os, time

def waiting(graph):
    while "res2a" in graph.stages and not os.path.exists("go"):
        time.sleep(0.02)
    return [[stage] for stage in graph.shortest_path([0.0] * len(graph.stages))]
"""

TELLING = """
import os

def telling(graph):
    open(os.path.join({folder!r}, str(os.getpid())), "w").close()
    return []
"""


# Of a Dask cluster on this machine.
OPTIONS = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table that one process makes."""
    out = tmp_path_factory.mktemp("alone") / "sweep.csv"
    done = ionn("sweep", *GRID, "--jobs", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


def test_two_processes_make_the_same_table(alone: bytes, tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    done = ionn("sweep", *GRID, "--jobs", "2", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_bytes() == alone
    rows = read_table(out)
    assert len(rows) == 2 * 2 * 60
    # What it says of them.
    assert done.stdout.splitlines()[-1] == str(out)
    assert [line.split()[:2] for line in done.stdout.splitlines()[2:-2]] == [
        ["ResNet", "sliced-efficiency"], ["MobileNet", "sliced-efficiency"],
    ]  # fmt: skip


def test_the_documented_table_is_what_comes_out(tmp_path: Path) -> None:
    """Of the servers in docs/sweeps.md, the table is of the one that is as fast as the paper's."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^```text\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    algorithms = ["original", "recursive-efficiency", "sliced-efficiency"]
    mbps = list(map(float, expand("1:1000:31")))
    assert "--mbps 1:1000:31" in page
    assert table == gains_text(sweep(list(MODELS), algorithms, tmp_path / "sweep.csv", mbps=mbps, jobs=1))


def wait_for_rows(out: Path, process: subprocess.Popen[Any]) -> None:
    """Return when the table has 40 rows, or the process has ended."""
    end_s = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end_s:
        if out.exists() and out.read_bytes().count(b"\n") > 40:
            return
        time.sleep(0.01)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_it_goes_on_where_it_ended(tmp_path: Path, end: signal.Signals) -> None:
    """It is ended when it has the rows of one model, and cannot have the other's, whose planner waits."""
    out, whole = tmp_path / "sweep.csv", tmp_path / "whole.csv"
    (tmp_path / "own.py").write_text(WAITING)
    grid = ["--model", "mobilenet", "--model", "resnet", "--algorithm", "original", "--planner", "own.py:waiting",
            "--mbps", "2:600:60", "--jobs", "2"]  # fmt: skip
    command = [sys.executable, "-m", "ionn", "sweep", *grid, "--out"]
    with subprocess.Popen(
        [*command, str(out)], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_rows(out, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(end)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if end == signal.SIGKILL else 130)
    if end != signal.SIGKILL:
        assert said.strip() == "ionn: interrupted"
    assert not psutil.wait_procs(workers, timeout=60)[1]  # nothing goes on
    kept = set(read_table(out))
    assert len(kept) == 2 * 60
    (tmp_path / "go").touch()
    for table in (out, whole):
        subprocess.run([*command, str(table)], cwd=tmp_path, check=True, capture_output=True)
    assert out.read_bytes() == whole.read_bytes()
    assert kept < set(read_table(whole))


def test_a_worker_that_is_killed_loses_no_row(tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    command = [sys.executable, "-m", "ionn", "sweep", *LARGE_GRID, "--jobs", "2", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for_rows(out, process)
        children = psutil.Process(process.pid).children(recursive=True)
        for worker in [child for child in children if "LokyProcess" in " ".join(child.cmdline())]:
            with contextlib.suppress(psutil.NoSuchProcess):  # when one is killed, the others are ended
                worker.kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a process of the sweep was killed; run it again" in said
    assert "Traceback" not in said
    assert read_table(out)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Dask scheduler with two workers, processes of their own, on loopback."""
    start: Any = distributed.LocalCluster
    with start(n_workers=2, processes=True, **OPTIONS) as made:
        yield made.scheduler_address


def test_a_cluster_makes_the_same_table(alone: bytes, cluster: str, tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    done = ionn("sweep", *GRID, "--cluster", cluster, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_bytes() == alone


@pytest.mark.parametrize("workers", [1, 2])
def test_only_the_workers_of_a_cluster_make_runs(workers: int, tmp_path: Path) -> None:
    """Also where there is one, with one thread."""
    (tmp_path / "own.py").write_text(TELLING.format(folder=str(tmp_path)))
    start: Any = distributed.LocalCluster
    with start(n_workers=workers, processes=True, **OPTIONS) as made, made.get_client() as client:
        pids = {str(pid) for pid in client.run(os.getpid).values()}
        done = ionn("sweep", *GRID, "--planner", f"{tmp_path / 'own.py'}:telling", "--cluster",
                    made.scheduler_address, "--out", tmp_path / "sweep.csv")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(pids) == workers
    assert {path.name for path in tmp_path.glob("[0-9]*")} <= pids


def test_a_planner_goes_along_to_a_cluster(cluster: str, tmp_path: Path) -> None:
    """Its workers have neither its file nor the model's; what it imports beside its file they do not get."""
    (tmp_path / "own.py").write_text(OWN.replace("import helper_of_mine_that_nobody_has as helper\n", "").replace(
        " if helper.wanted(stage)", ""))  # fmt: skip
    model = tmp_path / "chain.prototxt"
    model.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 64 dim: 64 } } }\n'
        + CHAIN
    )
    planner = f"{tmp_path / 'own.py'}:backwards"
    given: list[str | Path] = ["--model", model, "--planner", planner, "--algorithm", "original"]
    grid = [*given, "--mbps", "10:900:40", "--client", "0.01*odroid-xu4"]
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    assert ionn("sweep", *grid, "--jobs", "1", "--out", here).returncode == 0
    done = ionn("sweep", *grid, "--cluster", cluster, "--out", there)
    assert done.returncode == 0, done.stderr
    assert there.read_bytes() == here.read_bytes()
    own = [row for row in read_table(there) if row.algorithm.startswith("backwards (")]
    assert len(own) == 40
    assert max(row.partitions for row in own) > 5


def test_what_a_cluster_cannot_load_is_said(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "helper_of_mine_that_nobody_has.py").write_text("def wanted(stage): return True\n")
    out = tmp_path / "sweep.csv"
    done = ionn("sweep", *GRID, "--planner", f"{tmp_path / 'own.py'}:backwards", "--cluster", cluster, "--out", out)
    assert done.returncode == 2
    assert "a worker cannot load what it is to run" in done.stderr
    assert "helper_of_mine_that_nobody_has" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cluster_that_is_lost_loses_no_row(tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    command = [sys.executable, "-m", "ionn", "sweep", *LARGE_GRID, "--out", str(out)]
    start: Any = distributed.LocalCluster
    with start(n_workers=2, processes=True, **OPTIONS) as made:
        address = made.scheduler_address
        process = subprocess.Popen([*command, "--cluster", address], stderr=subprocess.PIPE, text=True)
        wait_for_rows(out, process)
    with process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = said.splitlines()
    assert f"{address}: this cluster was lost" in line
    assert read_table(out)


def test_a_cluster_that_loses_its_workers_is_lost(tmp_path: Path) -> None:
    """Its scheduler lives on, and answers."""
    out = tmp_path / "sweep.csv"
    command = [sys.executable, "-m", "ionn", "sweep", *LARGE_GRID, "--out", str(out)]
    start: Any = distributed.LocalCluster
    with start(n_workers=2, processes=True, **OPTIONS) as made:
        address = made.scheduler_address
        with subprocess.Popen([*command, "--cluster", address], stderr=subprocess.PIPE, text=True) as process:
            wait_for_rows(out, process)
            made.scale(0)
            _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = said.splitlines()
    assert f"{address}: this cluster was lost (no workers are left" in line
    assert read_table(out)


def test_a_planner_that_ends_its_workers_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import os\ndef dies(graph): os._exit(3)\n")
    start: Any = distributed.LocalCluster
    with start(n_workers=1, processes=True, **OPTIONS) as made:
        done = ionn(
            "sweep", "--model", "mobilenet", "--planner", f"{tmp_path / 'own.py'}:dies", "--cluster",
            made.scheduler_address, "--out", tmp_path / "sweep.csv",
        )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "this cluster was lost" in line


def test_progress_is_on_a_terminal(tmp_path: Path) -> None:
    """With the time left; on anything else there is none."""
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (24, 100))
    command = [sys.executable, "-m", "ionn", "sweep", *GRID, "--jobs", "1", "--out", str(tmp_path / "sweep.csv")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=end) as process:
        os.close(end)
        said = b""
        while True:
            try:
                said += os.read(terminal, 1024)
            except OSError:  # the other end was closed
                break
    os.close(terminal)
    assert process.returncode == 0
    assert b"sweep:" in said
    assert b"240" in said
    assert b"<00:" in said


def test_figures_and_what_runs_fail(tmp_path: Path) -> None:
    model = tmp_path / "chain.prototxt"
    model.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 64 dim: 64 } } }\n'
        + CHAIN
    )
    out, figures = tmp_path / "new" / "sweep.csv", tmp_path / "figures"
    done = ionn(
        "sweep", "--model", model, "--model", "mobilenet", "--algorithm", "original", "--algorithm", "optimal",
        "--algorithm", "efficiency", "--mbps", "700:900:2", "--server", "0.5:1:2*gtx1080ti", "--client",
        "0.01*odroid-xu4", "--out", out, "--figures", figures,
    )  # fmt: skip
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert sum("drawn:" in line for line in lines) == 4
    assert {path.name for path in figures.iterdir()} == {
        f"sweep-{name}.{kind}" for name in ("lines", "map") for kind in ("png", "pdf")
    }
    failed = [line for line in lines if "cannot be made" in line]
    assert "drawn:" not in lines[0]  # what fails is told first
    assert any(
        line.startswith("ionn: chain (") and "optimal: 4 runs cannot be made: optimal: " in line for line in failed
    )
    assert failed[-1].endswith(f"the others are in {out}")
    with out.open(newline="") as file:
        algorithms = {row["algorithm"] for row in csv.DictReader(file)}
    assert {"original", "efficiency"} <= algorithms


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--mbps", "1:x:3"], "give FIRST:LAST:COUNT"),
        (["--mbps", "0"], "0.001"),
        (["--mbps", "0.0001:1:5"], "0.001"),
        (["--model", "alexnt"], "did you mean alexnet?"),
        (["--algorithm", "orignal"], "did you mean original?"),
        (["--server", "0.1:10:3*gtx1080"], "did you mean gtx1080ti?"),
        (["--coding", "all"], "coding"),
        (["--arrivals", "fps:0"], "queries a second"),
        (["--seed", "-1"], "seed"),
        (["--planner", "none.py:plan"], "none.py"),
        (["--jobs", "2", "--cluster", "tcp://127.0.0.1:9"], "leave one of them out"),
        (["--cluster", "tcp://127.0.0.1:9"], "no Dask scheduler answers there"),
        (["--cluster", "nowhere://x"], "nowhere://x"),
        (["--figures", "f"], "the figures of a sweep compare algorithms with original at several bandwidths"),
        (["--figures", "/dev/null/f", "--mbps", "5:80:2"], "/dev/null/f/sweep-lines.png: cannot write there"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, options: list[str], reason: str) -> None:
    out = tmp_path / "sweep.csv"
    done = ionn("sweep", "--model", "mobilenet", "--out", out, *options)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert reason in line
    assert not out.exists() or out.read_text() == HEADER


@pytest.mark.parametrize("where", ["--jobs", "--cluster"])
def test_a_planner_that_cannot_be_sent_is_named(where: str, cluster: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import threading\nLOCK = threading.Lock()\ndef locking(graph):\n    with LOCK: return []\n"
    )
    out = tmp_path / "sweep.csv"
    grid = [*GRID, "--planner", f"{tmp_path / 'own.py'}:locking"]
    done = ionn("sweep", *grid, where, "2" if where == "--jobs" else cluster, "--out", out)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("ionn: planner locking: other processes cannot be given it (TypeError: ")
    assert ionn("sweep", *grid, "--jobs", "1", "--out", out).returncode == 0


def test_what_a_process_cannot_load_is_said(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "helper_of_mine_that_nobody_has.py").write_text("def wanted(stage): return True\n")
    out = tmp_path / "sweep.csv"
    done = ionn("sweep", *GRID, "--planner", f"{tmp_path / 'own.py'}:backwards", "--jobs", "2", "--out", out)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "a process of the sweep cannot load what it is to run: ModuleNotFoundError: No module named" in line
    assert line.endswith("'helper_of_mine_that_nobody_has'; use --jobs 1")


def test_two_planners_of_one_name_are_one_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("def plan(graph): return []\n")
    a, b = (f"{tmp_path / name}.py:plan" for name in ("a", "b"))
    out = tmp_path / "sweep.csv"
    done = ionn("sweep", "--model", "mobilenet", "--planner", a, "--planner", b, "--out", out)
    assert (done.returncode, done.stderr) == (2, f"ionn: {a} and {b} have the same name; rename one of the functions\n")
    done = ionn("sweep", "--model", "mobilenet", "--planner", a, "--planner", a, "--out", out)
    assert (done.returncode, len(read_table(out))) == (0, 1)


def test_a_file_of_the_users_is_not_written_into(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("day,steps\n1,9000\n")
    done = ionn("sweep", "--out", mine)
    assert (done.returncode, done.stdout) == (2, "")
    assert "not a table of ionn sweep" in done.stderr
    assert mine.read_text() == "day,steps\n1,9000\n"
    assert ionn("sweep").returncode == 2
