"""The command line. Results go to standard output, progress and logs to standard error.

Exit codes: 0 done, 1 the run failed, 2 bad input (one line says what and what to do), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ionn.errors import InputError, IonnError, ServerUnreachableError
from ionn.limits import Limits, option

if TYPE_CHECKING:
    from ionn.plan import Partition, Plan
    from ionn.trace import Trace

SERVE_AT = "tcp://127.0.0.1:7675"
LINK_AT = "tcp://127.0.0.1:7676"
# A network does not wait for the processors at its ends. Needs root; without it, a busy machine may hold the link up.
LINK_NICENESS = -10
COSTS_HELP = "a device name, a saved cost model or profile, a text file of 'index name ms' lines, or FILE.csv:COLUMN"


def main() -> None:
    """The entry point: turns our errors into one line and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.Abort:  # Ctrl-C
        sys.stderr.write("ionn: interrupted\n")
        sys.exit(130)
    except click.ClickException as error:
        sys.stderr.write(f"ionn: {error.format_message()}\n")
        sys.exit(2)
    except (InputError, ServerUnreachableError) as error:
        sys.stderr.write(f"ionn: {error}\n")
        sys.exit(2)
    except IonnError as error:
        sys.stderr.write(f"ionn: {error}\n")
        sys.exit(1)
    except BrokenPipeError:  # whoever read our output has enough
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        sys.stderr.write(f"ionn: {error.filename or 'output'}: {error.strerror}\n")
        sys.exit(2)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click decorators as one, so that commands share theirs."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


