"""Figures of walks: latencies over the time of a walk, and the gain by sending weights ahead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ionn.evaluation.style import COLORS, look, new_figure, new_panels, plain_log_axis, save_png_and_pdf
from ionn.paper import model_title
from ionn.testbed.walking import Gain, Walked
from ionn.testbed.walks import Walk

if TYPE_CHECKING:  # matplotlib is slow to import, and the command line must start fast
    from matplotlib.axes import Axes

# Grays behind the times at a server, so that neighbours differ.
_GRAYS = ("#e8e8e8", "#d4d4d4")


def fig_walk(walk: Walk, variants: Sequence[Walked], name: str, out: Path) -> list[Path]:
    """Draw the latencies over the time of a walk, one panel per variant, with the servers in the background:
    walk-NAME."""
    with new_panels(6.8, 1.2 + 1.35 * len(variants), [1.0] * len(variants)) as (figure, panels):
        for number, (axes, walked) in enumerate(zip(panels, variants, strict=True)):
            _draw_servers(axes, walk, with_names=number == 0)
            times_s = [*(query.start_s for query in walked.queries), walked.queries[-1].end_s]
            latencies_ms = [query.latency_ms for query in walked.queries]
            axes.step(
                times_s, [*latencies_ms, latencies_ms[-1]],
                where="post", color=COLORS[number], linewidth=1.3,
            )  # fmt: skip
            cut = [query for query in walked.queries if query.fallback]
            axes.plot(
                [query.start_s for query in cut], [query.latency_ms for query in cut],
                linestyle="none", marker="X", markersize=5, color="black",
            )  # fmt: skip
            axes.set_yscale("log")
            axes.set_ylim(top=walked.local_ms * 2.5)
            plain_log_axis(axes.yaxis)
            axes.set_ylabel("latency (ms)")
            axes.set_title(f"{walked.name}: {walked.mean_ms:.0f} ms on average over time", loc="left", fontsize=9)
        panels[-1].set_xlabel("time since the walk began (s); X: begun at a server, completed at the client")
        panels[-1].set_xlim(0, walk.seconds)
        figure.suptitle(f"{model_title(walk.network.name)}: a walk over {len(walk.servers)} servers", weight="bold")
        return save_png_and_pdf(figure, out / f"walk-{name}")


def _draw_servers(axes: Axes, walk: Walk, with_names: bool) -> None:
    stays = [stretch for stretch in walk.stretches() if stretch.server is not None]
    for number, (server, begin_s, end_s) in enumerate(stays):
        axes.axvspan(begin_s, end_s, color=_GRAYS[number % len(_GRAYS)], linewidth=0, zorder=0)
        if with_names and server is not None:
            middle = (begin_s + end_s) / 2 / walk.seconds
            text = walk.servers[server].name
            axes.text(middle, 0.97, text, transform=axes.transAxes, ha="center", va="top", fontsize=8)


def fig_gains(walk: Walk, gains: Sequence[Gain], name: str, out: Path) -> list[Path]:
    """Draw the gain over the share of the weights that is sent ahead: walk-NAME-ahead. Nothing is drawn if nothing is
    sent ahead."""
    if not gains:
        return []
    with new_figure(5.4, 3.6) as (figure, axes):
        style = look(0)
        axes.plot(
            [each.share * 100 for each in gains], [each.gain * 100 for each in gains],
            color=style["color"], marker=style["marker"], markersize=5,
        )  # fmt: skip
        axes.set_xlabel("of the model's weights that may be sent ahead, each time (%)")
        axes.set_ylabel("of the latency that is saved\nwith everything everywhere (%)")
        axes.set_ylim(min(0, *(each.gain * 100 for each in gains)) - 3, 103)
        axes.set_title(f"{model_title(walk.network.name)}: what it brings to send weights ahead", weight="bold")
        return save_png_and_pdf(figure, out / f"walk-{name}-ahead")
