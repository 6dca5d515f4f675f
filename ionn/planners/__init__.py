"""The planners: functions from an execution graph to partitions in upload order, each a list of stages, sorted.

A planner may upload a stage in slices: partitions then hold a `Slice` in place of the stage, and the slices of a stage
come in the order of its channels.

Every planner uploads exactly the stages that the fastest path uses once uploading costs nothing (the optimal state); a
graph with nothing worth offloading has an empty plan.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from ionn.errors import InputError
from ionn.graph import ExecutionGraph
from ionn.paper import EFFICIENCY, FINE, ORIGINAL, RECURSIVE, SLICED
from ionn.planners.efficiency import efficiency, recursive_efficiency
from ionn.planners.optimal import optimal
from ionn.planners.original import original, original_fine
from ionn.planners.sliced import sliced_efficiency
from ionn.slicing import Piece

Planner = Callable[[ExecutionGraph], Sequence[Sequence[Piece]]]

PLANNERS: dict[str, Planner] = {
    ORIGINAL: original,
    FINE: original_fine,
    EFFICIENCY: efficiency,
    RECURSIVE: recursive_efficiency,
    SLICED: sliced_efficiency,
    "optimal": optimal,
}


def get_planner(name: str) -> Planner:
    """The planner of that name. Raises InputError, with the known names, if there is none."""
    if name not in PLANNERS:
        close = difflib.get_close_matches(name, PLANNERS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"unknown algorithm {name!r}: {hint}known are {', '.join(PLANNERS)}")
    return PLANNERS[name]
