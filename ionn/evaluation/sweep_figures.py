"""Evaluating the table of a sweep: at which bandwidths each algorithm gains, as figures and as a few lines of text.

The gain of an algorithm is the number of queries that end before the upload does, in percent above that of the paper's
original algorithm at the same bandwidth and between the same devices. It is infinite if no query ends with the original
algorithm, because its first partition, for which queries wait, is nearly the whole model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ionn.costs.loading import split_times
from ionn.errors import InputError
from ionn.evaluation.style import (
    looks,
    new_grid,
    new_panels,
    plain_decades,
    save_png_and_pdf,
    wrapped,
    wrapped_title,
)
from ionn.evaluation.summary import Grid, distinct, rank
from ionn.paper import CLIENT, MBPS, MODELS, ORIGINAL, SERVER, SHOWN, model_title
from ionn.testbed.sweep_table import SweepRow

Key = tuple[str, str, float, float]  # model, algorithm, Mbps, how many times as fast the server is

# An algorithm matters from this gain on.
MATTERS_PERCENT = 10.0
# The largest gain with a colour of its own; larger gains have the same colour.
_COLOUR_PERCENT = 100.0
# The width of the lines' figure, and the size of a panel of the map.
_LINES_INCHES = 6.8
_MAP_INCHES = (2.5, 1.5)
_NOTHING = (
    f"the figures of a sweep compare algorithms with {ORIGINAL} at several bandwidths; give --algorithm {ORIGINAL}, "
    "another one, and --mbps 1:1000:40"
)


def more_queries(rows: Sequence[SweepRow], originals: Sequence[SweepRow]) -> float:
    """By how many percent `rows` have more queries that ended before the upload did than `originals`; infinite if only
    `originals` have none, NaN if neither has any."""
    new, old = (sum(row.queries for row in each) for each in (rows, originals))
    if not old:
        return math.inf if new else math.nan
    return (new / old - 1) * 100


def draw_sweep(rows: Sequence[SweepRow], out: Path) -> list[Path]:
    """Draw the gains over the original algorithm, for each client, coding, arrivals and device at the server: by
    bandwidth (sweep-lines), for the server that is closest to the device's own speed; and by bandwidth and speed of the
    server (sweep-map), if the table has several speeds. What cannot be compared is left out.

    Raises InputError if nothing can be compared: the table has no original algorithm, no other one, or one bandwidth
    only.
    """
    settings = {_setting(row) for row in rows}
    paths = []
    for group in _comparable(rows):
        device = _server(group[0])[1]
        names = [*(() if len(settings) == 1 else _setting(group[0])), *(() if device == SERVER else (device,))]
        end = "".join(f"-{re.sub('[^A-Za-z0-9.]+', '-', name).strip('-')}" for name in names)
        paths += _draw_lines(_closest(group), out / f"sweep-lines{end}")
        if len({speed for _, _, _, speed in _gains(group)}) > 1:
            paths += _draw_map(group, out / f"sweep-map{end}")
    return paths


def gains_text(rows: Sequence[SweepRow]) -> str:
    """A block of lines for each client, coding, arrivals and device at the server, of the server that is closest to the
    device's own speed. A line has, for a model and algorithm, the largest gain over the original algorithm, the
    bandwidth where it is, and the bandwidths between which the gain is MATTERS_PERCENT or more. Raises InputError as
    `draw_sweep` does."""
    return "\n\n".join(_text(_closest(group)) for group in _comparable(rows))


def _text(rows: Sequence[SweepRow]) -> str:
    """The block of one setting and server."""
    by_mbps = _lines(rows)
    model_width = max(12, *(len(model_title(model)) for model, _ in by_mbps))
    algorithm_width = max(24, *(len(algorithm) for _, algorithm in by_mbps))
    lines = [
        f"{_title(rows[0], rows[0].server)}: queries before the upload ended, against {ORIGINAL}",
        f"{'model':<{model_width}} {'algorithm':<{algorithm_width}} {'most':>7} {'at Mbps':>8}  "
        f"at least {MATTERS_PERCENT:.0f} % at Mbps",
    ]
    for (model, algorithm), gains in by_mbps.items():
        known = {mbps: gain for mbps, gain in gains.items() if math.isfinite(gain)}
        most = max(known, key=lambda mbps: known[mbps], default=None)
        gain, at = ("-", "-") if most is None else (f"{known[most]:+.0f} %", f"{most:.4g}")
        enough = [mbps for mbps, gain in gains.items() if gain >= MATTERS_PERCENT]
        where = f"{min(enough):.4g} to {max(enough):.4g}" if enough else "-"
        lines.append(f"{model_title(model):<{model_width}} {algorithm:<{algorithm_width}} {gain:>7} {at:>8}  {where}")
    return "\n".join(lines)


def can_compare(rows: Iterable[SweepRow]) -> bool:
    """Tell whether a table has gains at several bandwidths, so that `draw_sweep` does not raise InputError."""
    return any(map(_has_gains, _groups(rows)))


def check_comparable(algorithms: Collection[str], mbps: Collection[float]) -> None:
    """Raise InputError unless a sweep has the original algorithm, another one, and several bandwidths."""
    if ORIGINAL not in algorithms or len(algorithms) == 1 or len(mbps) == 1:
        raise InputError(_NOTHING)


def _comparable(rows: Iterable[SweepRow]) -> list[list[SweepRow]]:
    """The groups that have something to compare. Raises InputError where none has."""
    groups = list(filter(_has_gains, _groups(rows)))
    if not groups:
        raise InputError(_NOTHING)
    return groups


def _groups(rows: Iterable[SweepRow]) -> list[list[SweepRow]]:
    """The rows of each setting and device at the server, in the order of the table."""
    groups: dict[tuple[str, ...], list[SweepRow]] = {}
    for row in rows:
        groups.setdefault((*_setting(row), _server(row)[1]), []).append(row)
    return list(groups.values())


def _has_gains(group: Sequence[SweepRow]) -> bool:
    """Tell whether the rows that figures show have gains at several bandwidths."""
    return len({mbps for _, _, mbps, _ in _gains(_closest(group))}) > 1


def _setting(row: SweepRow) -> tuple[str, str, str]:
    return row.client, row.coding, row.arrivals


def _server(row: SweepRow) -> tuple[float, str]:
    """How many times as fast as which device the server is."""
    return split_times(row.server)


def _closest(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The rows of the server that is closest to the device's own speed."""
    closest = min((abs(math.log(_server(row)[0])), row.server) for row in rows)[1]
    return [row for row in rows if row.server == closest]


