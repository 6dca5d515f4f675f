"""What the table of a sweep says: gains by hand, and what is drawn of which tables."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text

import ionn.evaluation.sweep_figures
from ionn.errors import InputError
from ionn.evaluation.sweep_figures import can_compare, draw_sweep, gains_text, more_queries
from ionn.testbed.sweep_table import SweepRow


def row(algorithm: str, mbps: float, queries: int, **values: Any) -> SweepRow:
    made = SweepRow(
        "alexnet", algorithm, mbps, "odroid-xu4", "gtx1080ti", "none", "closed", 0, 3, 28.5, queries, 400.0, 600.0,
        612.0, 34.0, 1.75, 819.0, 34.0,
    )  # fmt: skip
    return made._replace(**values)


TABLE = [
    row("original", 5, 0), row("original", 50, 10), row("original", 500, 20),
    row("efficiency", 5, 7), row("efficiency", 50, 15), row("efficiency", 500, 19),
]  # fmt: skip


def test_the_gain_is_of_all_seeds_together() -> None:
    old, new = ([row("x", 1, queries, seed=seed) for seed, queries in enumerate(each)] for each in ((9, 1), (10, 5)))
    assert more_queries(new, old) == pytest.approx(50)
    assert more_queries(old, old) == 0
    assert more_queries(new, [row("x", 1, 0)]) == math.inf
    assert math.isnan(more_queries([row("x", 1, 0)], [row("x", 1, 0)]))


def test_the_text_has_the_most_and_where_it_matters() -> None:
    lines = gains_text(TABLE).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("client odroid-xu4, server gtx1080ti: ")
    assert lines[2].split() == ["AlexNet", "efficiency", "+50", "%", "50", "5", "to", "50"]
    nothing = [each._replace(queries=0) for each in TABLE]
    assert gains_text(nothing).splitlines()[2].split() == ["AlexNet", "efficiency", "-", "-", "-"]
    endless = [row("original", 2, 0), row("original", 4, 0), row("efficiency", 2, 7), row("efficiency", 4, 9)]
    assert gains_text(endless).splitlines()[2].split() == ["AlexNet", "efficiency", "-", "-", "2", "to", "4"]


def test_the_text_is_of_the_server_closest_to_its_device() -> None:
    slow = [each._replace(server="0.5*gtx1080ti", queries=1) for each in TABLE]
    assert gains_text([*slow, *TABLE]) == gains_text(TABLE)
    assert "+0 %" in gains_text(slow)


@pytest.mark.parametrize("rows", [TABLE[:3], TABLE[3:], [TABLE[0], TABLE[3]], []])
def test_nothing_to_compare_is_refused(rows: list[SweepRow], tmp_path: Path) -> None:
    assert not can_compare(rows)
    with pytest.raises(InputError, match="give --algorithm original"):
        gains_text(rows)
    if rows:
        with pytest.raises(InputError, match="give --algorithm original"):
            draw_sweep(rows, tmp_path)


def test_lines_and_maps_of_every_setting(tmp_path: Path) -> None:
    def drawn(*rows: SweepRow) -> list[str]:
        return [path.name for path in draw_sweep(rows, tmp_path) if path.suffix == ".png"]

    slow = [each._replace(server="0.5*gtx1080ti") for each in TABLE]
    assert drawn(*TABLE) == ["sweep-lines.png"]
    assert drawn(*slow, *TABLE) == ["sweep-lines.png", "sweep-map.png"]
    other = [each._replace(server=f"{speed}*my box") for each in TABLE for speed in (2, 4)]
    assert drawn(*other) == ["sweep-lines-my-box.png", "sweep-map-my-box.png"]
    coded = [each._replace(coding="lossless") for each in TABLE]
    assert drawn(*TABLE, *coded) == [
        "sweep-lines-odroid-xu4-none-closed.png", "sweep-lines-odroid-xu4-lossless-closed.png",
    ]  # fmt: skip
    for path in tmp_path.iterdir():
        assert path.stat().st_size > 5_000


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    slow = [each._replace(server="0.5*gtx1080ti") for each in TABLE]
    first, second = (draw_sweep([*slow, *TABLE], tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_each_setting_and_device_has_a_text_and_what_cannot_be_compared_has_none(tmp_path: Path) -> None:
    slow = [each._replace(client="0.5*odroid-xu4", queries=1) for each in TABLE]
    other = [each._replace(server="my box (12345678)") for each in TABLE]
    blocks = gains_text([*TABLE, *slow, *other]).split("\n\n")
    assert blocks == list(map(gains_text, (TABLE, slow, other)))
    assert [block.partition(": ")[0] for block in blocks] == [
        "client odroid-xu4, server gtx1080ti", "client 0.5*odroid-xu4, server gtx1080ti",
        "client odroid-xu4, server my box (12345678)",
    ]  # fmt: skip
    no_original, one_mbps = other[3:], [each for each in other if each.mbps == 5]
    only_slower = [
        each._replace(server="0.5*gtx1080ti") for each in TABLE if each.mbps == 5 or each.algorithm != "original"
    ]
    for incomplete in (no_original, one_mbps, only_slower):
        assert gains_text([*TABLE, *incomplete]) == gains_text(TABLE)
        assert not can_compare(incomplete)
        assert [path.name for path in draw_sweep([*TABLE, *incomplete], tmp_path) if path.suffix == ".png"] in (
            ["sweep-lines.png"], ["sweep-lines.png", "sweep-map.png"],
        )  # fmt: skip


# --- What is seen -----------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, instead of files."""
    figures: list[Figure] = []

    def keep(figure: Figure, stem: Path) -> list[Path]:
        figure.draw_without_rendering()
        figures.append(figure)
        return []

    monkeypatch.setattr(ionn.evaluation.sweep_figures, "save_png_and_pdf", keep)
    return figures


