"""The experiment of the paper's section 4.1, on a session that writes down what is asked of it."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest

from ionn.records import PartitionRecord, QueryRecord
from ionn.testbed.experiment import run_experiment
from tests.support.runs import make_trace


class Recorder:
    """A session whose plan is uploaded after so many queries, of a second each, but that uploads more before the
    queries of these numbers too."""

    def __init__(self, queries_in_upload: int, resumed: Collection[int] = ()) -> None:
        self.log: list[object] = []
        self._left = queries_in_upload
        self._resumed = [queries_in_upload - number for number in resumed]
        self._trace = make_trace()
        self._now_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def start_upload(self) -> None:
        self.log.append("start")

    def wait_for_first_partition(self) -> None:
        self.log.append("wait")

    def uploaded(self) -> bool:
        return self._left <= 0 and self._left not in self._resumed

    def wait_until(self, time_s: float) -> None:
        raise AssertionError("a closed loop waits for no time")

    def wait_for_upload(self) -> None:
        raise AssertionError("a closed loop ends after the upload")

    def query(self, raised_s: float | None = None) -> QueryRecord:
        self.log.append("late query" if self.uploaded() else "query")
        self.log += [] if raised_s is None else [raised_s]
        self._left -= 1
        self._now_s += 1.0
        return self._trace.queries[len(self.log) % 3]

    def finish(self) -> list[PartitionRecord]:
        self.log.append("finish")
        return list(self._trace.partitions)


@pytest.mark.parametrize("queries", [0, 1, 3])
def test_queries_follow_each_other_until_five_after_the_upload(queries: int) -> None:
    session, info = Recorder(queries), make_trace().info
    trace = run_experiment(session, info)
    raised = ["query"] * queries + ["late query"] * 5
    assert session.log == ["start", "wait", raised[0], 0.0, *raised[1:], "finish"]
    assert (trace.info, trace.partitions) == (info, make_trace().partitions)
    assert len(trace.queries) == queries + 5


@pytest.mark.parametrize(
    ("resumed", "queries"),
    [([3], 4 + 5), ([6], 7 + 5), ([3, 4, 6, 7, 12], 13 + 5), ([7], 7)],
)
def test_queries_after_an_upload_that_resumes_are_counted_anew(resumed: list[int], queries: int) -> None:
    assert len(run_experiment(Recorder(2, resumed), make_trace().info).queries) == queries


def test_an_upload_that_resumes_in_the_window_is_waited_for() -> None:
    info = make_trace(window_s=20.0).info
    assert len(run_experiment(Recorder(2, [18]), info).queries) == 19 + 5


@pytest.mark.parametrize(
    ("testbed", "dilation", "window_s", "queries"),
    [("virtual", 1.0, 3.0, 2 + 5), ("virtual", 1.0, 8.5, 9), ("live", 4.0, 3.0, 12), ("live", 4.0, 1.0, 7)],
)
def test_queries_follow_until_the_window_ends_too(testbed: str, dilation: float, window_s: float, queries: int) -> None:
    """Which is dilated as everything is."""
    session = Recorder(2)
    info = make_trace(testbed=testbed, dilation=dilation, window_s=window_s).info
    assert len(run_experiment(session, info).queries) == queries


def test_what_came_of_a_window() -> None:
    latencies_ms = (1000.0, 1000.0, 500.0, 500.0, 100.0, 100.0)
    trace = make_trace(latencies_ms=latencies_ms, window_s=3.6)  # the first query starts at 1 s
    assert [query.index for query in trace.in_window] == [0, 1, 2]
    assert trace.mean_ms_in_window == pytest.approx(2500 / 3)
    assert make_trace().in_window == ()
    assert math.isnan(make_trace().mean_ms_in_window)
    assert math.isnan(make_trace(window_s=0.5).mean_ms_in_window)
