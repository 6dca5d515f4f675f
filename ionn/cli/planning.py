"""`ionn plan`: plan an upload, and print the expected latencies without running anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from ionn.cli.options import (
    COSTS_HELP,
    algorithm_option,
    chosen_algorithm,
    client_option,
    coding_option,
    complete_costs,
    json_option,
    mbps_option,
    model_argument,
    options,
    planner_option,
    weight_ratio_option,
    weights_argument,
)
from ionn.errors import InputError
from ionn.paper import SERVER

if TYPE_CHECKING:
    from ionn.model.network import Network
    from ionn.planning.graph import ExecutionGraph
    from ionn.planning.plan import Plan


@click.command()
@model_argument
@weights_argument
@options(algorithm_option, planner_option, mbps_option, client_option)
@click.option(
    "--server",
    default=SERVER,
    show_default=True,
    metavar="COSTS",
    shell_complete=complete_costs,
    help=f"The costs of the server: {COSTS_HELP}.",
)
@options(coding_option, weight_ratio_option)
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw the latency over the time of the upload, for every planner, into a .png, .pdf or .svg.",
)
@json_option
def plan(
    model: str,
    weights: str | None,
    algorithm: str,
    planner: str | None,
    mbps: float,
    client: str,
    server: str,
    coding: str,
    weight_ratio: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Plan the upload of MODEL. Prints the chain of stages with their costs, then the partitions in upload order with
    the latency that is expected after each. If WEIGHTS are given, they must fit the model.

    Example: ionn plan alexnet --algorithm recursive-efficiency --mbps 80 --client odroid-xu4 --server gtx1080ti
    """
    from ionn.coding import LOSSLESS, check_coding
    from ionn.costs.loading import load_costs
    from ionn.model.network import Network
    from ionn.planning.graph import ExecutionGraph, checked_mbps
    from ionn.planning.plan import make_plan

    checked_mbps(mbps)
    check_coding(coding, weight_ratio)
    algorithm = chosen_algorithm(algorithm, planner)
    network = Network.load(model)
    if weights is not None:
        from ionn.model.caffemodel import read_weights

        read_weights(Path(weights), network)
    costs = load_costs(client), load_costs(server)
    coded_bytes = None
    if coding == LOSSLESS and weight_ratio is None:
        from ionn.model.coded_weights import own_wire_bytes

        coded_bytes = own_wire_bytes(model, weights, network)
    graph = ExecutionGraph.from_network(network, *costs, mbps, coding, weight_ratio, coded_bytes)
    made = make_plan(network, graph, algorithm, mbps)
    if plot is not None:
        _plot(network, graph, mbps, plot)
    if as_json:
        mean_ms = None if math.isnan(made.mean_ms) else made.mean_ms
        shown = {**made.to_json(), "mean_ms": mean_ms, "coding": coding, "chain": _chain_json(network, graph)}
        click.echo(json.dumps(shown))
    else:
        click.echo(f"{_chain_text(network, graph)}\n\n{_plan_text(made, graph.stages)}")


def _plot(network: Network, graph: ExecutionGraph, mbps: float, path: Path) -> None:
    from ionn.evaluation.plan_figure import draw_plans
    from ionn.evaluation.style import figure_kind
    from ionn.planning.plan import make_plan
    from ionn.planning.planners import PLANNERS

    figure_kind(path)
    plans = []
    for name in PLANNERS:
        try:
            plans.append(make_plan(network, graph, name, mbps))
        except InputError as error:
            click.echo(f"ionn: not drawn: {error}", err=True)
    click.echo(f"drawn: {draw_plans(plans, path)}", err=True)


def _chain_json(network: Network, graph: ExecutionGraph) -> list[dict[str, Any]]:
    from ionn.planning.coding_costs import UP

    inputs = [graph.transfer(stage.index, UP) for stage in network.stages]
    rows = zip(network.stages, graph.client_ms.tolist(), graph.server_ms.tolist(), inputs, strict=True)
    return [
        {
            "stage": stage.name,
            "layers": list(stage.layers),
            "bytes": stage.weight_bytes,
            "client_ms": client_ms,
            "server_ms": server_ms,
            "input_ms": up.total_ms,
            "input_bytes": up.raw_bytes,
            "input_wire_bytes": up.wire_bytes,
            "pinned": stage.pinned,
        }
        for stage, client_ms, server_ms, up in rows
    ]


def _chain_text(network: Network, graph: ExecutionGraph) -> str:
    lines = [
        f"{network.name}: {len(network.layers)} layers in {len(network.stages)} stages; ms at the client, at the "
        "server, and for the input to go up",
        f"{'MB':>8} {'client':>9} {'server':>9} {'input':>9}  stage (layers)",
    ]
    for row in _chain_json(network, graph):
        count, stays = len(row["layers"]), ", stays at the client" if row["pinned"] else ""
        lines.append(
            f"{row['bytes'] / 1e6:>8.2f} {row['client_ms']:>9.2f} {row['server_ms']:>9.2f} {row['input_ms']:>9.2f}  "
            f"{row['stage']} ({count}{stays})"
        )
    return "\n".join(lines)


def _plan_text(plan: Plan, names: Sequence[str]) -> str:
    """A plan as text. `names` are the names of all stages."""
    count = len(plan.partitions)
    lines = [
        f"{plan.model}, {plan.algorithm}, {plan.mbps:g} Mbps: {count} partition{'' if count == 1 else 's'}, "
        f"latency {plan.local_ms:.1f} ms at the client alone, {plan.best_ms:.1f} ms at best"
        + ("" if math.isnan(plan.mean_ms) else f", {plan.mean_ms:.1f} ms on average during the upload"),
        f"{'':>3} {'MB':>8} {'upload s':>9} {'since start s':>14} {'latency ms':>11}  stages",
    ]
    elapsed_ms = 0.0
    for partition in plan.partitions:
        elapsed_ms += partition.upload_ms
        lines.append(
            f"{partition.index + 1:>3} {partition.bytes / 1e6:>8.2f} {partition.upload_ms / 1e3:>9.2f} "
            f"{elapsed_ms / 1e3:>14.2f} {partition.latency_ms:>11.1f}  "
            f"{_stages_text(names, partition.stages, partition.slices)}"
        )
    if plan.held:
        lines.append(f"the server holds from the beginning: {_stages_text(names, plan.held)}")
    elif not plan.partitions:
        lines.append("nothing is worth offloading" if plan.best_ms == plan.local_ms else "nothing is uploaded")
    return "\n".join(lines)


def _stages_text(
    names: Sequence[str], stages: Iterable[int], slices: Mapping[str, tuple[int, int]] = MappingProxyType({})
) -> str:
    """The names of stages; of longer runs only the first and the last. `slices` has the channels of slices."""
    from ionn.model.slices import runs_of

    parts = {name: f"[{begin}:{end}]" for name, (begin, end) in slices.items()}
    texts = []
    for first, last in runs_of(stages):
        run = names[first : last + 1]
        if len(run) > 3 and parts.keys().isdisjoint(run):
            texts.append(f"{run[0]} .. {run[-1]} ({len(run)})")
        else:
            texts += [name + parts.get(name, "") for name in run]
    return ", ".join(texts)
