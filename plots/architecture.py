"""Draw how ionn works, into docs/figures/architecture.png: python plots/architecture.py [OUT]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ionn.evaluation.style import COLORS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUT = Path(__file__).resolve().parent.parent / "docs" / "figures" / "architecture.png"
CLIENT, SERVER, LINK = COLORS[0], COLORS[2], COLORS[1]
# Stages of the example that have arrived, those of the partition under way, and the others.
ARRIVED, UNDER_WAY, MISSING = "#bfe3d6", "#fbe3b3", "white"


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.6"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, edgecolor=color, facecolor="white", linewidth=1.2)
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8)


def machine(axes: Axes, x: float, y: float, width: float, height: float, title: str, color: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=1.2"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, edgecolor=color, facecolor="#f7f7f7", linewidth=2)
    )
    axes.text(
        x + width / 2, y + height - 2.2, title, ha="center", va="center", fontsize=9.5, color=color, weight="bold"
    )


def arrow(
    axes: Axes, begin: tuple[float, float], end: tuple[float, float], color: str = "black", both: bool = False
) -> None:
    look = {"arrowstyle": "<|-|>" if both else "-|>", "color": color, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, begin, arrowprops=look)


def stages(axes: Axes, x: float, y: float, colors: list[str], edge: str) -> None:
    """The chain of stages A to F as small squares."""
    from matplotlib.patches import Rectangle

    for number, color in enumerate(colors):
        axes.add_patch(Rectangle((x + 4.2 * number, y), 3.6, 3.6, edgecolor=edge, facecolor=color, linewidth=1))
        axes.text(x + 4.2 * number + 1.8, y + 1.7, "ABCDEF"[number], ha="center", va="center", fontsize=8)


def draw(path: Path) -> Path:
    with new_figure(9.0, 4.6) as (figure, axes):
        axes.set(xlim=(0, 110), ylim=(0, 56))
        axes.axis("off")
        axes.set_aspect("equal")

        machine(axes, 1, 1, 46, 53, "client: a phone", CLIENT)
        box(axes, 4, 41.5, 18, 6.5, "prototxt, caffemodel:\na chain of stages", CLIENT)
        box(axes, 26, 41.5, 18, 6.5, "costs of both sides,\nbandwidth of the link", CLIENT)
        box(axes, 12, 31.5, 24, 6, "planner: partitions\nin the order of upload", CLIENT)
        arrow(axes, (13, 41.5), (19, 37.5))
        arrow(axes, (35, 41.5), (29, 37.5))
        box(axes, 4, 21, 40, 6, "upload: a partition's prototxt, then its\nweights in chunks, by credit", CLIENT)
        arrow(axes, (24, 31.5), (24, 27))
        box(axes, 4, 3.5, 40, 14, "", CLIENT)
        axes.text(24, 15, "query: the fastest route through what has arrived", ha="center", va="center", fontsize=8)
        stages(axes, 11.7, 9.3, [MISSING] * 6, CLIENT)
        axes.text(24, 6.2, "Caffe: the whole net", ha="center", va="center", fontsize=8)

        machine(axes, 71, 1, 38, 53, "edge server", SERVER)
        box(axes, 74, 37.5, 32, 10.5, "front: keys, limits,\nequal shares of the processors", SERVER)
        box(axes, 74, 3.5, 32, 24, "", SERVER)
        axes.text(90, 25, "worker: one process per session,", ha="center", va="center", fontsize=8)
        axes.text(90, 22.6, "in a sandbox", ha="center", va="center", fontsize=8)
        stages(axes, 77.6, 9.3, [MISSING, ARRIVED, ARRIVED, UNDER_WAY, MISSING, MISSING], SERVER)
        axes.text(
            90, 17.2, "Caffe: partial nets of the\npartitions that have arrived", ha="center", va="center", fontsize=8
        )
        axes.text(90, 6.2, "B, C arrived; D is under way", ha="center", va="center", fontsize=8)
        arrow(axes, (90, 37.5), (90, 27.5), both=True)
        box(axes, 74, 30, 13, 5, "store of weights", SERVER)
        arrow(axes, (80.5, 30), (80.5, 27.5), both=True)

        axes.text(
            59, 47.5, "link\n80 Mbps, or a trace", ha="center", va="center", fontsize=9.5, color=LINK, weight="bold"
        )
        arrow(axes, (44, 24), (73.8, 41), LINK)
        axes.text(56, 35.5, "weights", ha="center", va="center", fontsize=8, rotation=29)
        arrow(axes, (44, 11), (73.8, 38.5), LINK, both=True)
        axes.text(63.5, 19, "inputs and\nfeature maps", ha="center", va="center", fontsize=8)
        return save_figure(figure, path)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT))
