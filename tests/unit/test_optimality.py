"""What docs/optimality.md claims of orders of whole stages, on random chains, against all subsets of their stages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ionn.costs.loading import load_costs
from ionn.model.network import Network
from ionn.model.slices import Slice
from ionn.paper import CLIENT, MBPS, SERVER
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.planning.planners import get_planner
from ionn.planning.planners.efficiency import densest, efficiency
from ionn.planning.planners.optimal import MOST_STAGES, area, excess_area, least_area, optimal
from ionn.testbed.runner import run_virtual_all
from tests.support import algorithm_1 as reference
from tests.support.chains import chain, cut

Times = NDArray[np.float64]

# Chains of so many stages, as many of each.
STAGES = range(1, 8)
CHAINS_PER_LENGTH = 1500  # 10,500 in all
PAIRS_PER_LENGTH = 30


@dataclass(frozen=True)
class Chains:
    """Random chains of n stages: times are (chains, n), of transfers (chains, n + 1); pinned stages stay at the client.

    `saved_ms[c, s]` is the latency that chain c saves where the stages of subset s are at the server: stage i is in it
    if bit i of s is set. `sizes_ms[c, s]` is what it takes to upload them.
    """

    client_ms: Times
    server_ms: Times
    upload_ms: Times
    up_ms: Times
    down_ms: Times
    pinned: NDArray[np.bool_]
    saved_ms: Times
    sizes_ms: Times

    def graph(self, number: int) -> ExecutionGraph:
        times = (self.client_ms, self.server_ms, self.upload_ms, self.up_ms, self.down_ms)
        client, server, upload, up, down = (each[number] for each in times)
        return chain(client, server, upload, up, down, pinned=np.flatnonzero(self.pinned[number]).tolist())


def random_chains(random: np.random.Generator, count: int, n: int) -> Chains:
    """A third each: times of all magnitudes, small whole numbers with many ties and stages without upload overhead, and
    times of about the same size. A sixth of all stages is pinned."""

    def times(size: int) -> Times:
        third = -(-count // 3)
        parts = [
            random.lognormal(1, 1.5, (third, size)),
            random.integers(0, 6, (third, size)).astype(float),
            random.uniform(5, 10, (third, size)),
        ]
        return np.concatenate(parts)[:count]

    client_ms, server_ms = times(n), times(n) * random.choice([0.0, 0.2, 1.0], (count, 1))
    upload_ms, up_ms, down_ms = times(n), times(n + 1), times(n + 1)
    scale = random.choice([0.1, 0.5, 1.0], (count, 1))
    up_ms, down_ms, pinned = up_ms * scale, down_ms * scale, random.random((count, n)) < 1 / 6
    members = np.arange(2**n)[:, None] >> np.arange(n) & 1
    latency_ms = _latencies(client_ms, server_ms, up_ms, down_ms, pinned, members.astype(bool))
    saved_ms = client_ms.sum(axis=1)[:, None] - latency_ms
    return Chains(client_ms, server_ms, upload_ms, up_ms, down_ms, pinned, saved_ms, upload_ms @ members.T)


def _latencies(
    client_ms: Times,
    server_ms: Times,
    up_ms: Times,
    down_ms: Times,
    pinned: NDArray[np.bool_],
    members: NDArray[np.bool_],
) -> Times:
    """The latency of the fastest path, (chains, subsets), that uses no stage at the server but those in the subset."""
    chains, n = client_ms.shape
    here, there = np.zeros((chains, len(members))), np.full((chains, len(members)), np.inf)
    for stage in range(n):
        may = members[:, stage] & ~pinned[:, stage, None]
        executed = np.minimum(there, here + up_ms[:, stage, None]) + server_ms[:, stage, None]
        here = np.minimum(here, there + down_ms[:, stage, None]) + client_ms[:, stage, None]
        there = np.where(may, executed, np.inf)
    return np.minimum(here, there + down_ms[:, n, None])


def least_excess(chains: Chains) -> Times:
    """The least excess area of all orders of the stages, (chains,), in ms x ms, by all subsets.

    From a subset on, the area is what is still to be saved while the next stage goes up, and the area from there. Once
    everything is saved, nothing more needs to be uploaded.
    """
    count, n = chains.client_ms.shape
    to_save_ms = chains.saved_ms[:, -1:] - chains.saved_ms
    least = np.full((count, 2**n), np.inf)
    least[to_save_ms <= 1e-9] = 0.0
    for subset in reversed(range(2**n)):
        for stage in range(n):
            if not subset >> stage & 1:
                after = least[:, subset | 1 << stage] + to_save_ms[:, subset] * chains.upload_ms[:, stage]
                least[:, subset] = np.minimum(least[:, subset], after)
    return least[:, 0]


def all_chains(count: int) -> Iterator[Chains]:
    random = np.random.default_rng(16)
    for n in STAGES:
        yield random_chains(random, count, n)


def number_of(stages: Iterable[int]) -> int:
    return sum(1 << stage for stage in stages)


def test_latencies_by_subset_are_those_of_the_graph() -> None:
    for chains in all_chains(6):
        for number, saved_ms in enumerate(chains.saved_ms):
            graph = chains.graph(number)
            n = len(graph.stages)
            expected = [
                graph.local_ms - graph.latency_ms([stage for stage in range(n) if subset >> stage & 1])
                for subset in range(2**n)
            ]
            assert saved_ms == pytest.approx(expected, abs=1e-5)


def test_what_is_saved_is_supermodular() -> None:
    """For all pairs A, B of subsets: f(A or B) + f(A and B) >= f(A) + f(B)."""
    checked = strictly = 0
    for chains in all_chains(PAIRS_PER_LENGTH):
        subsets = np.arange(chains.saved_ms.shape[1])
        one, other = subsets[:, None], subsets[None, :]
        for saved_ms in chains.saved_ms:
            more = saved_ms[one | other] + saved_ms[one & other] - saved_ms[one] - saved_ms[other]
            assert more.min() >= -1e-9
            assert (np.diff(saved_ms[[0, -1]]) >= 0).all()
            strictly += bool(more.max() > 1e-6)
            checked += 1
    assert checked == PAIRS_PER_LENGTH * len(STAGES)
    assert strictly > checked / 3  # else it would be modular, and nothing would be said


def test_densest_first_is_within_twice_the_least_excess_area() -> None:
    """So is the planner, which divides the densest runs, and the order that uploads each of them as one partition."""
    ratios: list[float] = []
    worse = 0
    for chains in all_chains(CHAINS_PER_LENGTH):
        least = least_excess(chains)
        for number in range(CHAINS_PER_LENGTH):
            excess, of_efficiency = (
                _excess(chains, number, planner(chains.graph(number))) for planner in (densest, efficiency)
            )
            assert least[number] * (1 - 1e-6) - 1e-3 <= excess <= 2 * least[number] * (1 + 1e-6) + 1e-3
            undivided = _excess(chains, number, densest_runs(chains, number))
            assert excess <= undivided + 1e-3 <= 2 * least[number] * (1 + 1e-6) + 2e-3
            worse += of_efficiency > 2 * least[number] + 1e-3
            if least[number] > 1e-3:
                ratios.append(undivided / least[number])
    assert len(ratios) > 5000  # the others have nothing to order
    assert max(ratios) > 1.5  # so it is tested where it matters
    assert worse > 100  # other orders are not always within it


def density(gain_ms: float, size_ms: float) -> float:
    if size_ms > 0:
        return gain_ms / size_ms
    return math.inf if gain_ms > 0 else 0.0


def densest_runs(chains: Chains, number: int) -> list[list[int]]:
    """By definition: again and again the densest run of missing stages as one partition, while anything is saved."""
    saved_ms, sizes_ms = chains.saved_ms[number], chains.sizes_ms[number]
    n = chains.client_ms.shape[1]
    plan: list[list[int]] = []
    uploaded = 0
    while saved_ms[-1] - saved_ms[uploaded] > 1e-9:
        runs = [range(first, last + 1) for first in range(n) for last in range(first, n)]
        missing = [run for run in runs if not number_of(run) & uploaded]
        parts = [number_of(run) for run in missing]
        densities = [density(saved_ms[uploaded | part] - saved_ms[uploaded], sizes_ms[part]) for part in parts]
        plan.append(list(missing[int(np.argmax(densities))]))
        uploaded |= number_of(plan[-1])
    return plan


def _excess(chains: Chains, number: int, plan: list[list[int]]) -> float:
    """The excess area of a plan in ms x ms, by the table of subsets."""
    saved_ms, sizes_ms = chains.saved_ms[number], chains.sizes_ms[number]
    uploaded, total = 0, 0.0
    for partition in plan:
        part = number_of(partition)
        total += (saved_ms[-1] - saved_ms[uploaded]) * sizes_ms[part]
        uploaded |= part
    return float(total)


def test_no_subset_saves_more_than_the_order_s_envelope() -> None:
    """Between bytes and what is saved, no subset lies above the least concave curve over the points that the order
    reaches. So it reaches every corner of that curve over all subsets: it ends each densest run before it goes on."""
    corners = 0
    for chains in all_chains(90):
        for number, (saved_ms, sizes_ms) in enumerate(zip(chains.saved_ms, chains.sizes_ms, strict=True)):
            subsets = np.cumsum([0, *map(number_of, densest(chains.graph(number)))])
            curve = envelope(sizes_ms[subsets], saved_ms[subsets])
            assert (saved_ms <= np.interp(sizes_ms, *curve) + 1e-5).all()
            corners += len(curve[0]) > 3
    assert corners > 100


def envelope(sizes_ms: Times, saved_ms: Times) -> tuple[list[float], list[float]]:
    """The corners of the least concave curve over some points that ascend; x and y."""
    corners: list[tuple[float, float]] = []
    for x, y in zip(sizes_ms.tolist(), saved_ms.tolist(), strict=True):
        while corners and corners[-1][0] == x:
            corners.pop()
        while len(corners) > 1 and _is_below(corners[-2], corners[-1], (x, y)):
            corners.pop()
        corners.append((x, y))
    return [x for x, _ in corners], [y for _, y in corners]


def _is_below(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Tell whether the middle point is not above the line from the first to the last."""
    return (middle[1] - first[1]) * (last[0] - first[0]) <= (last[1] - first[1]) * (middle[0] - first[0])


