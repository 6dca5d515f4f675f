"""The cache of Caffe's wheels, without compiling any."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

CAFFE_BUILD = Path(__file__).resolve().parents[2] / "caffe-build"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
BUILT = "shutil.copy(build_wheel.__file__, folder / 'caffe-1.whl')"


def cached_wheel(cache: Path, build: str) -> subprocess.CompletedProcess[str]:
    """What build_wheel.py does, with this expression in place of the build."""
    program = f"""
import os, shutil, signal, build_wheel
build_wheel.build = lambda folder, scratch, log: {build}
build_wheel.main()
"""
    environment = {**os.environ, "PYTHONPATH": str(CAFFE_BUILD), "XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


def test_what_builds_left_that_were_killed_is_removed(tmp_path: Path) -> None:
    for _ in range(2):
        assert cached_wheel(tmp_path, KILLED).returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "ionn" / "wheels").iterdir()
    assert len(list(folder.iterdir())) == 2  # the log, and what the second build left
    wheel = Path(cached_wheel(tmp_path, BUILT).stdout.strip())
    assert set(folder.iterdir()) == {wheel, folder / "build.log"}
    assert cached_wheel(tmp_path, KILLED).stdout.strip() == str(wheel)  # without a build
