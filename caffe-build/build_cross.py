"""Print the path of Caffe's wheel for Debian 12 on another processor; build it if the user's cache lacks it.

    PYTHONPATH=. .venv/bin/python caffe-build/build_cross.py arm64

A Debian 12 of this machine's processor gets Debian's cross compiler and CMake, and Python and all libraries of the
other one. `build_wheel.py` runs in there as it does on any Debian: its Python, which qemu's user mode runs, is the
other processor's, so that pip and CMake find what belongs to it, and the compiler is this machine's. The wheel is in
the cache under the key that it would have if it were built on the other processor.

The wheel's path goes to stdout, everything else to stderr. Exit 1: no wheel; 2: it cannot be built here, for want of
root's rights, for example.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shutil
import sys
import time
from pathlib import Path

from build_wheel import HERE, cache_folder, find_wheel, say

from tests.systems.root import MACHINES, check_machine, debian, own_architecture
from tests.systems.script import SetupError, StepError, run_script

RELEASE, VERSION, PYTHON = "bookworm", "12", "311"
# They run while Caffe is built, on this processor.
TOOLS = ("ca-certificates", "cmake", "ninja-build", "protobuf-compiler", "python3-pip-whl")
# What Caffe is built with: the other processor's.
LIBRARIES = (
    "libboost-filesystem-dev", "libboost-python-dev", "libboost-thread-dev", "libgflags-dev", "libgoogle-glog-dev",
    "libhdf5-dev", "libopenblas-dev", "libprotobuf-dev", "python3-dev",
)  # fmt: skip


def build(architecture: str, folder: Path) -> None:
    """Build the wheel into its folder of the cache."""
    check_machine(architecture)
    wheels = folder.parent
    prefix = f"{MACHINES[architecture]}-linux-gnu"
    began = time.monotonic()
    # The same paths in there and here: what build_wheel.py says of them holds in both.
    binds = [(HERE, str(HERE)), (wheels, str(wheels))]
    wheels.mkdir(parents=True, exist_ok=True)
    log = wheels / f"{architecture}-root.log"
    with log.open("w") as output, debian(RELEASE, own_architecture(), binds, output) as root:
        say(f"making a Debian with a cross compiler for {architecture}, some minutes; log: {log}")
        root.run("dpkg", "--add-architecture", architecture)
        root.install(*TOOLS, f"g++-{prefix.replace('_', '-')}", *(f"{name}:{architecture}" for name in LIBRARIES))
        # Debian's python3-venv wants packages of its own architecture that there are for one only: pip comes otherwise.
        root.run("python3", "-m", "venv", "--without-pip", "/build")
        (pip,) = root.folder.glob("usr/share/python-wheels/pip-*.whl")
        pip = Path("/", pip.relative_to(root.folder))
        root.run("/build/bin/python", pip / "pip", "install", "--quiet", "--no-index", pip)
        say(f"made in {time.monotonic() - began:.0f} s")
        root.output = sys.stderr
        root.run(
            *("/build/bin/python", HERE / "build_wheel.py"),
            env={
                "XDG_CACHE_HOME": str(wheels.parents[1]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "CC": f"{prefix}-gcc",
                "CXX": f"{prefix}-g++",
            },
        )


def remove_scratch(folder: Path) -> None:
    """Remove what a build that was killed has left in a wheel's folder. One that goes on has the log's lock."""
    if folder.is_dir():
        with (folder / "build.log").open("a") as log, contextlib.suppress(BlockingIOError):
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob("build-*"):
                shutil.rmtree(left)


def print_wheel() -> None:
    """Print the path of the wheel in the cache, built first if it is not there."""
    parser = argparse.ArgumentParser(description="Print the path of Caffe's wheel for Debian 12 on another processor.")
    parser.add_argument("architecture", help="the processor, as Debian calls it: arm64")
    architecture = parser.parse_args().architecture
    others = MACHINES.keys() - {own_architecture()}
    if architecture not in others:
        raise SetupError(
            f"'{architecture}' is no other processor that Caffe is built for; there is {', '.join(others)}"
        )
    folder = cache_folder(f"cpython-{PYTHON}-{MACHINES[architecture]}-linux-gnu", "debian", VERSION)
    if find_wheel(folder) is None:
        try:
            build(architecture, folder)
        finally:
            remove_scratch(folder)
    wheel = find_wheel(folder)
    if wheel is None:
        raise StepError(f"no wheel is in {folder}")
    print(wheel)


if __name__ == "__main__":
    run_script("build_cross", print_wheel)