def _gains(rows: Sequence[SweepRow]) -> dict[Key, float]:
    """The gain of each algorithm but the original one, over all seeds."""
    cells: dict[Key, list[SweepRow]] = {}
    for row in rows:
        cells.setdefault((row.model, row.algorithm, row.mbps, _server(row)[0]), []).append(row)
    return {
        key: more_queries(cells[key], cells[original])
        for key in sorted(cells, key=lambda key: (rank(key[0], list(MODELS)), rank(key[1], SHOWN), *key[2:]))
        if key[1] != ORIGINAL and (original := (key[0], ORIGINAL, *key[2:])) in cells
    }


def _lines(rows: Sequence[SweepRow]) -> dict[tuple[str, str], dict[float, float]]:
    """The gain by bandwidth, ascending, of each model and algorithm."""
    lines: dict[tuple[str, str], dict[float, float]] = {}
    for (model, algorithm, mbps, _), value in _gains(rows).items():
        lines.setdefault((model, algorithm), {})[mbps] = value
    return lines


def _title(row: SweepRow, server: str) -> str:
    """The title of a figure: what its rows have in common."""
    parts = [f"client {row.client}", f"server {server}"]
    parts += [] if row.coding == "none" else [f"coding {row.coding}"]
    parts += [] if row.arrivals == "closed" else [f"arrivals {row.arrivals}"]
    return ", ".join(parts)


def _is_papers(row: SweepRow) -> bool:
    return (row.client, row.server, row.coding, row.arrivals) == (CLIENT, SERVER, "none", "closed")