def test_excess_area_is_what_is_above_the_least_latency() -> None:
    graph = chain([10, 20], [0, 1], [3, 4], [0, 2, 0])
    assert excess_area(graph, [[0], [1]]) * 1e3 == pytest.approx(29 * 3 + (2 + 20 - 1) * 4)
    assert excess_area(graph, [[0, 1]]) * 1e3 == pytest.approx(29 * 7)
    assert excess_area(graph, []) == 0
    assert excess_area(graph, [[1], [0]]) == pytest.approx(area(graph, [[1], [0]]) - 1 * 7 / 1e3)


def test_undivided_runs_come_close_to_twice_the_least() -> None:
    """Stages that save nearly as much alone as together: the densest run is all of them, and any order of them is good.
    As one partition they leave everything to be saved until the end. The planner divides them."""
    n = 100
    graph = chain(np.full(n, 1.0), np.zeros(n), np.full(n, 1.0), np.full(n + 1, 2.0**-20))
    everything = [list(range(n))]
    alone = max(reference.efficiency(graph, [], (stage,)) for stage in range(n))
    assert reference.efficiency(graph, [], tuple(everything[0])) > alone
    least = n * (n + 1) / 2  # at least: without the transfers
    assert excess_area(graph, everything) * 1e3 / least == pytest.approx(2, rel=0.02)
    assert excess_area(graph, densest(graph)) * 1e3 == pytest.approx(least, rel=1e-3)


