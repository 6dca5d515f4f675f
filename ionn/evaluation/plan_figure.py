"""A figure that compares plans: the expected latency of queries over the time of the upload."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from ionn.evaluation.style import looks, new_figure, save_figure, set_titles
from ionn.paper import model_title
from ionn.planning.plan import Plan


def expected_latency(plan: Plan) -> tuple[list[float], list[float]]:
    """Return the times at which the expected latency changes, in s since the upload began (the first is 0), and the
    latencies in ms from these times on.

    The upload has the link for itself; queries would slow it down.
    """
    ends_ms = accumulate((partition.upload_ms for partition in plan.partitions), initial=0.0)
    return [ms / 1e3 for ms in ends_ms], [plan.local_ms, *(partition.latency_ms for partition in plan.partitions)]


def draw_plans(plans: Sequence[Plan], path: Path) -> Path:
    """Draw the expected latency over the upload time, a line per plan, into a .png, .pdf or .svg file.

    The plans are of one model over one link. Raises InputError where the file cannot be written.
    """
    styles = looks(plan.algorithm for plan in plans)
    curves = {plan.algorithm: (*expected_latency(plan), len(plan.partitions)) for plan in plans}
    end_s = max(times_s[-1] for times_s, _, _ in curves.values()) or 1.0
    with new_figure(6.8, 4.4) as (figure, axes):
        for name, look in styles.items():
            times_s, latencies_ms, count = curves[name]
            axes.step(
                [*times_s, end_s * 1.04],
                [*latencies_ms, latencies_ms[-1]],
                where="post",
                label=f"{name}: {count} partition{'' if count == 1 else 's'}",
                color=look["color"],
                linestyle=look["line"],
                linewidth=look["width"],
            )
        axes.set(xlabel="time since the upload began (s)", ylabel="expected query latency (ms)")
        axes.set_xlim(0, end_s * 1.04)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=2)
        subtitle = f"predicted from the costs, {plans[0].mbps:g} Mbps, the upload alone on the link"
        set_titles(axes, f"{model_title(plans[0].model)}: what each plan promises", subtitle)
        return save_figure(figure, path)
