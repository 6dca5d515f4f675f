from __future__ import annotations

import dataclasses
import math
import operator
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise, permutations
from itertools import chain as concatenated

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.model.slices import TILE, Piece, Slice, runs_of, stage_of
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners import PLANNERS, Planner, get_planner
from ionn.planning.planners.efficiency import Candidate, Candidates, densest, efficiency, recursive_efficiency
from ionn.planning.planners.optimal import _latencies, area, least_area, optimal
from ionn.planning.planners.original import original, original_fine
from ionn.planning.planners.sliced import sliced_efficiency
from ionn.planning.planners.weightless import merge_weightless
from tests.support import algorithm_1 as reference
from tests.support.algorithm_1 import algorithm_1
from tests.support.chains import DECIMALS, SMALL_INTEGERS, WORKED_EXAMPLE, chain, chains, cut, cut_chains, forced_ms

A, B, C, D = range(4)

# Without the rule that merges partitions without weights.
UNMERGED: dict[str, Planner] = {
    "original": original,
    "original-0.0001": original_fine,
    "efficiency": efficiency,
    "recursive-efficiency": recursive_efficiency,
    "sliced-efficiency": sliced_efficiency,
    "densest": densest,
    "optimal": optimal,
}


def improvements(plan: list[list[int]]) -> list[float]:
    """Latency of the worked example saved after each partition, with all that is uploaded at the server."""
    uploaded: list[int] = []
    return [50 - forced_ms(WORKED_EXAMPLE, uploaded := uploaded + partition) for partition in plan]


@pytest.mark.parametrize(
    ("algorithm", "plan", "improvement"),
    [
        ("original", [[B], [A, C, D]], [9, 31]),
        ("original-0.0001", [[B], [A], [C, D]], [9, 15, 31]),
        ("efficiency", [[B], [A], [C, D]], [9, 15, 31]),
        ("recursive-efficiency", [[B], [A], [C], [D]], [9, 15, 23, 31]),
        ("densest", [[B], [A], [C], [D]], [9, 15, 23, 31]),
    ],
)
def test_worked_example_plans(algorithm: str, plan: list[list[int]], improvement: list[float]) -> None:
    assert get_planner(algorithm)(WORKED_EXAMPLE) == plan
    assert improvements(plan) == improvement


def test_algorithm_1_plans_the_worked_example() -> None:
    assert algorithm_1(WORKED_EXAMPLE) == [[B], [A], [C], [D]]
    assert algorithm_1(WORKED_EXAMPLE, recursive=False) == [[B], [A], [C, D]]
    efficiencies = {run: reference.efficiency(WORKED_EXAMPLE, [B], run) for run in reference.candidates([A, C, D])}
    assert efficiencies == {(A,): 0.75, (C,): 0.5, (C, D): 16 / 24, (D,): -1}
    assert reference.efficiency(WORKED_EXAMPLE, [A, B, C], (D,)) == 1


def test_worked_example_efficiencies() -> None:
    candidates = Candidates(WORKED_EXAMPLE, [B])
    assert candidates.best(A, A) == (-6 / 8, A, A)
    candidates.upload(A, A)
    assert candidates.best(C, D) == (-16 / 24, C, D)
    assert candidates.best(D, D) == (1, D, D)
    assert candidates.smallest_part(Candidate(-16 / 24, C, D)) == (-8 / 16, C, C)
    candidates.upload(C, C)
    assert candidates.best(D, D) == (-1, D, D)


def test_worked_example_finer_is_not_always_better() -> None:
    assert improvements([[B], [A], [D], [C]]) == [9, 15, 7, 31]
    usable = [[B], [B, A], [B, A, D], [B, A, D, C]]
    assert [50 - WORKED_EXAMPLE.latency_ms(uploaded) for uploaded in usable] == [9, 15, 15, 31]


# Sums of its decimals depend on their order. B, D and E cost the same on both sides: what they gain must still be 0.
EQUAL_SIDES = chain(
    client=[0.9, 0.1, 1.1, 1.1, 1.2],
    server=[0.5, 0.1, 0.2, 1.1, 1.2],
    upload=[1.0, 0.1, 0.4, 1.2, 0.2],
    up=[0.5, 1.0, 0.5, 0.3, 0.8, 0.1],
    down=[0.0, 0.7, 0.2, 0.4, 0.0, 0.9],
)


