"""A helper process that may die of what it is asked: the tests that ask it notice, and start another."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parents[2]


class DiedError(Exception):
    """The process ended where an answer was due."""


class Remote:
    """A process that runs a module of this package, which calls `serve`. Use it in a `with` statement.

    `environment` is what it has more; what Caffe says goes to `log`: mostly the signal that it dies of tells enough.
    """

    def __init__(
        self, module: str, environment: Mapping[str, str] | None = None, log: IO[bytes] | int = subprocess.DEVNULL
    ) -> None:
        self._module = module
        self._environment = environment or {}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        return process.wait()

    def ask(self, request: Any) -> Any:
        """The answer to a request. Raises DiedError where there is none; the next request gets a new process."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"tests.support.{self._module}"], cwd=ROOT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                # glibc fills what it frees, so that whatever reads it later reads nonsense.
                env={**os.environ, "MALLOC_PERTURB_": "165", **self._environment},
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            # Closing its pipes ends a process that lives.
            raise DiedError(f"{self._module} ended with exit code {self._end()}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer requests until there are no more. What `answer` raises is raised where it was asked."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may be among the answers
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            result = answer(request)
        except Exception as error:
            result = AssertionError(f"{type(error).__name__}: {error}")
        pickle.dump(result, answers)
        answers.flush()