def test_with_slices_what_is_saved_is_not_supermodular() -> None:
    """Half of a stage runs at both sides at once and saves half; the whole runs at the server, which is no faster."""
    graph = chain([10], [10], [10], [0, 0], cuts=[cut(0, tiles=2)])
    tile = graph.cuts[0].channels // 2
    saved_ms = [graph.local_ms - graph.latency_ms(pieces) for pieces in ([], [Slice(0, 0, tile)], [0])]
    assert saved_ms == [0, 5, 0]


def test_optimal_has_the_least_excess_of_the_table() -> None:
    for chains in all_chains(20):
        for number, least in enumerate(least_excess(chains)):
            graph = chains.graph(number)
            assert excess_area(graph, optimal(graph)) * 1e3 == pytest.approx(least, abs=1e-3)


# --- What the page says ----------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "optimality.md").read_text(encoding="utf-8")


def rows_of(title: str) -> dict[str, list[str]]:
    """The table whose first heading is `title`: the first cell of each row, and the others."""
    lines = PAGE.partition(f"\n| {title} |")[2].split("\n\n")[0].splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {first: others for first, *others in cells}


def test_the_page_s_excess_areas() -> None:
    table = rows_of("excess over the least")
    assert len(table) == 7
    for column, model in enumerate(("alexnet", "inception", "resnet", "googlenet", "mobilenet")):
        network = Network.load(model)
        graph = ExecutionGraph.from_network(network, load_costs(CLIENT), load_costs(SERVER), MBPS)
        stages = sorted(graph.shortest_path(np.zeros(len(graph.stages))))
        if len(stages) <= MOST_STAGES:
            least = excess_area(graph, optimal(graph))
        else:
            least = least_area(graph) - graph.latency_ms(stages) * float(graph.upload_ms[stages].sum()) / 1e3
        for algorithm, cells in table.items():
            plan = make_plan(network, graph, algorithm, MBPS)
            assert cells[column] == f"{excess_area(graph, plan.uploads) / least:.2f}", (model, algorithm)