# Looking for the first part of A..H to upload, the planner weighs runs from D on in a part that ends before H. What it
# learns there must not keep it from choosing longer ones later. Mirrored, the same goes for runs up to E.
LOOKS_INSIDE = chain(
    client=[1, 0, 6, 5, 0, 4, 3, 1],
    server=[0, 0, 0, 0, 0, 0, 0, 0],
    upload=[1, 4, 0, 0, 10, 0, 4, 1],
    up=[0, 0, 12, 5, 0, 7, 0, 0, 0],
    down=[0, 0, 0, 5, 10, 9, 2, 0, 0],
)
MIRRORED = chain(
    client=[1, 3, 4, 0, 5, 6, 0, 1],
    server=[0, 0, 0, 0, 0, 0, 0, 0],
    upload=[1, 4, 0, 10, 0, 0, 4, 1],
    up=[0, 0, 2, 9, 10, 5, 0, 0, 0],
    down=[0, 0, 0, 7, 0, 5, 12, 0, 0],
)


@given(chains(7, SMALL_INTEGERS) | chains(7, DECIMALS), st.booleans())
@example(EQUAL_SIDES, True)
@example(LOOKS_INSIDE, True)
@example(MIRRORED, True)
def test_efficiency_plans_are_those_of_the_paper(graph: ExecutionGraph, recursive: bool) -> None:
    planner = PLANNERS["recursive-efficiency" if recursive else "efficiency"]
    assert planner(graph) == algorithm_1(graph, recursive=recursive)


def weigh_all(graph: ExecutionGraph, uploaded: set[int], first: int, last: int) -> np.ndarray:
    """[a, b] is the efficiency of the run first+a .. first+b, none of which is uploaded; -inf where b < a."""
    stages, after = slice(first, last + 1), slice(first + 1, last + 2)
    client_ms, server_ms, upload_ms = (
        np.subtract.outer(sums[after], sums[stages]).T
        for sums in (np.cumsum([0, *ms]) for ms in (graph.client_ms, graph.server_ms, graph.upload_ms))
    )
    before_ms, after_ms = -graph.up_ms[stages], -graph.down_ms[after]
    if first - 1 in uploaded:
        before_ms[0] = graph.down_ms[first]
    if last + 1 in uploaded:
        after_ms[-1] = graph.up_ms[last + 1]
    gain_ms = client_ms - server_ms + before_ms[:, None] + after_ms
    with np.errstate(divide="ignore", invalid="ignore"):
        efficiencies = np.where((gain_ms == 0) & (upload_ms == 0), 0, gain_ms / upload_ms)
    return np.where(np.tri(len(gain_ms), k=-1, dtype=bool), -np.inf, efficiencies)


def exhaustive_plan(graph: ExecutionGraph, recursive: bool) -> list[list[int]]:
    """Algorithm 1 with every candidate weighed before every choice."""
    optimal = graph.shortest_path(np.zeros(len(graph.stages)))
    plan = [sorted(initial)] if (initial := graph.shortest_path(graph.upload_ms)) else []
    uploaded = set(initial)

    def best(first: int, last: int, efficiencies: np.ndarray) -> tuple[float, int, int]:
        a, b = divmod(int(efficiencies.argmax()), len(efficiencies))
        return -efficiencies[a, b], first + a, first + b

    while missing := optimal - uploaded:
        _, first, last = min(best(*gap, weigh_all(graph, uploaded, *gap)) for gap in runs_of(missing))
        while recursive:
            efficiencies = weigh_all(graph, uploaded, first, last)
            efficiencies[0, -1] = -np.inf
            if efficiencies.max() <= 0:
                break
            _, first, last = best(first, last, efficiencies)
        plan.append(list(range(first, last + 1)))
        uploaded.update(plan[-1])
    return plan


