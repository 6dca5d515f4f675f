"""Evidence that a server gave a wrong result: files that only the user may read, and of which the oldest go first."""

from __future__ import annotations

import datetime
import io
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from ionn.errors import InputError
from ionn.files import write_file
from ionn.model.caffemodel import Floats

# All evidence of a user together: no server fills a disk with it.
FILES_MAX = 20
BYTES_MAX = 200_000_000


def evidence_folder() -> Path:
    """Where the evidence of this user is: $XDG_STATE_HOME/ionn/audit, by default ~/.local/state/ionn/audit."""
    return platformdirs.user_state_path("ionn") / "audit"


def keep_evidence(report: Mapping[str, Any], arrays: Mapping[str, Floats]) -> Path:
    """Write what was sent, answered and computed, and a report on it; its path.

    The file is numpy's .npz: `arrays` by their names, and `report`, the text of a JSON object, which gets the `time`.
    Raises InputError where it cannot be written.
    """
    now = datetime.datetime.now(datetime.UTC)
    text = json.dumps({"time": now.isoformat(), **report})
    out = io.BytesIO()
    np.savez(out, report=np.array(text), **arrays)  # type: ignore[arg-type]  # numpy takes another argument for one
    content = out.getvalue()
    path = evidence_folder() / f"{now:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}.npz"
    if len(content) > BYTES_MAX:
        raise InputError(f"{path}: cannot write: it would have more than {BYTES_MAX / 1e6:g} MB")
    _make_room(path.parent, len(content))
    write_file(path, content, private=True)
    return path


def _make_room(folder: Path, size: int) -> None:
    """Remove the oldest files until one of so many bytes fits."""
    # One that was being written when its process was killed has a name that goes on.
    files = [(path, path.stat().st_size) for path in sorted(folder.glob("*.npz*"))]
    while files and (len(files) >= FILES_MAX or sum(each for _, each in files) + size > BYTES_MAX):
        files.pop(0)[0].unlink(missing_ok=True)
