"""The command line that plots/fig5.py, fig6.py and fig7.py share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ionn.errors import InputError
from ionn.evaluation.summary import SummaryRow, load_results, summary


def main(draw: Callable[[Sequence[SummaryRow], Path], list[Path]]) -> None:
    """Draw one figure from the traces in a results folder."""
    parser = argparse.ArgumentParser(description=draw.__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="folder that holds traces/")
    parser.add_argument("out", type=Path, nargs="?", help="folder of the figures (default: RESULTS/figures)")
    arguments = parser.parse_args()
    try:
        for path in draw(summary(load_results(arguments.results)), arguments.out or arguments.results / "figures"):
            print(path)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
