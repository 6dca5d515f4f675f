"""Files that appear under their names only when they are complete."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ionn.arguments import path_of
from ionn.errors import InputError


def check_writable(path: Path) -> None:
    """Raise InputError if `write_file` could not write there: better before the work than after it."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot write there; choose another file")


def write_file(path: Path, content: bytes) -> None:
    """Write a file, and its folder where there is none. Raises InputError where that is not possible; nothing
    half-written stays behind."""
    path = path_of(path, "file")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot write: {error.strerror}; free space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            part.unlink(missing_ok=True)
