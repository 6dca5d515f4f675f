"""The command line, run as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def ionn(*arguments: str | Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ionn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