def at_speeds(*speeds: float) -> list[SweepRow]:
    return [each._replace(server=f"{speed:g}*gtx1080ti") for each in TABLE for speed in speeds]


def test_every_value_is_in_the_middle_of_its_cell_of_the_map(drawn: list[Figure], tmp_path: Path) -> None:
    """The axes are logarithmic, so that the middle is the geometric mean, and no edge may be 0 or less."""
    draw_sweep(at_speeds(0.5, 10), tmp_path)
    axes = drawn[1].axes[0]
    (cells,) = axes.collections
    assert isinstance(cells, QuadMesh)
    edges = np.asarray(cells.get_coordinates())
    for sides, values in ((edges[0, :, 0], [5, 50, 500]), (edges[:, 0, 1], [0.5, 10])):
        assert min(sides) > 0
        assert [math.sqrt(first * last) for first, last in pairwise(sides)] == pytest.approx(values)
    assert axes.get_xlim()[0] < 5
    assert axes.get_ylim()[0] < 0.5


def ticks(axis: Axis) -> list[str]:
    """The labels of an axis that are seen."""
    first, last = sorted(axis.get_view_interval())
    shown = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick.label1.get_text() for tick in shown if first <= tick.get_loc() <= last and tick.label1.get_text()]


@pytest.mark.parametrize("speeds", [(0.5, 1), (0.001, 1000), (1, 1.2)])
@pytest.mark.parametrize("mbps", [(60, 80, 100), (1, 100, 1000), (81, 82, 83)])
def test_ticks_are_plain_numbers(
    mbps: tuple[float, float, float], speeds: tuple[float, float], drawn: list[Figure], tmp_path: Path
) -> None:
    other = dict(zip((5.0, 50.0, 500.0), mbps, strict=True))
    draw_sweep([each._replace(mbps=other[each.mbps]) for each in at_speeds(*speeds)], tmp_path)
    lines, (of_map, *_) = drawn[0].axes, drawn[1].axes
    for axis in (lines[-1].xaxis, of_map.xaxis, of_map.yaxis):
        numbers = [float(label) for label in ticks(axis)]
        assert len(numbers) > 1


def test_no_text_is_wider_than_its_figure(drawn: list[Figure], tmp_path: Path) -> None:
    model = "a-model-whose-name-has-the-parameters-of-its-training-" * 2 + " (12345678)"
    rows = at_speeds(0.123456, 0.987654)
    draw_sweep(
        [
            each._replace(model=model, client="0.123456*odroid-xu4", coding="lossless", arrivals="burst:1000,12.345678")
            for each in rows
        ],
        tmp_path,
    )
    assert len(drawn) == 2
    for figure in drawn:
        for text in figure.findobj(lambda each: isinstance(each, Text) and len(each.get_text()) > 20):
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_long_names_move_the_columns_of_the_text() -> None:
    long = [each._replace(model="a-model-with-a-long-name (12345678)") for each in TABLE]
    _, header, *lines = gains_text([*TABLE, *long]).splitlines()
    assert {line.index("efficiency") for line in lines} == {header.index("algorithm")}