def long_chain(seed: int, n: int) -> ExecutionGraph:
    """Costs that are random, heavy-tailed, equal, or rise or fall along the chain; many are small whole numbers."""
    random = np.random.default_rng(seed)
    whole = random.random() < 0.6

    def times(size: int, *scales: float) -> np.ndarray:
        along, power = np.linspace(0, 1, size), random.choice([0.5, 1, 2])
        spread = random.choice([random.uniform(0, 1, size), random.lognormal(0, 2, size), np.ones(size)])
        shapes = (spread, along**power, 1 - along**power)
        noise = 1 + random.choice([0, 1e-6, 1e-3, 0.1]) * random.uniform(-1, 1, size)
        present = random.random(size) < random.choice([0.5, 1, 1, 1])
        ms: np.ndarray = random.choice(scales) * random.choice(shapes) * noise * present
        return np.rint(ms) if whole else ms

    up = times(n + 1, 0, 1, 2, 5, 20, n) + random.choice([0, 0, 20])
    down = up if random.random() < 0.7 else times(n + 1, 0, 1, 5, 20, n)
    client = times(n, 2, 5, 10) + random.choice([0, 1, 10])
    return chain(client, times(n, 0, 1, 5), times(n, 3, 10, 100, 1e4), up, down)


@settings(max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans())
def test_efficiency_plans_equal_the_exhaustive_ones(seed: int, n: int, recursive: bool) -> None:
    graph = long_chain(seed, n)
    planner = UNMERGED["recursive-efficiency" if recursive else "efficiency"]
    assert planner(graph) == exhaustive_plan(graph, recursive)


