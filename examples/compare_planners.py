"""Compare planners on the virtual testbed, among them the one in examples/cheapest_first.py. Takes a second.

python examples/compare_planners.py [MODEL]
"""

from __future__ import annotations

import sys

from cheapest_first import cheapest_first

import ionn


def main(model: str = "alexnet") -> None:
    mine = ionn.add_planner(cheapest_first)
    print(f"{'':<22} {'queries before':>14} {'upload s':>9} {'last ms':>8}")
    for algorithm in ("original", "efficiency", "recursive-efficiency", mine):
        (trace,) = ionn.run(model, algorithm, testbed="virtual", mbps=80)
        last_ms = trace.queries[-1].latency_ms
        print(f"{algorithm:<22} {trace.queries_before_upload:>14} {trace.upload_s:>9.1f} {last_ms:>8.1f}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except ionn.IonnError as error:
        sys.exit(f"compare_planners: {error}")
