from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import pytest
from chains import DECIMALS, SMALL_INTEGERS, WORKED_EXAMPLE, chain, chains
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.graph import ExecutionGraph, runs_of
from ionn.planners import PLANNERS, get_planner
from ionn.planners.efficiency import Candidates

A, B, C, D = range(4)


def improvements(graph: ExecutionGraph, plan: list[list[int]]) -> list[float]:
    """Latency saved after each partition, with all that is uploaded at the server."""
    uploaded: list[int] = []
    return [graph.forced_ms([]) - graph.forced_ms(uploaded := uploaded + partition) for partition in plan]


def efficiency_by_definition(graph: ExecutionGraph, uploaded: set[int], run: list[int]) -> float:
    gain_ms = graph.forced_ms(uploaded) - graph.forced_ms(uploaded.union(run))
    upload_ms = sum(graph.upload_ms[run])
    return gain_ms / upload_ms if upload_ms else math.copysign(math.inf, gain_ms) if gain_ms else 0.0


def best_by_definition(graph: ExecutionGraph, uploaded: set[int], runs: list[list[int]]) -> list[int]:
    return min(runs, key=lambda run: (-efficiency_by_definition(graph, uploaded, run), run[0], len(run)))


def plan_by_definition(graph: ExecutionGraph, recursive: bool) -> list[list[int]]:
    """Algorithm 1 of the paper, line by line, every efficiency from two latencies."""
    optimal = graph.shortest_path(np.zeros(len(graph.stages)))
    initial = graph.shortest_path(graph.upload_ms)
    plan = [sorted(initial)] if initial else []
    uploaded = set(initial)
    while missing := optimal - uploaded:
        gaps = runs_of(missing)
        runs = [
            list(range(a, b + 1)) for first, last in gaps for a in range(first, last + 1) for b in range(a, last + 1)
        ]
        p = best_by_definition(graph, uploaded, runs)
        while recursive:
            parts = [run for run in runs if set(run) < set(p) and efficiency_by_definition(graph, uploaded, run) > 0]
            if not parts:
                break
            p = best_by_definition(graph, uploaded, parts)
        plan.append(p)
        uploaded.update(p)
    return plan


@pytest.mark.parametrize(
    ("algorithm", "plan", "improvement"),
    [
        ("original", [[B], [A, C, D]], [9, 31]),
        ("original-0.0001", [[B], [A], [C, D]], [9, 15, 31]),
        ("efficiency", [[B], [A], [C, D]], [9, 15, 31]),
        ("recursive-efficiency", [[B], [A], [C], [D]], [9, 15, 23, 31]),
    ],
)
def test_worked_example_plans(algorithm, plan, improvement):
    assert get_planner(algorithm)(WORKED_EXAMPLE) == plan
    assert improvements(WORKED_EXAMPLE, plan) == improvement


def test_worked_example_efficiencies():
    candidates = Candidates(WORKED_EXAMPLE, [B])
    assert candidates.best(A, A) == (-6 / 8, A, A)
    candidates.upload(A, A)
    assert candidates.best(C, D) == (-16 / 24, C, D)
    assert candidates.best(D, D) == (1, D, D)
    assert candidates.best_part(C, D) == (-8 / 16, C, C)
    candidates.upload(C, C)
    assert candidates.best(D, D) == (-1, D, D)


def test_worked_example_finer_is_not_always_better():
    assert improvements(WORKED_EXAMPLE, [[B], [A], [D], [C]]) == [9, 15, 7, 31]
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


@given(chains(7, SMALL_INTEGERS) | chains(7, DECIMALS), st.booleans())
@example(EQUAL_SIDES, True)
def test_efficiency_plans_equal_the_definition(graph, recursive):
    planner = PLANNERS["recursive-efficiency" if recursive else "efficiency"]
    assert planner(graph) == plan_by_definition(graph, recursive)


@given(chains(7, SMALL_INTEGERS) | chains(7, DECIMALS))
def test_original_equals_the_definition(graph):
    plan, uploaded = [], set()
    for factor in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 0):
        overhead = [0 if i in uploaded else factor * graph.upload_ms[i] for i in range(len(graph.stages))]
        if partition := sorted(graph.shortest_path(overhead) - uploaded):
            plan.append(partition)
            uploaded.update(partition)
    assert PLANNERS["original"](graph) == plan


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
def test_every_plan_uploads_the_optimal_stages_once(algorithm):
    @settings(max_examples=10 if algorithm == "original-0.0001" else 100)
    @given(chains(12, st.floats(0, 1e4)))
    @example(TOO_LARGE)
    def check(graph):
        plan = PLANNERS[algorithm](graph)
        in_order = [stage for partition in plan for stage in partition]
        assert sorted(in_order) == sorted(graph.shortest_path(np.zeros(len(graph.stages))))
        assert all(partition == sorted(partition) and partition for partition in plan)
        latencies = [graph.latency_ms(in_order[:k]) for k in accumulate(map(len, plan), initial=0)]
        assert latencies == sorted(latencies, reverse=True)
        assert latencies[-1] == graph.latency_ms(range(len(graph.stages)))

    check()


@pytest.mark.parametrize("algorithm", PLANNERS)
def test_nothing_worth_offloading_is_an_empty_plan(algorithm):
    assert PLANNERS[algorithm](chain([5, 6, 7], [5, 6, 7], [1, 1, 1], [0, 0, 0, 0])) == []
    assert PLANNERS[algorithm](chain([5, 6], [1, 1], [1, 1], [9, 9, 9])) == []


def test_original_halves_the_penalty_six_times():
    gains = [64 + 1, 32 + 1, 16 + 1, 8 + 1, 4 + 1, 2 + 1, 1.5, 0.5]
    graph = chain(gains, [0] * 8, [64] * 8, [0] * 9)
    assert PLANNERS["original"](graph) == [[i] for i in range(8)]


def test_fine_penalties_are_multiples_of_a_ten_thousandth():
    gains = [k + 0.5 for k in range(7020, 7000, -1)]  # each just above one factor's overhead
    graph = chain([*gains, 0.5], [0] * 21, [10_000] * 21, [0] * 22)
    assert PLANNERS["original-0.0001"](graph) == [[i] for i in range(21)]


def test_initial_partition_is_not_divided():
    graph = chain([90, 1, 90], [1, 1, 1], [9, 9, 9], [1, 5, 5, 1])
    assert PLANNERS["recursive-efficiency"](graph)[0] == [0, 1, 2]


def test_stages_without_upload_overhead_come_at_once():
    graph = chain([9, 9, 9], [1, 1, 1], [40, 0, 40], [2, 20, 2, 2])
    # B alone would pay 20 + 2 to save 8; next to A it saves a transfer as well
    assert PLANNERS["efficiency"](graph) == [[0, 1], [2]]
    assert Candidates(graph, [0]).best(1, 1) == (-math.inf, 1, 1)
    assert Candidates(graph, []).best(1, 1) == (math.inf, 1, 1)
    assert Candidates(chain([7], [4], [0], [1, 2]), []).best(0, 0) == (0, 0, 0)


def test_ties_go_to_the_earlier_then_to_the_shorter():
    graph = chain([3, 3, 3], [1, 1, 1], [4, 4, 4], [0, 0, 0, 0])
    assert PLANNERS["efficiency"](graph) == [[0], [1], [2]]


def test_unknown_algorithm_names_the_known():
    with pytest.raises(InputError, match=r"'eficiency': did you mean efficiency\? known are original, "):
        get_planner("eficiency")
    with pytest.raises(InputError, match="'x': known are original, "):
        get_planner("x")
