"""Sweeps: runs of the virtual testbed for all combinations of models, algorithms, bandwidths, devices and so on, with a
row in a table (`ionn.testbed.sweep_table`) for each run.

joblib distributes the runs to processes of this machine, or Dask to those of a cluster. A task consists of runs of one
model and pair of devices at neighbouring bandwidths, so many that sending it costs little. It contains everything that
it needs, also a user's own planner, so a worker reads no files and computes the same bits.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import operator
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ionn.address import parse_address
from ionn.arguments import decimal_of
from ionn.coding import LOSSLESS, NONE
from ionn.costs.loading import costs_label, load_costs
from ionn.costs.models import Costs
from ionn.errors import InputError, IonnError, printable
from ionn.model import zoo
from ionn.model.network import Network
from ionn.paper import CLIENT, MBPS, SERVER
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners import Planner, added_planners, get_planner, planner_digest
from ionn.testbed.arrivals import CLOSED, Arrivals
from ionn.testbed.energy import mean_energy_j
from ionn.testbed.settings import Settings
from ionn.testbed.sweep_table import Cell, SweepRow, open_table
from ionn.testbed.trace import RunInfo, Trace
from ionn.testbed.virtual import run_virtual
from ionn.testbed.workers import as_they_end, local_workers

# The most rows of a table that can still be handled.
CELLS_MAX = 1_000_000
# The runs of a task: together they take a fifth of a second or more, and a process that is killed loses no more.
RUNS_PER_TASK = 120
# How long a cluster may take to answer.
CLUSTER_S = 10
# The tasks that a cluster has for each of its threads: none waits for the next one to be sent.
_TASKS_PER_THREAD = 3
# FIRST:LAST:COUNT, perhaps *COSTS.
_RANGE = re.compile(r"([^:*]+):([^:*]+):([0-9]{1,7})(?:\*(.+))?", re.DOTALL)


def expand(text: str) -> list[str]:
    """Expand a range `FIRST:LAST:COUNT` into COUNT numbers in equal ratios, as texts: `1:100:3` is 1, 10, 100. With
    `*` and a text behind the range, each number gets them too: `1:100:3*gtx1080ti` is 1*gtx1080ti and so on. Any other
    text is returned alone.

    Numbers between the first and the last have six digits. Raises InputError for an invalid range, and if its numbers
    are equal in six digits.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        return [text]
    first, last, count = decimal_of(match[1]), decimal_of(match[2]), int(match[3])
    if not (0 < first < last < math.inf and 2 <= count <= CELLS_MAX):
        raise InputError(f"{text}: give FIRST:LAST:COUNT, numbers above 0 that ascend and how many, as 1:1000:40")
    between = np.geomspace(first, last, count)[1:-1].tolist()
    numbers = [match[1], *(f"{value:.6g}" for value in between), match[2]]
    if any(float(before) >= float(after) for before, after in itertools.pairwise(numbers)):
        raise InputError(f"{text}: {count} numbers in between are not told apart by six digits; give fewer")
    times = "" if match[4] is None else f"*{match[4]}"
    return [f"{number}{times}" for number in numbers]


