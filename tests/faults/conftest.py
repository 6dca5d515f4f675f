from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from ionn.model.coded_weights import Sidecar, write
from tests.support.chains import coded_everywhere
from tests.support.world import Server, World


@pytest.fixture(scope="module")
def steady(world: World) -> Iterator[Server]:
    """A server for the tests of a module; one that kills it starts it again."""
    server = Server("--sessions", "200", "--sessions-per-client", "200", "--idle-s", "20", "--stall-s", "5")
    world.check_health(server.address)
    yield server
    world.check_health(server.address)
    server.end_well()


@pytest.fixture(scope="session")
def coded_world(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The same world, where all that can be coded is."""
    path = tmp_path_factory.mktemp("weights") / "tiny.coded"
    write(path, world.network, world.weights)
    with Sidecar(path, world.network, world.weights) as sidecar:
        graph = coded_everywhere(world.graph, world.network)
        coded = World(world.network, world.weights, graph, sidecar.frames)
        assert any(partition.caffemodel.coded for partition in coded.partitions)
        yield coded


@pytest.fixture(params=["raw", "coded"])
def any_world(request: pytest.FixtureRequest) -> World:
    """The world, raw and coded."""
    return cast("World", request.getfixturevalue("coded_world" if request.param == "coded" else "world"))
