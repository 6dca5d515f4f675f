"""Evidence that a server gave a wrong result: files that only the user may read. New ones replace the oldest."""

from __future__ import annotations

import datetime
import io
import json
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from ionn.errors import InputError
from ionn.files import locked, write_file
from ionn.model.caffemodel import Floats

# Bounds on all evidence of a user together, so that no server can fill a disk with it.
FILES_MAX = 20
BYTES_MAX = 200_000_000
# A file's name begins with its time. A file whose writer was killed still ends with ".part".
_TIME = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-[0-9a-f]{8}\.npz(\.part)?")


def evidence_folder() -> Path:
    """Where the evidence of this user is: $XDG_STATE_HOME/ionn/audit, by default ~/.local/state/ionn/audit."""
    return platformdirs.user_state_path("ionn") / "audit"


def keep_evidence(report: Mapping[str, Any], arrays: Mapping[str, Floats]) -> Path:
    """Write a file of what was sent, answered and computed, with a report. Returns its path.

    It is a .npz file of numpy. It has the `arrays` by their names, and `report` as the text of a JSON object, to which
    the `time` is added. Raises InputError if it cannot be written, or if there is no home folder.
    """
    try:
        folder = evidence_folder()
    except RuntimeError as error:
        raise InputError(f"no folder for evidence: {error}; set HOME or XDG_STATE_HOME") from error
    with locked(folder, private=True):
        now = datetime.datetime.now(datetime.UTC)
        time = now.strftime(_TIME)
        path = folder / f"{time}-{secrets.token_hex(4)}.npz"
        out = io.BytesIO()
        text = json.dumps({"time": now.isoformat(), **report})
        np.savez(out, report=np.array(text), **arrays)  # type: ignore[arg-type]  # numpy takes another argument for one
        content = out.getvalue()
        if len(content) > BYTES_MAX:
            raise InputError(f"{path}: cannot write: it would have more than {BYTES_MAX / 1e6:g} MB")
        _make_room(folder, len(content), time)
        write_file(path, content, private=True)
    return path


def _make_room(folder: Path, size: int, now: str) -> None:
    """Remove the oldest files until one of `size` bytes fits; before them, those with a time in the future."""
    found = ((_NAME.fullmatch(path.name), path, path.lstat()) for path in folder.iterdir())
    files = [
        (match[1], path, status.st_size) for match, path, status in found if match and stat.S_ISREG(status.st_mode)
    ]
    files.sort(key=lambda file: (file[0] <= now, file[0]))
    while files and (len(files) >= FILES_MAX or sum(each for _, _, each in files) + size > BYTES_MAX):
        files.pop(0)[1].unlink()
