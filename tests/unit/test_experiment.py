"""The experiment of the paper's section 4.1, on a session that writes down what is asked of it."""

from __future__ import annotations

import pytest

from ionn.records import PartitionRecord, QueryRecord
from ionn.testbed.experiment import run_experiment
from tests.support.runs import make_trace


class Recorder:
    """A session whose plan is uploaded after so many queries."""

    def __init__(self, queries_in_upload: int) -> None:
        self.log: list[object] = []
        self._left = queries_in_upload
        self._trace = make_trace()

    def start_upload(self) -> None:
        self.log.append("start")

    def wait_for_first_partition(self) -> None:
        self.log.append("wait")

    def uploaded(self) -> bool:
        return self._left <= 0

    def query(self, raised_s: float | None = None) -> QueryRecord:
        self.log.append("late query" if self.uploaded() else "query")
        self.log += [] if raised_s is None else [raised_s]
        self._left -= 1
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
