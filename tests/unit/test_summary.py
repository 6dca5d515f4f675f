"""The numbers behind figures and report, on traces that can be followed by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from ionn.errors import InputError
from ionn.evaluation.summary import Stat, common_times, largest_share, load_results, mean_latency, summary
from ionn.records import Outputs
from ionn.testbed.settings import Settings
from ionn.testbed.trace import trace_path
from tests.support.runs import FIVE_FAST, make_trace


def test_a_row_says_what_the_run_did() -> None:
    latencies_ms = (1000.0, 1000.0, 500.0, 500.0, 100.0, 100.0, 100.0, 90.0, 70.0)
    (row,) = summary([make_trace(latencies_ms=latencies_ms, bit_equal=True)])
    assert (row.first_half.mean, row.second_half.mean, row.partitions.mean) == (1, 1, 2)
    assert (row.queries.mean, row.upload_s.mean, row.queries_per_s.mean) == (4, 4.0, 1.0)
    assert (row.mean_ms.mean, row.first_ms.mean, row.last_ms.mean) == pytest.approx((750, 1000, 70))
    assert (row.largest_share.mean, row.overruns.mean, row.planning_ms.mean) == (0.75, 9, 0.5)
    assert row.outputs == Outputs(computed=9, equal=9, wrong=0, difference=0.0, tolerance=0.0)


def test_runs_are_averaged_with_their_spread() -> None:
    slow = make_trace(run=2, latencies_ms=(1500.0, 1500.0, *FIVE_FAST), bit_equal=False)
    (row,) = summary([make_trace(bit_equal=True), slow])
    assert row.queries == Stat(3.0, math.sqrt(2))
    assert row.queries.count() == "3.0 ± 1.4"
    assert row.upload_s.text(2) == "4.00"
    assert row.outputs.wrong == 7


def test_what_is_defined_in_no_run_has_no_spread() -> None:
    nothing = Stat.of([math.nan, math.nan])
    assert math.isnan(nothing.mean)
    assert nothing.std == 0
    assert nothing.text() == "-"


def test_only_runs_of_equal_settings_are_averaged() -> None:
    traces = [
        make_trace(testbed="live"),
        make_trace(testbed="live", dilation=8.0),
        make_trace(mbps=40.0),
        make_trace(),
    ]
    slugs = [row.settings.slug for row in summary(traces)]
    assert slugs == ["virtual", "virtual-40mbps", "live", "live-dilation8"]


def test_the_papers_models_and_algorithms_come_in_its_order() -> None:
    names = [("mine", "original"), ("resnet", "zigzag"), ("resnet", "efficiency"), ("alexnet", "sliced-efficiency")]
    rows = summary([make_trace(algorithm, model=model) for model, algorithm in names])
    assert [(row.model, row.algorithm) for row in rows] == [names[3], names[2], names[1], names[0]]


def test_largest_share_is_relative_to_the_whole_model() -> None:
    trace = make_trace()
    plan = dataclasses.replace(trace.info.plan, model_bytes=6_000)
    trace = dataclasses.replace(trace, info=dataclasses.replace(trace.info, plan=plan))
    assert largest_share(trace) == 0.5


def test_an_empty_plan_has_a_row() -> None:
    (row,) = summary([make_trace(ends_s=(), sizes=(), latencies_ms=FIVE_FAST)])
    assert (row.partitions.mean, row.largest_share.mean, row.queries.mean) == (0, 0, 0)
    assert row.mean_ms.text() == row.queries_per_s.text() == "-"


def test_a_run_that_lost_its_server_is_left_out() -> None:
    lost = make_trace(run=2, testbed="live", fault="no answer")
    (row,) = summary([make_trace(testbed="live"), lost])
    assert [trace.info.run for trace in row.traces] == [1]


def test_latency_is_a_step_function_of_time() -> None:
    one = make_trace(latencies_ms=(1000.0, 500.0, 500.0, *FIVE_FAST))
    two = make_trace(latencies_ms=(1000.0, 1000.0, *FIVE_FAST), ends_s=(1.5, 4.0))
    times = common_times([one, two], end_s=3.0)
    assert times.tolist() == [1.5, 2.0, 2.5, 3.0]
    mean, spread = mean_latency([one, two], times[:-1])
    assert mean == pytest.approx([1000, 750, 750])
    assert spread == pytest.approx([0, 250 * math.sqrt(2), 250 * math.sqrt(2)])


def test_spread_of_three_runs_of_which_one_ends_early() -> None:
    latencies_ms = [(1000.0, 1000.0), (2000.0, 500.0), (3000.0, 500.0)]
    runs = [make_trace(run=run, latencies_ms=each, ends_s=(1.0, 4.0)) for run, each in enumerate(latencies_ms)]
    mean, spread = mean_latency(runs, np.array([1.0, 3.25]))
    assert mean == pytest.approx([2000, (500 + 3000) / 2])
    assert spread == pytest.approx([1000, 1250 * math.sqrt(2)])


def test_runs_that_never_execute_at_the_same_time_have_no_common_time() -> None:
    late = make_trace(ends_s=(60.0, 61.0))
    assert common_times([make_trace(), late]).size == 0
    assert np.array_equal(mean_latency([late], common_times([late]))[1], np.zeros(10))


def test_results_without_a_usable_run_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no traces here; `ionn run alexnet .*`"):
        load_results(tmp_path)
    make_trace(fault="no answer").save(trace_path(tmp_path, Settings("live"), "alexnet", "original", 1))
    with pytest.raises(InputError, match="every run lost its server"):
        load_results(tmp_path)
