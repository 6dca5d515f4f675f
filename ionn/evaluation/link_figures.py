"""Figures of runs over changing links: latencies, where queries ran, and the client's estimates of the bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ionn.evaluation.beliefs import true_mbps
from ionn.evaluation.style import COLORS, new_panels, plain_log_axis, save_png_and_pdf, set_titles
from ionn.evaluation.summary import SummaryRow
from ionn.paper import model_title
from ionn.records import QueryRecord
from ionn.testbed.trace import Trace

if TYPE_CHECKING:  # matplotlib is slow to import, and the command line must start fast
    from matplotlib.axes import Axes

# The ways in which a query ran, and their markers.
_SERVER, _CLIENT, _LATE = "with the server", "at the client", "late, and completed at the client"
_MARKERS = {_SERVER: ("o", COLORS[0]), _CLIENT: ("s", COLORS[1]), _LATE: ("X", COLORS[5])}
# A bandwidth is drawn as its means over so many equal parts of a run.
_PARTS = 400


def fig_links(rows: Sequence[SummaryRow], out: Path) -> list[Path]:
    """Draw latencies over time and where queries ran, above the link's bandwidth and the client's estimate of it. For
    each settings, model and algorithm with a link that changes, the first run is in link-SETTINGS-MODEL-ALGORITHM."""
    paths: list[Path] = []
    for row in rows:
        trace = row.traces[0]
        if trace.info.bandwidth is None:
            continue
        with new_panels(6.8, 5.6, (2.0, 1.0)) as (figure, (latencies, rates)):
            _draw_queries(latencies, trace)
            _draw_rates(rates, trace)
            keys = [axes.get_legend_handles_labels() for axes in (latencies, rates)]
            handles, labels = [each for key in keys for each in key[0]], [each for key in keys for each in key[1]]
            figure.legend(handles, labels, loc="outside lower center", ncols=2, title="thin line: the upload ends")
            subtitle = f"{row.settings.name}, {row.settings.rate}"
            title = f"{model_title(row.model)}, {row.algorithm}: queries over a link that changes"
            set_titles(latencies, title, subtitle)
            about = row.settings.slug, row.model, row.algorithm
            paths += save_png_and_pdf(figure, out / f"link-{'-'.join(about)}", about, paths)
    return paths


def _draw_queries(axes: Axes, trace: Trace) -> None:
    for how, (marker, color) in _MARKERS.items():
        queries = [query for query in trace.queries if _how(query) == how]
        if queries:
            axes.plot(
                [query.end_s for query in queries], [query.latency_ms for query in queries],
                linestyle="none", marker=marker, markersize=3.5, color=color, label=f"{how}: {len(queries)}",
            )  # fmt: skip
    axes.axhline(trace.info.plan.local_ms, color="#444444", linewidth=0.7, linestyle="--", label="all at the client")
    axes.axvline(trace.upload_s, color="#444444", linewidth=0.7)
    axes.set_yscale("log")
    plain_log_axis(axes.yaxis)
    axes.set_ylabel("query latency (ms)")


def _how(query: QueryRecord) -> str:
    if query.fallback:
        return _LATE
    return _SERVER if any(segment.where != "client" for segment in query.segments) else _CLIENT


def _draw_rates(axes: Axes, trace: Trace) -> None:
    end_s = trace.queries[-1].end_s
    times_s = np.linspace(0.0, end_s, _PARTS + 1)
    mbps = true_mbps(trace, times_s)
    axes.step(
        times_s[:-1], np.where(mbps > 0, mbps, math.nan), where="post", color="black", linewidth=2, label="the link"
    )
    if trace.estimates:
        believed_s = [*(each.time_s for each in trace.estimates), end_s]
        believed_mbps = [each.mbps for each in trace.estimates]
        axes.step(
            believed_s, [*believed_mbps, believed_mbps[-1]], where="post", color=COLORS[1], linewidth=1.2,
            label="as the client measured it",
        )  # fmt: skip
    axes.axvline(trace.upload_s, color="#444444", linewidth=0.7)
    axes.set_yscale("log")
    plain_log_axis(axes.yaxis)
    axes.set(xlabel="time since the upload began (s)", ylabel="Mbps")
    axes.set_xlim(0, end_s)
