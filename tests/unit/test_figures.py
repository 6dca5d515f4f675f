"""Figures: the right files with the right numbers in them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from coding_figures import draw_speeds, fig7_coded
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import ionn.evaluation.figures
from ionn.errors import InputError
from ionn.evaluation.figures import draw_figures, fig5, fig6, fig7
from ionn.evaluation.link_figures import fig_links
from ionn.evaluation.style import WIDTHS, looks
from ionn.evaluation.summary import SummaryRow, summary
from ionn.paper import SHOWN, SLICED
from ionn.records import LoadRecord
from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.trace import Trace, trace_path
from tests.support.runs import FIVE_FAST, make_trace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for testbed in ("virtual", "live"):
        for algorithm in ("original", "efficiency"):
            trace = make_trace(algorithm, testbed=testbed)
            trace.save(trace_path(tmp_path, trace.info.settings, "alexnet", algorithm, 1))
    return tmp_path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The plots that are drawn, instead of files."""
    plots: list[Axes] = []

    def keep(figure: Figure, stem: Path, *_: object) -> list[Path]:
        plots.append(figure.axes[0])
        return []

    monkeypatch.setattr(ionn.evaluation.figures, "save_png_and_pdf", keep)
    return plots


def bars(plot: Axes) -> list[Rectangle]:
    """The bars of a plot, which draws no other shape."""
    found = [patch for patch in plot.patches if isinstance(patch, Rectangle)]
    assert len(found) == len(plot.patches)
    return found


def legend(plot: Axes) -> list[str]:
    found = plot.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def test_each_testbed_has_its_figures_as_png_and_pdf(results: Path) -> None:
    paths = draw_figures(results, results / "figures")
    stems = {
        name.format(testbed) for name in ("fig5-{}", "fig6-{}", "fig7-{}-alexnet") for testbed in ("virtual", "live")
    }
    assert {path.name for path in paths} == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}
    assert set((results / "figures").iterdir()) == set(paths)
    for path in paths:
        assert path.stat().st_size < 200_000
        if path.suffix == ".png":
            image = cv2.imread(str(path))
            assert image is not None
            assert image.shape[1] > 900
            assert len(set(map(tuple, image.reshape(-1, 3)[::50]))) > 3
        else:
            assert path.read_bytes().startswith(b"%PDF")


def _link_runs(*names: tuple[str, str]) -> list[Trace]:
    """Runs of these models and algorithms over a link that changes."""
    runs = [make_trace(algorithm, model=model, link="ride.csv (0a)") for model, algorithm in names]
    bandwidth = Bandwidth((0.0, 1.0), (8.0, 80.0))
    return [dataclasses.replace(run, info=dataclasses.replace(run.info, bandwidth=bandwidth)) for run in runs]


@pytest.mark.parametrize(
    ("draw", "runs", "name"),
    [
        (fig7, [make_trace(model="net-sliced"), make_trace(SLICED, model="net")], "fig7-virtual-net-sliced"),
        (fig7, [make_trace(model="40mbps-net"), make_trace(model="net", mbps=40.0)], "fig7-virtual-40mbps-net"),
        (fig_links, _link_runs(("net", "a-b"), ("net-a", "b")), "link-virtual-link-ride.csv-0a-net-a-b"),
        (
            fig_links,
            _link_runs(("n" * 190, "a-" + "b" * 30), ("n" * 190 + "-a", "b" * 30)),
            "link-virtual-link-ride.csv-0a-" + "n" * 150,
        ),
    ],
)
def test_no_figure_takes_the_name_of_another(
    draw: Callable[[list[SummaryRow], Path], list[Path]], runs: list[Trace], name: str, tmp_path: Path
) -> None:
    rows = summary(runs)
    paths = draw(rows, tmp_path)
    assert len(paths) == len(set(paths)) == 4
    assert set(tmp_path.iterdir()) == set(paths)
    assert all(path.name.startswith(name) for path in paths)
    assert draw(rows, tmp_path) == paths
    # One by one, they have the same name, which is not a matter of length.
    alone = [draw(summary([run]), tmp_path / "alone") for run in runs]
    if len(name) < 100:
        assert [path.name for path in alone[0]] == [f"{name}.png", f"{name}.pdf"]
        assert alone[0] == alone[1]


