"""A server's temporary files: one folder, gone with the server, however that ended."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "ionn-server-"
# A younger folder may be one whose server is about to lock it.
_LOCKED_WITHIN_S = 10.0


def run_folder() -> str:
    """A new folder, in which this process has its other temporary files too from now on, until it exits.

    A server locks its folder for as long as it lives. Those of servers that were killed are removed here.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = _lock(left)
            if time.time() - left.stat().st_ctime > _LOCKED_WITHIN_S:
                shutil.rmtree(left)
            os.close(descriptor)
    tempfile.tempdir = folder = tempfile.mkdtemp(prefix=_PREFIX)
    _lock(Path(folder))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _lock(folder: Path) -> int:
    """Lock a folder as long as the descriptor is open. Raises OSError if another process has, or if it is not ours."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise PermissionError(folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
