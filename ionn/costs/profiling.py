"""Time the layers of a network on this machine."""

from __future__ import annotations

from collections.abc import Callable

from ionn.costs.models import Profile
from ionn.machine import machine
from ionn.model import engine
from ionn.model.engine import StageNet
from ionn.model.inputs import query_inputs
from ionn.model.network import Network


def profile_network(network: Network, net: StageNet, runs: int, progress: Callable[[], None] = lambda: None) -> Profile:
    """Time every layer of a network in this process."""
    data = query_inputs(network, seed=0, count=1)[0]
    return Profile.of(network, engine.time_layers(net, runs, data, progress), machine=machine())
