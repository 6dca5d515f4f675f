"""`ionn serve`, `ionn ping`, `ionn keygen`, `ionn link` and `ionn bandwidth`: the server, its keys, and the link to
it."""

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

from ionn.arguments import path_of
from ionn.cli.options import (
    BANDWIDTH_HELP,
    COSTS_HELP,
    SECONDS_MAX,
    Choice,
    Number,
    delay_option,
    given_option,
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
# A real network does not wait for the processors at its ends. This priority needs root; without it, a busy machine may
# delay the link.
LINK_NICENESS = -10

# From twice the size of the largest piece, since a client has half of a store by default, to more than a disk has.
STORE_GB = Number(0.01, 1e6)
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
    """Stop when standard input ends: it is a pipe from the process that started this one, and closes however that
    process ends."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@click.command()
@click.option(
    "--bind",
    default=SERVE_AT,
    show_default=True,
    metavar="ADDRESS",
    help="Listen at tcp://HOST:PORT; port 0: any free one.",
)
@click.option("--costs", metavar="COSTS", help=f"The costs of this machine, which are sent to clients: {COSTS_HELP}.")
@key_option
@click.option(
    "--allow", type=click.Path(path_type=Path), help="File of the clients' public keys, one per line; with --key."
)
@click.option("--insecure", is_flag=True, help="Serve anybody at a public address, without keys and encryption.")
@click.option(
    "--sandbox/--no-sandbox",
    "sandboxed",
    default=True,
    show_default=True,
    help="Deny files, sockets and other processes to the processes that run clients' nets.",
)
@click.option(
    "--store", type=click.Path(), metavar="DIR", help="Keep clients' weights in this folder after their sessions."
)
@click.option(
    "--store-gb",
    type=STORE_GB,
    help=f"With --store: its largest size, in 10^9 bytes. By default {STORE_DEFAULT_GB:g}.",
)
@click.option(
    "--store-gb-per-client",
    type=STORE_GB,
    help="With --store: the same for each client, known by its key. By default half of --store-gb.",
)
@click.option(
    "--store-shared",
    is_flag=True,
    help="With --store: all clients share it, and may learn what others have uploaded. Required without keys.",
)
@click.option(
    "--metrics", metavar="ADDRESS", help="Serve metrics for Prometheus at HOST:PORT; needs prometheus-client."
)
@click.option("--verbose", "-v", is_flag=True, help="Log sessions.")
@click.option("--log-json", is_flag=True, help="Log in JSON, one object per line.")
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
    """Run the edge server. Prints its address when clients can connect. SIGTERM or Ctrl-C ends it, as soon as the
    queries that are running have finished.

    What clients may use is limited: from --sessions on, each option below is a limit, with its reason.

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
    """The settings of the store, None without one. Raises InputError for options that do not fit together."""
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
    """Ask the server at ADDRESS whether it accepts another session. The exit code is 0 if it does.

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
    """Make a pair of keys, for encrypted connections. NAME.secret stays on this machine; NAME.public is for the other
    side.

    A server needs its own secret key and the public keys of its clients; a client needs its own secret key and the
    public key of the server.

    Example: ionn keygen phone
    """
    from ionn.protocol.curve import make_keys

    for path in make_keys(name):
        click.echo(path)


@click.command()
@click.option(
    "--listen",
    default=LINK_AT,
    show_default=True,
    metavar="ADDRESS",
    help="Where clients connect; port 0: any free one.",
)
@click.option("--to", default=SERVE_AT, show_default=True, metavar="ADDRESS", help="Where the server is.")
@mbps_option
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help=f"In place of --mbps, the bandwidth over time: {BANDWIDTH_HELP}. It begins at once, and again at SIGUSR1.",
)
@options(delay_option, jitter_option)
@click.option("--seed", default=0, show_default=True, help="Seed of the jitter.")
@click.option("--dilation", default=1.0, show_default=True, help="Slow bandwidth and delay down by this factor.")
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
    """Run a link: forward TCP at a limited rate and after a delay. Each direction has the rate for itself, and
    connections share it equally. 80 Mbps are 80,000,000 bits of payload per second.

    Prints its address when ready.

    Example: ionn link --listen tcp://127.0.0.1:7676 --to tcp://127.0.0.1:7675 --mbps 80 --delay-ms 20
    """
    from ionn.address import format_address, parse_address
    from ionn.testbed.bandwidth import Bandwidth
    from ionn.testbed.delay import Delay
    from ionn.testbed.link import serve_link
    from ionn.testbed.settings import Settings

    Settings("live", mbps, dilation, seed=seed, delay_ms=delay_ms, jitter_ms=jitter_ms)  # checks ranges
    if trace is not None and given_option(["mbps"]) is not None:
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
@click.option("--seconds", type=click.IntRange(1, int(SECONDS_MAX)), default=120, show_default=True, help="How long.")
@click.option(
    "--seed", type=click.IntRange(0, NATURAL_MAX), default=0, show_default=True, help="Seed of the randomness."
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write; by default walking.csv or driving.csv.")
def bandwidth(mobility: str, seconds: int, seed: int, out: Path | None) -> None:
    """Generate the bandwidth of a phone's network over time, while its owner walks or drives. The file is for 'ionn run
    --link' and 'ionn link --trace'; its lines are seconds,mbps. The same seed gives the same file.

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
