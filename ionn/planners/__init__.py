"""The planners: functions from an execution graph to partitions in upload order, each a sorted list of stages.

Every planner uploads exactly the stages that the fastest path uses once uploading costs nothing (the optimal state); a
graph with nothing worth offloading has an empty plan.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from ionn.errors import InputError
from ionn.graph import ExecutionGraph
from ionn.planners.efficiency import efficiency, recursive_efficiency
from ionn.planners.original import original, original_fine

Planner = Callable[[ExecutionGraph], list[list[int]]]

PLANNERS: dict[str, Planner] = {
    "original": original,
    "original-0.0001": original_fine,
    "efficiency": efficiency,
    "recursive-efficiency": recursive_efficiency,
}


def get_planner(name: str) -> Planner:
    """The planner of that name. Raises InputError, with the known names, if there is none."""
    if name not in PLANNERS:
        close = difflib.get_close_matches(name, PLANNERS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"unknown algorithm {name!r}: {hint}known are {', '.join(PLANNERS)}")
    return PLANNERS[name]
