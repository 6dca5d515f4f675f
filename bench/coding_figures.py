"""Figures of the gain by coding: Figure 7 with and without it, and the gain over the speed of coding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ionn.coding import CODINGS
from ionn.evaluation.style import look, new_figure, save_png_and_pdf, set_titles
from ionn.evaluation.summary import SummaryRow, common_times, distinct, mean_latency
from ionn.paper import model_title


def fig7_coded(rows: Sequence[SummaryRow], out: Path) -> list[Path]:
    """Draw the latency of queries over time, one line per coding, with a vertical line at the end of the upload. There
    is one figure per testbed, model and algorithm: fig7-coded-TESTBED-MODEL-ALGORITHM."""
    paths = []
    for group in distinct(map(_group, rows)):
        members = [row for row in rows if _group(row) == group]
        members.sort(key=lambda row: CODINGS.index(row.settings.coding))
        with new_figure(6.8, 4.4) as (figure, axes):
            for number, row in enumerate(members):
                style = look(number)
                line: dict[str, Any] = {"color": style["color"], "linestyle": style["line"]}
                times_s = common_times(row.traces, last=max)
                latency_ms, _ = mean_latency(row.traces, times_s)
                label = f"{row.settings.coding}: {row.queries_in_window.count()} queries, last {row.last_ms.text()} ms"
                axes.step(times_s, latency_ms, where="post", linewidth=style["width"], label=label, **line)
                axes.axvline(row.upload_s.mean, linewidth=0.7, **line)
            window_s = members[0].settings.window_s
            axes.set(xlabel="time since the upload began (s)", ylabel="query execution latency (ms)")
            axes.set_xlim(0, window_s)
            axes.set_ylim(bottom=0)
            figure.legend(loc="outside lower center", title=f"queries in {window_s:g} s; thin line: the upload ends")
            testbed, model, algorithm = group
            subtitle = f"{testbed} testbed, {members[0].settings.rate}"
            set_titles(axes, f"{model_title(model)}, {algorithm}: what is coded on the link", subtitle)
            paths += save_png_and_pdf(figure, out / f"fig7-coded-{testbed}-{model}-{algorithm}")
    return paths


def _group(row: SummaryRow) -> tuple[str, str, str]:
    return row.settings.testbed, row.model, row.algorithm


def draw_speeds(
    speeds: Sequence[float], lines: Mapping[str, Sequence[float]], ylabel: str, title: str, stem: Path
) -> list[Path]:
    """Draw results for ends that code `speeds` times as fast as assumed, one line per name, into stem.png and
    stem.pdf."""
    with new_figure(5.6, 3.4) as (figure, axes):
        for number, (name, values) in enumerate(lines.items()):
            style = look(number)
            axes.plot(
                speeds, values, label=name, color=style["color"], linestyle=style["line"], marker=style["marker"],
                linewidth=1.5, markersize=4,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(speeds, [f"{speed:g}" for speed in speeds])
        axes.minorticks_off()
        axes.set(xlabel="speed of coding at both ends, over what is assumed", ylabel=ylabel)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        axes.set_title(title, loc="left", weight="bold")
        return save_png_and_pdf(figure, stem)
