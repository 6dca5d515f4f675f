"""The style of all figures, which is readable in gray. The same data give the same bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ionn.errors import InputError
from ionn.files import file_name, with_digest, write_file
from ionn.paper import SHOWN

if TYPE_CHECKING:  # matplotlib is slow to import, and the command line must start fast
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis, YAxis
    from matplotlib.figure import Figure

Look = dict[str, Any]

# Okabe and Ito's colour-blind safe palette, in an order whose neighbours also differ in gray.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
HATCHES = ("", "///", "xxx", "...", "\\\\\\", "+++", "ooo")
# Later lines are thinner and have other dashes, so that lines which coincide can be told apart.
LINES = ("-", "--", "-", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
WIDTHS = (4.0, 2.6, 1.3)
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
EDGE: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3,
    "legend.title_fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "ionn",
    "text.parse_math": False,  # names of models and devices may contain a $
}

# Of a text in the figures' size, with room for the axis beside it; of a title, which is larger and bold.
_CHARACTERS_PER_INCH = 12.5
_CHARACTERS_OF_TITLE_PER_INCH = 9.0

# Of a stem that ends in a digest; short enough not to be cut again.
_STEM_BYTES_MAX = 230

# These fields are left out of the files. They have times and versions, with which equal data would give other bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each algorithm, in drawing order: the same in all figures that have the same algorithms."""
    present = set(names)
    known = [*SHOWN, *(name for name in sorted(present) if name not in SHOWN)]
    return {name: look(number) for number, name in enumerate(known) if name in present}


def look(number: int) -> Look:
    """The look of the line or bar that is drawn first (0), second (1), and so on."""
    return {
        "color": COLORS[number % len(COLORS)],
        "hatch": HATCHES[number % len(HATCHES)],
        "line": LINES[number % len(LINES)],
        "width": WIDTHS[min(number, len(WIDTHS) - 1)],
        "marker": MARKERS[number % len(MARKERS)],
    }


@contextmanager
def new_figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of that size in inches with one plot, in the project's style."""
    with new_panels(width, height, (1,)) as (figure, (axes,)):
        yield figure, axes


@contextmanager
def new_panels(width: float, height: float, parts: Sequence[float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of that size in inches with plots below each other, of heights in these proportions, over one x axis."""
    with new_grid(width, height, len(parts), 1, gridspec_kw={"height_ratios": list(parts)}) as (figure, grid):
        yield figure, [axes for (axes,) in grid]


@contextmanager
def new_grid(
    width: float, height: float, rows: int, columns: int, **options: Any
) -> Iterator[tuple[Figure, list[list[Axes]]]]:
    """A figure of that size in inches with rows of plots, over the same x axes; `options` are those of `subplots`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False, **options)
        yield figure, [list(line) for line in grid]


def set_titles(axes: Axes, title: str, subtitle: str) -> None:
    """Write a title over a plot, and below it a subtitle in gray, both wrapped to the width of the figure."""
    inches = axes.figure.bbox.width / axes.figure.dpi
    below = wrapped(subtitle, inches)
    lines = below.count("\n") + 1 if below else 0
    axes.set_title(wrapped_title(title, inches) + "\n" * lines, loc="left", fontweight="bold")
    axes.text(0, 1.03, below, transform=axes.transAxes, color="#444444")


def wrapped(text: str, inches: float) -> str:
    """A text in lines of at most so many inches."""
    return textwrap.fill(text, round(_CHARACTERS_PER_INCH * inches))


def wrapped_title(text: str, inches: float) -> str:
    """A text in bold lines of at most so many inches."""
    return textwrap.fill(text, round(_CHARACTERS_OF_TITLE_PER_INCH * inches))


def plain_log_axis(axis: YAxis) -> None:
    """Label a logarithmic axis 1, 2, 5, 10 and so on, without powers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, position: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def plain_decades(axis: Axis) -> None:
    """Label a logarithmic axis 1, 10, 100 and so on, without powers; some numbers in between too if it spans less
    than a decade."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, value: float, position: Any = None) -> str:
            return f"{value:g}" if super().__call__(value, position) else ""

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain())


def figure_kind(path: Path) -> str:
    """The kind of a figure's file: "png", "pdf" or "svg". Raises InputError if its name ends in something else."""
    kind = path.suffix.removeprefix(".").lower()
    if kind not in _METADATA:
        raise InputError(f"{path}: cannot draw into such a file; its name must end in .png, .pdf or .svg")
    return kind


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in the format that its file's name ends in. Raises InputError if that is not possible."""
    kind = figure_kind(path)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, metadata=_METADATA[kind])
    write_file(path, drawn.getvalue())
    return path


def save_png_and_pdf(
    figure: Figure, stem: Path, about: Sequence[str] = (), others: Collection[Path] = ()
) -> list[Path]:
    """Write a figure into stem.png and stem.pdf; a stem that is too long for a file's name is cut. If one of the
    `others` has this name, the stem gets a digest of what the figure is `about`. Raises InputError if a file cannot be
    written."""
    if stem.with_name(file_name(stem.name, ".png")) in others:
        stem = stem.with_name(with_digest(stem.name, _STEM_BYTES_MAX, repr(tuple(about))))
    return [save_figure(figure, stem.with_name(file_name(stem.name, f".{kind}"))) for kind in ("png", "pdf")]
