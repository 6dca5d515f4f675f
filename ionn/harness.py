"""Runs of the experiment, as the command line and the benchmark scripts do them: resumable, with a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ionn.costs import Costs, load_costs
from ionn.errors import InputError
from ionn.graph import ExecutionGraph, checked_mbps
from ionn.network import Network

ROOT = Path(__file__).resolve().parent.parent
from ionn.plan import Plan, make_plan
from ionn.planners import get_planner
from ionn.trace import RunInfo, Trace, trace_path

if TYPE_CHECKING:
    from ionn.live import Subject
    from ionn.session import LiveSession

CLIENT = "odroid-xu4"
SERVER = "gtx1080ti"
MBPS = 80.0
ALGORITHMS = ("original", "efficiency", "recursive-efficiency")
# Forward passes that this machine is timed over.
PROFILE_RUNS = 20


def weights_path(model: str, weights: str | None) -> Path:
    """Where a model's caffemodel is: as given, else models/NAME.caffemodel, else beside the .prototxt."""
    if weights is not None:
        return Path(weights)
    if model.endswith(".prototxt"):
        return Path(model).with_suffix(".caffemodel")
    return ROOT / "models" / f"{model}.caffemodel"


def prepare_live(
    model: str,
    weights: str | None = None,
    client: str = CLIENT,
    server: str | None = None,
    mbps: float = MBPS,
    dilation: float = 1.0,
    results: Path | None = None,
) -> Subject:
    """Load a model and settle both sides' costs for live runs. `server` None: time this machine, or take what was
    timed for `results` before. Raises InputError."""
    from ionn import engine, live
    from ionn.caffemodel import read_weights
    from ionn.costs import Profile

    checked_mbps(mbps)
    if not dilation >= 1:
        raise InputError(f"dilation {dilation:g}: give a number from 1 on")
    network = Network.load(model)
    blobs = read_weights(weights_path(model, weights), network)
    client_costs = load_costs(client)
    pace_ms = client_costs.layer_ms(network)
    net = engine.load_network(network, blobs)
    server_costs: Costs
    saved = results / "profiles" / f"{network.name}.json" if results else None
    if server is not None:
        server_costs = load_costs(server)
    elif saved is not None and saved.exists():
        server_costs = load_costs(str(saved))
    else:
        with _bar(PROFILE_RUNS + 1, "pass", f"{network.name}: timing this machine") as bar:
            profile = live.profile_network(network, net, PROFILE_RUNS, lambda: bar.update())
        if saved is not None:
            profile.save(saved)
        server_costs = profile
    server_costs = live.Scaled(server_costs, dilation)
    graph = ExecutionGraph.from_network(network, client_costs, server_costs, mbps)
    del pace_ms
    return live.Subject(network, blobs, net, client_costs, graph, (client_costs.name, server_costs.name))


def run_live_all(
    subject: Subject,
    algorithms: Sequence[str],
    runs: int,
    mbps: float = MBPS,
    dilation: float = 1.0,
    results: Path | None = None,
    connect: str | None = None,
    seed: int = 0,
) -> list[Trace]:
    """`runs` live runs of each algorithm, in turns, so that whatever drifts on this machine meets all alike.

    With `results`, a finished run's trace is kept there and not run again. `connect` is the address of a server that
    runs already; else a server and a link are started here.
    """
    from ionn import live

    plans = [make_plan(subject.network, subject.graph, algorithm, mbps) for algorithm in algorithms]
    wanted = [(run, plan) for run in range(1, runs + 1) for plan in plans]
    traces: dict[tuple[int, str], Trace] = {}
    folder = "live" if dilation == 1 else f"live-dilation{dilation:g}"

    def path(run: int, plan: Plan) -> Path | None:
        return trace_path(results, folder, subject.network.name, plan.algorithm, run) if results else None

    for run, plan in wanted:
        where = path(run, plan)
        if where is not None and where.exists():
            traces[run, plan.algorithm] = _finished(where, subject, plan, mbps, dilation)
    missing = [(run, plan) for run, plan in wanted if (run, plan.algorithm) not in traces]
    if missing:
        with contextlib.ExitStack() as stack:
            address = connect or stack.enter_context(live.testbed(mbps / dilation))
            for run, plan in missing:
                title = f"{subject.network.name} {plan.algorithm} run {run}/{runs}"
                size = sum(partition.bytes for partition in plan.partitions)
                with _bar(size, "B", title) as bar:

                    def show(session: LiveSession, bar: _Bar = bar) -> None:
                        bar.update(session.uploaded_bytes - bar.n)
                        if session.last_query is not None:
                            bar.set_postfix_str(f"query {session.last_query.latency_ms:.0f} ms", refresh=False)

                    trace = live.run_live(subject, plan, address, run, mbps, dilation, seed, show)
                where = path(run, plan)
                if where is not None:
                    trace.save(where)
                    trace = Trace.load(where)
                traces[run, plan.algorithm] = trace
    return [traces[run, plan.algorithm] for run, plan in wanted]


def _finished(path: Path, subject: Subject, plan: Plan, mbps: float, dilation: float) -> Trace:
    trace = Trace.load(path)
    info = trace.info
    if (info.mbps, info.dilation, info.client) != (mbps, dilation, subject.names[0]):
        raise InputError(f"{path}: a run with other settings; choose another results folder, or remove it")
    return trace


def run_virtual_all(
    model: str,
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
    from ionn.virtual import run_virtual

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
    return traces


class _Bar:
    """What the harness uses of tqdm's bar."""

    n: int

    def update(self, n: int = 1) -> None: ...
    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...


@contextlib.contextmanager
def _bar(total: int, unit: str, title: str) -> Iterator[_Bar]:
    from tqdm import tqdm

    # `disable=None`: no bar where standard error is not a terminal.
    with tqdm(total=total, unit=unit, unit_scale=unit == "B", desc=title, disable=None, leave=False) as bar:
        yield bar


def check_algorithm(name: str) -> str:
    """The name, if it is an algorithm's. Raises InputError."""
    get_planner(name)
    return name
