"""The library in a handful of functions; `import ionn` offers them all.

Times are ms where a name ends in `_ms` and seconds where it ends in `_s`; bandwidths are 10^6 bit/s. Whatever the
caller got wrong raises InputError, a server that fails ServerError or ServerUnreachableError, a Caffe that is missing
MissingLibraryError: all are IonnErrors, and their message is one line.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ionn.arguments import count_of, name_of, number_of, path_of, share_of, shown, text_of
from ionn.coding import LOSSLESS, NONE, check_coding
from ionn.costs.loading import costs_of, load_costs
from ionn.costs.models import Costs
from ionn.errors import InputError, IonnError, ServerUnreachableError
from ionn.model.inputs import image_input
from ionn.model.network import Network
from ionn.model.slices import Slice
from ionn.paper import CLIENT, MBPS, RECURSIVE, SERVER
from ionn.planning.graph import ExecutionGraph, checked_mbps
from ionn.planning.plan import Plan, empty_plan, make_plan
from ionn.planning.planners import add_planner, get_planner
from ionn.records import Segment
from ionn.testbed.arrivals import CLOSED, WAIT, Arrivals
from ionn.testbed.settings import SHARE, Settings
from ionn.testbed.sweep_table import SweepRow, read_table
from ionn.testbed.trace import Trace, load_traces

if TYPE_CHECKING:
    from ionn.client.offloading import Offloading
    from ionn.model.caffemodel import Floats
    from ionn.protocol.curve import ClientKeys

__all__ = [
    "Answer", "ExecutionGraph", "InputError", "IonnError", "Network", "Plan", "Session", "Slice", "Trace",
    "add_planner", "connect", "image_input", "load_costs", "load_network", "plan_upload", "read_table",
    "read_traces", "run", "sweep",
]  # fmt: skip

# Forward passes that this machine is timed over before it plans as a client.
PROFILE_RUNS = 3


def load_network(model: str | Path) -> Network:
    """A model by name (alexnet, inception, resnet, googlenet, mobilenet) or from a path that ends in .prototxt.

    Its `layers` are those of Caffe, its `stages` what a plan moves. Loads no Caffe. Raises InputError where there is no
    such model, and where it is none that ionn can run.
    """
    return Network.load(model)


def plan_upload(
    network: Network,
    client: str | Path | Costs = CLIENT,
    server: str | Path | Costs = SERVER,
    mbps: float = MBPS,
    algorithm: str = RECURSIVE,
    *,
    coding: str = NONE,
    weight_ratio: float | None = None,
) -> Plan:
    """Which partitions of a network to upload in which order, with bytes, upload time and expected latency of each.

    `client` and `server` are costs, or what `load_costs` makes costs of: a device, a file. `algorithm` is the name of a
    planner; `add_planner` adds one. `coding` is what is coded on the link where that is faster: "none", "features"
    (inputs and feature maps) or "lossless" (weights too); `weight_ratio` is what weights shrink to then, by default
    what was measured of a model that comes along. Loads no Caffe. Raises InputError.
    """
    if not isinstance(network, Network):
        raise InputError(f"network {shown(network)}: give what load_network returns")
    mbps = number_of(mbps, "mbps")
    coding, weight_ratio = text_of(coding, "coding"), _number_or_none(weight_ratio, "weight_ratio")
    here, there = costs_of(client, "client"), costs_of(server, "server")
    graph = ExecutionGraph.from_network(network, here, there, mbps, coding, weight_ratio)
    return make_plan(network, graph, algorithm, mbps)


def run(
    model: str | Path,
    algorithm: str = RECURSIVE,
    *,
    testbed: str = "virtual",
    runs: int = 1,
    mbps: float | None = None,
    client: str | Path | Costs = CLIENT,
    server: str | Path | Costs | None = None,
    results: str | Path | None = None,
    weights: str | Path | None = None,
    coding: str = NONE,
    weight_ratio: float | None = None,
    window_s: float | None = None,
    link: str | Path | None = None,
    delay_ms: float = 0.0,
    jitter_ms: float = 0.0,
    upload: str = SHARE,
    arrivals: str | Path = CLOSED,
    busy: str = WAIT,
    deadline_ms: float | None = None,
) -> list[Trace]:
    """Run the experiment of the paper's section 4.1, by default with the paper's devices at both ends: a trace per run.

    `testbed` is "virtual" (computed, milliseconds) or "live" (server and link are started on this machine, Caffe
    computes, the client is paced to the latencies of `client`; at least as long as the upload). `client` and `server`
    are costs, as in `plan_upload`. Plans are made with those of `server`, if given; else the virtual testbed has the
    paper's GPU, and on the live one the server sends what this machine costs. With `results`, traces are kept in that
    folder, and finished live runs are not run again. `coding` and `weight_ratio` are as in `plan_upload`; live,
    "lossless" sends weights that `ionn models --build` has coded, and others raw. Queries are raised for `window_s` at
    least, if given: one after another, or as `arrivals` says: "fps:N", "poisson:N", "burst:N,PERIOD", or the path of a
    file of timestamps. Those that meet a busy client "wait", or "drop" out, as `busy` says; with `deadline_ms`, those
    answered within it are counted. A trace's `responses` and `responses_over_time` have what became of them.

    The link has `mbps`, by default the paper's 80. Or `link` is a file with its bandwidth over time, `seconds,mbps`
    lines or a trace in Mahimahi's format: plans are made for what the client measures then, or for `mbps` all the
    same, if that is given. A byte takes `delay_ms` each way, which wanders by `jitter_ms`. With `upload` "share",
    weights share the uplink with queries; with "yield" they are held back while a query is at the server.

    Raises InputError, and of a live run ServerUnreachableError where it lost its server, and WrongResultError where an
    output is not the local forward's, bit for bit.
    """
    from ionn.testbed import runner

    mbps, runs, testbed = _number_or_none(mbps, "mbps"), count_of(runs, "runs"), text_of(testbed, "testbed")
    here, there = costs_of(client, "client"), None if server is None else costs_of(server, "server")
    results = None if results is None else path_of(results, "results")
    coding, weight_ratio = text_of(coding, "coding"), _number_or_none(weight_ratio, "weight_ratio")
    window_s = _number_or_none(window_s, "window_s")
    link = None if link is None else path_of(link, "link")
    delay_ms, jitter_ms = number_of(delay_ms, "delay_ms"), number_of(jitter_ms, "jitter_ms")
    upload = text_of(upload, "upload")
    raised, busy = Arrivals.parse(name_of(arrivals, "arrivals")), text_of(busy, "busy")
    deadline_ms = _number_or_none(deadline_ms, "deadline_ms")
    if mbps is None and link is None:
        mbps = MBPS
    if testbed == "virtual":
        return runner.run_virtual_all(
            model, [algorithm], runs, weights, client=here, server=there or SERVER, mbps=mbps, results=results,
            coding=coding, weight_ratio=weight_ratio, window_s=window_s,
            link=link, delay_ms=delay_ms, jitter_ms=jitter_ms, upload=upload,
            arrivals=raised, busy=busy, deadline_ms=deadline_ms,
        )  # fmt: skip
    # Refuses what cannot be before anything is loaded.
    Settings(
        testbed, mbps, coding=coding, weight_ratio=weight_ratio, window_s=window_s,
        link=runner.link_name(link), delay_ms=delay_ms, jitter_ms=jitter_ms, upload=upload,
        arrivals=raised, busy=busy, deadline_ms=deadline_ms,
    )  # fmt: skip
    subject = runner.prepare_live(model, weights, here)
    settings = runner.live_settings(
        subject, there, mbps=mbps, coding=coding, window_s=window_s,
        link=link, delay_ms=delay_ms, jitter_ms=jitter_ms, upload=upload,
        arrivals=raised, busy=busy, deadline_ms=deadline_ms,
    )  # fmt: skip
    traces = runner.run_live_all(subject, [algorithm], runs, settings, server=there, results=results, link=link)
    runner.check_outputs(traces)
    for trace in traces:
        if trace.info.fault is not None:
            raise ServerUnreachableError(trace.info.fault)
    return traces


def sweep(
    models: Sequence[str | Path],
    algorithms: Sequence[str],
    out: str | Path,
    *,
    mbps: Sequence[float] = (MBPS,),
    clients: Sequence[str | Path | Costs] = (CLIENT,),
    servers: Sequence[str | Path | Costs] = (SERVER,),
    codings: Sequence[str] = (NONE,),
    arrivals: Sequence[str | Path] = (CLOSED,),
    seeds: Sequence[int] = (0,),
    jobs: int | None = None,
    cluster: str | None = None,
) -> list[SweepRow]:
    """Run the virtual testbed for all combinations of these: a row per run, in the order of the arguments, the last of
    which changes fastest.

    `out` is the CSV that the rows are kept in: what is there already is not run again, so that a sweep goes on where it
    was interrupted. `jobs` processes of this machine make the runs, by default one per core, or the workers of the Dask
    scheduler at the address `cluster` (docs/sweeps.md). A planner of your own takes part under the name that
    `add_planner` returned. Raises InputError where something cannot be run, after all else was, and where `out` is a
    file that is no table of a sweep; IonnError where processes or the cluster are lost.
    """
    from ionn.testbed.sweep import Grid, failed, run_sweep

    lists = {
        "models": models, "algorithms": algorithms, "mbps": mbps, "clients": clients, "servers": servers,
        "codings": codings, "arrivals": arrivals, "seeds": seeds,
    }  # fmt: skip
    for name, values in lists.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise InputError(f"{name} {shown(values)}: give a list of them")
    if wrong := [each for each in seeds if not isinstance(each, int) or isinstance(each, bool)]:
        raise InputError(f"seed {shown(wrong[0])}: give a whole number")
    grid = Grid.of(
        models, [text_of(each, "algorithm") for each in algorithms], [number_of(each, "mbps") for each in mbps],
        [costs_of(each, "client") for each in clients], [costs_of(each, "server") for each in servers],
        [text_of(each, "coding") for each in codings], [name_of(each, "arrivals") for each in arrivals], seeds,
    )  # fmt: skip
    rows, failures = run_sweep(
        grid, path_of(out, "out"), None if jobs is None else count_of(jobs, "jobs"),
        None if cluster is None else text_of(cluster, "cluster"),
    )  # fmt: skip
    if failures:
        raise failed(failures, len(grid), path_of(out, "out"))
    return rows


def read_traces(results: str | Path) -> list[Trace]:
    """The complete traces of a results folder, in the order of their paths; times are undilated.

    Raises InputError where there is no such folder, or a file is not a trace.
    """
    results = path_of(results, "results")
    if not os.path.isdir(results):
        raise InputError(f"{results}: no such folder")
    return load_traces(results)


@dataclass(frozen=True)
class Answer:
    """What a query gave.

    `outputs` are the network's outputs by name, float32 in their blobs' shapes. `segments` say which stages ran where,
    and how long each took; `latency_ms` is the whole query. `fallback`: the server failed meanwhile, and the query was
    completed here. `audited`: what the server answered was computed again here, and it was right, or the outputs are
    those computed here. `feature_bytes` are inputs and feature maps that crossed the link for it, before coding, and
    `feature_wire_bytes` what of them was sent.
    """

    outputs: dict[str, Floats]
    segments: tuple[Segment, ...]
    latency_ms: float
    fallback: bool
    audited: bool
    feature_bytes: int
    feature_wire_bytes: int


class Session:
    """A network at this machine, and perhaps a server that takes over stages as they arrive there.

    Made by `connect`. `network` is what it runs. `fault` is why there is no server, None while there is one; queries
    work all the same.
    """

    def __init__(self, offloading: Offloading) -> None:
        self.network = offloading.network
        self._offloading = offloading

    @property
    def plan(self) -> Plan:
        """What it uploads, in which order; empty until a server's costs are known."""
        assert self._offloading.plan is not None
        return self._offloading.plan

    @property
    def fault(self) -> Exception | None:
        """Why this session does without the server, or None while it has one."""
        return self._offloading.fault

    @property
    def uploaded(self) -> float:
        """How much of the plan has been sent, from 0 to 1."""
        if not self._offloading.planned:
            return 0.0
        total_bytes = self._offloading.total_bytes
        return self._offloading.uploaded_bytes / total_bytes if total_bytes else 1.0

    @property
    def weight_bytes_sent(self) -> int:
        """The weights that have been uploaded, as they are before coding, without those that were held."""
        return sum(record.bytes - record.stored_bytes for record in self._offloading.records())

    @property
    def weight_bytes_held(self) -> int:
        """The weights that need not be uploaded, because the server has them in its store, from an earlier upload."""
        return sum(record.stored_bytes for record in self._offloading.records())

    def query(self, data: Floats) -> Answer:
        """Compute the network on `data`, float32 (N, C, H, W) as `network.input_shape`, over both sides.

        Each query takes the fastest path through the stages that have arrived when it starts. Any number of threads may
        query one session: each gets the answer to its own data, one after another, and its latency has the waiting in
        it. Raises InputError for data of another shape, and for what are no real numbers.
        """
        given = _input_of(self.network, data)
        start_s = time.perf_counter()
        done = self._offloading.executor.execute(given)
        latency_ms = (time.perf_counter() - start_s) * 1e3
        outputs = dict(zip(self.network.outputs, done.outputs, strict=True))
        return Answer(
            outputs, done.segments, latency_ms, done.fallback, done.audited, done.feature_bytes, done.feature_wire_bytes
        )

    def wait_uploaded(self, timeout_s: float | None = None) -> bool:
        """Wait until the whole plan has arrived, the server is lost, or the time is over; whether all has arrived.

        Raises InputError for a time that is no number."""
        end_s = None if timeout_s is None else time.monotonic() + number_of(timeout_s, "timeout_s")
        while not self._offloading.uploaded() and self.fault is None:
            if end_s is not None and time.monotonic() >= end_s:
                return False
            time.sleep(0.02)
        return self.fault is None


