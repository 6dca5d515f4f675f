"""What a client gains that measures its link: mean latencies of the five models over links of 0.5 to 1,000 Mbps, on the
virtual testbed. A minute.

Four clients: one without a server, one that plans and routes for 80 Mbps whatever the link is, one that measures, and
one that is told the truth. The time is what the last one's upload takes, and ten seconds more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ionn.paper import MBPS, MODELS, RECURSIVE, model_title
from ionn.testbed.runner import run_virtual_all
from ionn.testbed.trace import Trace

RATES_MBPS = (0.5, 2.0, 10.0, 80.0, 300.0, 1000.0)
AFTER_S = 10.0


def run(model: str, mbps: float | None, link: Path, window_s: float | None = None) -> Trace:
    return run_virtual_all(model, [RECURSIVE], mbps=mbps, link=link, window_s=window_s)[0]


def table(folder: Path) -> None:
    print(f"{'model':<10} {'Mbps':>6} {'client':>8} {'for 80':>8} {'measures':>8} {'knows':>8}  measures / knows")
    for model in MODELS:
        for mbps in RATES_MBPS:
            link = folder / f"{mbps:g}.csv"
            link.write_text(f"0,{mbps}\n")
            window_s = run(model, mbps, link).upload_s + AFTER_S
            fixed, measures, knows = (run(model, planned, link, window_s) for planned in (MBPS, None, mbps))
            local_ms = knows.info.plan.local_ms
            means_ms = [trace.mean_ms_in_window for trace in (fixed, measures, knows)]
            print(
                f"{model_title(model):<10} {mbps:>6g} {local_ms:>8.1f} "
                + " ".join(f"{ms:>8.1f}" for ms in means_ms)
                + f"  {means_ms[1] / means_ms[2]:.3f}"
            )


def changes(folder: Path) -> None:
    """80, then 2, then 80 Mbps again: latencies in each five seconds, and where queries ran."""
    link = folder / "changes.csv"
    link.write_text("0,80\n10,2\n40,80\n")
    for model in MODELS:
        trace = run(model, None, link, 80.0)
        print(f"\n{model_title(model)}: {sum(query.fallback for query in trace.queries)} late; local "
              f"{trace.info.plan.local_ms:.0f} ms; seconds, mean ms, queries by the server")  # fmt: skip
        for begin_s in range(0, 80, 5):
            queries = [query for query in trace.queries if begin_s <= query.end_s < begin_s + 5]
            if queries:
                mean_ms = sum(query.latency_ms for query in queries) / len(queries)
                there = sum(any(segment.where != "client" for segment in query.segments) for query in queries)
                print(f"{begin_s:>4} {mean_ms:>8.1f} {there:>4} of {len(queries)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        table(Path(made))
        changes(Path(made))
