"""Figures 5, 6 and 7 of the paper, drawn from traces on disk.

`draw_figures` draws all figures; `fig5`, `fig6` and `fig7` draw one kind. All have one style, are readable in gray, and
are written as PNG and PDF; the same traces give the same bytes. Each combination of settings (testbed, bandwidth,
dilation and so on) gets figures of its own. Runs with slices, which the paper does not have, are in further figures,
whose names end in "-sliced". Runs whose queries arrive at times of their own get a figure of response times instead
(`ionn.evaluation.response_figures`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ionn.errors import InputError, did_you_mean
from ionn.evaluation.link_figures import fig_links
from ionn.evaluation.response_figures import fig_responses
from ionn.evaluation.style import EDGE, Look, looks, new_figure, save_png_and_pdf, set_titles
from ionn.evaluation.summary import (
    Stat,
    SummaryRow,
    are_drawn,
    averaged_text,
    common_times,
    distinct,
    load_results,
    mean_latency,
    summary,
)
from ionn.paper import SLICED, model_title

if TYPE_CHECKING:  # matplotlib is slow to import, and the command line must start fast
    from matplotlib.axes import Axes

# With more models and algorithms, bars are narrower.
_INCHES_MAX = 100.0

Bar = Callable[["Axes", float, float, SummaryRow, dict[str, Any]], None]
_Group = tuple[tuple[Any, ...], list[SummaryRow]]


def draw_figures(results: Path, out: Path, algorithms: Collection[str] = ()) -> list[Path]:
    """Draw Figures 5, 6 and 7, response times, and queries over links that change, from the traces in `results` into
    the folder `out`. Returns the files, PNG and PDF. They show the `algorithms`, by default all but baselines.

    Raises InputError if there are no traces, or none of a given algorithm, and if `out` cannot be written.
    """
    rows = summary(load_results(results))
    present = distinct(row.algorithm for row in rows)
    for algorithm in algorithms:
        if algorithm not in present:
            known = ", ".join(present)
            raise InputError(
                f"{results}: no runs of algorithm {algorithm!r}; there are runs of {known}"
                f"{did_you_mean(algorithm, present)}"
            )
    wanted = are_drawn(present, algorithms)
    rows = [row for row in rows if row.algorithm in wanted]
    return [path for draw in (fig5, fig6, fig7, fig_responses, fig_links) for path in draw(rows, out)]


def fig5(rows: Sequence[SummaryRow], out: Path) -> list[Path]:
    """Number of partitions, by the half of the upload time in which their upload ends: fig5-SETTINGS."""
    return _bar_figures(rows, out / "fig5", "Partitions per model", "number of partitions", _halves_bar)


def fig6(rows: Sequence[SummaryRow], out: Path) -> list[Path]:
    """Size of the largest partition relative to the model's weights: fig6-SETTINGS."""
    return _bar_figures(rows, out / "fig6", "Largest partition", "share of the model's weight bytes (%)", _share_bar)


def fig7(rows: Sequence[SummaryRow], out: Path) -> list[Path]:
    """Latency of the queries over time, a figure per model: fig7-SETTINGS-MODEL."""
    paths: list[Path] = []
    for (settings, model, suffix), members in _groups(rows, lambda row: (row.settings, row.model)):
        styles = looks(row.algorithm for row in members)
        with new_figure(6.8, 4.4) as (figure, axes):
            for row in members:
                _latency_line(axes, row, styles[row.algorithm])
            axes.set(xlabel="time since the upload began (s)", ylabel="query execution latency (ms)")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            key = "marker: the first query starts; thin line: the upload ends"
            figure.legend(loc="outside lower center", title=key)
            _title(axes, f"{model_title(model)}: query latency during the upload", members)
            stem = out / f"fig7-{settings.slug}-{model}{suffix}"
            paths += save_png_and_pdf(figure, stem, (settings.slug, model, suffix), paths)
    return paths


def _groups(rows: Sequence[SummaryRow], key: Callable[[SummaryRow], tuple[Any, ...]]) -> Iterator[_Group]:
    """Group the rows of closed loops by figure, with a suffix at the end of each key: first "", with all algorithms but
    the sliced one, then "-sliced", with all algorithms of the models that ran with slices."""
    rows = [row for row in rows if row.settings.arrivals.closed]
    subjects = {(row.settings, row.model) for row in rows if row.algorithm == SLICED}
    paper = [row for row in rows if row.algorithm != SLICED]
    sliced = [row for row in rows if (row.settings, row.model) in subjects]
    for suffix, chosen in (("", paper), ("-sliced", sliced)):
        for about, members in groupby(chosen, key):
            yield (*about, suffix), list(members)