@contextlib.contextmanager
def connect(
    model: str | Path,
    address: str | None = None,
    *,
    weights: str | Path | None = None,
    client: str | Path | Costs | None = None,
    server: str | Path | Costs | None = None,
    mbps: float | None = None,
    algorithm: str = RECURSIVE,
    coding: str | None = None,
    keys: ClientKeys | None = None,
    audit: float = 0.0,
    audit_tolerance: float = 0.0,
) -> Iterator[Session]:
    """Load a model with its weights, connect to the server at tcp://HOST:PORT, and begin to upload the plan.

    Without an address all queries run here. `weights` is the caffemodel; by default the one beside the prototxt, and
    for a name the one that comes along, which is built where it is used first. Plans are made with the costs of this
    machine (`client`, by default measured: a few forward passes) and those that the server sends, unless `server` are
    others. `keys` are for a server that has keys.

    The link and the server are measured: a probe of 64 kB when the connection is made, and all that crosses the link
    and is computed later, say what plans and routes are made for. A query for which the server is late is completed
    here, so that offloading costs little where it does not pay (docs/adapting.md). With `mbps`, the link is taken to
    have that bandwidth, and the costs for what they say.

    Inputs, feature maps and weights are coded on the link where that is faster by these costs ("lossless";
    `ionn.coding`), but not at an address of loopback, where nothing is gained. With "features" weights are not,
    nor are they where `ionn models --build` has not coded them; with "none" nothing is: sizes of coded data say
    something about it to whoever sees the link (docs/security.md).

    What of the weights the server keeps from an earlier upload is not sent again, if they have a sidecar, which
    `ionn models --build` makes (docs/second-visits.md).

    The weights are read once: whatever becomes of the file, what is uploaded is what is computed with here.

    At most the share `audit` of this client's time, from 0 to 1, goes into computing again what the server answered, in
    queries drawn by lot; 1 means all queries. A result is wrong if a bit of it differs, or, with an `audit_tolerance`
    above 0, a value by more than that times the output's largest. Then the server is left for good, the session's
    `fault` is a WrongResultError that names the file with the evidence, and queries run here. Both are 0 by default:
    auditing costs time, and the last bits of an honest server with processors of another kind differ. Without a
    tolerance, a server that says to be of another kind is not used.

    The session ends with the context. Raises InputError where files do not fit, or the server sends no costs and none
    are given, MissingLibraryError without Caffe, and NotAcceptedError where the server does not take `keys`, or is of
    another kind than an audit takes. A server that does not answer is no error: the session's `fault` says so, queries
    run here, and it is looked for again, at first after a quarter of a second, then less often, up to every five. When
    it answers, the plan is made, if that needed its costs, and uploaded; where costs are missing, `fault` says so.
    """
    from ionn.address import parse_address
    from ionn.client.audit import Auditor
    from ionn.client.offloading import Offloading, open_offloading
    from ionn.costs import profiling
    from ionn.model.caffemodel import weights_path
    from ionn.model.synthetic import load_net
    from ionn.protocol.curve import ClientKeys

    mbps = _number_or_none(mbps, "mbps")
    if mbps is not None:
        checked_mbps(mbps)
    get_planner(algorithm)
    costs = None if client is None else costs_of(client, "client")
    there = None if server is None else costs_of(server, "server")
    if keys is not None and not isinstance(keys, ClientKeys):
        raise InputError("keys: give ionn.ClientKeys")  # whatever it is may be secret
    if coding is not None:
        coding = text_of(coding, "coding")
        check_coding(coding)
    audit, audit_tolerance = share_of(audit, "audit"), share_of(audit_tolerance, "audit_tolerance")
    if address is not None:
        parse_address(address)
    network = Network.load(model)
    net = load_net(model, weights, network)
    if address is None:
        costs = costs or load_costs(CLIENT)  # of no effect: nothing is uploaded
        offloading = Offloading(network, net, ExecutionGraph.from_network(network, costs, costs, mbps or MBPS))
        offloading.plan = empty_plan(network, offloading.graph, algorithm, mbps or MBPS)
        yield Session(offloading)
        return
    here = costs or profiling.profile_network(network, net, PROFILE_RUNS)
    auditor = Auditor(network, net, address, audit, audit_tolerance) if audit else None
    with open_offloading(
        network, net, here, address, mbps, algorithm,
        coding=coding or _default_coding(address), weights_file=weights_path(model, weights), there=there, keys=keys,
        may_be_lost=True, auditor=auditor,
    ) as offloading:  # fmt: skip
        offloading.start_upload()
        yield Session(offloading)


def _default_coding(address: str) -> str:
    """What a session codes if nobody says. Within a machine bytes cross faster than they are coded."""
    from ionn.address import is_this_machine

    try:
        return NONE if is_this_machine(address) else LOSSLESS
    except InputError:  # an unknown host, which may become known
        return LOSSLESS


def _number_or_none(given: float | None, what: str) -> float | None:
    return None if given is None else number_of(given, what)


def _input_of(network: Network, data: Any) -> Floats:
    """The data of a query as the network takes it."""
    try:
        given = np.asarray(data)
    except (TypeError, ValueError):  # lists of different lengths
        raise InputError(f"data {shown(data)}: give an array of the shape {network.input_shape}") from None
    if given.shape != network.input_shape:
        raise InputError(f"data of shape {given.shape}: {network.name} takes {network.input_shape}")
    if given.dtype.kind not in "biuf":
        raise InputError(f"data of type {given.dtype}: {network.name} takes float32, or what converts to it")
    try:
        with np.errstate(over="raise"):
            return given.astype(np.float32, copy=False)
    except FloatingPointError:
        raise InputError(f"data of type {given.dtype}: some of its numbers are too large for float32") from None
