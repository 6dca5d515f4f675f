from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.strangers.honest import Watched
from tests.support.world import Server, World

OPTIONS = ("--sessions", "8", "--idle-s", "600", "--stall-s", "600", "--hello-s", "2", "--unread-s", "600")


@pytest.fixture(scope="module")
def watched_server(world: World) -> Iterator[Watched]:
    """One server for the strangers of a module: it survives them all, with one honest session from the first to the
    last."""
    server = Server(*OPTIONS)
    watched = Watched(server, world)
    yield watched
    watched.honest.check()
    watched.honest.close()
    server.end_well()


@pytest.fixture
def watched(watched_server: Watched) -> Watched:
    watched_server.begin()
    return watched_server
