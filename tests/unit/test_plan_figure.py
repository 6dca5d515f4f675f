"""The figure of plans: what is drawn, and in which files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ionn.evaluation.plan_figure
from ionn.errors import InputError
from ionn.evaluation.plan_figure import draw_plans, expected_latency
from ionn.evaluation.style import looks, new_figure
from ionn.planning.plan import Partition, Plan


def plan(algorithm: str, *partitions: tuple[float, float]) -> Plan:
    """Of partitions with an upload time and the latency after it, both in ms; 900 ms before the first."""
    made = tuple(
        Partition(index, (index,), (f"stage{index}",), (f"layer{index}",), 100, 100, upload_ms, latency_ms)
        for index, (upload_ms, latency_ms) in enumerate(partitions)
    )
    best_ms = partitions[-1][1] if partitions else 900.0
    return Plan("alexnet", algorithm, 80.0, 1_000, 900.0, best_ms, made, 0.1)


TWO_STEPS, ONE_STEP = plan("original", (1000.0, 500.0), (3000.0, 100.0)), plan("mine", (2000.0, 300.0))


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Where plans are drawn."""
    drawn = []

    @contextmanager
    def remembered(width: float, height: float) -> Iterator[tuple[Any, Any]]:
        with new_figure(width, height) as (figure, plot):
            drawn.append(plot)
            yield figure, plot

    monkeypatch.setattr(ionn.evaluation.plan_figure, "new_figure", remembered)
    return drawn


def test_expected_latency() -> None:
    assert expected_latency(TWO_STEPS) == ([0.0, 1.0, 4.0], [900.0, 500.0, 100.0])
    assert expected_latency(plan("nothing")) == ([0.0], [900.0])


def test_each_plan_is_a_line_from_the_start_to_beyond_the_longest_upload(axes: list[Any], tmp_path: Path) -> None:
    assert draw_plans([ONE_STEP, TWO_STEPS], tmp_path / "plans.svg") == tmp_path / "plans.svg"
    (plot,) = axes
    first, second = plot.lines
    end_s = first.get_xdata()[-1]
    assert 4.0 < end_s < 4.4
    assert list(first.get_xdata()) == [0.0, 1.0, 4.0, end_s]
    assert list(first.get_ydata()) == [900.0, 500.0, 100.0, 100.0]
    assert list(second.get_xdata()) == [0.0, 2.0, end_s]
    assert list(second.get_ydata()) == [900.0, 300.0, 300.0]
    assert {line.get_drawstyle() for line in plot.lines} == {"steps-post"}
    assert [line.get_label() for line in plot.lines] == ["original: 2 partitions", "mine: 1 partition"]
    styles = looks(["original", "mine"])
    assert [line.get_linestyle() for line in plot.lines] == ["-", ":"]
    assert [line.get_color() for line in plot.lines] == [look["color"] for look in styles.values()]
    assert plot.get_xlim() == (0, end_s)
    assert plot.get_ylim()[0] == 0
    assert (plot.get_xlabel(), plot.get_ylabel()) == ("time since the upload began (s)", "expected query latency (ms)")
    (legend,) = plot.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [line.get_label() for line in plot.lines]
    assert plot.get_title(loc="left").strip() == "AlexNet: what each plan promises"
    assert plot.texts[0].get_text() == "predicted from the costs, 80 Mbps, the upload alone on the link"


def test_a_plan_of_nothing_is_a_line_too(axes: list[Any], tmp_path: Path) -> None:
    draw_plans([plan("nothing")], tmp_path / "plans.png")
    (line,) = axes[0].lines
    assert list(line.get_ydata()) == [900.0, 900.0]
    assert axes[0].get_xlim()[1] == line.get_xdata()[-1] == 1.04  # s, as a plot of no width would show nothing


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("SVG", b"<?xml")])
def test_the_name_says_the_format_and_equal_plans_give_equal_bytes(kind: str, start: bytes, tmp_path: Path) -> None:
    one, two = (draw_plans([TWO_STEPS], tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
    assert one == two
    assert one.startswith(start)
    assert b"Matplotlib" not in one.replace(b"<!-- Created with matplotlib", b"")


@pytest.mark.parametrize("name", ["plans", "plans.jpg", "plans.png.txt"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its name must end in \.png, \.pdf or \.svg"):
        draw_plans([TWO_STEPS], tmp_path / name)
    assert not list(tmp_path.iterdir())