def test_equal_traces_give_equal_bytes(tmp_path: Path) -> None:
    one, two = ([path.read_bytes() for path in fig5(summary([make_trace()]), tmp_path / name)] for name in "ab")
    assert one == two
    assert b"Software" not in one[0]
    assert b"CreationDate" not in one[1]


def test_fig5_stacks_the_halves(drawn: list[Axes], tmp_path: Path) -> None:
    halves = make_trace("efficiency", ends_s=(0.5, 1.0, 4.0), sizes=(1, 1, 1))
    fig5(summary([make_trace("original"), halves]), tmp_path)
    assert [(bar.get_y(), bar.get_height()) for bar in bars(drawn[0])] == [(0, 1), (1, 1), (0, 2), (2, 1)]
    assert [bar.get_width() for bar in bars(drawn[0])] == pytest.approx([0.84 / 2 * 0.9] * 4)
    assert [label.get_text() for label in drawn[0].texts if label.get_text().isdigit()] == ["2", "3"]
    assert legend(drawn[0]) == ["original", "efficiency", "first half of the upload", "second half"]
    assert (drawn[0].get_ylabel(), drawn[0].get_title("left").strip()) == (
        "number of partitions",
        "Partitions per model",
    )
    assert all(tick == int(tick) for tick in drawn[0].get_yticks())


def test_the_size_of_a_figure_is_limited_however_many_models_there_are(tmp_path: Path) -> None:
    rows = summary([make_trace(f"a{number % 16}", model=f"m{number}") for number in range(100)])
    paths = fig5(rows, tmp_path)
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    image = cv2.imread(str(paths[0]))
    assert image is not None
    assert image.shape[1] < 21_000


@pytest.mark.parametrize("models", [1, 5])
def test_bars_stand_side_by_side_around_the_names_of_their_models(
    models: int, drawn: list[Axes], tmp_path: Path
) -> None:
    names = ["original", "efficiency", "recursive-efficiency"]
    rows = summary([make_trace(name, model=f"model{m}") for m in range(models) for name in names])
    fig6(rows, tmp_path)
    (plot,) = drawn
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars(plot))
    assert len(edges) == 3 * models
    left, right = plot.get_xlim()
    for model in range(models):
        group = edges[3 * model : 3 * model + 3]
        assert sum(map(sum, group)) / 6 == pytest.approx(model)  # its centre
        assert model - 0.45 < group[0][0] < group[-1][1] < model + 0.45
        assert all(0.01 < begin - end < 0.05 for (_, end), (begin, _) in pairwise(group))
    for model in range(models):
        group_bars = sorted(bars(plot), key=Rectangle.get_x)[3 * model : 3 * model + 3]
        assert [bar.get_facecolor() for bar in group_bars] == [to_rgba(look["color"]) for look in looks(names).values()]
    assert left < edges[0][0] < edges[-1][1] < right
    assert right - edges[-1][1] == pytest.approx(edges[0][0] - left)
    assert [tick.get_text() for tick in plot.get_xticklabels()] == [f"model{m}" for m in range(models)]
    assert list(plot.get_xticks()) == list(range(models))
    heights = [bar.get_height() for bar in bars(plot)]
    assert heights == pytest.approx([75] * len(heights))
    assert 75 < plot.get_ylim()[1] < 85
    assert {label.get_text() for label in plot.texts[:-1]} == {"75"}
    assert legend(plot) == names
    assert plot.get_ylabel() == "share of the model's weight bytes (%)"
    assert plot.get_title("left").strip() == "Largest partition"


def test_the_second_half_is_the_same_colour_lighter(drawn: list[Axes], tmp_path: Path) -> None:
    fig5(summary([make_trace()]), tmp_path)
    first, second = (to_rgba(bar.get_facecolor()) for bar in drawn[0].patches)
    assert [1 - light for light in second[:3]] == pytest.approx([0.35 * (1 - dark) for dark in first[:3]])
    assert first[3] == second[3] == 1


def test_fig6_shows_the_share_in_percent_and_its_spread(drawn: list[Axes], tmp_path: Path) -> None:
    other = make_trace(run=2, sizes=(1_000, 1_000))
    fig6(summary([make_trace(), other]), tmp_path)
    assert bars(drawn[0])[0].get_height() == pytest.approx((75 + 50) / 2)
    (error_bar,) = drawn[0].collections
    assert isinstance(error_bar, LineCollection)
    assert [y for _, y in error_bar.get_segments()[0]] == pytest.approx([62.5 - 17.68, 62.5 + 17.68], abs=0.01)
    assert drawn[0].get_ylim()[0] == 0