@dataclass(frozen=True)
class Grid:
    """All combinations of models, algorithms and so on. Keys are the names in the table's columns. The combinations are
    in the order of the columns, the last of which changes fastest."""

    models: Mapping[str, Network]
    algorithms: Mapping[str, str]  # to the planners' names
    planners: Mapping[str, Planner]  # the user's own, by their names
    mbps: Sequence[float]
    clients: Mapping[str, Costs]
    servers: Mapping[str, Costs]
    codings: Sequence[str]
    arrivals: Mapping[str, Arrivals]
    seeds: Sequence[int]
    coded_bytes: Mapping[str, Sequence[int] | None]  # wire bytes of each model's stages, if a sidecar has them

    @classmethod
    def of(
        cls,
        models: Sequence[str | Path],
        algorithms: Sequence[str],
        mbps: Sequence[float] = (MBPS,),
        clients: Sequence[str | Path | Costs] = (CLIENT,),
        servers: Sequence[str | Path | Costs] = (SERVER,),
        codings: Sequence[str] = (NONE,),
        arrivals: Sequence[str] = (CLOSED,),
        seeds: Sequence[int] = (0,),
    ) -> Grid:
        """The grid of what a user names, without repetitions. Raises InputError for anything that cannot be run."""
        axes: dict[str, Sequence[Any]] = {
            "model": models, "algorithm": algorithms, "bandwidth": mbps, "client": clients, "server": servers,
            "coding": codings, "arrivals": arrivals, "seed": seeds,
        }  # fmt: skip
        for name, values in axes.items():
            if not values:
                raise InputError(f"a sweep needs a {name}: give one, or more")
        total = math.prod(map(len, axes.values()))
        if total > CELLS_MAX:  # before files are read
            raise InputError(f"a sweep of {total} runs: give fewer values; at most {CELLS_MAX} runs")
        networks = {}
        coded_bytes: dict[str, Sequence[int] | None] = {}
        for model in models:
            network = Network.load(model)
            label = _model_label(network)
            networks[label] = network
            if LOSSLESS in codings:
                from ionn.model.coded_weights import own_wire_bytes

                coded_bytes[label] = own_wire_bytes(model, None, network)
        here, there = (
            {
                costs_label(costs): costs
                for costs in (each if isinstance(each, Costs) else load_costs(each) for each in side)
            }
            for side in (clients, servers)
        )
        for network, costs in itertools.product(networks.values(), (*here.values(), *there.values())):
            costs.layer_ms(network)  # refuses those of another network
        for algorithm in algorithms:
            get_planner(algorithm)
        raised = {each.name: each for each in map(Arrivals.parse, arrivals)}
        grid = cls(
            networks, {_algorithm_label(name): name for name in algorithms}, added_planners(algorithms),
            list(dict.fromkeys(map(float, mbps))), here, there, list(dict.fromkeys(codings)), raised,
            list(dict.fromkeys(seeds)), coded_bytes,
        )  # fmt: skip
        first = next(grid.cells())
        for rate, coding, name, seed in itertools.product(grid.mbps, grid.codings, grid.arrivals, grid.seeds):
            grid.settings(first._replace(mbps=rate, coding=coding, arrivals=name, seed=seed))
        return grid

    def _axes(self) -> tuple[Sequence[Any], ...]:
        """The values in each column."""
        return (
            list(self.models), list(self.algorithms), self.mbps, list(self.clients), list(self.servers), self.codings,
            list(self.arrivals), self.seeds,
        )  # fmt: skip

    def __len__(self) -> int:
        return math.prod(map(len, self._axes()))

    def cells(self) -> Iterator[Cell]:
        cells = (Cell(*values) for values in itertools.product(*self._axes()))
        return (
            cell if cell.coding != LOSSLESS else cell._replace(coding=self._lossless.get(cell.model, LOSSLESS))
            for cell in cells
        )

    @functools.cached_property
    def _lossless(self) -> dict[str, str]:
        """The coding's name, followed by a digest of the coded weights' sizes, for each model that has its own."""
        from ionn.model.coded_weights import sizes_digest

        return {
            model: f"{LOSSLESS} ({sizes_digest(sizes)[:8]})"
            for model, sizes in self.coded_bytes.items()
            if sizes is not None
        }

    def settings(self, cell: Cell) -> Settings:
        """The settings of a cell's run. Raises InputError as `Settings` does."""
        server = "" if cell.server == SERVER else cell.server
        return Settings(
            "virtual", cell.mbps, client=cell.client, server=server, seed=cell.seed, coding=_coding_of(cell),
            arrivals=self.arrivals[cell.arrivals],
        )  # fmt: skip

    def task(self, cells: Sequence[Cell]) -> Task:
        """The task for cells that differ in algorithms, bandwidths, arrivals and seeds only."""
        first, names = cells[0], {cell.algorithm: self.algorithms[cell.algorithm] for cell in cells}
        return Task(
            self.models[first.model], self.clients[first.client], self.servers[first.server], _coding_of(first),
            self.coded_bytes.get(first.model), self.planners,
            [_Run(cell, names[cell.algorithm], self.settings(cell)) for cell in cells], own_digest(),
        )  # fmt: skip

    def tasks(self, cells: Sequence[Cell]) -> list[Task]:
        """Divide cells into tasks of neighbouring bandwidths, so that algorithms share the graph of a bandwidth."""

        def parts(cell: Cell) -> tuple[Any, ...]:
            return cell.model, cell.client, cell.server, cell.coding

        groups: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in cells:
            groups.setdefault(parts(cell), []).append(cell)
        tasks = []
        for group in groups.values():
            group.sort(key=lambda cell: cell.mbps)  # stable: what else they differ in keeps its order
            tasks += [self.task(group[at : at + RUNS_PER_TASK]) for at in range(0, len(group), RUNS_PER_TASK)]
        return tasks


def _model_label(network: Network) -> str:
    """A model's name, followed by a digest unless it is a bundled model."""
    known = zoo.definitions()
    if network.name in known and Network.load(network.name).digest == network.digest:
        return network.name
    return f"{printable(network.name)} ({network.digest[:8]})"