def test_the_page_s_measures_of_resnet() -> None:
    (row, *_) = re.findall(r"^\| ResNet at (\d+) Mbps .* queries in ([\d.]+) s", PAGE, re.MULTILINE)
    mbps, window_s = map(float, row)
    table = rows_of(f"ResNet at {mbps:g} Mbps")
    assert list(table) == ["recursive-efficiency", "densest"]
    for algorithm, cells in table.items():
        (trace,) = run_virtual_all("resnet", [algorithm], mbps=mbps, window_s=window_s)
        assert cells == [f"{trace.info.plan.mean_ms:.1f}", str(len(trace.in_window))]
        assert f"--mbps {mbps:g} --window {window_s:g} --algorithm {algorithm}\n" in PAGE


def test_the_page_s_queries_at_80_mbps() -> None:
    for algorithm in ("recursive-efficiency", "densest"):
        (trace,) = run_virtual_all("resnet", [algorithm], window_s=11.75)
        assert f"as many: {len(trace.in_window)} of ResNet in 11.75 s" in " ".join(PAGE.split())


def test_without_stages_that_have_no_weights_the_planner_has_the_order_that_is_proven() -> None:
    for chains in all_chains(20):
        for number in range(20):
            graph = chains.graph(number)
            if graph.has_weights[sorted(graph.shortest_path(np.zeros(len(graph.stages))))].all():
                assert get_planner("densest")(graph) == densest(graph)


def test_a_free_stage_at_the_beginning_waits_for_the_partition_after_it() -> None:
    """The exception that the page names: what is proven is the order before stages without weights are joined."""
    graph = chain([1000, 10, 0.005], [0, 0, 0], [0, 1000, 1], [0, 0, 0, 0])
    assert densest(graph)[0] == [0]
    planned, better = get_planner("densest")(graph), [[0, 2], [1]]
    assert planned[0] == [0, 1]
    assert excess_area(graph, planned) > 2 * excess_area(graph, better)
