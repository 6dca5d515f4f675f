"""The plans of all five models and three algorithms for the per-layer latencies that IONN's authors published. 1 s.

    python bench/published_plans.py [PROFILES]

PROFILES holds MODEL.csv files with the columns layer, odroid_xu4_ms and gtx1080ti_ms, which are not part of ionn.
A model without published server latencies is planned with the fitted device model, and marked. Load times at the server
are the authors' functions, as in the device model gtx1080ti.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ionn import paper
from ionn.costs.loading import load_costs
from ionn.costs.models import Costs, Milliseconds
from ionn.errors import IonnError
from ionn.model.network import Network
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.testbed.settings import Settings
from ionn.testbed.trace import RunInfo
from ionn.testbed.virtual import run_virtual


@dataclass(frozen=True)
class WithLoads:
    """Published layer latencies, with the load times of a device model."""

    published: Costs
    device: Costs

    @property
    def name(self) -> str:
        return self.published.name

    @property
    def encode_ms_per_mb(self) -> float | None:
        return self.device.encode_ms_per_mb

    @property
    def decode_ms_per_mb(self) -> float | None:
        return self.device.decode_ms_per_mb

    def output_ratios(self, network: Network) -> NDArray[np.float64]:
        return self.published.output_ratios(network)

    def layer_ms(self, network: Network) -> Milliseconds:
        return self.published.layer_ms(network)

    def load_ms(self, network: Network) -> Milliseconds:
        return self.device.load_ms(network)

    def fixed_ms(self, network: Network) -> Milliseconds:
        return self.published.fixed_ms(network)

    def to_json(self) -> dict[str, Any]:
        return self.published.to_json()


def published_graph(model: str, profiles: Path) -> tuple[Network, ExecutionGraph, str]:
    network = Network.load(model)
    table = profiles / f"{model}.csv"
    device = load_costs(paper.SERVER)
    note = ""
    try:
        server: Costs = WithLoads(load_costs(f"{table}:gtx1080ti_ms"), device)
    except IonnError:
        server, note = device, "*"
    return (
        network,
        ExecutionGraph.from_network(network, load_costs(f"{table}:odroid_xu4_ms"), server, paper.MBPS),
        note,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "reference" / "profiles"
    parser.add_argument("profiles", nargs="?", type=Path, default=default)
    profiles = parser.parse_args().profiles
    columns = f"{'partitions':>10} {'halves':>7} {'largest':>8} {'queries':>7} {'upload s':>8}"
    print(f"{'model':<11} {'algorithm':<21} {columns}")
    for model in paper.MODELS:
        try:
            network, graph, note = published_graph(model, profiles)
        except IonnError as error:
            sys.exit(f"published_plans: {error}")
        for algorithm in paper.ALGORITHMS:
            plan = make_plan(network, graph, algorithm, paper.MBPS)
            settings = Settings("virtual", client="published", server="published")
            trace = run_virtual(RunInfo(settings, 1, plan, graph))
            largest = max(plan.partitions, key=lambda partition: partition.bytes)
            halves = "+".join(map(str, trace.partitions_per_half()))
            print(
                f"{model + note:<11} {algorithm:<21} {len(plan.partitions):>10} {halves:>7} "
                f"{largest.bytes / plan.model_bytes:>8.1%} {trace.queries_before_upload:>7} {trace.upload_s:>8.2f}"
            )
            for partition in plan.partitions:
                print(f"    {partition.bytes / 1e6:>8.2f} MB  {' '.join(partition.stage_names)}")
    print("* no published server latencies: planned with the device model gtx1080ti")


if __name__ == "__main__":
    main()
