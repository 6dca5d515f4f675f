"""Runs of the experiment, as the command line and the benchmark scripts do them: resumable, with a progress bar."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ionn.arguments import path_of
from ionn.costs.loading import load_costs
from ionn.costs.models import Costs
from ionn.errors import InputError
from ionn.model.network import Network
from ionn.paper import CLIENT, MBPS, SERVER
from ionn.planning.graph import ExecutionGraph, checked_mbps
from ionn.planning.plan import make_plan
from ionn.testbed.trace import DILATION_MAX, RunInfo, Trace, trace_path

if TYPE_CHECKING:
    from ionn.protocol.curve import ClientKeys
    from ionn.testbed.live import Subject
    from ionn.testbed.live_session import LiveSession

# Forward passes that this machine is timed over.
PROFILE_RUNS = 20
# The standard deviation of a latency's logarithm: beyond this, latencies vary by more than a factor of seven.
NOISE_MAX = 1.0
# The costs that a server started for a results folder sends: what `ionn calibrate` wrote there.
SERVER_COSTS = "server.json"
# And how well they predict what was measured.
CALIBRATION = "calibration.txt"


def check_weights(model: str | Path, weights: str | Path | None) -> None:
    """Raise InputError unless `weights`, where they are given, are the model's: a virtual run needs none."""
    if weights is not None:
        from ionn.model.caffemodel import read_weights

        read_weights(path_of(weights, "weights"), Network.load(model))


def prepare_live(
    model: str | Path, weights: str | Path | None = None, client: str = CLIENT, paced: bool = True
) -> Subject:
    """Load a model and the device that its client is paced to, or is. Raises InputError."""
    from ionn.model import engine
    from ionn.model.synthetic import load_weights
    from ionn.testbed import live

    network = Network.load(model)
    costs = load_costs(client)
    costs.layer_ms(network)  # refuses a profile of another network before anything is built
    net = engine.load_network(network, load_weights(model, weights, network))
    return live.Subject(network, net, costs, paced)


def run_live_all(
    subject: Subject,
    algorithms: Sequence[str],
    runs: int,
    mbps: float = MBPS,
    dilation: float = 1.0,
    results: Path | None = None,
    connect: str | None = None,
    server: str | None = None,
    seed: int = 0,
    keys: ClientKeys | None = None,
) -> list[Trace]:
    """`runs` live runs of each algorithm, in turns, so that whatever drifts on this machine meets all alike.

    With `results`, a finished run's trace is kept there and not run again. `connect` is the address of a server that
    runs already, and `keys` those for it; else a server and a link are started here. `server` are the costs to plan
    with; by default those that the server sends. A server started here sends what `results` holds as server.json, else
    a profile of this machine.
    """
    from ionn.testbed import live, processes

    checked_mbps(mbps)
    if not 1 <= dilation <= DILATION_MAX:
        raise InputError(f"dilation {dilation:g}: give a number from 1 to {DILATION_MAX:g}")
    if dilation > 1 and not subject.paced:
        raise InputError("--dilation slows the pace of a client down, and this one is not paced; leave one of them out")
    costs = None if server is None else load_costs(server)
    network = subject.network
    traces: dict[tuple[int, str], Trace] = {}
    folder = "live" if dilation == 1 else f"live-dilation{dilation:g}"
    wanted = [(run, algorithm) for run in range(1, runs + 1) for algorithm in algorithms]
    paths = {
        (run, algorithm): trace_path(results, folder, network.name, algorithm, run)
        for run, algorithm in wanted
        if results is not None
    }
    for key, path in paths.items():
        if path.exists() and "fault" not in (trace := Trace.load(path)).info.environment:
            _check_same(path, trace, subject, (mbps, dilation, seed), costs)
            traces[key] = trace
    if len(traces) < len(wanted):
        with contextlib.ExitStack() as stack:
            if connect is None:
                sent = None if server is not None else _server_costs(subject, results, stack)
                connect = stack.enter_context(processes.start_testbed(mbps / dilation, sent))
            link = live.Link(connect, mbps, dilation, keys)
            for run, algorithm in wanted:
                if (run, algorithm) in traces:
                    continue
                with bar(None, "B", f"{network.name} {algorithm} run {run}/{runs}") as progress:
                    trace = live.run_live(
                        subject, algorithm, link, run, costs, seed, functools.partial(_show, progress)
                    )
                if results is not None:
                    trace.save(paths[run, algorithm])
                traces[run, algorithm] = trace.undilated()
    return [traces[key] for key in wanted]


def _check_same(
    path: Path, trace: Trace, subject: Subject, settings: tuple[float, float, int], server: Costs | None
) -> None:
    """Raise InputError if the finished run in `path` is not one of this network with these settings."""
    info = trace.info
    same = (
        (info.mbps, info.dilation, info.seed) == settings
        and info.client == subject.device
        and (server is None or info.server == server.name)
        and info.graph.get("stages") == [stage.name for stage in subject.network.stages]
        and info.plan.get("model_bytes") == sum(stage.weight_bytes for stage in subject.network.stages)
    )
    if not same:
        raise InputError(f"{path}: a run with other settings; choose another results folder, or remove it")


def calibrate_server(results: Path) -> None:
    """Calibrate this machine for the servers that are started for `results`, unless that was done before."""
    if (results / SERVER_COSTS).exists():
        return
    from ionn.costs import calibration
    from ionn.files import write_file

    with bar(calibration.PASSES + 1, "pass", "calibrating this machine") as progress:
        fitted = calibration.calibrate(progress=progress.update)
    fitted.model.save(results / SERVER_COSTS)
    write_file(results / CALIBRATION, fitted.quality.table().encode() + b"\n")


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
    client: str = CLIENT,
    server: str = SERVER,
    mbps: float = MBPS,
    noise: float = 0.0,
    seed: int = 0,
    results: Path | None = None,
) -> list[Trace]:
    """Runs on the virtual testbed. They take milliseconds, so they are never resumed."""
    from ionn.testbed.virtual import run_virtual

    if not 0 <= noise <= NOISE_MAX:
        raise InputError(f"noise {noise:g}: give a number from 0 to {NOISE_MAX:g}")
    network = Network.load(model)
    client_costs, server_costs = load_costs(client), load_costs(server)
    graph = ExecutionGraph.from_network(network, client_costs, server_costs, mbps)
    traces = []
    for algorithm in algorithms:
        plan = make_plan(network, graph, algorithm, mbps)
        for run in range(1, runs + 1):
            info = RunInfo(
                testbed="virtual", model=network.name, algorithm=algorithm, run=run, mbps=mbps, seed=seed, dilation=1.0,
                client=client_costs.name, server=server_costs.name, plan=plan.to_json(), graph=graph.to_json(),
            )  # fmt: skip
            trace = run_virtual(info, noise)
            if results is not None:
                trace.save(trace_path(results, "virtual", network.name, algorithm, run))
            traces.append(trace)
        if results is not None:
            written = {trace_path(results, "virtual", network.name, algorithm, run) for run in range(1, runs + 1)}
            for path in set(next(iter(written)).parent.glob("run-*.jsonl")) - written:
                path.unlink()  # of other settings, perhaps: not to be averaged with these
    return traces


@contextlib.contextmanager
def bar(total: int | None, unit: str, title: str) -> Iterator[Any]:
    """A progress bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, unit_scale=unit == "B", desc=title, disable=None, leave=False) as progress:
        yield progress
