"""The container's start script, without a container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ionn.client.connection import ping
from ionn.protocol.curve import client_keys
from tests.support.world import WAIT_S

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "serve"


@pytest.mark.parametrize(
    "empty", [(), ("server.secret", "server.public"), ("server.secret",), ("health.public",)], ids=" ".join
)
def test_a_first_start_that_was_interrupted_is_made_up_for(empty: tuple[str, ...], tmp_path: Path) -> None:
    """A power failure may leave keys without content."""
    for name in empty:
        (tmp_path / name).touch()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["sh", str(SCRIPT), "--bind", "tcp://127.0.0.1:0"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path}
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert ping(address, client_keys(tmp_path / "health.secret", tmp_path / "server.public"), WAIT_S).room
        finally:
            server.terminate()
    assert server.returncode == 0