model_argument = click.argument("model")
weights_argument = click.argument("weights", required=False)
mbps_option = click.option(
    "--mbps", default=80.0, show_default=True, help="Bandwidth of the link, 10^6 bit/s each way."
)
algorithm_option = click.option("--algorithm", default="recursive-efficiency", show_default=True, help="The planner.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
client_option = click.option(
    "--client", default="odroid-xu4", show_default=True, metavar="COSTS", help=f"The client: {COSTS_HELP}."
)
results_option = click.option(
    "--results",
    default="results",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of traces and figures.",
)


key_option = click.option(
    "--key", type=click.Path(path_type=Path), help="Our secret key, a file of ionn keygen: encrypt the connection."
)
server_key_option = click.option(
    "--server-key", type=click.Path(path_type=Path), help="The public key of the server; with --key."
)
limit_options = options(
    *(
        click.option(
            option(limit.name), type=type(limit.default), default=limit.default, show_default=True,
            help=limit.metadata["reason"],
        )
        for limit in fields(Limits)
    )
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ionn")
def cli() -> None:
    """Incremental offloading of neural networks: plan which layers of a Caffe model to upload to an edge server first,
    upload them while queries run, and measure what that is worth.

    MODEL is alexnet, inception, resnet, googlenet, mobilenet, or the path of a .prototxt.
    """


@cli.command()
@model_argument
@weights_argument
@options(algorithm_option, mbps_option, client_option)
@click.option("--server", default="gtx1080ti", show_default=True, metavar="COSTS", help=f"The server: {COSTS_HELP}.")
@json_option
def plan(model: str, weights: str | None, algorithm: str, mbps: float, client: str, server: str, as_json: bool) -> None:
    """Print the partitions of MODEL in upload order, with the latency expected after each.

    Example: ionn plan alexnet --algorithm recursive-efficiency --mbps 80 --client odroid-xu4 --server gtx1080ti
    """
    from ionn.costs import load_costs
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


@cli.command()
@model_argument
@weights_argument
@options(algorithm_option, mbps_option, client_option)
@click.option(
    "--server",
    metavar="COSTS",
    help=f"The server; by default what it sends (live) or gtx1080ti (virtual): {COSTS_HELP}.",
)
@click.option("--testbed", type=click.Choice(["live", "virtual"]), default="live", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--dilation", default=1.0, show_default=True, help="Live: slow link and client down by this factor.")
@click.option("--connect", metavar="ADDRESS", help="Live: use the server at tcp://HOST:PORT; start none, and no link.")
@options(key_option, server_key_option)
@click.option("--noise", default=0.0, show_default=True, help="Virtual: lognormal spread of latencies.")
@click.option(
    "--results", type=click.Path(path_type=Path), help="Keep traces in this folder; finished runs are not run again."
)
@json_option
def run(
    model: str,
    weights: str | None,
    algorithm: str,
    mbps: float,
    client: str,
    server: str | None,
    testbed: str,
    runs: int,
    seed: int,
    dilation: float,
    connect: str | None,
    key: Path | None,
    server_key: Path | None,
    noise: float,
    results: Path | None,
    as_json: bool,
) -> None:
    """Run the experiment: upload MODEL while queries run one after another.

    The live testbed starts a server and a link on this machine, or uses the server given by --connect; the virtual one
    computes the run.

    Example: ionn run alexnet --algorithm original --testbed live --runs 3 --json
    """
    from ionn import harness
    from ionn.graph import checked_mbps
    from ionn.keys import client_keys
    from ionn.planners import get_planner

    get_planner(algorithm)
    checked_mbps(mbps)
    keys = client_keys(key, server_key)
    if testbed == "virtual" and (dilation != 1 or connect is not None):
        raise InputError("--dilation and --connect are for the live testbed; leave them out")
    if testbed == "live" and noise != 0:
        raise InputError("--noise is for the virtual testbed; leave it out")
    if testbed == "live":
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # server and link must not outlive this process
        subject = harness.prepare_live(model, weights, client)
        traces = harness.run_live_all(subject, [algorithm], runs, mbps, dilation, results, connect, server, seed, keys)
    else:
        traces = harness.run_virtual_all(
            model, [algorithm], runs, client, server or harness.SERVER, mbps, noise, seed, results
        )
    click.echo(json.dumps(_runs_json(traces)) if as_json else _runs_text(traces))
    faults = [trace.info.environment["fault"] for trace in traces if "fault" in trace.info.environment]
    if faults:
        raise ServerUnreachableError(f"{faults[0]}; the queries ran at the client")


def _runs_json(traces: list[Trace]) -> dict[str, Any]:
    info = traces[0].info
    return {
        "model": info.model,
        "algorithm": info.algorithm,
        "testbed": info.testbed,
        "mbps": info.mbps,
        "dilation": info.dilation,
        "client": info.client,
        "server": info.server,
        "runs": [_run_json(trace) for trace in traces],
    }


def _run_json(trace: Trace) -> dict[str, Any]:
    equal = [query.bit_equal for query in trace.queries if query.bit_equal is not None]
    return {
        "run": trace.info.run,
        "connected": "fault" not in trace.info.environment,
        "partitions": len(trace.partitions),
        "queries": len(trace.queries),
        "queries_before_upload": trace.queries_before_upload,
        "upload_s": trace.upload_s,
        "first_ms": trace.queries[0].latency_ms,
        "last_ms": trace.queries[-1].latency_ms,
        "mean_ms": sum(query.latency_ms for query in trace.queries) / len(trace.queries),
        "bit_equal": all(equal) if equal else None,
        "overruns": sum(query.overruns for query in trace.queries),
        "overrun_ms": sum(query.overrun_ms for query in trace.queries),
    }


def _runs_text(traces: list[Trace]) -> str:
    info = traces[0].info
    lines = [
        f"{info.model}, {info.algorithm}, {info.testbed} testbed, {info.mbps:g} Mbps, client {info.client}, "
        f"server {info.server}",
        f"{'run':>3} {'partitions':>10} {'queries before':>14} {'upload s':>8} {'first ms':>8} {'last ms':>8} "
        f"{'overruns':>8}  outputs",
    ]
    for trace in traces:
        row = _run_json(trace)
        outputs = {True: "bit-equal", False: "DIFFER", None: "not computed"}[row["bit_equal"]]
        lines.append(
            f"{row['run']:>3} {row['partitions']:>10} {row['queries_before_upload']:>14} {row['upload_s']:>8.2f} "
            f"{row['first_ms']:>8.1f} {row['last_ms']:>8.1f} {row['overruns']:>8}  {outputs}"
        )
    return "\n".join(lines)


stop_at_eof_option = click.option(
    "--stop-at-eof", is_flag=True, help="Stop when standard input ends too: whoever started this process has gone."
)


def _stop_at_eof() -> None:
    """However a process ends, the pipes that it holds are closed."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@cli.command()
@click.option("--bind", default=SERVE_AT, show_default=True, metavar="ADDRESS", help="tcp://HOST:PORT; port 0: any.")
@click.option("--costs", metavar="FILE", help="Send these costs to clients: a file of ionn calibrate or ionn profile.")
@key_option
@click.option(
    "--allow", type=click.Path(path_type=Path), help="A file of the clients' public keys, one a line; with --key."
)
@click.option("--insecure", is_flag=True, help="Serve anybody who reaches a public address, unencrypted.")
@click.option("--metrics", metavar="ADDRESS", help="Answer Prometheus at HOST:PORT; needs prometheus-client.")
@click.option("--verbose", "-v", is_flag=True, help="Log sessions.")
@click.option("--log-json", is_flag=True, help="Log in JSON, an object a line.")
@stop_at_eof_option
@limit_options
def serve(
    bind: str,
    costs: str | None,
    key: Path | None,
    allow: Path | None,
    insecure: bool,
    metrics: str | None,
    verbose: bool,
    log_json: bool,
    stop_at_eof: bool,
    **limits: Any,
) -> None:
    """Be the edge server. Prints its address when clients may connect; runs until SIGTERM or Ctrl-C, which it obeys
    when the queries that run have finished.

    What clients may do is limited; each limit is an option below, with its reason.

    Example: ionn serve --bind tcp://127.0.0.1:7675
    """
    from ionn.costs import load_costs
    from ionn.keys import server_keys
    from ionn.link import format_address, parse_address
    from ionn.logs import log_to_stderr
    from ionn.metrics import serve_metrics
    from ionn.server import Server

    log_to_stderr(verbose, log_json)
    if stop_at_eof:
        _stop_at_eof()
    keys = server_keys(key, allow)
    address = parse_address(bind, listen=True)
    sent = load_costs(costs).to_json() if costs is not None else None
    server = Server(f"tcp://{format_address(address)}", sent, Limits(**limits), keys, insecure)
    if metrics is not None:
        metrics_at = serve_metrics(parse_address(metrics, listen=True), server.counts)
        click.echo(f"metrics at http://{format_address(metrics_at)}/metrics", err=True)
    server.serve(click.echo)


@cli.command()
@click.argument("address", default=SERVE_AT)
@options(key_option, server_key_option)
@click.option("--timeout-s", default=2.0, show_default=True, help="How long the server may take to answer.")
def ping(address: str, key: Path | None, server_key: Path | None, timeout_s: float) -> None:
    """Ask the server at ADDRESS whether it lives and takes another client. Exit code 0 if it does.

    Example: ionn ping tcp://127.0.0.1:7675
    """
    from ionn.channel import ping as ask
    from ionn.errors import ServerError
    from ionn.keys import client_keys
    from ionn.link import format_address, parse_address
    from ionn.wire import ERROR_BUSY

    address = f"tcp://{format_address(parse_address(address))}"
    answer = ask(address, client_keys(key, server_key), timeout_s)
    if not answer.room:
        raise ServerError(ERROR_BUSY, f"{address}: the server lives, but takes no more than {answer.sessions} sessions")
    click.echo(f"{address}: ready, {answer.sessions} sessions")


@cli.command()
@click.argument("name", type=click.Path(path_type=Path))
def keygen(name: Path) -> None:
    """Make a pair of keys: NAME.secret, to be kept, and NAME.public, for the other side.

    A server is given its own secret key and the list of its clients' public keys, a client its own secret key and the
    server's public key.

    Example: ionn keygen phone
    """
    from ionn.keys import make_keys

    for path in make_keys(name):
        click.echo(path)


@cli.command()
@click.option(
    "--listen", default=LINK_AT, show_default=True, metavar="ADDRESS", help="Where clients connect; port 0: any."
)
@click.option("--to", default=SERVE_AT, show_default=True, metavar="ADDRESS", help="Where the server is.")
@mbps_option
@click.option("--verbose", "-v", is_flag=True, help="Log connections.")
@stop_at_eof_option
def link(listen: str, to: str, mbps: float, verbose: bool, stop_at_eof: bool) -> None:
    """Be the network: forward TCP between any two ends at a capped rate, each direction for itself.

    80 Mbps are 80,000,000 bits of payload per second. Connections share it equally. Prints its address when ready.

    Example: ionn link --listen tcp://127.0.0.1:7676 --to tcp://127.0.0.1:7675 --mbps 80
    """
    from ionn.link import format_address, parse_address, serve_link

    _log(verbose)
    if stop_at_eof:
        _stop_at_eof()
    with contextlib.suppress(PermissionError):
        os.nice(LINK_NICENESS)
    serve_link(
        parse_address(listen, listen=True),
        parse_address(to),
        mbps,
        lambda address: click.echo(f"tcp://{format_address(address)}"),
    )


def _log(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(name)s %(message)s")


@cli.command()
@model_argument
@weights_argument
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, help="Forward passes to average.")
@click.option("--save", type=click.Path(path_type=Path), help="Save the profile; use it as --client or --server COSTS.")
@json_option
def profile(model: str, weights: str | None, runs: int, save: Path | None, as_json: bool) -> None:
    """Measure the latency of every layer of MODEL on this machine.

    Example: ionn profile alexnet --save alexnet-here.json
    """
    from ionn import engine, harness, live
    from ionn.caffemodel import read_weights
    from ionn.network import Network

    network = Network.load(model)
    blobs = read_weights(harness.weights_path(model, weights), network)
    measured = live.profile_network(network, engine.load_network(network, blobs), runs)
    if save is not None:
        measured.save(save)
    layer_ms = measured.layer_ms(network)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "model": network.name,
                    "layers": {la.name: ms for la, ms in zip(network.layers, layer_ms, strict=True)},
                }
            )
        )
        return
    for layer, ms in zip(network.layers, layer_ms, strict=True):
        click.echo(f"{layer.index:>4} {layer.name} {ms:.4f}")


@cli.command()
@click.option(
    "--save", default="server.json", show_default=True, type=click.Path(path_type=Path), help="The file to write."
)
def calibrate(save: Path) -> None:
    """Fit this machine's cost model, as a server does when it is installed, and show how well it predicts the five
    models. Takes under a minute; let nothing else run.

    Example: ionn calibrate --save server.json
    """
    from ionn import calibrate, harness

    with harness.bar(calibrate.PASSES + 1, "pass", "calibrating") as progress:
        calibration = calibrate.calibrate(progress=progress.update)
    calibration.model.save(save)
    click.echo(calibration.quality.table())
    click.echo(f"saved {save}; 'ionn serve --costs {save}' sends it to clients")


@cli.command()
@results_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the figures; by default RESULTS/figures.")
def figures(results: Path, out: Path | None) -> None:
    """Draw Figures 5-7 and write the report, from the traces in RESULTS alone.

    Example: ionn figures --results results
    """
    from ionn.figures import draw_figures
    from ionn.report import write_report

    drawn = draw_figures(results, out or results / "figures")
    for path in (*drawn, write_report(results, drawn)):
        click.echo(path)
