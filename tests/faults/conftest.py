from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ionn.costs.loading import load_costs
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
from tests.support.world import Server, World


@pytest.fixture(scope="session")
def world(
    tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]], tmp_path_factory: pytest.TempPathFactory
) -> World:
    slow = tmp_path_factory.mktemp("costs") / "slow.txt"
    slow.write_text("".join(f"{layer.index} {layer.name} 3.0\n" for layer in tiny.layers))
    costs = load_costs(str(slow)), load_costs("gtx1080ti")
    return World(tiny, tiny_weights, ExecutionGraph.from_network(tiny, *costs, mbps=80))


@pytest.fixture(scope="module")
def steady(world: World) -> Iterator[Server]:
    """A server for the tests of a module; one that kills it starts it again."""
    server = Server("--sessions", "200", "--idle-s", "20", "--stall-s", "2")
    world.check_health(server.address)
    yield server
    world.check_health(server.address)
    code, said = server.stop()
    assert code == 0, said
    assert "Traceback" not in said
