"""What goes beyond the paper, with results of its own: `make beyond`. Four minutes.

Coding: runs of every model on the virtual testbed, with the paper's devices, where nothing is coded, features are, and
weights too, compared in the time that original needs to upload the model raw. Figure 7 with and without coding, and the
gains if both ends code slower or faster than is assumed. AlexNet live, raw and with features coded, but without coded
weights: the bundled ones are synthetic, and shrink more than trained ones.

Arrivals: runs of AlexNet and MobileNet whose queries arrive at random or from a camera, with the paper's algorithms and
slices, and figures of their response times. Live runs, if bench/arrivals.py has made some, are shown, too.

Adapting: what clients gain by measuring their links: constant ones, and one that goes from 80 to 2 Mbps and back, with
AlexNet live.

Stores: AlexNet's second visit at a server that keeps weights, live, and what asking such a server costs.

Walks: that of examples/walk.toml, with and without stores and weights that are sent ahead.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import adapting
import arrivals
import coding_gains
import second_visit
import support
from coding_figures import draw_speeds, fig7_coded

from ionn import coding, paper
from ionn.errors import IonnError
from ionn.evaluation.link_figures import fig_links
from ionn.evaluation.report import (
    equal_time,
    estimates,
    response_times,
    response_validation,
    save_report,
    validation,
)
from ionn.evaluation.response_figures import fig_responses
from ionn.evaluation.sections import Report, Section
from ionn.evaluation.summary import SummaryRow, summary
from ionn.evaluation.validation import validate
from ionn.evaluation.walk_figures import fig_gains, fig_walk
from ionn.testbed import runner
from ionn.testbed.trace import Trace
from ionn.testbed.walking import Walked, compare, gains
from ionn.testbed.walks import Walk

ALGORITHMS = (paper.ORIGINAL, paper.RECURSIVE, paper.SLICED)
LIVE_MODEL = "alexnet"
WALK = Path(__file__).resolve().parents[1] / "examples" / "walk.toml"


def run_virtual(results: Path) -> list[Trace]:
    return [
        trace
        for model in paper.MODELS
        for name in coding.CODINGS
        for trace in runner.run_virtual_all(
            model, ALGORITHMS, results=results,
            coding=name, weight_ratio=coding_gains.weight_ratio(name), window_s=coding_gains.window_of(model),
        )
    ]  # fmt: skip


def run_live(results: Path) -> list[Trace]:
    """AlexNet live, raw and with features coded. Finished runs are not made again."""
    subject = runner.prepare_live(LIVE_MODEL)
    window_s = coding_gains.window_of(LIVE_MODEL)
    return [
        trace
        for name in (coding.NONE, coding.FEATURES)
        for trace in runner.run_live_all(
            subject, [paper.SLICED], 1, runner.live_settings(subject, coding=name, window_s=window_s), results=results
        )
    ]


def claims(title: str, text: str, rows: Sequence[support.Row]) -> Section:
    """A section with the rows of a benchmark, and whether each keeps its limit."""
    lines = []
    for row in rows:
        measure, limit, ours, unit = row
        lines.append((measure, f"{limit:g}", f"{ours:.3g} {unit}".strip(), "yes" if support.met(row) else "NO"))
    return Section(title, text, ("what", "limit", "found", "holds"), tuple(lines))


def adaptation(cells: list[adapting.Cell]) -> Section:
    """What a client gains by measuring its link."""
    return Section(
        "Clients that measure their links",
        "Mean latency in ms over links of constant rates, computed, in the time of the upload that is planned for the "
        f"true rate and {adapting.AFTER_S:g} s more: at the client alone, planned and routed for {paper.MBPS:g} Mbps, "
        "by what is measured, and by the truth.",
        ("model", "Mbps", "client", f"for {paper.MBPS:g}", "measures", "knows", "measures / knows"),
        tuple(
            (
                paper.model_title(cell.model), f"{cell.mbps:g}", f"{cell.local_ms:.1f}",
                "no query ended" if math.isnan(cell.fixed_ms) else f"{cell.fixed_ms:.1f}",
                f"{cell.measures_ms:.1f}", f"{cell.knows_ms:.1f}", f"{cell.measures_ms / cell.knows_ms:.2f}",
            )
            for cell in cells
        ),
    )  # fmt: skip


def walked(variants: Sequence[Walked]) -> Section:
    """What stores and sending weights ahead gain on a walk."""
    return Section(
        "A walk over several servers",
        f"Computed, {WALK.name}: the mean latency is over time, at the client alone {variants[0].local_ms:.0f} ms.",
        ("variant", "mean ms", "longest ms", "queries", "completed at the client", "MB sent", "ahead", "stored"),
        tuple(
            (
                each.name, f"{each.mean_ms:.1f}", f"{each.longest_ms:.1f}", str(len(each.queries)), str(each.fallbacks),
                *(f"{size / 1e6:.1f}" for size in (each.sent_bytes, each.ahead_bytes, each.held_bytes)),
            )
            for each in variants
        ),
    )  # fmt: skip


def draw(rows: list[SummaryRow], coded: list[SummaryRow], out: Path) -> list[Path]:
    latencies = {
        paper.model_title(model): [coding_gains.last_ms(model, speed) for speed in coding_gains.SPEEDS]
        for model in paper.MODELS
    }
    queries = {
        name: [coding_gains.times_as_many_queries(name, speed) for speed in coding_gains.SPEEDS]
        for name in coding.CODINGS
    }
    return [
        *fig7_coded([row for row in coded if row.algorithm == paper.SLICED], out),
        *fig_responses(rows, out),
        *fig_links(rows, out),
        *draw_speeds(
            coding_gains.SPEEDS, latencies, "last latency (ms)", "Last latency, features coded",
            out / "coding-speed-latency",
        ),
        *draw_speeds(
            coding_gains.SPEEDS, queries, "times original's queries, raw", "AlexNet, sliced: queries in equal time",
            out / "coding-speed-queries",
        ),
    ]  # fmt: skip


def beyond(results: Path) -> None:
    links = results / "links"
    traces = [
        *run_virtual(results), *run_live(results),
        *arrivals.run_virtual(results), *arrivals.finished(results),
        *adapting.run_changes(links, results),
        adapting.run_live(LIVE_MODEL, adapting.changing(links), adapting.CHANGES_S, results),
    ]  # fmt: skip
    rows = summary(traces)
    coded = [row for row in rows if row.settings.mbps is not None and row.settings.arrivals.closed]
    walk = Walk.load(WALK)
    variants = compare(walk)
    figures = [
        *draw(rows, coded, results / "figures"),
        *fig_walk(walk, variants, WALK.stem, results / "figures"),
        *fig_gains(walk, gains(walk), WALK.stem, results / "figures"),
    ]
    live = [
        validate(trace) for row in rows if row.settings.testbed == "live" and row.settings.mbps for trace in row.traces
    ]
    sections = (
        claims("What coding gains", "Computed for the paper's testbed.", coding_gains.rows()),
        equal_time(coded), response_times(rows), adaptation(adapting.cells(links)), estimates(rows),
        validation(live), response_validation(live),
        claims("A second visit", "Live, over 80 Mbps, at a server that keeps weights.", second_visit.rows()),
        walked(variants),
    )  # fmt: skip
    report = Report(tuple(section for section in sections if section.rows), tuple(rows), live=tuple(live))
    print(report.text())
    print(f"{len(figures)} figure files in {results / 'figures'}, report in {save_report(report, results, figures)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results") / "beyond")
    try:
        beyond(parser.parse_args().results)
    except IonnError as error:
        sys.stderr.write(f"beyond: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
