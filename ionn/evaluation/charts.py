"""The charts of the report's page, as figures of Plotly: plain dictionaries that its JavaScript draws.

Names come from traces, which strangers may have written. Plotly interprets some HTML in its texts, so all names are
escaped. Long runs have more queries than a line on a screen has points, so `steps` limits the number of points.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ionn.evaluation.style import Look, looks
from ionn.evaluation.summary import Grid, Stat, SummaryRow, common_times, distinct, mean_latency
from ionn.evaluation.validation import Validation

Chart = dict[str, Any]

TEXT_COLOR = "#1f2933"
_NAME_MAX = 24
_GRID_COLOR = "#e4e7eb"
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
# Colours of the figures that are too light for a line on the page (WCAG 2 wants a contrast of 3 to 1), and darker ones.
_DARKER = {"#E69F00": "#B87F00", "#56B4E9": "#3A8FC0", "#F0E442": "#8F8600"}
_PATTERNS = {"///": "/", "xxx": "x", "...": ".", "\\\\\\": "\\", "+++": "+"}


def escaped(text: str) -> str:
    """A name, escaped so that Plotly shows it letter by letter."""
    return html.escape(text, quote=False)


def _shortened(names: Iterable[str]) -> dict[str, str]:
    """Short forms of names, escaped: the beginning and the end of each, and a number if names would be equal then."""
    half = _NAME_MAX // 2
    texts = {name: name if len(name) <= _NAME_MAX else f"{name[:half]}…{name[1 - half :]}" for name in names}
    seen: Counter[str] = Counter()
    for name, text in texts.items():
        seen[text] += 1
        texts[name] = escaped(text if seen[text] == 1 else f"{text} ({seen[text]})")
    return texts


def bars(
    rows: Sequence[SummaryRow],
    value: Callable[[SummaryRow], Stat],
    titles: Mapping[str, str],
    y_title: str,
    unit: str = "",
) -> Chart:
    """A bar chart of rows: models side by side, by their titles, and a bar per algorithm with its spread over the
    runs."""
    values = [(titles[row.model], row.algorithm, value(row)) for row in rows]
    return grouped_bars(values, y_title, unit, 0, "model")


def grouped_bars(
    values: Sequence[tuple[str, str, Stat]], y_title: str, unit: str, digits: int, group: str, log: bool = False
) -> Chart:
    """A bar chart of `values`, each (group, series, value): the groups side by side, and in each a bar per series."""
    groups = distinct(name for name, _, _ in values)
    # Plotly gets numbers instead of names: it keeps them in a JavaScript object, which has "constructor" already.
    categories = {name: str(number) for number, name in enumerate(groups)}
    names = _shortened(distinct(series for _, series, _ in values))
    traces = []
    for series, look in _looks([name for _, name, _ in values]).items():
        ours = {name: stat for name, each, stat in values if each == series and not math.isnan(stat.mean)}
        present = [name for name in groups if name in ours]
        spreads = [ours[name].std for name in present]
        traces.append(
            {
                "type": "bar",
                "name": names[series],
                "x": [categories[name] for name in present],
                "hovertext": [escaped(name) for name in present],
                "y": [_rounded(ours[name].mean, 4) for name in present],
                "error_y": {"type": "data", "array": spreads, "visible": any(spreads), "thickness": 1, "width": 3},
                "marker": _fill(look),
                "texttemplate": f"%{{y:.{digits}f}}",
                "textposition": "outside",
                "textangle": 0,
                "textfont": {"size": 10},
                "cliponaxis": False,
                "hovertemplate": f"%{{hovertext}}: %{{y:.{digits + 1}f}}{unit}",
            }
        )
    layout = _layout("", y_title)
    layout |= {"barmode": "group", "bargap": 0.25}
    places = list(categories.values())
    layout["xaxis"] |= {"showgrid": False, "type": "category", "categoryarray": places}
    layout["xaxis"] |= {"tickvals": places, "ticktext": list(_shortened(groups).values())}
    if log:
        layout["yaxis"] |= {"type": "log", "dtick": 1}
    return {"data": traces, "layout": layout, "about": f"Bar chart: {y_title}, by {group}"}


def latencies(rows: Sequence[SummaryRow], points_max: int) -> Chart:
    """The latency of the query in execution over time, one line per algorithm (for several runs, mean and spread), and
    a thin line at the end of the upload. Each trace of Plotly has its algorithm as `legendgroup`."""
    styles = _looks([row.algorithm for row in rows])
    names = _shortened(styles)
    traces: list[dict[str, Any]] = []
    most_ms = 0.0
    ends = []
    for row in rows:
        times = common_times(row.traces, last=max)
        if not times.size:
            continue
        mean, spread = mean_latency(row.traces, times)
        look = {"legendgroup": escaped(row.algorithm), "mode": "lines"}
        if len(row.traces) > 1 and spread.any():
            traces += _band(
                *steps(times, np.array([mean - spread, mean + spread]), points_max // 2), look, styles[row.algorithm]
            )
        at, (kept,) = steps(times, mean[None], points_max)
        most_ms = max(most_ms, float(np.nanmax(kept)))
        traces.append(
            {
                "type": "scatter",
                **look,
                "name": names[row.algorithm],
                "x": _rounded_all(at, 3),
                "y": _rounded_all(kept, 1),
                "line": {**_line(styles[row.algorithm]), "shape": "hv"},
                "hovertemplate": "at %{x:.2f} s: %{y:.1f} ms",
            }
        )
        if row.upload_s.mean > 0:
            ends.append((row, look))
    for row, look in ends:
        line = {**_line(styles[row.algorithm]), "width": 1}
        traces.append(
            {
                "type": "scatter",
                **look,
                "name": names[row.algorithm],
                "showlegend": False,
                "x": [_rounded(row.upload_s.mean, 3)] * 2,
                "y": [0, _rounded(most_ms, 1)],
                "line": line,
                "hovertemplate": "the upload ends at %{x:.2f} s",
            }
        )
    layout = _layout("time since the upload began (s)", "query latency (ms)")
    layout["xaxis"] |= {"rangemode": "tozero"}
    layout["yaxis"] |= {"rangemode": "tozero"}
    return {"data": traces, "layout": layout, "about": "Line chart: query latency in ms over time, by algorithm"}


def steps(times: Grid, values: Grid, points_max: int) -> tuple[Grid, Grid]:
    """Reduce k step lines to about `points_max` points at most: `values` (k, m) hold from each of `times` (m,) until
    the next; `times` may have one more, the end. Equal neighbours become one step; if that is not enough, only the
    highest and lowest values of each stretch of time are kept. Returns times (n,) and values (k, n), with the last
    values repeated at the end."""
    changes = np.flatnonzero(np.r_[True, (np.diff(values, axis=1) != 0).any(axis=0)])
    if len(changes) > points_max:
        chosen: set[int] = {0}
        for bucket in np.array_split(changes, max(points_max // (2 * len(values)), 1)):
            for line in values:
                chosen |= {int(bucket[line[bucket].argmin()]), int(bucket[line[bucket].argmax()])}
        changes = np.array(sorted(chosen))
    return np.r_[times[changes], times[-1]], np.concatenate([values[:, changes], values[:, -1:]], axis=1)


def predictions(live: Sequence[Validation], titles: Mapping[str, str]) -> Chart:
    """Predicted queries of live runs over measured ones, one point per run, and a line on which they are equal."""
    styles = _looks([each.measured.info.algorithm for each in live])
    names = _shortened(styles)
    traces: list[dict[str, Any]] = []
    most = 0.0
    for name, look in styles.items():
        ours = [each for each in live if each.measured.info.algorithm == name]
        measured = [each.measured.queries_in_upload for each in ours]
        predicted = [each.predicted.queries_in_upload for each in ours]
        most = max(most, *measured, *predicted)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": names[name],
                "x": _rounded_all(measured, 2),
                "y": _rounded_all(predicted, 2),
                "text": [escaped(titles[each.measured.info.model]) for each in ours],
                "marker": {"color": look["color"], "symbol": _SYMBOLS[look["marker"]], "size": 9},
                "hovertemplate": "%{text}: measured %{x:.1f}, predicted %{y:.1f}",
            }
        )
    line = {"color": "#7b8794", "width": 1, "dash": "dot"}
    traces.insert(
        0,
        {
            "type": "scatter", "mode": "lines", "name": "equal", "x": [0, most], "y": [0, most], "line": line,
            "hoverinfo": "skip",
        },
    )  # fmt: skip
    layout = _layout("queries, measured live", "queries, predicted")
    layout["xaxis"] |= {"rangemode": "tozero"}
    layout["yaxis"] |= {"rangemode": "tozero"}
    return {"data": traces, "layout": layout, "about": "Scatter chart: predicted over measured queries"}


_SYMBOLS = {
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross", "X": "x",
}  # fmt: skip


def _looks(names: Iterable[str]) -> dict[str, Look]:
    return {name: {**look, "color": _DARKER.get(look["color"], look["color"])} for name, look in looks(names).items()}


def _layout(x_title: str, y_title: str) -> dict[str, Any]:
    axis = {
        "gridcolor": _GRID_COLOR, "zerolinecolor": "#9aa5b1", "linecolor": "#9aa5b1", "ticks": "", "automargin": True,
        "fixedrange": False,
    }  # fmt: skip
    title = {"standoff": 8, "font": {"size": 12}}
    return {
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12, "color": TEXT_COLOR},
        "margin": {"l": 52, "r": 10, "t": 14, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "hoverlabel": {"font": {"size": 12}, "namelength": -1},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
        "showlegend": True,
        "xaxis": {**axis, "title": {"text": x_title, **title}},
        "yaxis": {**axis, "title": {"text": y_title, **title}},
    }


def _line(look: Look) -> dict[str, Any]:
    line = look["line"]
    dash = _DASHES[line] if isinstance(line, str) else "longdash"
    return {"color": look["color"], "width": max(1.6, 0.8 * look["width"]), "dash": dash}


def _fill(look: Look) -> dict[str, Any]:
    """The fill of a bar, which differs from others in gray too."""
    pattern = {"shape": _PATTERNS.get(look["hatch"], ""), "fgcolor": "rgba(0,0,0,.55)", "size": 6, "solidity": 0.2}
    return {"color": look["color"], "pattern": {**pattern, "fillmode": "overlay"}}


def _band(at: Grid, edges: Grid, look: dict[str, Any], style: Look) -> list[dict[str, Any]]:
    """The filled band between two lines."""
    red, green, blue = (int(style["color"][k : k + 2], 16) for k in (1, 3, 5))
    common = {
        "type": "scatter", **look, "x": _rounded_all(at, 3), "line": {"width": 0, "shape": "hv"}, "hoverinfo": "skip",
        "showlegend": False,
    }  # fmt: skip
    filled = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},.18)"}
    low, high = (_rounded_all(edge, 1) for edge in edges)
    return [{**common, "y": low}, {**common, "y": high, **filled}]


def _rounded(value: float, digits: int) -> float | None:
    """A rounded number; None for NaN, which JSON does not have."""
    return round(float(value), digits) if math.isfinite(value) else None


def _rounded_all(values: Sequence[float] | Grid, digits: int) -> list[float | None]:
    return [_rounded(value, digits) for value in values]
