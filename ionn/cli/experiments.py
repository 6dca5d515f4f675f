"""`ionn run` and `ionn figures`: run the experiment, and draw its traces."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ionn.arguments import COUNT_MAX
from ionn.cli.options import (
    BANDWIDTH_HELP,
    COSTS_HELP,
    SECONDS_MAX,
    Choice,
    Number,
    algorithm_option,
    arrivals_option,
    busy_option,
    chosen_algorithm,
    client_option,
    coding_option,
    complete_algorithm,
    complete_costs,
    deadline_option,
    delay_option,
    jitter_option,
    json_option,
    key_option,
    measured_mbps_option,
    model_argument,
    options,
    planner_option,
    results_option,
    server_key_option,
    warn_of_raw_weights,
    weight_ratio_option,
    weights_argument,
)
from ionn.errors import InputError, ServerUnreachableError

if TYPE_CHECKING:
    from ionn.model.comparison import OutputCheck
    from ionn.testbed.responses import Responses
    from ionn.testbed.trace import Trace


@click.command()
@model_argument
@weights_argument
@options(algorithm_option, planner_option, measured_mbps_option, client_option)
@click.option(
    "--server",
    metavar="COSTS",
    shell_complete=complete_costs,
    help=f"The costs of the server, by default those that it sends (live) or gtx1080ti (virtual): {COSTS_HELP}.",
)
@click.option(
    "--testbed",
    type=Choice(["live", "virtual"]),
    default="live",
    show_default=True,
    help="Execute the run with Caffe, or compute it with a simulated clock.",
)
@click.option("--runs", type=click.IntRange(1, COUNT_MAX), default=1, show_default=True, help="How many runs.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
@click.option("--dilation", default=1.0, show_default=True, help="Live: slow link and client down by this factor.")
@click.option("--connect", metavar="ADDRESS", help="Live: use the running server at tcp://HOST:PORT, without a link.")
@options(key_option, server_key_option)
@click.option("--unpaced", is_flag=True, help="Live: do not slow the client down to --client COSTS.")
@click.option(
    "--noise",
    default=0.0,
    show_default=True,
    help="Virtual: standard deviation of the logarithm of the random factor on computing times.",
)
@options(coding_option, weight_ratio_option)
@click.option(
    "--window",
    "window_s",
    metavar="SECONDS",
    type=Number(0.001, SECONDS_MAX),
    help="Raise queries for at least this time, to compare plans in equal time.",
)
@click.option(
    "--link",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"The link's bandwidth over time: {BANDWIDTH_HELP}. Plans are made for the bandwidth that the client "
    "measures, or for --mbps if given.",
)
@options(delay_option, jitter_option)
@click.option(
    "--upload",
    type=Choice(["share", "yield"]),
    default="share",
    show_default=True,
    help="Weights share the uplink with queries, or are held back while a query is at the server.",
)
@options(arrivals_option, busy_option, deadline_option)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="Keep traces in this folder. Finished live runs are not repeated; virtual ones are replaced.",
)
@json_option
def run(
    model: str,
    weights: str | None,
    algorithm: str,
    planner: str | None,
    mbps: float | None,
    client: str,
    server: str | None,
    testbed: str,
    runs: int,
    seed: int,
    dilation: float,
    connect: str | None,
    key: Path | None,
    server_key: Path | None,
    unpaced: bool,
    noise: float,
    coding: str,
    weight_ratio: float | None,
    window_s: float | None,
    link: Path | None,
    delay_ms: float,
    jitter_ms: float,
    upload: str,
    arrivals: str,
    busy: str,
    deadline_ms: float | None,
    results: Path | None,
    as_json: bool,
) -> None:
    """Run the paper's experiment: upload MODEL while queries run, one after another or as --arrivals says.

    The live testbed starts a server and a link on this machine, or uses the server at --connect, and takes as long as
    the upload. The virtual testbed computes the run in milliseconds.

    Example: ionn run alexnet --algorithm original --testbed live --runs 3 --json
    """
    from ionn.address import parse_address
    from ionn.coding import LOSSLESS
    from ionn.costs.loading import load_costs
    from ionn.paper import MBPS, SERVER
    from ionn.testbed import runner
    from ionn.testbed.arrivals import Arrivals
    from ionn.testbed.settings import LIVE_ONLY, Settings

    algorithm = chosen_algorithm(algorithm, planner)
    if testbed == "virtual" and (connect is not None or key or server_key):
        raise InputError(LIVE_ONLY)
    if connect is not None:
        parse_address(connect)
    raised = Arrivals.parse(arrivals)
    if mbps is None and not (connect or link):
        mbps = MBPS
    # Raises InputError for settings that do not fit together, before anything is loaded.
    Settings(
        testbed, mbps, dilation, seed=seed, noise=noise, paced=not unpaced, connect=connect or "",
        coding=coding, weight_ratio=weight_ratio, window_s=window_s,
        link=runner.link_name(link), delay_ms=delay_ms, jitter_ms=jitter_ms, upload=upload,
        arrivals=raised, busy=busy, deadline_ms=deadline_ms,
    )  # fmt: skip
    if testbed == "live":
        from ionn.protocol.curve import client_keys  # imports pyzmq, which the virtual testbed does not need

        keys = client_keys(key, server_key)
        planned = None if server is None else load_costs(server)
        subject = runner.prepare_live(model, weights, client, not unpaced)
        if coding == LOSSLESS:
            warn_of_raw_weights(model, weights)
        settings = runner.live_settings(
            subject, planned, mbps=mbps, dilation=dilation, seed=seed, connect=connect or "",
            coding=coding, window_s=window_s, link=link, delay_ms=delay_ms, jitter_ms=jitter_ms, upload=upload,
            arrivals=raised, busy=busy, deadline_ms=deadline_ms,
        )  # fmt: skip
        traces = runner.run_live_all(
            subject, [algorithm], runs, settings, server=planned, results=results, keys=keys, link=link
        )
    else:
        traces = runner.run_virtual_all(
            model, [algorithm], runs, weights,
            client=client, server=server or SERVER, mbps=mbps, noise=noise, seed=seed, results=results,
            coding=coding, weight_ratio=weight_ratio, window_s=window_s,
            link=link, delay_ms=delay_ms, jitter_ms=jitter_ms, upload=upload,
            arrivals=raised, busy=busy, deadline_ms=deadline_ms,
        )  # fmt: skip
    click.echo(json.dumps(_runs_json(traces)) if as_json else _runs_text(traces))
    runner.check_outputs(traces)
    for trace in traces:
        if trace.info.fault is not None:
            alone = sum(all(segment.where == "client" for segment in query.segments) for query in trace.queries)
            raise ServerUnreachableError(
                f"{trace.info.fault}; {alone} of {len(trace.queries)} queries ran at the client alone"
            )


def _runs_json(traces: list[Trace]) -> dict[str, Any]:
    info = traces[0].info
    return {
        "model": info.model,
        "algorithm": info.algorithm,
        "testbed": info.settings.testbed,
        "mbps": info.settings.mbps,
        "dilation": info.settings.dilation,
        "coding": info.settings.coding,
        "weight_ratio": info.settings.weight_ratio,
        "link": info.settings.link or None,
        "delay_ms": info.settings.delay_ms,
        "jitter_ms": info.settings.jitter_ms,
        "upload": info.settings.upload,
        "client": info.settings.device,
        "server": info.server,
        "arrivals": info.settings.arrivals.name,
        "busy": info.settings.busy,
        "deadline_ms": info.settings.deadline_ms,
        "runs": [_run_json(trace) for trace in traces],
    }


def _run_json(trace: Trace) -> dict[str, Any]:
    from ionn.testbed.energy import mean_energy_j
    from ionn.testbed.other_load import mean_other

    window_s = trace.info.settings.window_s
    mean_ms_in_window = trace.mean_ms_in_window
    (weight_bytes, weight_wire_bytes), (feature_bytes, feature_wire_bytes) = trace.weight_bytes, trace.feature_bytes
    energy_j = mean_energy_j(trace)
    outputs, check = trace.outputs, trace.info.output_check
    disturbance = trace.disturbance
    return {
        "run": trace.info.run,
        "connected": trace.info.fault is None,
        "partitions": len(trace.partitions),
        "queries": len(trace.queries),
        "queries_before_upload": trace.queries_before_upload,
        "upload_s": trace.upload_s,
        "first_ms": trace.queries[0].latency_ms,
        "last_ms": trace.queries[-1].latency_ms,
        "mean_ms": sum(query.latency_ms for query in trace.queries) / len(trace.queries),
        "energy_j": None if math.isnan(energy_j) else energy_j,
        "bit_equal": outputs.equal == outputs.computed if outputs.computed else None,
        "difference": outputs.difference,
        "right": not outputs.wrong if outputs.computed else None,
        "output_check": None if check is None else _check_json(check),
        "overruns": sum(query.overruns for query in trace.queries),
        "overrun_ms": sum(query.overrun_ms for query in trace.queries),
        "other_load": None if math.isnan(other := mean_other(trace.loads)) else other,
        "disturbance": None if disturbance is None else dataclasses.asdict(disturbance),
        "weight_bytes": weight_bytes,
        "weight_bytes_sent": None if weight_bytes is None else weight_bytes - trace.weight_bytes_held,
        "weight_bytes_held": trace.weight_bytes_held,
        "weight_wire_bytes": weight_wire_bytes,
        "feature_bytes": feature_bytes,
        "feature_wire_bytes": feature_wire_bytes,
        "window_s": window_s,
        "queries_in_window": None if window_s is None else len(trace.in_window),
        "mean_ms_in_window": None if math.isnan(mean_ms_in_window) else mean_ms_in_window,
        "responses": None if trace.info.settings.arrivals.closed else _all_responses_json(trace),
    }


def _check_json(check: OutputCheck) -> dict[str, Any]:
    return {"tolerance": check.tolerance, "reason": check.reason, **dataclasses.asdict(check)}


def _all_responses_json(trace: Trace) -> dict[str, Any]:
    all_of_them = _responses_json(trace.responses)
    del all_of_them["start_s"], all_of_them["end_s"]
    return {**all_of_them, "over_time": list(map(_responses_json, trace.responses_over_time))}


def _responses_json(responses: Responses) -> dict[str, Any]:
    values = dataclasses.asdict(responses)
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _runs_text(traces: list[Trace]) -> str:
    info = traces[0].info
    lines = [
        f"{info.model}, {info.algorithm}, {info.settings.testbed} testbed, {info.settings.rate}, "
        f"client {info.settings.device}, "
        f"server {info.server}",
        f"{'run':>3} {'partitions':>10} {'queries before':>14} {'upload s':>8} {'first ms':>8} {'last ms':>8} "
        f"{'overruns':>8}  outputs",
    ]
    for trace in traces:
        row = _run_json(trace)
        lines.append(
            f"{row['run']:>3} {row['partitions']:>10} {row['queries_before_upload']:>14} {row['upload_s']:>8.2f} "
            f"{row['first_ms']:>8.1f} {row['last_ms']:>8.1f} {row['overruns']:>8}  {trace.outputs}"
        )
        if row["weight_bytes_held"]:
            sent, held = row["weight_bytes_sent"] / 1e6, row["weight_bytes_held"] / 1e6
            lines.append(f"    of the weights, {sent:.2f} MB were sent, and {held:.2f} MB were in the server's store")
        if row["window_s"] is not None:
            lines.append(
                f"    in {row['window_s']:g} s: {row['queries_in_window']} queries"
                + (f" of {row['mean_ms_in_window']:.1f} ms" if row["queries_in_window"] else "")
            )
        if not trace.info.settings.arrivals.closed:
            lines.append(f"    {_responses_text(trace)}")
        if trace.disturbance is not None:
            lines.append(f"    disturbed: {trace.disturbance}")
    checks = (trace.info.output_check for trace in traces)
    lines += dict.fromkeys(f"outputs compared {check}" for check in checks if check is not None)
    return "\n".join(lines)


def _responses_text(trace: Trace) -> str:
    responses, settings = trace.responses, trace.info.settings
    deadline_ms = settings.deadline_ms
    lost = "dropped" if settings.busy == "drop" else "waiting at the end"
    within = "" if deadline_ms is None else f", {responses.within_deadline:.1%} within {deadline_ms:g} ms"
    percentiles = f"{responses.p50_ms:.1f}, {responses.p90_ms:.1f}, {responses.p99_ms:.1f} ms"
    return (
        f"{responses.raised} queries raised, {responses.dropped} {lost}; response time of the others, 50th, 90th and "
        f"99th percentile: {percentiles}{within}"
    )


@click.command()
@results_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the figures; by default RESULTS/figures.")
@click.option(
    "--algorithm",
    "algorithms",
    multiple=True,
    shell_complete=complete_algorithm,
    help="Draw this algorithm; can be given several times. By default all but the baselines are drawn.",
)
@json_option
def figures(results: Path, out: Path | None, algorithms: tuple[str, ...], as_json: bool) -> None:
    """Draw Figures 5-7 and write the report, from the traces in --results alone.

    Example: ionn figures --results results
    """
    from ionn.evaluation import page
    from ionn.evaluation.figures import draw_figures
    from ionn.evaluation.report import write_report

    drawn = draw_figures(results, out or results / "figures", algorithms)
    report = write_report(results, drawn, algorithms)
    written = report.with_suffix(".html") if page.is_available() else None
    if as_json:
        told = {"figures": list(map(str, drawn)), "report": str(report), "page": written and str(written)}
        click.echo(json.dumps(told))
    else:
        for path in (*drawn, report, *([written] if written else [])):
            click.echo(path)
    if written is None:
        older = " (the one that is there is of an earlier time)" if report.with_suffix(".html").exists() else ""
        click.echo(page.HOW_TO_GET_IT.format(older=older), err=True)
