from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ionn.client.connection import ping
from tests.fuzz.peer import Bystander, Peer
from tests.fuzz.strategies import CASES

# Tight ones, so that what a mutation lets grow is refused and not computed; but a busy machine may take minutes for the
# cases between which the bystander says nothing.
LIMITS = ("--sessions", "50", "--sessions-per-client", "50", "--blob-mb", "1", "--memory-mb", "100", "--idle-s", "3600")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that must survive everything: it is the same at the end, and said nothing. It has a store."""
    store = ("--store", str(tmp_path_factory.mktemp("fuzz") / "store"), "--store-gb", "0.01", "--store-shared")
    command = [sys.executable, "-m", "ionn", "serve", "--bind", "tcp://127.0.0.1:0", "--stop-at-eof", *LIMITS, *store]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            yield address
            assert process.poll() is None
            assert ping(address, timeout_s=60).room
        finally:
            process.terminate()
            _, said = process.communicate(timeout=60)
        assert process.returncode == 0
        assert said == ""


@pytest.fixture(scope="module")
def bystander(server: str) -> Iterator[Bystander]:
    with Bystander(server) as bystander:
        yield bystander


@pytest.fixture
def peer(server: str, bystander: Bystander, request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A peer for as many cases as CASES has for the test. Afterwards somebody else's session, and a new one, are
    well."""
    with Peer(server, bystander) as peer:
        yield peer
        assert peer.cases >= CASES[request.function.__name__]
    bystander.check()
    with Bystander(server) as another:
        another.check()
