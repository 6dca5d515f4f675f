"""What is said and drawn of links that change, and of clients that measure them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ionn.evaluation import beliefs
from ionn.evaluation.beliefs import rate_errors, true_mbps
from ionn.evaluation.link_figures import fig_links
from ionn.evaluation.report import estimates
from ionn.evaluation.summary import summary
from ionn.records import EstimateRecord
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.runner import run_virtual_all
from ionn.testbed.trace import Trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    link = tmp_path_factory.mktemp("links") / "slow for a while.csv"
    link.write_text("0,80\n1,2\n4,80\n")
    (made,) = run_virtual_all("mobilenet", ["recursive-efficiency"], mbps=None, link=link, window_s=8.0)
    return made


def believing(trace: Trace, *beliefs: tuple[float, float]) -> Trace:
    """The same where these rates were believed from these times on."""
    records = tuple(EstimateRecord(time_s, mbps, 0.0, 1.0, 1.0) for time_s, mbps in beliefs)
    return dataclasses.replace(trace, estimates=records)


def test_the_rate_of_a_link_is_its_mean(trace: Trace) -> None:
    info = dataclasses.replace(trace.info, bandwidth=Bandwidth((0.0, 1.0, 2.0), (80.0, 0.0, 20.0)))
    times_s = np.array([0.0, 0.5, 1.5, 2.5, 9.0])
    assert true_mbps(dataclasses.replace(trace, info=info), times_s) == pytest.approx([80, 40, 10, 20])


def test_who_believes_the_truth_is_never_off(trace: Trace) -> None:
    true = believing(trace, (0.0, 80.0), (1.0, 2.0), (4.0, 80.0))
    assert rate_errors(true).max() == pytest.approx(0.0, abs=1e-6)
    for_half = believing(trace, (0.0, 40.0), (1.0, 2.0), (4.0, 80.0))
    off = rate_errors(for_half)
    assert off.max() == pytest.approx(0.5)
    assert (off > 0.4).sum() == 10  # spans of a tenth of a second


def test_what_a_client_believed_is_in_the_report(trace: Trace) -> None:
    section = estimates(summary([trace, dataclasses.replace(trace, estimates=())]))
    (row,) = section.rows
    assert row[4] == str(len(trace.estimates))
    assert row[-1] == str(len(trace.queries))
    assert row[-2] == str(sum(query.fallback for query in trace.queries)) != "0"


@pytest.mark.parametrize(("end_s", "rate"), [(0.05, 80.0), (8.0, 0.0)])
def test_nothing_is_said_of_a_run_without_a_span_in_which_something_could_cross(
    trace: Trace, end_s: float, rate: float, tmp_path: Path
) -> None:
    info = dataclasses.replace(trace.info, bandwidth=Bandwidth((0.0, 60.0), (rate, 80.0)))
    queries = (dataclasses.replace(trace.queries[0], end_s=end_s),)
    without = dataclasses.replace(believing(trace, (0.0, 80.0)), info=info, queries=queries)
    assert not rate_errors(without).size
    (row,) = estimates(summary([without])).rows
    assert row[5:7] == ("-", "-")
    assert len(fig_links(summary([without]), tmp_path)) == 2


@pytest.mark.parametrize("end_s", [1e12, 1e40])
@pytest.mark.parametrize("late_s", [0.0, 1e40])
def test_a_run_of_any_length_is_looked_at_for_a_day(
    trace: Trace, late_s: float, end_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace may come from a stranger, and tell of any time. Here a day is short, so that the test is."""
    assert beliefs.DAY_S == 86_400
    monkeypatch.setattr(beliefs, "DAY_S", 10.0)
    last = dataclasses.replace(trace.queries[-1], end_s=end_s)
    long = dataclasses.replace(believing(trace, (late_s, 40.0)), queries=(*trace.queries[:-1], last))
    errors = rate_errors(long)
    assert errors.size == (0 if late_s else 99)
    assert np.median(errors) == pytest.approx(0.5) if errors.size else True
    assert len(estimates(summary([long])).rows) == 1
    assert len(fig_links(summary([long]), tmp_path)) == 2


def test_links_that_change_are_drawn(trace: Trace, tmp_path: Path) -> None:
    (fixed,) = run_virtual_all("mobilenet", ["recursive-efficiency"])
    paths = fig_links(summary([trace, fixed]), tmp_path)
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    assert all(path.stat().st_size > 5000 and path.name.startswith("link-virtual-") for path in paths)
    again = fig_links(summary([trace]), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