def _coding_of(cell: Cell) -> str:
    """The name of a cell's coding, without the digest."""
    return cell.coding.partition(" ")[0]


def _algorithm_label(name: str) -> str:
    """A planner's name, followed by its `planner_digest` if it is a user's own."""
    digest = planner_digest(name)
    return f"{name} ({digest[:8]})" if digest else name


class _Run(NamedTuple):
    cell: Cell
    algorithm: str
    settings: Settings


@dataclass(frozen=True)
class Task:
    """Some runs of a model between two devices, sorted by bandwidth, and everything that they need."""

    network: Network
    client: Costs
    server: Costs
    coding: str
    coded_bytes: Sequence[int] | None
    planners: Mapping[str, Planner]
    runs: Sequence[_Run]
    ionn: str  # the `own_digest` of the process that made the task


class Failure(NamedTuple):
    """A run that cannot be made, and why."""

    cell: Cell
    reason: str


def failed(failures: Sequence[Failure], total: int, out: Path) -> InputError:
    """The error about runs of a sweep that could not be made: how many there are, and the first one's reason."""
    first = failures[0]
    return InputError(
        f"{len(failures)} of {total} runs cannot be made, such as {first.cell.model}, {first.cell.algorithm} at "
        f"{first.cell.mbps:g} Mbps: {first.reason}; the others are in {out}"
    )


