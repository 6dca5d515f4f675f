from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.world import Server, World


@pytest.fixture(scope="module")
def steady(world: World) -> Iterator[Server]:
    """A server for the tests of a module; one that kills it starts it again."""
    server = Server("--sessions", "200", "--sessions-per-client", "200", "--idle-s", "20", "--stall-s", "2")
    world.check_health(server.address)
    yield server
    world.check_health(server.address)
    server.end_well()
