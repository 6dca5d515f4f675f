"""What a client gains by measuring its link: mean latencies of the five models over links of 0.5 to 1,000 Mbps, on the
virtual testbed. A minute. With `--live`, also MobileNet over five such links, live, in four minutes more.

Four clients are compared: one without a server, one that plans and routes for 80 Mbps whatever the link is, one that
measures, and one that knows the rate. Queries count until ten seconds after the end of the last one's upload. The mean
latency of the client that measures should be within 10 % of that of the client that knows, and, live, at most 5 % above
that without a server (besides one local latency in all).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import support

from ionn.paper import MBPS, MODELS, RECURSIVE, model_title
from ionn.testbed import runner
from ionn.testbed.trace import Trace

RATES_MBPS = (0.5, 2.0, 10.0, 80.0, 300.0, 1000.0)
AFTER_S = 10.0
WORSE = 1.1
LIVE_MODEL, LIVE_RATES_MBPS, LIVE_S = "mobilenet", (0.5, 2.0, 10.0, 80.0, 300.0), 40.0
# Live, over the latency of the client alone. In addition, all queries together may lose one local latency.
SLOWER = 1.05
# A link that is slow for a while.
CHANGES, CHANGES_S = "0,80\n10,2\n40,80\n", 80.0


class Cell(NamedTuple):
    """Mean latencies in ms over a link. That of the plan for 80 Mbps is NaN if no query ended in the time."""

    model: str
    mbps: float
    local_ms: float
    fixed_ms: float
    measures_ms: float
    knows_ms: float


def constant(folder: Path, mbps: float) -> Path:
    """The file of a link with this rate."""
    return _link(folder, f"{mbps:g}mbps", f"0,{mbps}\n")


def changing(folder: Path) -> Path:
    return _link(folder, "changes", CHANGES)


def _link(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    path.write_text(text)
    return path


def run(model: str, mbps: float | None, link: Path, window_s: float | None = None) -> Trace:
    return runner.run_virtual_all(model, [RECURSIVE], mbps=mbps, link=link, window_s=window_s)[0]


def cells(folder: Path) -> list[Cell]:
    """The mean latencies of all models over all links."""
    made = []
    for model in MODELS:
        for mbps in RATES_MBPS:
            link = constant(folder, mbps)
            window_s = run(model, mbps, link).upload_s + AFTER_S
            fixed, measures, knows = (run(model, planned, link, window_s) for planned in (MBPS, None, mbps))
            means_ms = [trace.mean_ms_in_window for trace in (fixed, measures, knows)]
            made.append(Cell(model, mbps, knows.info.plan.local_ms, *means_ms))
    return made


def run_changes(folder: Path, results: Path) -> list[Trace]:
    """Runs of each model over a link that is slow for a while."""
    return [
        trace
        for model in MODELS
        for trace in runner.run_virtual_all(
            model, [RECURSIVE], mbps=None, link=changing(folder), window_s=CHANGES_S, results=results
        )
    ]


def run_live(model: str, link: Path, window_s: float, results: Path | None = None) -> Trace:
    """A live run with a client that measures. A finished one in `results` is not run again."""
    subject = runner.prepare_live(model)
    settings = runner.live_settings(subject, mbps=None, link=link, window_s=window_s)
    return runner.run_live_all(subject, [RECURSIVE], 1, settings, results=results, link=link)[0]


def rows(live: bool = False) -> list[support.Row]:
    with TemporaryDirectory() as folder:
        found = cells(Path(folder))
        for cell in found:
            support.keep("mean latency over a link", **cell._asdict())
        result = [_worst(f"{model_title(model)}", found) for model in MODELS]
        if live:
            result += [live_row(mbps, constant(Path(folder), mbps)) for mbps in LIVE_RATES_MBPS]
    return result


def _worst(title: str, found: Sequence[Cell]) -> support.Row:
    ratios = [each.measures_ms / each.knows_ms for each in found if model_title(each.model) == title]
    return (
        f"{title}: mean latency of a client that measures, over one that knows, worst of six links",
        WORSE,
        max(ratios),
        "",
    )


def live_row(mbps: float, link: Path) -> support.Row:
    trace = run_live(LIVE_MODEL, link, LIVE_S)
    assert all(query.bit_equal for query in trace.queries)
    local_ms, latencies_ms = trace.info.plan.local_ms, [query.latency_ms for query in trace.in_window]
    mean_ms = math.fsum(latencies_ms) / len(latencies_ms)
    late = sum(query.fallback for query in trace.queries)
    support.keep("live, mean latency", mbps=mbps, mean_ms=mean_ms, local_ms=local_ms, late=late)
    most = SLOWER + 1 / len(latencies_ms)
    return (
        f"{model_title(LIVE_MODEL)}, live, {mbps:g} Mbps: mean latency, over the client's alone",
        most,
        mean_ms / local_ms,
        "",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", action="store_true")
    support.main(lambda: rows(parser.parse_args().live))
