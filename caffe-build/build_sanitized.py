"""Build Caffe with AddressSanitizer and UBSan, for `make sanitize`; print the folder that its Python package is in.

    .venv/bin/python caffe-build/build_sanitized.py

It is compiled from the sources and the CMakeLists.txt of the ordinary wheel; `sanitized/` holds what is different.
Folder: build/sanitized, where it stays, so that another call compiles only what has changed. Exit 1: no build.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

from build_wheel import HERE, BuildError, pip, say, unpack

FOLDER = HERE.parent / "build" / "sanitized"


def fetch(folder: Path, log: TextIO) -> Path:
    """The unpacked sources of Caffe, in `folder`; fetched first if they are not there."""
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            pip(
                *("download", "--no-deps", "--no-binary", "brocolli-caffe", "--require-hashes"),
                *("--dest", f"{scratch}/sdist", "-r", HERE / "sdist.txt"),
                log=log,
            )
            (archive,) = Path(scratch, "sdist").iterdir()
            unpack(archive, Path(scratch, "source"))
            Path(scratch, "source").rename(folder)
    (source,) = folder.iterdir()
    return source


def build(log: TextIO) -> Path:
    """The folder that holds the package `caffe`, compiled first."""
    source = fetch(FOLDER / "source", log)
    defines = {
        "SKBUILD_PROJECT_VERSION": "1.0.0",
        "CAFFE_SOURCE": source,
        "CMAKE_BUILD_TYPE": "None",  # no flags but those of sanitized.cmake
        "CMAKE_INSTALL_PREFIX": FOLDER / "lib",
        "CMAKE_PROJECT_INCLUDE": HERE / "sanitized" / "sanitized.cmake",
        "Python_EXECUTABLE": sys.executable,
    }
    work = FOLDER / "work"
    for command in (
        ["cmake", "-S", HERE, "-B", work, "-G", "Ninja", *(f"-D{name}={value}" for name, value in defines.items())],
        ["cmake", "--build", work],
        ["cmake", "--install", work],
    ):
        if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise BuildError(f"'{' '.join(map(str, command[:3]))}' failed; its output is in {log.name}")
    return FOLDER / "lib"


def main() -> int:
    start = time.monotonic()
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with (FOLDER / "build.log").open("w", encoding="utf-8") as log:
            say(f"building Caffe with sanitizers, minutes the first time; log: {log.name}")
            folder = build(log)
    except (BuildError, OSError) as error:
        say(f"error: {error}")
        return 1
    say(f"Caffe with sanitizers built in {time.monotonic() - start:.0f} s")
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