def test_fig7_starts_with_the_first_query_and_marks_the_end_of_the_upload(drawn: list[Axes], tmp_path: Path) -> None:
    fig7(summary([make_trace("original")]), tmp_path)
    latency, upload_end = drawn[0].lines
    times_s, latencies_ms = (np.asarray(data).tolist() for data in latency.get_data())
    assert times_s == pytest.approx([1, 2, 3, 3.5, 4, 4.1, 4.2, 4.3, 4.4, 4.5])
    assert latencies_ms == pytest.approx([1000, 1000, 500, 500, 100, 100, 100, 100, 100, 100])
    assert latency.get_drawstyle() == "steps-post"
    assert not drawn[0].collections  # one run has no spread
    assert latency.get_label() == "original: 4 queries before the upload ended at 4.0 s"
    assert np.asarray(upload_end.get_xdata()).tolist() == [4, 4]
    assert drawn[0].get_xlim()[0] == drawn[0].get_ylim()[0] == 0
    assert drawn[0].get_xlabel() == "time since the upload began (s)"
    assert drawn[0].get_ylabel() == "query execution latency (ms)"
    (below,) = drawn[0].figure.legends
    assert [text.get_text() for text in below.get_texts()] == [latency.get_label()]
    assert below.get_title().get_text() == "marker: the first query starts; thin line: the upload ends"


def test_fig7_draws_mean_and_spread_of_several_runs(drawn: list[Axes], tmp_path: Path) -> None:
    fig7(summary([make_trace(), make_trace(run=2, latencies_ms=(3000.0, *FIVE_FAST))]), tmp_path)
    assert np.asarray(drawn[0].lines[0].get_ydata())[0] == pytest.approx(2000)
    (band,) = drawn[0].collections
    spread = [y for x, y in np.asarray(band.get_paths()[0].vertices) if x == 1.0]
    assert (min(spread), max(spread)) == pytest.approx((2000 - 1000 * 2**0.5, 2000 + 1000 * 2**0.5))
    assert "2 runs, mean ± std" in drawn[0].texts[0].get_text()


def test_figures_say_how_many_runs_were_disturbed(drawn: list[Axes], tmp_path: Path) -> None:
    busy = dataclasses.replace(make_trace(testbed="live"), loads=(LoadRecord(0.0, 4.0, 0.5, 0.2),))
    for draw in (fig5, fig6, fig7):
        draw(summary([busy, make_trace("efficiency", testbed="live")]), tmp_path)
        assert drawn[-1].texts[-1].get_text().endswith("1 run, 1 of 2 runs disturbed")


