"""Without Caffe: what needs none works, what needs it says so in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NO_CAFFE = "raise ModuleNotFoundError(\"No module named 'caffe'\", name='caffe')\n"


MISSING = (
    "ionn: Caffe is missing, and this computes with it; install its wheel, which 'make wheels' builds beside ionn's"
)


def run(folder: Path, *arguments: str, caffe: str = NO_CAFFE) -> subprocess.CompletedProcess[str]:
    """Python where nobody can import Caffe, which includes the processes that it starts: `caffe` is in its place."""
    (folder / "caffe.py").write_text(caffe)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_caffe_cannot_be_imported_here(tmp_path: Path) -> None:
    assert "ModuleNotFoundError" in run(tmp_path, "-c", "import caffe").stderr


def test_planning_and_the_virtual_testbed_work(tmp_path: Path) -> None:
    for line in (
        "plan googlenet --plot plan.png",
        "run alexnet --testbed virtual --results results",
        "figures --results results",
    ):
        done = run(tmp_path, "-m", "ionn", *line.split())
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "plan.png").is_file()
    assert (tmp_path / "results" / "report.md").is_file()


@pytest.mark.parametrize(
    "line", ["classify chelsea --model googlenet", "profile alexnet", "calibrate", "run alexnet --results results"]
)
def test_what_computes_says_that_caffe_is_missing(line: str, tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "ionn", *line.split())
    assert done.returncode == 2
    assert done.stderr == MISSING + "\n"


def test_a_server_says_it_and_ends(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "ionn", "serve", "--bind", "tcp://127.0.0.1:0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == MISSING + "\n"


@pytest.mark.parametrize("length", [2_000, 100_000])
def test_a_server_says_why_even_if_that_is_long(length: int, tmp_path: Path) -> None:
    caffe = f"raise ImportError(chr(0x1F600) * {length}, name='smiles')\n"
    done = run(tmp_path, "-m", "ionn", "serve", "--bind", "tcp://127.0.0.1:0", caffe=caffe)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("ionn: smiles cannot be loaded: ")


def test_a_caffe_that_lacks_something_else_is_not_called_missing(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "ionn", "calibrate", caffe="import what_nobody_has\n")
    assert done.returncode == 2
    assert done.stderr.startswith("ionn: what_nobody_has cannot be loaded: No module named 'what_nobody_has'; ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["ionn", "ionn.cli", "ionn.model.network", "ionn.testbed.virtual"])
def test_caffe_is_not_loaded_by(module: str) -> None:
    code = f"import sys, {module}; print([name for name in sys.modules if name.partition('.')[0] == 'caffe'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
