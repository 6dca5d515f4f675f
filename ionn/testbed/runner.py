"""Runs of the experiment, as the command line and the benchmark scripts do them: resumable, with a progress bar."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ionn.arguments import path_of
from ionn.coding import LOSSLESS, NONE
from ionn.costs.loading import costs_label, costs_of, load_costs
from ionn.costs.models import Costs
from ionn.errors import InputError, WrongResultError, printable
from ionn.files import check_writable, matching, read_bytes
from ionn.model import zoo
from ionn.model.network import Network
from ionn.paper import CLIENT, MBPS, SERVER
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import empty_plan, make_plan
from ionn.testbed.arrivals import CLOSED_LOOP, WAIT, Arrivals
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.settings import SHARE, Settings
from ionn.testbed.trace import RUNS, RunInfo, Trace, run_digests, trace_path

if TYPE_CHECKING:
    from ionn.protocol.curve import ClientKeys
    from ionn.testbed.live import Subject
    from ionn.testbed.live_session import LiveSession

# A profile of this machine is measured over so many forward passes.
PROFILE_RUNS = 20
# The file in a results folder with the costs that a server started for it sends.
SERVER_COSTS = "server.json"


def check_weights(model: str | Path, weights: str | Path | None) -> None:
    """Raise InputError if `weights` are given, and are not the model's. A virtual run needs none."""
    if weights is not None:
        from ionn.model.caffemodel import read_weights

        read_weights(path_of(weights, "weights"), Network.load(model))


def prepare_live(
    model: str | Path, weights: str | Path | None = None, client: str | Path | Costs = CLIENT, paced: bool = True
) -> Subject:
    """Load a model, and the costs of its client: those that a `paced` client is slowed down to, or this machine's own.
    Raises InputError for files that cannot be read, and for costs that do not fit the network."""
    from ionn.model.caffemodel import weights_path
    from ionn.model.synthetic import load_net
    from ionn.testbed import live

    network = Network.load(model)
    costs = costs_of(client, "client")
    costs.layer_ms(network)  # refuses a profile of another network before anything is built
    net = load_net(model, weights, network)
    return live.Subject(network, net, costs, paced, weights_path(model, weights))


def live_settings(
    subject: Subject,
    server: Costs | None = None,
    *,
    mbps: float | None = MBPS,
    dilation: float = 1.0,
    seed: int = 0,
    connect: str = "",
    coding: str = NONE,
    window_s: float | None = None,
    link: Path | None = None,
    delay_ms: float = 0.0,
    jitter_ms: float = 0.0,
    upload: str = SHARE,
    arrivals: Arrivals = CLOSED_LOOP,
    busy: str = WAIT,
    deadline_ms: float | None = None,
) -> Settings:
    """The settings of live runs of a subject. Plans are made with the costs `server`, by default those that the server
    sends. `link` is a file with the link's bandwidth over time. The other arguments are those of `Settings`.

    Raises InputError as `Settings` does.
    """
    client, planned = costs_label(subject.client), "" if server is None else costs_label(server)
    return Settings(
        "live", mbps, dilation, client, planned, seed,
        paced=subject.paced, connect=connect, network=_another_of_its_name(subject.network),
        coding=coding, window_s=window_s, link=link_name(link), delay_ms=delay_ms, jitter_ms=jitter_ms, upload=upload,
        arrivals=arrivals, busy=busy, deadline_ms=deadline_ms,
    )  # fmt: skip


def link_name(link: Path | None) -> str:
    """The name in the settings of a link whose bandwidth is in a file: the file's name and a digest of the bandwidth,
    or "" without a file. Raises InputError as `Bandwidth.load` does."""
    return _read_link(link)[0]


def _read_link(link: Path | None) -> tuple[str, Bandwidth | None]:
    """The `link_name` of a file, and the bandwidth in it."""
    if link is None:
        return "", None
    bandwidth = Bandwidth.load(link)
    return f"{printable(link.name)[:60]} ({bandwidth.digest})", bandwidth


def _copied(link: Path, stack: contextlib.ExitStack) -> Path:
    """A copy of a link's file, which may itself change during the runs."""
    copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / link.name
    copy.write_bytes(read_bytes(link, "the bandwidth"))
    return copy