def _bar_figures(rows: Sequence[SummaryRow], stem: Path, title: str, ylabel: str, bar: Bar) -> list[Path]:
    """Draw one figure per settings, with the models side by side and one bar per algorithm."""
    from matplotlib.ticker import MaxNLocator

    paths: list[Path] = []
    for (settings, suffix), members in _groups(rows, lambda row: (row.settings,)):
        models = distinct(row.model for row in members)
        styles = looks(row.algorithm for row in members)
        width = 0.84 / len(styles)
        inches = max(5.6, 2.7 + len(models) * (0.3 + 0.24 * len(styles)))
        with new_figure(min(inches, _INCHES_MAX), 3.4) as (figure, axes):
            for row in members:
                place = list(styles).index(row.algorithm) - (len(styles) - 1) / 2
                bar(axes, models.index(row.model) + place * width, width, row, styles[row.algorithm])
            axes.set_xticks(range(len(models)), [model_title(model) for model in models])
            axes.tick_params(axis="x", length=0)
            axes.grid(axis="x", visible=False)
            axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
            axes.set_ylabel(ylabel)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_xlim(-0.6, len(models) - 0.4)
            handles = _legend_handles(styles, halves=bar is _halves_bar)
            axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))
            _title(axes, title, members)
            name = f"{stem.name}-{settings.slug}{suffix}"
            paths += save_png_and_pdf(figure, stem.with_name(name), (settings.slug, suffix), paths)
    return paths


def _halves_bar(axes: Axes, x: float, width: float, row: SummaryRow, style: Look) -> None:
    box = {"width": width * 0.9, "hatch": style["hatch"], **EDGE}
    axes.bar(x, row.first_half.mean, facecolor=style["color"], **box)
    axes.bar(x, row.second_half.mean, bottom=row.first_half.mean, facecolor=_light(style["color"]), **box)
    _spread_and_value(axes, x, row.partitions, f"{row.partitions.mean:.3g}")


def _share_bar(axes: Axes, x: float, width: float, row: SummaryRow, style: Look) -> None:
    share = row.largest_share.times(100)
    axes.bar(x, share.mean, width * 0.9, facecolor=style["color"], hatch=style["hatch"], **EDGE)
    _spread_and_value(axes, x, share, f"{share.mean:.0f}")


def _spread_and_value(axes: Axes, x: float, stat: Stat, label: str) -> None:
    if stat.std:
        axes.errorbar(x, stat.mean, yerr=stat.std, color="black", capsize=2, linewidth=0.8)
    axes.annotate(
        label, (x, stat.mean + stat.std), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=7.5
    )


def _latency_line(axes: Axes, row: SummaryRow, style: Look) -> None:
    """Draw the latency of the query in execution as a step function of time; for several runs, the mean with a band.

    The line begins when the first query starts, after its wait for the first partition.
    """
    look = {"color": style["color"], "linestyle": style["line"]}
    times = common_times(row.traces, last=max)
    mean, spread = mean_latency(row.traces, times)
    if len(row.traces) > 1:
        band = {"step": "post", "color": style["color"], "alpha": 0.2, "linewidth": 0}
        axes.fill_between(times, mean - spread, mean + spread, **band)
    uploads = bool(row.upload_s.mean)
    label = f"{row.algorithm}: {row.queries.count()} queries before the upload ended at {row.upload_s.text()} s"
    label = label if uploads else f"{row.algorithm}: no upload"
    point = {"marker": style["marker"], "markevery": [0], "markersize": 4 + 1.5 * style["width"]}
    axes.step(times, mean, where="post", linewidth=style["width"], label=label, clip_on=False, **look, **point)
    if uploads:
        axes.axvline(row.upload_s.mean, linewidth=0.7, **look)


def _light(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    red, green, blue = (0.35 * channel + 0.65 for channel in to_rgb(color))
    return red, green, blue


def _legend_handles(styles: dict[str, Look], halves: bool) -> list[Any]:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=s["color"], hatch=s["hatch"], label=name, **EDGE) for name, s in styles.items()]
    if halves:
        handles.append(Patch(facecolor="#777777", label="first half of the upload", **EDGE))
        handles.append(Patch(facecolor=_light("#777777"), label="second half", **EDGE))
    return handles


def _title(axes: Axes, title: str, rows: Sequence[SummaryRow]) -> None:
    settings = rows[0].settings
    how = f"{'computed' if settings.testbed == 'virtual' else 'measured'} on the {settings.name}"
    set_titles(axes, title, f"{how}, {settings.rate}, {averaged_text(rows)}")
