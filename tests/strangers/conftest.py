from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ionn.costs.loading import load_costs
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
from tests.strangers.honest import Watched
from tests.support.world import Server, World

OPTIONS = ("--sessions", "8", "--idle-s", "600", "--stall-s", "600", "--hello-s", "2", "--unread-s", "600")


@pytest.fixture(scope="session")
def world(
    tiny: Network, tiny_weights: dict[str, tuple[np.ndarray, ...]], tmp_path_factory: pytest.TempPathFactory
) -> World:
    slow = tmp_path_factory.mktemp("costs") / "slow.txt"
    slow.write_text("".join(f"{layer.index} {layer.name} 3.0\n" for layer in tiny.layers))
    costs = load_costs(str(slow)), load_costs("gtx1080ti")
    return World(tiny, tiny_weights, ExecutionGraph.from_network(tiny, *costs, mbps=80))


@pytest.fixture(scope="module")
def watched_server(world: World) -> Iterator[Watched]:
    """One server for the strangers of a module: it survives them all, with one honest session from the first to the
    last."""
    server = Server(*OPTIONS)
    watched = Watched(server, world)
    yield watched
    watched.honest.check()
    watched.honest.close()
    code, said = server.stop()
    assert code == 0, said
    assert "Traceback" not in said


@pytest.fixture
def watched(watched_server: Watched) -> Watched:
    watched_server.begin()
    return watched_server
