"""The functions and classes that `import ionn` offers.

Names say their units: `_ms` is milliseconds, `_s` seconds, `_bytes` bytes, and `mbps` 10^6 bit/s in each direction of
the link. Every error is an `IonnError` with a message of one line: `InputError` for what the caller gave,
`ServerError` or `ServerUnreachableError` for a server that fails, `WrongResultError` for a wrong output, and
`MissingLibraryError` where Caffe is missing (`ionn.errors` has them all).
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

# A client without given costs measures this machine over so many forward passes before it plans.
PROFILE_RUNS = 3


def load_network(model: str | Path) -> Network:
    """Read a model by its name (alexnet, inception, resnet, googlenet, mobilenet) or from a path that ends in
    .prototxt.

    The network's `layers` are those that Caffe lists; its `stages` are the groups of adjacent layers that a plan moves
    as one. Caffe is not needed. Raises InputError if there is no such model, or if ionn cannot run it.
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
    """Divide a network into partitions and order them for upload. The plan has, for each partition, its bytes, its
    upload time in ms and the latency in ms that is expected once it has arrived.

    - `client`, `server`: the layers' costs on the two devices, as `load_costs` returns them, or a device or file that
      `load_costs` takes.
    - `mbps`: the bandwidth of the link.
    - `algorithm`: the name of a planner, such as "original", "efficiency" or "recursive-efficiency" (the paper's
      sections 2.2, 3.2 and 3.3). `add_planner` adds your own.
    - `coding`: what is compressed without loss on the link where that is faster: "none", "features" (inputs and feature
      maps of queries) or "lossless" (weights too).
    - `weight_ratio`: with "lossless", the weights' bytes after coding per byte before, above 0 and at most 1. By
      default the measured ratios of bundled models are used, and other models' weights are sent raw.

    Caffe is not needed. Raises InputError for an argument that cannot be used.
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
    """Run the experiment of the paper's section 4.1: upload a model while queries run. Returns one trace per run.

    - `testbed`: "virtual" computes the run with a simulated clock, within milliseconds. "live" starts a server and a
      link on this machine, and Caffe computes every layer; the client is slowed down to the latencies of `client`, and
      a run takes as long as the upload.
    - `client`, `server`: costs, as in `plan_upload`. By default the client is the paper's Odroid, and the server the
      paper's GPU (virtual) or this machine, which sends its own costs (live). With `server` given, plans are made with
      those costs.
    - `results`: a folder that keeps the traces. Finished live runs in it are not run again.
    - `weights`: the caffemodel; by default the one beside the prototxt, or the bundled model's own.
    - `coding`, `weight_ratio`: as in `plan_upload`. Live, "lossless" sends coded weights only if `ionn models --build`
      has coded them.
    - `window_s`: queries are raised for at least so long. As in the paper, they are also raised until the upload has
      ended, and five more follow.
    - `arrivals`: when queries are raised: "closed" (each after the answer to the one before, as in the paper), "fps:N",
      "poisson:N", "burst:N,PERIOD", or the path of a file of timestamps (`ionn.testbed.arrivals`).
    - `busy`: a query that is raised while the client is busy waits ("wait") or is dropped ("drop").
    - `deadline_ms`: count the queries that are answered within this time. The result is in a trace's `responses` and
      `responses_over_time`.
    - `mbps`: the constant bandwidth of the link, by default the paper's 80.
    - `link`: in place of that, a file with the bandwidth over time: lines of `seconds,mbps`, or a trace in Mahimahi's
      format. Plans are made for the bandwidth that the client measures, or for `mbps` if that is given too.
    - `delay_ms`, `jitter_ms`: the time that each byte takes from one end of the link to the other, and by how much
      this time varies.
    - `upload`: weights "share" the uplink with queries, or "yield": they are held back while a query is at the server.

    Raises InputError for an argument that cannot be used. A live run raises ServerUnreachableError if it lost its
    server, MissingLibraryError without Caffe, and WrongResultError if an output is not that of a local forward pass:
    bit for bit, or, where the last bits vary, within a tolerance (a trace's `info.output_check`).
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
    # Raises InputError for settings that do not fit together, before anything is loaded.
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
    """Run the virtual testbed for all combinations of the lists given, and return one row per run. The rows are in the
    order of the arguments; seeds change fastest.

    - `out`: the CSV file that keeps the rows. Runs that it has already are not repeated, so an interrupted sweep
      continues.
    - `jobs`: how many processes on this machine compute the runs; by default one per core.
    - `cluster`: the address of a Dask scheduler, whose workers then compute the runs (docs/sweeps.md).
    - The other lists hold what `run` takes as `model`, `algorithm`, `mbps`, `client`, `server`, `coding` and
      `arrivals`. Seeds are those of "poisson" arrivals. A planner of your own is named as `add_planner` returned it.

    Raises InputError if some runs cannot be computed, after the others have been, or if `out` is not a table of a
    sweep; IonnError if processes or the cluster are lost.
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
    """Read the traces of a results folder, in the order of their paths. Times of a run that was slowed down by a
    dilation are divided by it.

    Raises InputError if there is no such folder, or if a file is not a complete trace.
    """
    results = path_of(results, "results")
    if not os.path.isdir(results):
        raise InputError(f"{results}: no such folder")
    return load_traces(results)


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    - `outputs`: the network's outputs by name, float32 in the shapes of their blobs.
    - `segments`: which stages ran where, and how long each took.
    - `latency_ms`: the time of the whole query.
    - `fallback`: the server failed or was late, and this machine completed the query.
    - `audited`: this machine computed again what the server answered. If the server was wrong, the outputs are those
      that were computed here.
    - `feature_bytes`, `feature_wire_bytes`: the bytes of the inputs and feature maps that crossed the link for this
      query, before and after coding.
    """

    outputs: dict[str, Floats]
    segments: tuple[Segment, ...]
    latency_ms: float
    fallback: bool
    audited: bool
    feature_bytes: int
    feature_wire_bytes: int


class Session:
    """A network on this machine, and perhaps a server that executes the stages that have been uploaded to it.

    `connect` makes sessions. `network` is the network that a session runs. Queries work with and without a server.
    """

    def __init__(self, offloading: Offloading) -> None:
        self.network = offloading.network
        self._offloading = offloading

    @property
    def plan(self) -> Plan:
        """The partitions in upload order; empty until the server's costs are known."""
        assert self._offloading.plan is not None
        return self._offloading.plan

    @property
    def fault(self) -> Exception | None:
        """Why the server is lost, or why the upload ended early; None if neither is the case."""
        return self._offloading.fault

    @property
    def uploaded(self) -> float:
        """The share of the plan's bytes that has been uploaded, from 0 to 1."""
        if not self._offloading.planned:
            return 0.0
        total_bytes = self._offloading.total_bytes
        return self._offloading.uploaded_bytes / total_bytes if total_bytes else 1.0

    @property
    def weight_bytes_sent(self) -> int:
        """The bytes of weights that have been uploaded, before coding, without those that the server had stored."""
        return sum(record.bytes - record.stored_bytes for record in self._offloading.records())

    @property
    def weight_bytes_held(self) -> int:
        """The bytes of weights that need no upload, because the server has stored them from an earlier one."""
        return sum(record.stored_bytes for record in self._offloading.records())

    def query(self, data: Floats) -> Answer:
        """Compute the network on `data`, float32 in the shape `network.input_shape`: (N, C, H, W) for images.

        Each query takes the fastest path through the stages that have arrived at the server when it starts. Several
        threads may query one session: their queries run one after another, and a latency includes the waiting. Raises
        InputError for data of another shape, and for data that are not real numbers.
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
        """Wait until the whole plan has arrived, the server is lost, or `timeout_s` is over. Returns whether the whole
        plan has arrived.

        Raises InputError for a time that is no number.
        """
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
    """Load a model with its weights, connect to the server at `address` (tcp://HOST:PORT), and begin to upload.

    This is a context manager: the session ends with its `with` block. Without an address, all queries run here.

    - `weights`: the caffemodel; by default the one beside the prototxt, or the bundled model's own, which is built at
      its first use. The file is read once: what is uploaded is what this machine computes with, even if the file
      changes.
    - `client`: the costs of this machine; by default they are measured in a few forward passes.
    - `server`: the costs of the server; by default the server sends them.
    - `mbps`: the bandwidth of the link. By default link and server are measured: by a probe of 64 kB at the beginning,
      then by everything that crosses the link and is computed. Plans and routes follow what was measured, and a query
      for which the server is late is completed here (docs/adapting.md). With `mbps` given, bandwidth and costs are
      taken as they are given.
    - `algorithm`: the name of a planner, as in `plan_upload`.
    - `coding`: what is compressed without loss on the link where that is faster, as in `plan_upload`. By default
      "lossless", but "none" for an address of this machine, where coding gains nothing. Weights are coded only if
      `ionn models --build` has coded them. The sizes of coded data tell something about the data to whoever can see
      the link (docs/security.md).
    - `keys`: needed for a server that has keys.
    - `audit`: the largest share of this client's time, from 0 to 1, that may go into computing again what the server
      answered, in queries drawn at random; 1 means every query. If a result is wrong, the server is not used again,
      queries run here, and the session's `fault` is a WrongResultError that names the file with the evidence. By
      default nothing is audited.
    - `audit_tolerance`: how far a value may be off, as a share of the output's largest value. With 0, the default,
      every differing bit is wrong, and a server that says that its processor rounds differently is not used.

    Weights that the server has stored from an earlier upload are not sent again, if `ionn models --build` has made
    their sidecar (docs/second-visits.md).

    Raises InputError if files do not fit, or if the server sends no costs and none are given; MissingLibraryError
    without Caffe; and NotAcceptedError if the server does not accept `keys`, or if its processor rounds differently and
    the audit has no tolerance. A server that does not answer is no error: the session's `fault` says so, queries run
    here, and the client looks for the server again, at first after a quarter of a second, then less often, up to every
    five seconds. When the server answers, the plan is made, if it needed the server's costs, and uploaded; if costs are
    still missing, `fault` says so.
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
        raise InputError("keys: give ionn.ClientKeys")  # not shown, as it may be a secret
    if coding is not None:
        coding = text_of(coding, "coding")
        check_coding(coding)
    audit, audit_tolerance = share_of(audit, "audit"), share_of(audit_tolerance, "audit_tolerance")
    if address is not None:
        parse_address(address)
    network = Network.load(model)
    net = load_net(model, weights, network)
    if address is None:
        costs = costs or load_costs(CLIENT)  # any costs will do, as nothing is uploaded
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
    """The coding of a session for which none was given. Within a machine, bytes cross faster than they are coded."""
    from ionn.address import is_this_machine

    try:
        return NONE if is_this_machine(address) else LOSSLESS
    except InputError:  # an unknown host, which may become known later
        return LOSSLESS


def _number_or_none(given: float | None, what: str) -> float | None:
    return None if given is None else number_of(given, what)


def _input_of(network: Network, data: Any) -> Floats:
    """The data of a query as float32. Raises InputError if the network cannot take them."""
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
