"""`ionn plan`: what a model would gain, without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ionn.cli.options import (
    COSTS_HELP,
    algorithm_option,
    client_option,
    json_option,
    mbps_option,
    model_argument,
    options,
    weights_argument,
)
from ionn.paper import SERVER

if TYPE_CHECKING:
    from ionn.plan import Partition, Plan


@click.command()
@model_argument
@weights_argument
@options(algorithm_option, mbps_option, client_option)
@click.option("--server", default=SERVER, show_default=True, metavar="COSTS", help=f"The server: {COSTS_HELP}.")
@json_option
def plan(model: str, weights: str | None, algorithm: str, mbps: float, client: str, server: str, as_json: bool) -> None:
    """Print the partitions of MODEL in upload order, with the latency expected after each.

    Example: ionn plan alexnet --algorithm recursive-efficiency --mbps 80 --client odroid-xu4 --server gtx1080ti
    """
    from ionn.cost_files import load_costs
    from ionn.graph import ExecutionGraph, checked_mbps
    from ionn.network import Network
    from ionn.plan import make_plan
    from ionn.planners import get_planner

    checked_mbps(mbps)
    get_planner(algorithm)
    network = Network.load(model)
    if weights is not None:
        from ionn.caffemodel import read_weights

        read_weights(Path(weights), network)
    graph = ExecutionGraph.from_network(network, load_costs(client), load_costs(server), mbps)
    made = make_plan(network, graph, algorithm, mbps)
    click.echo(json.dumps(made.to_json()) if as_json else _plan_text(made))


def _plan_text(plan: Plan) -> str:
    lines = [
        f"{plan.model}, {plan.algorithm}, {plan.mbps:g} Mbps: {len(plan.partitions)} partitions, "
        f"latency {plan.local_ms:.1f} ms at the client alone, {plan.best_ms:.1f} ms at best",
        f"{'':>3} {'MB':>8} {'upload s':>9} {'since start s':>14} {'latency ms':>11}  stages",
    ]
    elapsed_ms = 0.0
    for partition in plan.partitions:
        elapsed_ms += partition.upload_ms
        lines.append(
            f"{partition.index + 1:>3} {partition.bytes / 1e6:>8.2f} {partition.upload_ms / 1e3:>9.2f} "
            f"{elapsed_ms / 1e3:>14.2f} {partition.latency_ms:>11.1f}  {_stages_text(partition)}"
        )
    if not plan.partitions:
        lines.append("nothing is worth offloading")
    return "\n".join(lines)


def _stages_text(partition: Partition) -> str:
    parts = {name: f"[{begin}:{end}]" for name, (begin, end) in partition.slices.items()}
    return " ".join(name + parts.get(name, "") for name in partition.stage_names)