@functools.cache
def own_digest() -> str:
    """A hexadecimal digest of ionn's own code."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def run_task(task: Task) -> list[SweepRow | Failure]:
    """Compute the runs of a task, on any machine. Raises InputError if that machine has another version of ionn."""
    if task.ionn != own_digest():
        raise InputError("a worker of the sweep has another version of ionn; install the same one there")
    found: list[SweepRow | Failure] = []
    for mbps, runs in itertools.groupby(task.runs, key=lambda run: run.cell.mbps):
        group = list(runs)
        try:
            graph = ExecutionGraph.from_network(
                task.network, task.client, task.server, mbps, task.coding, coded_bytes=task.coded_bytes
            )
        except InputError as error:
            found += [Failure(run.cell, str(error)) for run in group]
            continue
        by_algorithm = operator.attrgetter("algorithm")
        for algorithm, planned in itertools.groupby(sorted(group, key=by_algorithm), key=by_algorithm):
            cells = list(planned)
            try:
                plan = make_plan(task.network, graph, algorithm, mbps, task.planners.get(algorithm))
            except InputError as error:
                found += [Failure(run.cell, str(error)) for run in cells]
                continue
            for run in cells:
                try:
                    found.append(_row(run.cell, run_virtual(RunInfo(run.settings, 1, plan, graph))))
                except InputError as error:
                    found.append(Failure(run.cell, str(error)))
    return found


def _row(cell: Cell, trace: Trace) -> SweepRow:
    plan = trace.info.plan
    return SweepRow(
        *cell, len(trace.partitions), trace.upload_s, trace.queries_before_upload, trace.mean_ms_in_upload,
        trace.responses.p90_ms, trace.queries[0].latency_ms, trace.queries[-1].latency_ms, mean_energy_j(trace),
        plan.local_ms, plan.best_ms,
    )  # fmt: skip


def run_sweep(
    grid: Grid,
    out: Path,
    jobs: int | None = None,
    cluster: str | None = None,
    begin: Callable[[int], Callable[[int], object]] = lambda total: lambda done: None,
) -> tuple[list[SweepRow], list[Failure]]:
    """Make the runs of a grid that the table in `out` does not have yet, and add them to it. Returns the rows of the
    grid, in its order, and the runs that cannot be made.

    `jobs` processes of this machine make the runs, by default one per core, or, with `cluster`, the workers of the Dask
    scheduler at that address. `begin` is called with the number of runs to make; the function that it returns is called
    now and then with the number of runs that were made since. Raises InputError if `out` is no such table or cannot be
    written, and if there is no such cluster; raises IonnError if processes or the cluster are lost. The runs that were
    made until then are in the table.
    """
    cells = list(grid.cells())
    failures: list[Failure] = []
    with open_table(out) as table:
        there = {row.cell for row in table.rows}
        missing = [cell for cell in cells if cell not in there]
        show = begin(len(missing))
        for found in _made(grid.tasks(missing), jobs or len(os.sched_getaffinity(0)), cluster):
            table.add([each for each in found if isinstance(each, SweepRow)])
            failures += [each for each in found if isinstance(each, Failure)]
            show(len(found))
        table.sort(cells)
        rows = {row.cell: row for row in table.rows}
    return [rows[cell] for cell in cells if cell in rows], failures


def _made(tasks: Sequence[Task], jobs: int, cluster: str | None) -> Iterator[list[SweepRow | Failure]]:
    """The results of tasks, in the order in which they end."""
    if not tasks:
        return
    if cluster is not None:
        yield from _made_on_cluster(tasks, cluster)
    elif jobs == 1 or len(tasks) == 1:
        yield from map(run_task, tasks)
    else:
        yield from _made_here(tasks, jobs)


def _check_sent(planners: Mapping[str, Planner]) -> None:
    """Raise InputError for a planner that cannot be sent to other processes."""
    from joblib.externals.loky.backend.reduction import dumps

    for name, planner in planners.items():
        try:
            dumps(planner)
        except Exception as error:  # of any object that it refers to
            why = printable(f"{type(error).__name__}: {error}")[:200]
            raise InputError(f"planner {name}: other processes cannot be given it ({why}); use --jobs 1") from error


def _made_here(tasks: Sequence[Task], jobs: int) -> Iterator[list[SweepRow | Failure]]:
    from joblib import delayed

    _check_sent(tasks[0].planners)
    calls = (delayed(run_task)(task) for task in tasks)
    again = "run it again, and it goes on with what is left"
    with local_workers(jobs), closing(as_they_end(calls, "the sweep", again)) as found:
        yield from found


def _made_on_cluster(tasks: Sequence[Task], address: str) -> Iterator[list[SweepRow | Failure]]:
    import distributed

    parse_address(address)
    _check_sent(tasks[0].planners)
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the errors raised below say it in one line
    connect: Any = distributed.Client
    try:
        client = connect(address, timeout=CLUSTER_S, set_as_default=False)
    except OSError as error:
        raise InputError(f"{address}: no Dask scheduler answers there; start one") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CLUSTER_S)
        except TimeoutError as error:
            raise InputError(f"{address}: this Dask scheduler has no workers; start some") from error
        try:
            with _watched(client) as threads:
                yield from _by_dask(client, tasks, threads)
        except (ImportError, AttributeError, RuntimeError) as error:
            why = printable(str(error.__cause__ or error))[:200]
            raise InputError(f"{address}: a worker cannot load what it is to run: {why}; install it there") from error
        except (OSError, CancelledError, distributed.scheduler.KilledWorker) as error:
            why = printable(str(error))[:200]
            raise IonnError(
                f"{address}: this cluster was lost ({why}); run the sweep again, and it goes on with what is left"
            ) from error


def _by_dask(client: Any, tasks: Sequence[Task], threads: Callable[[], int]) -> Iterator[list[SweepRow | Failure]]:
    """The results of tasks, in the order in which they end. Raises what a worker raises, and CancelledError if the
    cluster is lost."""
    import distributed

    left = iter(tasks)
    as_completed: Any = distributed.as_completed
    ended = as_completed(loop=client.loop, with_results=True)
    while True:
        under_way = ended.count()
        for task in itertools.islice(left, max(_TASKS_PER_THREAD * threads() - under_way, not under_way)):
            ended.add(client.submit(run_task, task, pure=False))
        try:
            future, found = next(ended)
        except StopIteration:
            return
        if future.cancelled():
            raise found
        yield found


def _threads(client: Any) -> int:
    """How many threads the workers have; 0 while the scheduler is lost, as nothing is said of them then."""
    info = client.scheduler_info()
    # Older versions of Dask have no total; newer ones do not list all workers.
    return int(info.get("total_threads", sum(each["nthreads"] for each in info.get("workers", {}).values())))


@contextmanager
def _watched(client: Any) -> Iterator[Callable[[], int]]:
    """Look once a second how many threads the cluster has, which the function tells that this gives. Close the client
    if there have been none for CLUSTER_S: whoever waits for results then gets an OSError instead of waiting for
    ever."""
    ended, lost = threading.Event(), threading.Event()
    threads = _threads(client)

    def watch() -> None:
        nonlocal threads
        seen_s = time.monotonic()
        with suppress(OSError):  # a lost scheduler is noticed elsewhere
            while not ended.wait(1):
                if threads := _threads(client):
                    seen_s = time.monotonic()
                elif time.monotonic() - seen_s > CLUSTER_S:
                    lost.set()
                    client.close()
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: threads
    except CancelledError as error:
        if lost.is_set():
            raise OSError("no workers are left; those that cannot load ionn end") from error
        raise
    finally:
        ended.set()
        watcher.join(CLUSTER_S)
