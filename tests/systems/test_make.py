"""What make refuses of the targets that make other Debians, before it does anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would do in a folder with our Makefile."""
    (folder / "Makefile").write_bytes((TOP / "Makefile").read_bytes())
    command = ["make", "--dry-run", *arguments]
    # Not as a part of the make that may run the tests.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("goal", ["wheels", "test-service"])
@pytest.mark.parametrize("architecture", ["a'b", "arm64;true", "arm64 arm64", "$(shell touch made)", "`touch made`"])
def test_of_arch_only_a_name_gets_to_the_shell(tmp_path: Path, goal: str, architecture: str) -> None:
    done = make(tmp_path, goal, f"ARCH={architecture}")
    assert (done.returncode, done.stdout, (tmp_path / "made").exists()) == (2, "", False)
    assert "ARCH is arm64" in done.stderr
    assert "build_cross.py arm64" in make(tmp_path, "wheels", "ARCH=arm64").stdout


@pytest.mark.parametrize("name", ["ARCH", "ARCHITECTURE"])
def test_an_environment_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plain = make(tmp_path, "wheels").stdout
    monkeypatch.setenv(name, "x86_64; touch made")
    assert make(tmp_path, "wheels").stdout == plain
    assert "build_cross.py arm64)" in make(tmp_path, "wheels", "ARCH=arm64", "ARCHITECTURE=x").stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave files of root's")
def test_root_leaves_nothing_in_a_checkout_of_another_users(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    for goal in (["wheels", "ARCH=arm64"], ["test-container"]):
        done = make(tmp_path, *goal)
        assert (done.returncode, done.stdout) == (2, "")
        assert "this checkout is not root's" in done.stderr
