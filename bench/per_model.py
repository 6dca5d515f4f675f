"""The live experiment on one model, with the paper's algorithms and with slices: bench/alexnet.py and its siblings."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from ionn import paper
from ionn.costs import calibration
from ionn.errors import IonnError
from ionn.evaluation.figures import draw_figures
from ionn.evaluation.report import make_report
from ionn.evaluation.summary import disturbed
from ionn.files import write_file
from ionn.testbed import runner
from ionn.testbed.trace import Trace, trace_path


def at_least_1(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: give a number from 1 on")
    return number


def calibrate_server(results: Path) -> None:
    """Calibrate this machine for the servers that are started for `results`, unless that was done before; beside the
    costs stands how well they predict what was measured."""
    costs = results / runner.SERVER_COSTS
    if costs.exists():
        return
    with runner.bar(calibration.PASSES + 1, "pass", "calibrating this machine") as progress:
        fitted = calibration.calibrate(progress=progress.update)
    fitted.model.save(costs)
    write_file(results / "calibration.txt", fitted.quality.table().encode() + b"\n")


def live(model: str, runs: int, dilation: float, results: Path) -> list[Trace]:
    """Make `runs` live runs of each of the paper's algorithms and with slices; finished ones in `results` are kept."""
    calibrate_server(results)
    subject = runner.prepare_live(model)
    return runner.run_live_all(
        subject, paper.SHOWN, runs, runner.live_settings(subject, dilation=dilation), results=results
    )


def to_run_again(traces: Iterable[Trace], results: Path) -> str:
    """A text on the runs that other load disturbed, and how to make them again; "" if none was disturbed."""
    found = disturbed(traces)
    if not found:
        return ""
    names = (trace_path(results, i.settings, i.model, i.algorithm, i.run) for i in (trace.info for trace in found))
    return "\n".join(
        [
            "Live runs that other load disturbed, as the report marks. To run them again on a quiet machine, remove "
            "them, and repeat the command:",
            *(f"rm {shlex.quote(str(name))}  # {trace.disturbance}" for name, trace in zip(names, found, strict=True)),
        ]
    )


def main(model: str) -> None:
    parser = argparse.ArgumentParser(
        description=f"The paper's experiment on {model}, live: its algorithms, and slices."
    )
    parser.add_argument("--runs", type=at_least_1, default=1, help="runs of each algorithm (default: %(default)s)")
    parser.add_argument("--dilation", type=float, default=1.0, help="slow link and client down by this factor")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of traces (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        traces = live(model, arguments.runs, arguments.dilation, arguments.results)
        print(make_report(traces).text())
        for path in draw_figures(arguments.results, arguments.results / "figures"):
            print(path)
        if again := to_run_again(traces, arguments.results):
            print(again)
    except IonnError as error:
        sys.stderr.write(f"bench/{model}.py: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("interrupted; finished runs are kept, run again to continue")