def _draw_lines(rows: Sequence[SweepRow], stem: Path) -> list[Path]:
    """Draw a panel per model and a line per algorithm, with triangles on top where a gain is infinite."""
    lines = _lines(rows)
    models = distinct(model for model, _ in lines)
    styles = looks([ORIGINAL, *(algorithm for _, algorithm in lines)])
    with new_panels(_LINES_INCHES, 1.8 + 1.45 * len(models), [1.0] * len(models)) as (figure, panels):
        for axes, model in zip(panels, models, strict=True):
            for algorithm, values in ((name, each) for (of, name), each in lines.items() if of == model):
                style = styles[algorithm]
                finite = [value if math.isfinite(value) else math.nan for value in values.values()]
                endless = [mbps for mbps, value in values.items() if value == math.inf]
                axes.plot(
                    list(values), finite, color=style["color"], linestyle=style["line"], linewidth=style["width"],
                    label=algorithm,
                )  # fmt: skip
                axes.plot(
                    endless, [0.95] * len(endless), transform=axes.get_xaxis_transform(), marker="^",
                    markersize=3 + 2 * style["width"], markerfacecolor="none", markeredgecolor=style["color"],
                    linestyle="none",
                )  # fmt: skip
            axes.axhline(0, color="black", linewidth=0.7)
            if _is_papers(rows[0]):
                axes.axvline(MBPS, color="#444444", linewidth=0.9, linestyle=":")
            axes.set_title(wrapped(model_title(model), _LINES_INCHES), loc="left", fontsize=9)
            axes.set_ylabel("more queries (%)")
        panels[-1].set_xscale("log")
        plain_decades(panels[-1].xaxis)
        panels[-1].set_xlim(min(row.mbps for row in rows), max(row.mbps for row in rows))
        panels[-1].set_xlabel("bandwidth of the link (Mbps)")
        legend = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        point = f"dotted: the paper's {MBPS:g} Mbps; " if _is_papers(rows[0]) else ""
        of_legend = f"{point}triangle: {ORIGINAL} completes no query"
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, title=of_legend)
        title = f"Gain over {ORIGINAL}: {_title(rows[0], rows[0].server)}"
        figure.suptitle(wrapped_title(title, _LINES_INCHES), weight="bold")
        return save_png_and_pdf(figure, stem)


def _draw_map(rows: Sequence[SweepRow], stem: Path) -> list[Path]:
    """Draw gains over bandwidth and speed of the server: models below each other, algorithms side by side."""
    gains = _gains(rows)
    models, algorithms = (distinct(key[part] for key in gains) for part in (0, 1))
    mbps, speeds = sorted({key[2] for key in gains}), sorted({key[3] for key in gains})
    device = _server(rows[0])[1]
    papers = _is_papers(rows[0]._replace(server=device))
    width = 2.5 + _MAP_INCHES[0] * len(algorithms)
    height = 2.0 + _MAP_INCHES[1] * len(models)
    with new_grid(width, height, len(models), len(algorithms), sharey=True) as (figure, grid):
        for model, line in zip(models, grid, strict=True):
            for algorithm, axes in zip(algorithms, line, strict=True):
                values = _values(gains, model, algorithm, mbps, speeds)
                axes.set_xscale("log")
                axes.set_yscale("log")
                mesh = axes.pcolormesh(
                    _edges(mbps), _edges(speeds), values, cmap="PuOr_r", vmin=-_COLOUR_PERCENT, vmax=_COLOUR_PERCENT,
                    rasterized=True,
                )  # fmt: skip
                plain_decades(axes.xaxis)
                plain_decades(axes.yaxis)
                axes.grid(visible=False)
                axes.set_facecolor("#bbbbbb")
                if papers:
                    axes.plot([MBPS], [1], marker="*", color="black", markersize=9, linestyle="none")
            line[0].set_ylabel(f"{wrapped(model_title(model), _MAP_INCHES[1])}\nspeed of server")
        for algorithm, top, bottom in zip(algorithms, grid[0], grid[-1], strict=True):
            top.set_title(wrapped(algorithm, _MAP_INCHES[0]), fontsize=9)
            bottom.set_xlabel("Mbps")
        figure.colorbar(
            mesh, ax=[axes for line in grid for axes in line], label="more queries (%); grey: none with either",
            extend="both", aspect=40,
        )  # fmt: skip
        star = f"\nstar: the paper's {MBPS:g} Mbps and server" if papers else ""
        server = f"{device} at {speeds[0]:g} to {speeds[-1]:g} times its speed"
        figure.suptitle(f"Gain over {ORIGINAL}\n{wrapped(_title(rows[0], server), width)}{star}", fontsize=9)
        return save_png_and_pdf(figure, stem)


def _values(
    gains: Mapping[Key, float], model: str, algorithm: str, mbps: Sequence[float], speeds: Sequence[float]
) -> Grid:
    """The gains of a map, (speeds, bandwidths). Infinite ones become finite ones that have the same colour; NaN where
    there is none."""
    values = [[gains.get((model, algorithm, x, y), math.nan) for x in mbps] for y in speeds]
    return np.minimum(values, 2 * _COLOUR_PERCENT)


def _edges(values: Sequence[float]) -> list[float]:
    """The edges of cells around ascending values on a logarithmic axis: halfway between neighbours, and as far beyond
    the first and the last."""
    logs = np.log(values)
    between = (logs[1:] + logs[:-1]) / 2
    edges: list[float] = np.exp([2 * logs[0] - between[0], *between, 2 * logs[-1] - between[-1]]).tolist()
    return edges