@pytest.mark.parametrize("draw", [fig5, fig6, fig7])
def test_a_long_subtitle_is_wrapped(draw: Callable[..., list[Path]], tmp_path: Path) -> None:
    """One that is wider than the figure would leave no room for the plot, of which matplotlib warns."""
    trace = make_trace(testbed="live", dilation=7.5, coding="features", window_s=123.4, delay_ms=123.4, jitter_ms=12.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(draw(summary([trace]), tmp_path)) == 2


def test_a_long_title_is_wrapped(drawn: list[Axes], tmp_path: Path) -> None:
    fig7(summary([make_trace(model="a-model-whose-name-has-the-parameters-of-its-training-" * 2)]), tmp_path)
    figure = drawn[0].figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    assert drawn[0]._left_title.get_window_extent().x1 <= figure.bbox.x1  # type: ignore[attr-defined]


def test_fig7_of_runs_that_never_execute_at_the_same_time_and_of_an_empty_plan(tmp_path: Path) -> None:
    apart = [make_trace(), make_trace(run=2, ends_s=(60.0, 61.0))]
    empty = make_trace(model="tiny", ends_s=(), sizes=(), latencies_ms=FIVE_FAST)
    assert len(fig7(summary([*apart, empty]), tmp_path)) == 4
    assert len(fig5(summary([empty]), tmp_path) + fig6(summary([empty]), tmp_path)) == 4


def test_titles_tell_the_testbeds_apart(drawn: list[Axes], tmp_path: Path) -> None:
    fig7(summary([make_trace(), make_trace(testbed="live", dilation=8.0, mbps=40.0)]), tmp_path)
    assert [plot.texts[0].get_text() for plot in drawn] == [
        "computed on the virtual testbed, 80 Mbps, 1 run",
        "measured on the live testbed, dilation 8, 40 Mbps, 1 run",
    ]
    assert drawn[0].get_title("left").strip() == "AlexNet: query latency during the upload"


def test_algorithms_look_alike_in_every_figure_and_unlike_each_other(drawn: list[Axes], tmp_path: Path) -> None:
    names = ["original", "efficiency", "recursive-efficiency", "sliced-efficiency", "mine"]
    fig6(summary(map(make_trace, names)), tmp_path)
    fig6(summary(map(make_trace, names[1:3])), tmp_path)
    papers, all_of_them, two = [[(bar.get_facecolor(), bar.get_hatch()) for bar in plot.patches] for plot in drawn]
    assert two == all_of_them[1:3] == papers[1:3]
    assert len(set(all_of_them)) == len({hatch for _, hatch in all_of_them}) == len(names)


def test_later_lines_are_thinner_as_far_as_there_are_widths() -> None:
    widths = [look["width"] for look in looks(SHOWN).values()]
    assert widths[: len(WIDTHS) + 1] == [*WIDTHS, WIDTHS[-1]]
    assert sorted(WIDTHS, reverse=True) == list(WIDTHS)


def test_slices_have_figures_of_their_own_beside_the_papers(drawn: list[Axes], tmp_path: Path) -> None:
    names = ["original", "recursive-efficiency", "sliced-efficiency"]
    traces = [*map(make_trace, names), make_trace("original", model="resnet")]
    paths = fig7(summary(traces), tmp_path)
    assert [len(plot.lines) for plot in drawn] == [2 * 2, 2 * 1, 2 * 3]  # a latency and an end of the upload each
    assert not paths


def test_slices_are_in_the_names_of_their_figures(tmp_path: Path) -> None:
    rows = summary(map(make_trace, ("original", "sliced-efficiency")))
    names = [path.name for draw in (fig5, fig6, fig7) for path in draw(rows, tmp_path) if path.suffix == ".png"]
    assert names == [
        f"{stem}{end}.png"
        for stem in ("fig5-virtual", "fig6-virtual", "fig7-virtual-alexnet")
        for end in ("", "-sliced")
    ]


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, ionn.evaluation.figures, ionn.evaluation.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_folder_that_cannot_be_written_is_one_clear_line(results: Path) -> None:
    blocked = results / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match=r"fig5-virtual\.png: cannot write: Not a directory"):
        draw_figures(results, blocked / "figures")


def test_scripts_draw_their_figure(results: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    done = script("plots/fig6.py", str(results), str(results / "out"))
    assert done.stdout.split() == [
        str(results / "out" / name)
        for name in ("fig6-virtual.png", "fig6-virtual.pdf", "fig6-live.png", "fig6-live.pdf")
    ]
    failed = script("plots/fig7.py", str(results / "nowhere"))
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["$", "$x$", r"$\frac{$", "a_b^c", "100%", "{}", "\\"])
def test_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    """None of them is taken for a formula."""
    draw_all = [fig5, fig6, fig7]
    rows = summary([make_trace(name, model=name, client=name), make_trace("original", model=name, client=name)])
    assert all(path.stat().st_size for draw in draw_all for path in draw(rows, tmp_path))


def test_codings_are_drawn_in_one_figure_per_model(tmp_path: Path) -> None:
    traces = [
        make_trace("sliced-efficiency", window_s=5.0, coding=coding, model=model)
        for coding in ("lossless", "none", "features")
        for model in ("alexnet", "resnet")
    ]
    paths = fig7_coded(summary(traces), tmp_path)
    assert sorted(path.name for path in paths) == [
        f"fig7-coded-virtual-{model}-sliced-efficiency.{kind}"
        for model in ("alexnet", "resnet")
        for kind in ("pdf", "png")
    ]
    again = fig7_coded(summary(traces), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_speeds_are_drawn_as_png_and_pdf(tmp_path: Path) -> None:
    paths = draw_speeds([0.1, 1.0, 10.0], {"one": [3.0, 2.0, 1.0]}, "ms", "Latency", tmp_path / "speed")
    assert [path.name for path in paths] == ["speed.png", "speed.pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)