def _another_of_its_name(network: Network) -> str:
    """The digest of a network that has the name of a bundled model but is another network; else ""."""
    known = network.name in zoo.definitions() and Network.load(network.name).digest != network.digest
    return network.digest if known else ""


def run_live_all(
    subject: Subject,
    algorithms: Sequence[str],
    runs: int,
    settings: Settings,
    *,
    server: Costs | None = None,
    results: Path | None = None,
    keys: ClientKeys | None = None,
    link: Path | None = None,
) -> list[Trace]:
    """Make `runs` live runs of each algorithm, in turns, so that whatever changes on this machine affects all alike.

    `settings` are what `live_settings` returns for the subject, `server` and `link`. With `results`, traces are kept
    there, and a run that is there is not made again, unless it lost its server or has wrong outputs. If the settings
    name a server to connect to, `keys` are for that server. Otherwise a server and a link are started here; without
    `server`, that server sends the costs in the results' server.json, or else a profile of this machine.
    """
    from ionn.testbed import live, processes

    name = subject.network.name
    traces: dict[tuple[int, str], Trace] = {}
    wanted = [(run, algorithm) for run in range(1, runs + 1) for algorithm in algorithms]
    paths = {
        (run, algorithm): trace_path(results, settings, name, algorithm, run)
        for run, algorithm in wanted
        if results is not None
    }
    for key, path in paths.items():
        if os.path.exists(path) and _is_finished(trace := Trace.load(path)):
            _check_same(path, trace, settings, subject.network, key[1], subject.digests(key[1], settings.coding))
            traces[key] = trace
        else:
            check_writable(path)
    if len(traces) < len(wanted):
        with contextlib.ExitStack() as stack:
            copy = None if link is None else _copied(link, stack)
            named, bandwidth = _read_link(copy)
            if named != settings.link:
                raise InputError(f"{link}: was changed just now; run again")
            testbed = processes.Testbed(settings.connect, lambda: None)
            if not settings.connect:
                sent = None if server is not None else _server_costs(subject, results, stack)
                testbed = stack.enter_context(processes.start_testbed(settings, sent, copy))
            for run, algorithm in wanted:
                if (run, algorithm) in traces:
                    continue
                with bar(None, "B", f"{name} {algorithm} run {run}/{runs}") as progress:
                    show = functools.partial(_show, progress)
                    trace = live.run_live(
                        subject, algorithm, settings, testbed.address, run, server, keys, show, bandwidth, testbed.begin
                    )
                # A session's objects refer to each other and to its photographs. They are few, so that Python would not
                # look for them before the next sessions have theirs, too.
                gc.collect()
                if results is not None:
                    trace.save(paths[run, algorithm])
                traces[run, algorithm] = trace.undilated()
    return [traces[key] for key in wanted]


def _is_finished(trace: Trace) -> bool:
    """Tell whether a live run need not be made again: it kept its server, and its outputs are right."""
    return trace.info.fault is None and not trace.outputs.wrong


def check_outputs(traces: Sequence[Trace]) -> None:
    """Raise WrongResultError if an output of these runs is wrong."""
    for trace in traces:
        if (outputs := trace.outputs).wrong:
            at = f"{trace.info.settings.connect}: " if trace.info.settings.connect else ""
            raise WrongResultError(
                f"{at}run {trace.info.run}: {outputs.wrong} of {outputs.computed} outputs are wrong, by up to "
                f"{outputs.difference:.2g} of the largest value; compared {trace.info.output_check or 'bit for bit'}"
            )


def _check_same(
    path: Path, trace: Trace, settings: Settings, network: Network, algorithm: str, digests: Mapping[str, str]
) -> None:
    """Raise InputError if the trace in `path` is not what belongs there."""
    info = trace.info
    same = (
        (info.settings, info.model, info.algorithm) == (settings, network.name, algorithm)
        and path.name == trace_path(Path(), settings, network.name, algorithm, info.run).name
        and info.graph.stages == tuple(stage.name for stage in network.stages)
        and info.plan.model_bytes == sum(stage.weight_bytes for stage in network.stages)
        and all(info.digests.get(what, digest) == digest for what, digest in digests.items())
    )
    if not same:
        raise InputError(
            f"{path}: a run with other settings, or of another network, planner or coded weights; choose another "
            "results folder, or remove it"
        )


