"""Print the path of the Caffe wheel for the interpreter that runs this; build the wheel if the user's cache lacks it.

    .venv/bin/python caffe-build/build_wheel.py

The cache is ${XDG_CACHE_HOME:-~/.cache}/ionn/wheels/KEY. KEY stands for all that decides what is in the wheel: the
files of this folder (sdist.txt holds the sha256 of Caffe's sources), the interpreter's ABI, and the release of the
system whose libraries it links to. The wheel's path goes to stdout, everything else to stderr. Exit 1: no wheel.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TextIO

HERE = Path(__file__).resolve().parent
RECIPE = ("CMakeLists.txt", "build_wheel.py", "pyproject.toml", "sdist.txt")


class BuildError(Exception):
    """Why there is no wheel, in one line."""


def say(message: str) -> None:
    print(f"build_wheel: {message}", file=sys.stderr, flush=True)


def cache_folder(abi: str, system: str, version: str | None) -> Path:
    """Where the wheel of this recipe, for an interpreter's ABI and a system's release, is kept."""
    key = hashlib.sha256()
    for name in RECIPE:
        key.update(hashlib.sha256((HERE / name).read_bytes()).digest())
    key.update(repr((abi, system, version)).encode())
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "ionn", "wheels", key.hexdigest()[:16])


def find_wheel(folder: Path) -> Path | None:
    return next(folder.glob("caffe-*.whl"), None)


def pip(*arguments: str | Path, log: TextIO) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT).returncode:
        raise BuildError(f"'pip {arguments[0]}' failed; its output is in {log.name}")


def unpack(archive: Path, folder: Path) -> None:
    """Extract the regular files of a tar archive; a name that points out of `folder` raises BuildError.

    Debian 12's tarfile has no extraction filters yet. No links, owners or modes are taken from the archive.
    """
    root = folder.resolve()
    with tarfile.open(archive) as tar:
        for member in tar:
            target = (root / member.name).resolve()
            if not target.is_relative_to(root):
                raise BuildError(f"{archive.name}: refused, its member {member.name!r} points out of the archive")
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)


def has_library(name: str) -> bool:
    """Tell whether the C compiler, that of CMake, finds a library to link to."""
    command = [os.environ.get("CC", "cc"), f"-print-file-name=lib{name}.so"]
    return os.sep in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def build(folder: Path, scratch: Path, log: TextIO) -> Path:
    """Fetch the sources, compile them and move the wheel to `folder`; `scratch` is on the same file system."""
    boost_python = f"boost_python{sys.version_info.major}{sys.version_info.minor}"
    if not has_library(boost_python):
        raise BuildError(
            f"no lib{boost_python}.so for {sys.executable}: Debian builds Boost.Python for its own interpreter only; "
            "use PYTHON=/usr/bin/python3, with libboost-python-dev installed"
        )
    pip(
        *("download", "--no-deps", "--no-binary", "brocolli-caffe", "--require-hashes"),
        *("--dest", scratch / "sdist", "-r", HERE / "sdist.txt"),
        log=log,
    )
    (archive,) = (scratch / "sdist").iterdir()
    unpack(archive, scratch / "source")
    (source,) = (scratch / "source").iterdir()
    define = f"--config-settings=cmake.define.CAFFE_SOURCE={source}"
    pip("wheel", "--verbose", "--no-deps", "--wheel-dir", scratch / "wheel", define, HERE, log=log)
    (wheel,) = (scratch / "wheel").iterdir()
    return wheel.rename(folder / wheel.name)


def cached_wheel() -> Path:
    """The wheel from the cache, built first if it is not there. Raises BuildError or OSError."""
    system = platform.freedesktop_os_release()
    folder = cache_folder(sysconfig.get_config_var("SOABI"), system["ID"], system.get("VERSION_ID"))
    if wheel := find_wheel(folder):
        return wheel
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "build.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # another checkout may be building the same wheel
        if wheel := find_wheel(folder):
            return wheel
        for left in folder.glob("build-*"):  # by a build that was killed
            shutil.rmtree(left)
        log.truncate(0)
        say(f"building Caffe, some 2 minutes on two cores; log: {log.name}")
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
            wheel = build(folder, Path(scratch), log)
        say(f"Caffe built in {time.monotonic() - start:.0f} s")
        return wheel


def main() -> int:
    try:
        print(cached_wheel())
    except (BuildError, OSError, subprocess.SubprocessError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
