"""`ionn serve`, `ionn ping`, `ionn keygen`, `ionn link` and `ionn bandwidth`: the server, and the way to it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ionn.arguments import path_of
from ionn.cli.options import (
    BANDWIDTH_HELP,
    SECONDS_MAX,
    Choice,
    Number,
    delay_option,
    jitter_option,
    json_option,
    key_option,
    limit_options,
    mbps_option,
    options,
    server_key_option,
)
from ionn.errors import InputError
from ionn.schema import NATURAL_MAX
from ionn.server.limits import Limits

if TYPE_CHECKING:
    from ionn.server.store import StoreSettings

SERVE_AT = "tcp://127.0.0.1:7675"
LINK_AT = "tcp://127.0.0.1:7676"
# A network does not wait for the processors at its ends. Needs root; without it, a busy machine may hold the link up.
LINK_NICENESS = -10

# From room for a piece of the largest size to more than a disk has.
STORE_GB = Number(0.005, 1e6)
# Ten models of a gigabyte, or forty of AlexNet's size.
STORE_DEFAULT_GB = 10.0

stop_at_eof_option = click.option(
    "--stop-at-eof",
    is_flag=True,
    hidden=True,
    help="Stop when standard input ends too: whoever started this process has gone.",
)


def _ready(address: str, stop_at_eof: bool) -> None:
    click.echo(address)
    if stop_at_eof:
        _stop_at_eof()


def _stop_at_eof() -> None:
    """However a process ends, the pipes that it holds are closed."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@click.command()
@click.option("--bind", default=SERVE_AT, show_default=True, metavar="ADDRESS", help="tcp://HOST:PORT; port 0: any.")
@click.option("--costs", metavar="FILE", help="Send these costs to clients: a file of ionn calibrate or ionn profile.")
@key_option
@click.option(
    "--allow", type=click.Path(path_type=Path), help="A file of the clients' public keys, one a line; with --key."
)
@click.option("--insecure", is_flag=True, help="Serve anybody who reaches a public address, unencrypted.")
@click.option(
    "--sandbox/--no-sandbox",
    "sandboxed",
    default=True,
    show_default=True,
    help="Deny files, sockets and other processes to what runs clients' nets.",
)
@click.option("--store", type=click.Path(), metavar="DIR", help="Keep clients' weights here, beyond their sessions.")
@click.option(
    "--store-gb",
    type=STORE_GB,
    help=f"How much the store may have, in 10^9 bytes; with --store. By default {STORE_DEFAULT_GB:g}.",
)
@click.option(
    "--store-gb-per-client",
    type=STORE_GB,
    help="The same of one client: the key that brought it. By default half of --store-gb.",
)
@click.option(
    "--store-shared",
    is_flag=True,
    help="All clients share what is stored, and may learn what others have uploaded. Without keys, only so.",
)
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
    sandboxed: bool,
    store: str | None,
    store_gb: float | None,
    store_gb_per_client: float | None,
    store_shared: bool,
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
    from ionn.address import format_address, parse_address
    from ionn.costs.loading import load_costs
    from ionn.protocol.curve import server_keys
    from ionn.server.front import Server
    from ionn.server.logs import log_to_stderr
    from ionn.server.metrics import serve_metrics

    log_to_stderr(verbose, log_json)
    keys = server_keys(key, allow)
    address = parse_address(bind, listen=True)
    sent = load_costs(costs).to_json() if costs is not None else None
    settings = _store_settings(store, store_gb, store_gb_per_client, store_shared)
    server = Server(f"tcp://{format_address(address)}", sent, Limits(**limits), keys, insecure, sandboxed, settings)
    if metrics is not None:
        metrics_at = serve_metrics(parse_address(metrics, listen=True), server.counts)
        click.echo(f"metrics at http://{format_address(metrics_at)}/metrics", err=True)
    server.serve(lambda address: _ready(address, stop_at_eof))


def _store_settings(
    store: str | None, total_gb: float | None, client_gb: float | None, shared: bool
) -> StoreSettings | None:
    """What the options say of the store, None without one. Raises InputError for what does not fit together."""
    from ionn.server.store import StoreSettings

    if store is None:
        for option, given in (("store-gb", total_gb), ("store-gb-per-client", client_gb), ("store-shared", shared)):
            if given:
                raise InputError(f"--{option} is for a store; give --store DIR, or leave it out")
        return None
    if not store:
        raise InputError("--store: an empty name; give a folder's name, or leave it out")
    if total_gb is None:
        total_gb = STORE_DEFAULT_GB
    if client_gb is None:
        client_gb = total_gb if shared else total_gb / 2
    elif shared:
        raise InputError("--store-gb-per-client is for a store that is not shared; leave out one of the two")
    elif client_gb > total_gb:
        raise InputError(f"--store-gb-per-client {client_gb:g}: that is more than --store-gb {total_gb:g}")
    return StoreSettings(path_of(store, "--store"), int(total_gb * 1e9), int(client_gb * 1e9), shared)


