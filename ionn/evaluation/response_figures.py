"""Figures of the response times of queries that arrive at times of their own, over the time of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ionn.evaluation.style import Look, looks, new_panels, plain_log_axis, save_png_and_pdf, set_titles
from ionn.evaluation.summary import Stat, SummaryRow, averaged_text
from ionn.paper import model_title
from ionn.testbed.arrivals import DROP
from ionn.testbed.responses import Responses, spans

if TYPE_CHECKING:  # matplotlib is slow to import, and the command line must start fast
    from matplotlib.axes import Axes

Of = Callable[[Responses], float]


def fig_responses(rows: Sequence[SummaryRow], out: Path) -> list[Path]:
    """Draw the 90th percentile of response times by when queries were raised, a line per algorithm, a figure per
    settings and model: responses-SETTINGS-MODEL. With a deadline, the share within it is below; with dropping, the
    share that was dropped."""
    paths: list[Path] = []
    arrived = [row for row in rows if not row.settings.arrivals.closed]
    for (settings, model), group in groupby(arrived, lambda row: (row.settings, row.model)):
        members = list(group)
        styles = looks([row.algorithm for row in members])
        panels: list[tuple[str, Of]] = [("90th percentile of\nresponse times (ms)", lambda span: span.p90_ms)]
        if settings.deadline_ms is not None:
            panels.append((f"within {settings.deadline_ms:g} ms\n(%)", lambda span: span.within_deadline * 100))
        if settings.busy == DROP:
            panels.append(("dropped (%)", _dropped_percent))
        common = list(spans(max(trace.last_raised_s for row in members for trace in row.traces)))
        parts = (2.2, *(1.0 for _ in panels[1:]))
        with new_panels(6.8, 2.6 + 1.2 * sum(parts), parts) as (figure, plots):
            for axes, (ylabel, of) in zip(plots, panels, strict=True):
                for row in members:
                    _line(axes, row, common, of, styles[row.algorithm])
                axes.set_ylabel(ylabel)
                axes.set_ylim(-3, 103)
            plots[0].set_yscale("log")
            plots[0].autoscale(axis="y")
            plain_log_axis(plots[0].yaxis)
            plots[-1].set_xlabel("when queries are raised: time since the upload began (s)")
            plots[-1].set_xlim(left=0)
            handles, labels = plots[0].get_legend_handles_labels()
            key = "response times of the whole run: 50th, 90th, 99th percentile; thin line: the upload ends"
            figure.legend(handles, labels, loc="outside lower center", title=key)
            subtitle = f"{settings.name}, {settings.rate}, {averaged_text(members)}"
            set_titles(plots[0], f"{model_title(model)}: response times", subtitle)
            stem = out / f"responses-{settings.slug}-{model}"
            paths += save_png_and_pdf(figure, stem, (settings.slug, model), paths)
    return paths


def _line(axes: Axes, row: SummaryRow, common: Sequence[tuple[float, float]], of: Of, style: Look) -> None:
    """Draw the value `of` each span's queries, as the mean over the runs, at the middle of the span."""
    values = [Stat.of(of(trace.responses_between(*span)) for trace in row.traces).mean for span in common]
    look = {"color": style["color"], "linestyle": style["line"]}
    axes.plot(
        [(start_s + end_s) / 2 for start_s, end_s in common], values,
        linewidth=style["width"], marker=style["marker"], markersize=2.5 + style["width"], label=_label(row), **look,
    )  # fmt: skip
    axes.axvline(row.upload_s.mean, linewidth=0.7, **look)


def _label(row: SummaryRow) -> str:
    percentiles = ", ".join(stat.text(0) for stat in (row.p50_ms, row.p90_ms, row.p99_ms))
    dropped = f"; {row.dropped.mean / row.raised.mean:.0%} dropped" if row.settings.busy == DROP else ""
    within = "" if row.settings.deadline_ms is None else f"; {row.within_deadline.mean:.0%} in time"
    return f"{row.algorithm}: {percentiles} ms{dropped}{within}"


def _dropped_percent(span: Responses) -> float:
    return span.dropped / span.raised * 100 if span.raised else math.nan
