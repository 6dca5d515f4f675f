"""How a script that makes other Debians ends: with an exit code, one line that says why, and nothing left of it.

Exit code 2: its user has to mend something first; 1: a step failed; 128 and a signal's number: the script was told to
end. In each case the processes that it started are ended, and then its folders removed. Of a script that is killed
(SIGKILL), folders stay; processes do not where their command begins with `WITH_THIS_PROCESS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ionn.__main__ import open_standard_streams
from ionn.errors import InputError

# What the command line of a process begins with that the kernel is to kill when this process has ended.
WITH_THIS_PROCESS = ("setpriv", "--pdeathsig", "KILL")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_CHILD_SUBREAPER = 36


class SetupError(Exception):
    """What the script's user has to mend before it can do its work, in one line."""


class StepError(Exception):
    """What failed, in one line. Further lines are what it said, which is printed first."""


class _Interrupted(BaseException):
    """The script was told to end by the signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.number = number


def run_script(name: str, work: Callable[[], None]) -> NoReturn:
    """Do a script's work, and exit."""
    open_standard_streams()
    os.umask(0o022)  # files of another Debian are for all of its users
    # Of its processes that end, the children become this process's, which can then wait for them.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it, and a shell for jobs in the background
            signal.signal(number, _interrupt)
    code = 0
    why: BaseException | None = None
    try:
        work()
    except (SetupError, InputError) as error:
        code, why = 2, error
    except (StepError, OSError, subprocess.SubprocessError) as error:
        code, why = 1, error
    except _Interrupted as error:
        code, why = 128 + error.number, error
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    sys.stdout.flush()
    if why is not None:
        line, _, said = str(why).partition("\n")
        sys.stderr.write(f"{said}\n{name}: {line}\n".lstrip("\n"))
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the work, once: to be told so again while it ends changes nothing."""
    for each in _SIGNALS:
        signal.signal(each, lambda number, frame: None)
    raise _Interrupted(number)


@contextlib.contextmanager
def scratch_folder(prefix: str, within: Path | None = None) -> Iterator[Path]:
    """A new folder. In the end, all processes that this one has started are ended, and then it is removed."""
    from ionn.testbed.processes import uninterrupted  # not above: it takes long enough for a signal to come

    folder: Path | None = None
    try:
        with uninterrupted():
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=within))
        yield folder
    finally:
        with uninterrupted():
            _end_children()
            if folder is not None:
                shutil.rmtree(folder)


def _end_children() -> None:
    """Kill this process's children until there are none: those of a child that has ended are this process's, too."""
    while children := "".join(file.read_text() for file in Path("/proc/self/task").glob("*/children")).split():
        for pid in map(int, children):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
