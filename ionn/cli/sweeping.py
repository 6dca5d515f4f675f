"""`ionn sweep`: run the virtual testbed for all combinations of some options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ionn.cli.options import (
    COSTS_HELP,
    MBPS_RANGE,
    complete_algorithm,
    complete_coding,
    complete_model,
)
from ionn.errors import InputError
from ionn.files import check_writable
from ionn.paper import CLIENT, MBPS, MODELS, ORIGINAL, RECURSIVE, SERVER
from ionn.schema import NATURAL_MAX

RANGE_HELP = "FIRST:LAST:COUNT is COUNT values in equal ratios"


class Range(click.ParamType[list[Any]]):
    """A value, or a range of them as `ionn.testbed.sweep.expand` reads it: a list of texts."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        from ionn.testbed.sweep import expand

        return expand(value)


class NumberRange(Range):
    """A number in `MBPS_RANGE`, or a range of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return [MBPS_RANGE.convert(each, param, ctx) for each in super().convert(value, param, ctx)]


def _joined(values: Iterable[list[Any]]) -> list[Any]:
    return [each for part in values for each in part]


@click.command()
@click.option(
    "--model", "models", multiple=True, shell_complete=complete_model, help="By default all five bundled ones."
)
@click.option(
    "--algorithm", "algorithms", multiple=True, shell_complete=complete_algorithm,
    help=f"A planner; by default {ORIGINAL} and {RECURSIVE}, unless --planner is given.",
)  # fmt: skip
@click.option("--planner", "planners", multiple=True, metavar="FILE.py:FUNCTION", help="A planner of your own.")
@click.option(
    "--mbps", multiple=True, type=NumberRange(), metavar="MBPS|FIRST:LAST:COUNT",
    help=f"Bandwidth of the link, 10^6 bit/s each way; by default {MBPS:g}. {RANGE_HELP}.",
)  # fmt: skip
@click.option(
    "--client", "clients", multiple=True, type=Range(), metavar="COSTS",
    help=f"The costs of the client, by default {CLIENT}: {COSTS_HELP}; {RANGE_HELP}, as in 0.1:10:20*{CLIENT}.",
)  # fmt: skip
@click.option(
    "--server", "servers", multiple=True, type=Range(), metavar="COSTS",
    help=f"The costs of the server, by default {SERVER}; in the same forms as --client.",
)  # fmt: skip
@click.option(
    "--coding", "codings", multiple=True, metavar="none|features|lossless", shell_complete=complete_coding,
    help="What is compressed without loss on the link; by default nothing.",
)  # fmt: skip
@click.option(
    "--arrivals", multiple=True, metavar="closed|fps:N|poisson:N|burst:N,PERIOD|FILE",
    help="When queries are raised; by default one after another.",
)  # fmt: skip
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=click.IntRange(0, NATURAL_MAX),
    help="Seed of poisson arrivals; by default 0.",
)
@click.option(
    "--out", required=True, metavar="FILE.csv", type=click.Path(path_type=Path),
    help="The table. Runs that it has already are not repeated.",
)  # fmt: skip
@click.option(
    "--figures", metavar="FOLDER", type=click.Path(path_type=Path), help="Draw figures of the table into this folder."
)
@click.option("--jobs", type=click.IntRange(1, 1024), help="Processes on this machine; by default one per core.")
@click.option("--cluster", metavar="ADDRESS", help="Run on the workers of your own Dask scheduler at tcp://HOST:PORT.")
def sweep(
    models: tuple[str, ...],
    algorithms: tuple[str, ...],
    planners: tuple[str, ...],
    mbps: tuple[list[float], ...],
    clients: tuple[list[str], ...],
    servers: tuple[list[str], ...],
    codings: tuple[str, ...],
    arrivals: tuple[str, ...],
    seeds: tuple[int, ...],
    out: Path,
    figures: Path | None,
    jobs: int | None,
    cluster: str | None,
) -> None:
    """Run the virtual testbed for all combinations of options. Each option for a model, algorithm, bandwidth and so on
    can be given several times. The result is a table with one row per run. If a sweep was interrupted or killed, the
    same command continues it.

    Example: ionn sweep --model alexnet --model resnet --algorithm original --algorithm sliced-efficiency
    --mbps 1:1000:40 --out sweep.csv
    """
    from ionn.coding import NONE
    from ionn.planning.planners import add_planner
    from ionn.testbed.arrivals import CLOSED
    from ionn.testbed.runner import bar
    from ionn.testbed.sweep import Grid, failed, run_sweep

    if jobs is not None and cluster is not None:
        raise InputError("--jobs is for this machine, --cluster has workers of its own; leave one of them out")
    added: dict[str, str] = {}
    for planner in dict.fromkeys(planners):
        name = add_planner(planner)
        if name in added:
            raise InputError(f"{added[name]} and {planner} have the same name; rename one of the functions")
        added[name] = planner
    grid = Grid.of(
        models or list(MODELS), [*algorithms, *added] or [ORIGINAL, RECURSIVE], _joined(mbps) or [MBPS],
        _joined(clients) or [CLIENT], _joined(servers) or [SERVER], codings or [NONE], arrivals or [CLOSED],
        seeds or [0],
    )  # fmt: skip
    if figures is not None:
        from ionn.evaluation.sweep_figures import check_comparable

        check_comparable(grid.algorithms, grid.mbps)
        check_writable(figures / "sweep-lines.png")
    with bar(0, "run", "sweep") as progress:

        def begin(total: int) -> Any:
            progress.reset(total)
            return progress.update

        rows, failures = run_sweep(grid, out, jobs, cluster, begin)
    kinds = Counter((each.cell.model, each.cell.algorithm, each.reason) for each in failures)
    for (of, by, reason), count in kinds.items():
        click.echo(f"ionn: {of}, {by}: {count} runs cannot be made: {reason}", err=True)
    if figures is not None:
        from ionn.evaluation.sweep_figures import draw_sweep

        for path in draw_sweep(rows, figures):
            click.echo(f"drawn: {path}", err=True)
    from ionn.evaluation.sweep_figures import can_compare, gains_text

    click.echo(f"{gains_text(rows)}\n\n{out}" if can_compare(rows) else out)
    if failures:
        raise failed(failures, len(grid), out)