@click.command()
@click.argument("address", default=SERVE_AT)
@options(key_option, server_key_option)
@click.option(
    "--timeout-s",
    type=Number(0.001, SECONDS_MAX),
    default=2.0,
    show_default=True,
    help="How long the server may take to answer.",
)
@json_option
def ping(address: str, key: Path | None, server_key: Path | None, timeout_s: float, as_json: bool) -> None:
    """Ask the server at ADDRESS whether it lives and takes another client. Exit code 0 if it does.

    Example: ionn ping tcp://127.0.0.1:7675
    """
    from ionn.address import format_address, parse_address
    from ionn.client.connection import ping as ask
    from ionn.errors import ServerError
    from ionn.protocol.curve import client_keys
    from ionn.protocol.messages import ERROR_BUSY

    address = f"tcp://{format_address(parse_address(address))}"
    answer = ask(address, client_keys(key, server_key), timeout_s)
    if as_json:
        click.echo(
            json.dumps(
                {"address": address, "sessions": answer.sessions, "room": answer.room, "sandboxed": answer.sandboxed}
            )
        )
    if not answer.room:
        raise ServerError(
            ERROR_BUSY,
            f"{address}: the server lives, but takes no other session of this client; it has {answer.sessions}",
        )
    if not as_json:
        sandboxed = "" if answer.sandboxed else ", not sandboxed: its log says why"
        click.echo(f"{address}: ready, {answer.sessions} sessions{sandboxed}")


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
def keygen(name: Path) -> None:
    """Make a pair of keys: NAME.secret, to be kept, and NAME.public, for the other side.

    A server is given its own secret key and the list of its clients' public keys, a client its own secret key and the
    server's public key.

    Example: ionn keygen phone
    """
    from ionn.protocol.curve import make_keys

    for path in make_keys(name):
        click.echo(path)


@click.command()
@click.option(
    "--listen", default=LINK_AT, show_default=True, metavar="ADDRESS", help="Where clients connect; port 0: any."
)
@click.option("--to", default=SERVE_AT, show_default=True, metavar="ADDRESS", help="Where the server is.")
@mbps_option
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help=f"In place of --mbps, the bandwidth over time: {BANDWIDTH_HELP}. Begins now, and anew at SIGUSR1.",
)
@options(delay_option, jitter_option)
@click.option("--seed", default=0, show_default=True, help="Of the jitter.")
@click.option("--dilation", default=1.0, show_default=True, help="Slow all this down by a factor.")
@click.option("--verbose", "-v", is_flag=True, help="Log connections.")
@stop_at_eof_option
def link(
    listen: str,
    to: str,
    mbps: float,
    trace: Path | None,
    delay_ms: float,
    jitter_ms: float,
    seed: int,
    dilation: float,
    verbose: bool,
    stop_at_eof: bool,
) -> None:
    """Be the network: forward TCP between any two ends at a capped rate and after a delay, each direction for itself.

    80 Mbps are 80,000,000 bits of payload per second. Connections share it equally. Prints its address when ready.

    Example: ionn link --listen tcp://127.0.0.1:7676 --to tcp://127.0.0.1:7675 --mbps 80 --delay-ms 20
    """
    from ionn.address import format_address, parse_address
    from ionn.testbed.bandwidth import Bandwidth
    from ionn.testbed.delay import Delay
    from ionn.testbed.link import serve_link
    from ionn.testbed.settings import Settings

    Settings("live", mbps, dilation, seed=seed, delay_ms=delay_ms, jitter_ms=jitter_ms)  # refuses what cannot be
    given = click.get_current_context().get_parameter_source("mbps") is not ParameterSource.DEFAULT
    if trace is not None and given:
        raise InputError("give either --mbps or --trace, not both")
    rate = Bandwidth.constant(mbps) if trace is None else Bandwidth.load(trace)
    up, down = Delay.both(delay_ms * dilation / 1e3, jitter_ms * dilation / 1e3, seed)

    _log(verbose)
    with contextlib.suppress(PermissionError):
        os.nice(LINK_NICENESS)
    serve_link(
        parse_address(listen, listen=True),
        parse_address(to),
        rate.scaled(dilation),
        lambda address: _ready(f"tcp://{format_address(address)}", stop_at_eof),
        up=up,
        down=down,
    )


@click.command()
@click.argument("mobility", type=Choice(["walking", "driving"]))
@click.option("--seconds", type=click.IntRange(1, int(SECONDS_MAX)), default=120, show_default=True)
@click.option("--seed", type=click.IntRange(0, NATURAL_MAX), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it; by default MOBILITY.csv.")
def bandwidth(mobility: str, seconds: int, seed: int, out: Path | None) -> None:
    """Make up the bandwidth of somebody's mobile network while walking or driving: a file for --link and --trace.

    Its lines are seconds,mbps. The same seed gives the same file.

    Example: ionn bandwidth driving --seconds 60 --seed 1 --out driving.csv
    """
    from ionn.files import write_file
    from ionn.testbed.mobile_links import mobile_bandwidth

    out = out or Path(f"{mobility}.csv")
    write_file(out, mobile_bandwidth(mobility, seconds, seed).csv().encode())
    click.echo(out)


def _log(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(name)s %(message)s")
