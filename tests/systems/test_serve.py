"""What the container runs, without a container: its start script and its health check."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ionn.client.connection import ping
from ionn.protocol.curve import client_keys
from tests.support.raw import Raw
from tests.support.world import WAIT_S
from tests.systems.container import health_command
from tests.systems.dockerfile import parse

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """The address of a server that the start script starts in a folder."""
    command = ["sh", str(DEPLOY / "serve"), "--bind", "tcp://127.0.0.1:0", *options]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.mark.parametrize(
    "empty", [(), ("server.secret", "server.public"), ("server.secret",), ("health.public",)], ids=" ".join
)
def test_a_first_start_that_was_interrupted_is_made_up_for(empty: tuple[str, ...], tmp_path: Path) -> None:
    """A power failure may leave keys without content."""
    for name in empty:
        (tmp_path / name).touch()
    with served(tmp_path) as address:
        assert ping(address, client_keys(tmp_path / "health.secret", tmp_path / "server.public"), WAIT_S).room


def test_a_server_that_is_full_is_healthy(tmp_path: Path) -> None:
    (instruction,) = (each for each in parse((DEPLOY / "Dockerfile").read_text()) if each.keyword == "HEALTHCHECK")

    def healthy(address: str) -> bool:
        words = [word.replace("tcp://127.0.0.1:7675", address) for word in health_command(instruction)]
        return subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, timeout=WAIT_S).returncode == 0

    with served(tmp_path, "--sessions", "1") as address:
        assert healthy(address)
        keys = client_keys(tmp_path / "health.secret", tmp_path / "server.public")
        with Raw(address, keys) as raw:
            assert not ping(address, keys, WAIT_S).room
            assert healthy(address)
            raw.bye()
    assert not healthy(address)
