"""Arguments and options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ionn.errors import InputError, did_you_mean
from ionn.paper import CLIENT, MBPS, MODELS, RECURSIVE
from ionn.server.limits import Limits, option
from ionn.testbed.delay import DELAY_MAX_MS

COSTS_HELP = (
    "odroid-xu4, gtx1080ti, a file that ionn profile or ionn calibrate saved, a text file of 'index name ms' lines, or "
    "FILE.csv:COLUMN; N*COSTS is N times as fast"
)


class Number(click.FloatRange):
    """A number within a range. Unlike click's FloatRange it refuses nan, which is neither too small nor too large."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


class Choice(click.Choice[str]):
    """One of several words. The error for an unknown word suggests a similar one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(error.message.rstrip(".") + did_you_mean(str(value), self.choices), param, ctx)


# A day: nobody waits longer, and system calls accept so long a timeout.
SECONDS_MAX = 86_400.0
# From less than any client waits for to more than any link has.
MBPS_RANGE = Number(0.001, 1e6)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click decorators as one, so that commands can share them."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def complete_model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    names = [CompletionItem(model) for model in MODELS if model.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_costs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ionn.costs.loading import device_names

    names = [CompletionItem(device) for device in device_names() if device.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_algorithm(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from ionn.planning.planners import known_planners

    return [name for name in known_planners() if name.startswith(incomplete)]


def complete_coding(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from ionn.coding import CODINGS

    return [name for name in CODINGS if name.startswith(incomplete)]


def given_option(names: Container[str]) -> str | None:
    """The first of the current command's options with these parameters' names that was given; None if none was."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT:
            return parameter.opts[0]
    return None


def chosen_algorithm(algorithm: str, planner: str | None) -> str:
    """The name of the planner that --algorithm or --planner gives. Raises InputError if there is no such planner."""
    from ionn.planning.planners import add_planner, get_planner

    if planner is None:
        get_planner(algorithm)
        return algorithm
    if given_option(["algorithm"]) is not None:
        raise InputError("give either --algorithm or --planner, not both")
    return add_planner(planner)


model_argument = click.argument("model", shell_complete=complete_model)
weights_argument = click.argument("weights", required=False)
mbps_option = click.option(
    "--mbps", type=MBPS_RANGE, default=MBPS, show_default=True, help="Bandwidth of the link, 10^6 bit/s each way."
)
measured_mbps_option = click.option(
    "--mbps",
    type=MBPS_RANGE,
    help=f"Bandwidth of the link, 10^6 bit/s each way; by default {MBPS:g}, or measured with --connect or --link.",
)
algorithm_option = click.option(
    "--algorithm",
    default=RECURSIVE,
    show_default=True,
    shell_complete=complete_algorithm,
    help="The planner or baseline, such as original, efficiency, recursive-efficiency or sliced-efficiency.",
)
planner_option = click.option(
    "--planner", metavar="FILE.py:FUNCTION", help="A planner of your own, in place of --algorithm."
)
coding_option = click.option(
    "--coding",
    default="none",
    show_default=True,
    metavar="none|features|lossless",
    shell_complete=complete_coding,
    help="What is compressed without loss on the link, where that is faster: nothing, the queries' inputs and feature "
    "maps, or weights too.",
)
weight_ratio_option = click.option(
    "--weight-ratio",
    type=Number(0.001, 1),
    help="With --coding lossless, not live: bytes of weights after coding per byte before; by default as measured for "
    "the model.",
)


def warn_of_raw_weights(model: str | Path, weights: str | Path | None) -> None:
    """Warn if weights are to be sent coded, but have no sidecar, which holds the coded weights."""
    from ionn.model.caffemodel import weights_path
    from ionn.model.coded_weights import has_sidecar

    if not has_sidecar(path := weights_path(model, weights)):
        given = "" if weights is None else f" --weights {weights}"
        click.echo(f"ionn: {path}: not coded, so it goes raw; 'ionn models --build {model}{given}' codes it", err=True)


arrivals_option = click.option(
    "--arrivals",
    default="closed",
    show_default=True,
    metavar="closed|fps:N|poisson:N|burst:N,PERIOD|FILE",
    help="When queries are raised: each after the answer to the one before (closed); N per second, evenly (fps) or at "
    "random (poisson); N at once every PERIOD seconds; at the timestamps in FILE.",
)
busy_option = click.option(
    "--busy",
    type=Choice(["wait", "drop"]),
    default="wait",
    show_default=True,
    help="With --arrivals: whether a query that meets a busy client waits or is dropped.",
)
deadline_option = click.option(
    "--deadline-ms",
    type=Number(0.001, 1e3 * SECONDS_MAX),
    help="With --arrivals: count the queries that are answered within this time of their arrival.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
client_option = click.option(
    "--client",
    default=CLIENT,
    show_default=True,
    metavar="COSTS",
    shell_complete=complete_costs,
    help=f"The costs of the client: {COSTS_HELP}.",
)
results_option = click.option(
    "--results",
    default="results",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the traces, which also gets the report.",
)


BANDWIDTH_HELP = "a file of 'seconds,mbps' lines, or a trace in Mahimahi's format"
delay_option = click.option(
    "--delay-ms",
    type=Number(0, DELAY_MAX_MS),
    default=0.0,
    show_default=True,
    help="How long a byte takes from one end of the link to the other, in either direction.",
)
jitter_option = click.option(
    "--jitter-ms",
    type=Number(0, DELAY_MAX_MS),
    default=0.0,
    show_default=True,
    help="How far the delay varies, up or down; at most the delay itself.",
)


key_option = click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="Your own secret key, a file that ionn keygen made; it encrypts the connection.",
)
server_key_option = click.option(
    "--server-key", type=click.Path(path_type=Path), help="The public key of the server; with --key."
)


def _range_of(limit: Field[Any]) -> click.IntRange | click.FloatRange:
    ends = limit.metadata["least"], limit.metadata["most"]
    return click.IntRange(*ends) if isinstance(limit.default, int) else Number(*ends)


limit_options = options(
    *(
        click.option(
            option(limit.name), type=_range_of(limit), default=limit.default, show_default=True,
            help=limit.metadata["reason"],
        )
        for limit in fields(Limits)
    )
)  # fmt: skip
