"""The command line, run as a user does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TOP = Path(__file__).resolve().parents[2]
_TOLD_WHILE_IT_IMPORTS = """
import os, runpy, sys

module, number, package = sys.argv[1:4]
del sys.argv[1:4]

class Teller:
    def find_spec(name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Teller)
runpy.run_module(package, run_name="__main__", alter_sys=True)
"""


class Serving(NamedTuple):
    address: str
    pid: int


def ionn(*arguments: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ionn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def told_while_it_imports(module: str, number: int, package: str, *arguments: str) -> tuple[int, str, str]:
    """What `python -m PACKAGE ARGUMENTS` ends with that gets this signal as it begins to import a module: its exit
    code, and what it said."""
    command = [sys.executable, "-c", _TOLD_WHILE_IT_IMPORTS, module, str(int(number)), package, *arguments]
    done = subprocess.run(command, cwd=_TOP, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr.strip()


@contextlib.contextmanager
def serving(*options: str) -> Iterator[Serving]:
    """A server process at a free port. When the context ends it must still be there, and end well."""
    command = [sys.executable, "-m", "ionn", "serve", "--bind", "tcp://127.0.0.1:0", "--stop-at-eof", *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield Serving(process.stdout.readline().strip(), process.pid)
            assert process.poll() is None
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