def _server_costs(subject: Subject, results: Path | None, stack: contextlib.ExitStack) -> Path:
    """The file of costs that a server on this machine sends."""
    if results is not None and (results / SERVER_COSTS).exists():
        load_costs(str(results / SERVER_COSTS))
        return results / SERVER_COSTS
    from ionn.costs import profiling

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    with bar(PROFILE_RUNS + 1, "pass", f"{subject.network.name}: timing this machine") as progress:
        profile = profiling.profile_network(subject.network, subject.net, PROFILE_RUNS, progress.update)
    profile.save(folder / SERVER_COSTS)
    return folder / SERVER_COSTS


def _show(progress: Any, session: LiveSession) -> None:
    progress.total = session.offloading.total_bytes
    progress.update(session.offloading.uploaded_bytes - progress.n)
    if session.last_query is not None:
        progress.set_postfix_str(f"query {session.last_query.latency_ms:.0f} ms", refresh=False)


def run_virtual_all(
    model: str | Path,
    algorithms: Sequence[str],
    runs: int = 1,
    weights: str | Path | None = None,
    *,
    client: str | Path | Costs = CLIENT,
    server: str | Path | Costs = SERVER,
    mbps: float | None = MBPS,
    noise: float = 0.0,
    seed: int = 0,
    results: Path | None = None,
    coding: str = NONE,
    weight_ratio: float | None = None,
    window_s: float | None = None,
    link: Path | None = None,
    delay_ms: float = 0.0,
    jitter_ms: float = 0.0,
    upload: str = SHARE,
    arrivals: Arrivals = CLOSED_LOOP,
    busy: str = WAIT,
    deadline_ms: float | None = None,
) -> list[Trace]:
    """Make runs on the virtual testbed. They take milliseconds, so they are never resumed. Without `mbps`, the client
    measures its link. If `weights` are given, they must be the model's; coded, they have the size that is in their
    sidecar, if there is one."""
    from ionn.testbed.virtual import run_virtual
    from ionn.testbed.virtual_adaptive import run_adaptive

    check_weights(model, weights)
    network = Network.load(model)
    client_costs, server_costs = costs_of(client, "client"), costs_of(server, "server")
    planned = costs_label(server_costs)
    named, bandwidth = _read_link(link)
    settings = Settings(
        "virtual", mbps, client=costs_label(client_costs), server="" if planned == SERVER else planned, seed=seed,
        noise=noise, network="" if model in zoo.definitions() else _another_of_its_name(network),
        coding=coding, weight_ratio=weight_ratio, window_s=window_s,
        link=named, delay_ms=delay_ms, jitter_ms=jitter_ms, upload=upload,
        arrivals=arrivals, busy=busy, deadline_ms=deadline_ms,
    )  # fmt: skip
    coded_bytes = None
    if coding == LOSSLESS and weight_ratio is None:
        from ionn.model.coded_weights import own_wire_bytes

        coded_bytes = own_wire_bytes(model, weights, network)
    graph = ExecutionGraph.from_network(
        network, client_costs, server_costs, mbps or MBPS, coding, weight_ratio, coded_bytes
    )
    traces = []
    for algorithm in algorithms:
        make = make_plan if mbps is not None else empty_plan
        plan = make(network, graph, algorithm, mbps or MBPS)
        digests = run_digests(network, algorithm)
        infos = [
            RunInfo(settings, run, plan, graph, digests=digests, bandwidth=bandwidth) for run in range(1, runs + 1)
        ]
        if mbps is not None:
            made = [run_virtual(info) for info in infos]
        else:
            made = [run_adaptive(info, network, client_costs, server_costs, coded_bytes=coded_bytes) for info in infos]
        if results is not None:
            paths = [trace_path(results, settings, network.name, algorithm, trace.info.run) for trace in made]
            for path in (former := set(matching(paths[0].parent, RUNS))):
                _check_same(path, Trace.load(path), settings, network, algorithm, {"network": network.digest})
            for path, trace in zip(paths, made, strict=True):
                trace.save(path)
            for path in former.difference(paths):
                path.unlink()  # it would be averaged with these
        traces += made
    return traces


@contextlib.contextmanager
def bar(total: int | None, unit: str, title: str) -> Iterator[Any]:
    """A progress bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, unit_scale=unit == "B", desc=title, disable=None, leave=False) as progress:
        yield progress
