"""How ionn does with the networks that come with Caffe: a table with a line per deploy prototxt below a folder. 15 s.

    pip download --no-deps --no-binary brocolli-caffe brocolli-caffe==9.0.2 && tar xf brocolli-caffe-9.0.2.tar.gz
    python bench/caffe_nets.py brocolli-caffe-9.0.2

The batch is set to 1. Each network is planned for the paper's testbed and computed by Caffe with random weights, whole
and in the partitions of the plan: the outputs must be equal bit for bit.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from ionn import paper
from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.model import engine
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan

HEAD = "| prototxt | layers | stages | MB | partitions | latency, ms | in parts |\n|---|---|---|---|---|---|---|"


def single(text: str) -> str:
    """The text of a deploy prototxt with its batch, the first dimension of the first shape, set to 1."""
    return re.sub(r"(\b(?:dim|input_dim)\s*:\s*)\d+", r"\g<1>1", text, count=1)


def equal_in_parts(network: Network, partitions: list[tuple[int, ...]]) -> bool:
    """Tell whether partial nets, run one after another, compute the same bits as the whole network."""
    rng = np.random.default_rng(1)
    weights = {
        layer.name: tuple(0.05 * rng.standard_normal(shape, np.float32) for shape in layer.weight_shapes)
        for layer in network.layers
        if layer.weight_shapes
    }
    whole = engine.load_network(network, weights)
    data = rng.standard_normal(network.input_shape, np.float32)
    expected = engine.forward(whole, data)
    nets: dict[int, StageNet] = {}
    for stages in partitions:
        for partial in extract(network, stages, weights).nets:
            net = StageNet(partial)
            net.load(weights)
            nets |= dict.fromkeys(range(net.first, net.last + 1), net)
    outputs = [data]
    for stage in range(len(network.stages)):
        net = nets.get(stage, whole)
        net.put(stage, outputs[0])
        net.run(stage, stage)
        outputs = [output.copy() for output in net.outputs(stage)]
    return all(map(np.array_equal, outputs, expected))


def row(path: Path) -> str:
    """The table's line for a prototxt."""
    name = f"| {path.parent.name}/{path.name} | "
    try:
        network = Network.from_text(single(path.read_text(encoding="utf-8")), path.parent.name)
        graph = ExecutionGraph.from_network(network, load_costs(paper.CLIENT), load_costs(paper.SERVER), paper.MBPS)
        plan = make_plan(network, graph, paper.RECURSIVE, paper.MBPS)
    except InputError as error:
        return f"{name}{str(error).removeprefix(f'{path.parent.name}: ')} | | | | | |"
    equal = equal_in_parts(network, [partition.stages for partition in plan.partitions])
    return (
        f"{name}{len(network.layers)} | {len(network.stages)} | {plan.model_bytes / 1e6:.1f} | "
        f"{len(plan.partitions)} | "
        f"{plan.local_ms:.0f} to {plan.best_ms:.0f} | {'bit-equal' if equal else 'DIFFERS'} |"
    )


def main() -> None:
    if len(sys.argv) != 2 or not (paths := sorted(Path(sys.argv[1]).rglob("*.prototxt"))):
        sys.exit("caffe_nets: give a folder with prototxts, such as Caffe's sources")
    print(HEAD)
    for path in paths:
        if "solver" not in path.name:
            print(row(path), flush=True)


if __name__ == "__main__":
    main()