@pytest.mark.parametrize("falling", [True, False])
def test_algorithm_1_is_not_followed_stage_by_stage(falling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each of n uploads, it removes all stages but one from its candidate, one after another."""
    n = 200
    transfer = np.rint(n * n - np.arange(n + 1) ** 2)
    graph = chain(np.full(n, 10 * n), np.ones(n), np.full(n, 10_000), transfer if falling else transfer[::-1])
    weighed = 0
    efficiencies = Candidates._efficiencies

    def weigh(candidates: Candidates, first: int | slice, last: int | slice) -> np.ndarray:
        nonlocal weighed
        weighed += 1
        return efficiencies(candidates, first, last)

    monkeypatch.setattr(Candidates, "_efficiencies", weigh)
    assert len(PLANNERS["recursive-efficiency"](graph)) == n
    assert weighed < 15 * n


@pytest.mark.parametrize("algorithm", ["efficiency", "recursive-efficiency"])
def test_planning_keeps_no_table_of_all_candidates(algorithm: str) -> None:
    n = 1000
    graph = chain(np.arange(n) % 7 + 9, np.ones(n), np.full(n, 1000), np.linspace(500, 1, n + 1))
    tracemalloc.start()
    try:
        plan = PLANNERS[algorithm](graph)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, plan)) == n
    assert peak_bytes < 8 * n * n / 8


@given(chains(7, SMALL_INTEGERS) | chains(7, DECIMALS))
def test_original_equals_the_definition(graph: ExecutionGraph) -> None:
    plan: list[list[int]] = []
    uploaded: set[int] = set()
    for factor in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 0):
        overhead = [0 if i in uploaded else factor * graph.upload_ms[i] for i in range(len(graph.stages))]
        if partition := sorted(graph.shortest_path(overhead) - uploaded):
            plan.append(partition)
            uploaded.update(partition)
    assert UNMERGED["original"](graph) == plan


# So large that even multiples of 2^-24 ms are rounded when summed: the fastest paths with and without the overhead use
# different stages, and one has to be left out.
TOO_LARGE = chain(
    client=[1e12 + 0.1, 0, 0.3],
    server=[0.1, 1e12 + 0.3, 0.2],
    upload=[1e12 + 0.3, 0.001, 0],
    up=[0, 0, 0, 1e12 + 0.3],
    down=[1e12, 0.1, 0.1, 0.1],
)


@pytest.mark.parametrize("algorithm", PLANNERS)
def test_every_plan_uploads_the_optimal_stages_once(algorithm: str) -> None:
    @settings(max_examples=10 if algorithm == "original-0.0001" else 100)
    @given(chains(12, st.floats(0, 1e4)))
    @example(TOO_LARGE)
    def check(graph: ExecutionGraph) -> None:
        plan = PLANNERS[algorithm](graph)
        in_order = [stage for partition in plan for stage in partition]
        assert sorted(in_order) == sorted(graph.shortest_path(np.zeros(len(graph.stages))))
        assert all(partition == sorted(partition) and partition for partition in plan)
        latencies = [graph.latency_ms(in_order[:k]) for k in accumulate(map(len, plan), initial=0)]
        assert latencies == sorted(latencies, reverse=True)
        assert latencies[-1] == graph.latency_ms(range(len(graph.stages)))

    check()


def latency_by_bytes(graph: ExecutionGraph, plan: Sequence[Sequence[Piece]]) -> list[tuple[float, float]]:
    """What has been sent (as ms of the link) after each partition, and a query's latency then."""
    points: list[tuple[float, float]] = []
    uploaded: list[Piece] = []
    sent_ms = 0.0
    for pieces in plan:
        upload_ms, load_ms = graph.overhead_ms(pieces)
        uploaded += pieces
        sent_ms += upload_ms - load_ms
        points.append((sent_ms, graph.latency_ms(uploaded)))
    return points


@pytest.mark.parametrize("algorithm", PLANNERS)
def test_no_partition_is_without_weights_and_no_query_slower_for_it(algorithm: str) -> None:
    """Queries are compared at every byte uploaded, from the end of the first partition on."""

    @settings(max_examples=10 if algorithm == "original-0.0001" else 200)
    @given(cut_chains(chains(8, SMALL_INTEGERS, loads=True) | chains(8, DECIMALS, loads=True)))
    def check(graph: ExecutionGraph) -> None:
        before, plan = UNMERGED[algorithm](graph), PLANNERS[algorithm](graph)
        assert Counter(concatenated.from_iterable(plan)) == Counter(concatenated.from_iterable(before))
        assert all(len(set(map(stage_of, pieces))) == len(pieces) for pieces in plan)
        after = latency_by_bytes(graph, plan)
        assert len(plan) <= 1 or all(more > less for (less, _), (more, _) in pairwise([(0, 0), *after]))
        for sent_ms, latency_ms in latency_by_bytes(graph, before):
            if reached := [latency for ms, latency in after if ms <= sent_ms]:
                assert reached[-1] <= latency_ms

    check()


def test_what_has_no_weights_goes_with_what_was_sent_before_it() -> None:
    graph = chain([9] * 5, [1] * 5, [0, 3, 1, 4, 0], [0] * 6, load=[0, 1, 1, 0, 0])
    assert merge_weightless(graph, [[0], [2], [1], [4], [3]]) == [[0, 1, 2, 4], [3]]
    assert merge_weightless(graph, [[1], [4], [3], [0, 2]]) == [[1, 4], [0, 2, 3]]
    assert merge_weightless(graph, [[0], [2, 4]]) == [[0, 2, 4]]
    assert merge_weightless(graph, []) == []


@pytest.mark.parametrize("algorithm", PLANNERS)
def test_nothing_worth_offloading_is_an_empty_plan(algorithm: str) -> None:
    assert PLANNERS[algorithm](chain([5, 6, 7], [5, 6, 7], [1, 1, 1], [0, 0, 0, 0])) == []
    assert PLANNERS[algorithm](chain([5, 6], [1, 1], [1, 1], [9, 9, 9])) == []


def test_original_halves_the_penalty_six_times() -> None:
    gains = [64 + 1, 32 + 1, 16 + 1, 8 + 1, 4 + 1, 2 + 1, 1.5, 0.75, 0.25]  # the last two are below all factors but 0
    graph = chain(gains, [0] * 9, [64] * 9, [0] * 10)
    assert PLANNERS["original"](graph) == [*([i] for i in range(7)), [7, 8]]


def test_fine_penalties_are_multiples_of_a_ten_thousandth() -> None:
    gains = [k + 0.5 for k in range(7020, 7000, -1)]  # each just above one factor's overhead
    graph = chain([*gains, 0.5], [0] * 21, [10_000] * 21, [0] * 22)
    assert PLANNERS["original-0.0001"](graph) == [[i] for i in range(21)]


@pytest.mark.parametrize("step", [9999, 7000, 2500, 1, 0])
def test_no_fine_penalty_lies_between_two_ten_thousandths(step: int) -> None:
    graph = chain([step + 0.99, step + 0.5, step + 0.01], [0] * 3, [10_000] * 3, [0] * 4)
    assert PLANNERS["original-0.0001"](graph) == [[0, 1, 2]]


def test_the_last_fine_penalty_but_0_is_a_ten_thousandth() -> None:
    graph = chain([1.5, 0.5], [0, 0], [10_000, 10_000], [0, 0, 0])
    assert PLANNERS["original-0.0001"](graph) == [[0], [1]]


def test_initial_partition_is_not_divided() -> None:
    graph = chain([90, 1, 90], [1, 1, 1], [9, 9, 9], [1, 5, 5, 1])
    assert PLANNERS["recursive-efficiency"](graph)[0] == [0, 1, 2]


def test_stages_without_upload_overhead_come_at_once() -> None:
    graph = chain([9, 9, 9], [1, 1, 1], [40, 0, 40], [2, 20, 2, 2])
    # B alone would pay 20 + 2 to save 8; next to A it saves a transfer as well
    assert PLANNERS["efficiency"](graph) == [[0, 1], [2]]
    with np.errstate(over="ignore"):
        assert Candidates(graph, [0]).best(1, 1) == (-math.inf, 1, 1)
        assert Candidates(graph, []).best(1, 1) == (math.inf, 1, 1)
        assert Candidates(chain([7], [4], [0], [1, 2]), []).best(0, 0) == (0, 0, 0)


def test_ties_go_to_the_earlier_then_to_the_shorter() -> None:
    graph = chain([3, 3, 3], [1, 1, 1], [4, 4, 4], [0, 0, 0, 0])
    assert PLANNERS["efficiency"](graph) == [[0], [1], [2]]


# --- Slices ---------------------------------------------------------------------------------------------------------


@given(cut_chains(chains(7, SMALL_INTEGERS) | chains(7, DECIMALS)))
def test_sliced_plans_are_those_of_recursive_efficiency_with_stages_in_slices(graph: ExecutionGraph) -> None:
    plan = iter(UNMERGED["sliced-efficiency"](graph))
    uploaded: list[Piece] = []
    for stages in UNMERGED["recursive-efficiency"](graph):
        before_ms, after_ms = graph.latency_ms(uploaded), graph.latency_ms([*uploaded, *stages])
        pieces = next(plan)
        slices = [piece for piece in pieces if isinstance(piece, Slice)]
        if not slices:
            assert pieces == stages
        else:
            # One stage goes up in slices, the others with the first. Each makes queries faster, the last one too.
            (slice_,) = slices
            (cut,) = (cut for cut in graph.cuts if cut.stage == slice_.stage)
            assert sorted([slice_.stage, *(p for p in pieces if p != slice_)]) == stages
            end, present = 0, list(uploaded)
            while True:
                assert slice_.begin == end
                end = slice_.end
                assert end - slice_.begin >= cut.least
                assert end % TILE == 0
                present += pieces
                latency_ms = graph.latency_ms(present)
                assert after_ms <= latency_ms < before_ms
                assert (latency_ms == after_ms) == (end == cut.channels)
                if end == cut.channels:
                    break
                before_ms = latency_ms
                (piece,) = pieces = next(plan)
                assert isinstance(piece, Slice)
                slice_ = piece
        uploaded += stages
    assert next(plan, None) is None


def sliced_by_definition(graph: ExecutionGraph) -> list[list[Piece]]:
    """What the docstring of `ionn.planning.planners.sliced` says, with every latency from what is uploaded before."""
    plan: list[list[Piece]] = []
    at_best_ms = graph.latency_ms(range(len(graph.stages)))
    for stages in recursive_efficiency(graph):
        before = [piece for pieces in plan for piece in pieces]
        can_be_cut = [each for each in graph.cuts if each.stage in stages and graph.has_weights[each.stage]]
        without_ms, with_ms = graph.latency_ms(before), graph.latency_ms([*before, *stages])
        plan.append(list(stages))
        if not can_be_cut or without_ms - with_ms > sum(graph.upload_ms[stages]):
            continue
        chosen = max(can_be_cut, key=lambda each: graph.upload_ms[each.stage])
        others = [stage for stage in stages if stage != chosen.stage]
        gain_ms, rest_ms = graph.latency_ms([*before, *others]) - with_ms, with_ms - at_best_ms
        cost_ms = chosen.slice_ms * (2 * rest_ms + gain_ms)
        squared = gain_ms * graph.upload_ms[chosen.stage] / cost_ms if cost_ms else math.inf
        if squared < 4:
            continue
        slices: list[Slice] = []
        latest_ms = without_ms
        for end in chosen.ends(round(min(math.sqrt(squared), chosen.channels // chosen.least))):
            now_ms = graph.latency_ms([*before, *others, Slice(chosen.stage, 0, end)])
            if with_ms < now_ms < latest_ms or end == chosen.channels:
                slices.append(Slice(chosen.stage, slices[-1].end if slices else 0, end))
                latest_ms = now_ms
        if len(slices) > 1:
            first: list[Piece] = [*others, slices[0]]
            plan[-1] = sorted(first, key=stage_of)
            plan += [[each] for each in slices[1:]]
    return plan


@given(
    cut_chains(chains(5, SMALL_INTEGERS, loads=True) | chains(5, DECIMALS, loads=True), most_tiles=12), st.booleans()
)
def test_sliced_plans_equal_the_definition(graph: ExecutionGraph, worth_cutting: bool) -> None:
    if worth_cutting:  # a slow client, cheap transfers and long uploads
        graph = dataclasses.replace(
            graph,
            client_ms=4 * graph.client_ms + 4,
            upload_ms=50 * graph.upload_ms + 50,
            up_ms=graph.up_ms / 8,
            down_ms=graph.down_ms / 8,
        )
    assert sliced_efficiency(graph) == sliced_by_definition(graph)


def test_only_a_stage_of_the_partition_that_has_weights_is_cut() -> None:
    cuts = [cut(0, tiles=2), cut(1, tiles=2)]
    graph = chain([20, 20], [0, 0], [30, 400], [0, 0, 0], cuts=cuts)
    halves = [Slice(0, 0, TILE), Slice(0, TILE, 2 * TILE), Slice(1, 0, TILE), Slice(1, TILE, 2 * TILE)]
    assert sliced_efficiency(graph) == [[half] for half in halves]
    loaded = chain([20, 20], [0, 0], [30, 400], [0, 0, 0], load=[30, 0], cuts=cuts)  # A sends nothing
    assert sliced_efficiency(loaded) == [[0], *([half] for half in halves[2:])]


def test_the_stage_with_the_largest_upload_is_the_one_in_slices() -> None:
    graph = chain([20, 20], [0, 0], [10, 40], [5, 15, 5], cuts=[cut(0, tiles=4), cut(1, tiles=4)])
    assert [stage_of(piece) for pieces in sliced_efficiency(graph) for piece in pieces] == [0, 1, 1, 1, 1]


@given(cut_chains(chains(7, DECIMALS)))
def test_slices_that_cost_nothing_never_add_to_the_area(graph: ExecutionGraph) -> None:
    graph = dataclasses.replace(graph, cuts=[dataclasses.replace(each, slice_ms=0.0) for each in graph.cuts])
    whole, sliced = (area(graph, UNMERGED[name](graph)) for name in ("recursive-efficiency", "sliced-efficiency"))
    assert sliced <= whole + 1e-9


@settings(max_examples=30)
@given(st.integers(10, 500), st.integers(1000, 20_000), st.integers(0, 500), st.integers(1, 200))
@example(10, 1000, 2, 158)  # one slice is 10 % better than two
@example(10, 1000, 2, 164)
@example(40, 1000, 5, 200)  # one is 20 % better than two
def test_the_number_of_slices_is_the_best(gain: int, upload: int, rest: int, slice_ms: int) -> None:
    """Of all numbers of equal slices of A, while B, which is less efficient, has to wait.

    Nearly so: the planner's number leaves out that a stage which is not cut has no slice to run besides.
    """
    graph = chain([gain, rest], [0, 0], [upload, 10**9], [0, 0, 0], cuts=[cut(0, tiles=40, slice_ms=slice_ms)])

    def loss(partitions: Sequence[Sequence[Piece]]) -> float:
        """Area of A's upload and what waits for it, beyond that of saving all the while."""
        times_ms = [graph.overhead_ms(pieces)[0] for pieces in partitions]
        latencies_ms = [graph.latency_ms(pieces) for pieces in accumulate([[], *partitions[:-1]])]
        return float(sum(map(operator.mul, times_ms, latencies_ms))) - upload * (gain / 2 + rest)

    best = loss([[0]])
    for number in range(2, 41):
        ends = graph.cuts[0].ends(number)
        best = min(best, loss([[Slice(0, begin, end)] for begin, end in zip([0, *ends], ends, strict=False)]))
    chosen = [pieces for pieces in PLANNERS["sliced-efficiency"](graph) if pieces != [1]]
    assert loss(chosen) <= (1.12 + slice_ms / upload) * best


def test_slices_of_alexnets_last_layers_shape() -> None:
    """A slow inner product behind stages at the server: each slice saves its share, the last one the transfers too."""
    graph = chain([9, 100], [1, 1], [1, 1000], [1, 2, 2], cuts=[cut(1, tiles=40, least=8, slice_ms=1)])
    plan = PLANNERS["sliced-efficiency"](graph)
    assert plan == [[0], *([Slice(1, begin * TILE, (begin + 8) * TILE)] for begin in range(0, 40, 8))]
    uploaded = list(accumulate(plan))
    assert [graph.latency_ms(pieces) for pieces in uploaded] == [104, 84, 64, 44, 24, 5]


def test_what_saves_more_than_its_upload_takes_is_not_cut() -> None:
    cuts = [cut(0, tiles=40)]
    assert PLANNERS["sliced-efficiency"](chain([100], [0], [99], [0, 0], cuts=cuts)) == [[0]]
    for upload in (100, 101):
        assert len(PLANNERS["sliced-efficiency"](chain([100], [0], [upload], [0, 0], cuts=cuts))) == 40


def test_two_slices_where_two_are_the_best_number() -> None:
    """sqrt(4 x 8 / (2 x 4)) = 2."""
    plan = PLANNERS["sliced-efficiency"](chain([4], [0], [8], [0, 0], cuts=[cut(0, tiles=4, slice_ms=2)]))
    assert plan == [[Slice(0, 0, 2 * TILE)], [Slice(0, 2 * TILE, 4 * TILE)]]


def test_slices_that_would_be_slower_than_the_stage_at_the_server_wait_for_the_rest() -> None:
    # Half at each side takes 50. A server of half the speed of the client needs 40 for all.
    graph = chain([100], [40], [900], [0, 0], cuts=[cut(0, tiles=4)])
    assert PLANNERS["sliced-efficiency"](graph) == [
        [Slice(0, 0, TILE)],
        [Slice(0, TILE, 2 * TILE)],
        [Slice(0, 96, 192)],
    ]


# --- The best order -------------------------------------------------------------------------------------------------


def area_by_definition(graph: ExecutionGraph, order: Sequence[int]) -> float:
    return float(sum(graph.latency_ms(order[:k]) * graph.upload_ms[stage] for k, stage in enumerate(order))) / 1e3


@given(chains(5, SMALL_INTEGERS) | chains(5, DECIMALS))
def test_optimal_has_the_least_area_of_all_orders(graph: ExecutionGraph) -> None:
    stages = graph.shortest_path(np.zeros(len(graph.stages)))
    least = min(area_by_definition(graph, order) for order in permutations(stages))
    plan = UNMERGED["optimal"](graph)
    assert area(graph, plan) == pytest.approx(least)
    assert all(sum(graph.upload_ms[stage] > 0 for stage in partition) <= 1 for partition in plan)
    assert least_area(graph) <= least * (1 + 1e-9)


@given(chains(6, DECIMALS), st.data())
def test_latencies_of_many_sets_are_those_of_each(graph: ExecutionGraph, data: st.DataObject) -> None:
    n = len(graph.stages)
    free = data.draw(
        st.lists(st.integers(0, n - 1), unique=True).filter(lambda stages: graph.offloadable[stages].all())
    )
    weighted = [stage for stage in range(n) if stage not in free and graph.offloadable[stage]]
    present = np.array([[bool(number >> i & 1) for i in range(len(weighted))] for number in range(2 ** len(weighted))])
    latencies_ms = _latencies(graph, weighted, free, present.reshape(2 ** len(weighted), len(weighted)))
    expected = [graph.latency_ms([*free, *np.array(weighted, int)[chosen.astype(bool)]]) for chosen in present]
    assert latencies_ms.tolist() == pytest.approx(expected)


@given(chains(8, DECIMALS))
def test_no_planner_of_whole_stages_has_less_area(graph: ExecutionGraph) -> None:
    names = ("original", "efficiency", "recursive-efficiency", "densest")
    areas = [area(graph, UNMERGED[name](graph)) for name in names]
    assert area(graph, UNMERGED["optimal"](graph)) <= min(areas) * (1 + 1e-9) + 1e-9


def test_worked_example_is_planned_in_the_best_order() -> None:
    assert PLANNERS["optimal"](WORKED_EXAMPLE) == PLANNERS["recursive-efficiency"](WORKED_EXAMPLE)
    assert area(WORKED_EXAMPLE, PLANNERS["optimal"](WORKED_EXAMPLE)) * 1e3 == 50 * 8 + 41 * 8 + 35 * 16 + 27 * 8


def test_densest_differs_in_the_initial_partition_only() -> None:
    # A and B save more than their upload takes, A ten times as much, so the paper uploads both before any query.
    graph = chain([100, 12, 5], [0, 0, 0], [10, 10, 10], [0, 0, 0, 0])
    assert PLANNERS["recursive-efficiency"](graph) == [[A, B], [C]]
    assert PLANNERS["densest"](graph) == [[A], [B], [C]]


def test_the_bound_counts_every_instant_by_itself() -> None:
    # Alone, B saves most per time. In the first 3 only A fits; with 4 B; with 7 both.
    graph = chain([10, 20], [0, 0], [3, 4], [0, 0, 0])
    assert least_area(graph) * 1e3 == pytest.approx(30 * 3 + 20 * 1 + 10 * 3, rel=1e-3)
    assert area(graph, PLANNERS["optimal"](graph)) * 1e3 == 30 * 4 + 10 * 3
    # C stays at the client; D needs no upload.
    graph = chain([10, 20, 50, 5], [0, 0, 0, 0], [3, 4, 5, 0], [0] * 5, pinned=[2])
    assert least_area(graph) * 1e3 == pytest.approx((50 + 30) * 3 + (50 + 20) * 1 + (50 + 10) * 3, rel=1e-3)
    # Between A and B, a transfer takes 2.
    graph = chain([10, 20], [0, 0], [3, 4], [0, 2, 0])
    assert least_area(graph) * 1e3 == pytest.approx(30 * 3 + (2 + 20) * 1 + (10 + 2) * 3, rel=1e-3)
    assert least_area(chain([10], [0], [0], [0, 0])) == least_area(chain([10], [20], [5], [0, 0])) == 0


def test_too_many_stages_to_order_are_an_input_error() -> None:
    n = 21
    graph = chain([9] * n, [1] * n, [1] * n, [0] * (n + 1))
    with pytest.raises(InputError, match=f"optimal: {n} stages to order"):
        PLANNERS["optimal"](graph)
    assert least_area(graph) > 0


def test_unknown_algorithm_names_the_known() -> None:
    with pytest.raises(InputError, match=r"'eficiency': known are original, .*; did you mean efficiency\?"):
        get_planner("eficiency")
    with pytest.raises(InputError, match="'x': known are original, "):
        get_planner("x")
