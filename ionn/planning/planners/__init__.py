"""The planners: functions from an execution graph to partitions in upload order, each a list of stages, sorted.

A planner may upload a stage in slices: partitions then hold a `Slice` in place of the stage, and the slices of a stage
come in the order of its channels.

The paper's algorithm as it is printed is in tests/support/algorithm_1.py; read that first, as the rest is speed.

Every planner uploads exactly the stages that the fastest path uses once uploading costs nothing (the optimal state); a
graph with nothing worth offloading has an empty plan. No partition is without weights, unless all stages are. Planners
of a user's own may do otherwise, and so may `BASELINES`, which are there to be compared with.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from ionn.arguments import name_of, shown, text_of
from ionn.errors import InputError, did_you_mean
from ionn.model.slices import Piece
from ionn.paper import EFFICIENCY, FINE, ORIGINAL, RECURSIVE, SLICED
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners.baselines import (
    ALL_AT_ONCE,
    FRONT_TO_BACK,
    LOCAL,
    NEUROSURGEON,
    PREINSTALLED,
    all_at_once,
    front_to_back,
    local,
    neurosurgeon,
    preinstalled,
)
from ionn.planning.planners.custom import checked, load_function
from ionn.planning.planners.efficiency import densest, efficiency, recursive_efficiency
from ionn.planning.planners.optimal import optimal
from ionn.planning.planners.original import original, original_fine
from ionn.planning.planners.sliced import sliced_efficiency
from ionn.planning.planners.weightless import merge_weightless

Planner = Callable[[ExecutionGraph], Sequence[Sequence[Piece]]]


def _ours(planner: Planner) -> Planner:
    @wraps(planner)
    def plan(graph: ExecutionGraph) -> list[list[Piece]]:
        return merge_weightless(graph, planner(graph))

    return plan


PLANNERS: dict[str, Planner] = {
    ORIGINAL: _ours(original),
    FINE: _ours(original_fine),
    EFFICIENCY: _ours(efficiency),
    RECURSIVE: _ours(recursive_efficiency),
    SLICED: _ours(sliced_efficiency),
    "densest": _ours(densest),
    "optimal": _ours(optimal),
}
BASELINES: dict[str, Planner] = {
    LOCAL: local,
    ALL_AT_ONCE: all_at_once,
    FRONT_TO_BACK: _ours(front_to_back),
    NEUROSURGEON: neurosurgeon,
    PREINSTALLED: preinstalled,
}
_ADDED: dict[str, Planner] = {}
_SOURCES: dict[str, str] = {}


def known_planners() -> dict[str, Planner]:
    """All that have a name: the planners, with those of the user's own, and the baselines."""
    return {**PLANNERS, **BASELINES}


def get_planner(name: str) -> Planner:
    """The planner of that name, or the baseline. Raises InputError, with the known names, if there is none."""
    known = known_planners()
    if text_of(name, "algorithm") not in known:
        raise InputError(f"unknown algorithm {name!r}: known are {', '.join(known)}{did_you_mean(name, known)}")
    return known[name]


def add_planner(planner: str | Path | Callable[[ExecutionGraph], Any]) -> str:
    """Take a planner of the user's own into the registry under the function's name, which is returned: a function, or
    where one is, FILE.py:FUNCTION or MODULE:FUNCTION. What it returns is checked whenever it plans.

    Raises InputError where there is no such function, or one of ionn's own planners has its name.
    """
    if callable(planner):
        name, function, source = getattr(planner, "__name__", ""), planner, _source(planner)
        if not (isinstance(name, str) and name.isidentifier()):  # a lambda, or an object
            raise InputError(f"planner {shown(planner)}: it has no name; give a function made by def")
    else:
        name, function, source = load_function(name_of(planner, "planner"))
    if name in known_planners() and name not in _ADDED:
        raise InputError(f"{name} is one of ionn's own planners; rename the function")
    PLANNERS[name] = _ADDED[name] = checked(name, function)
    _SOURCES[name] = hashlib.sha256(source).hexdigest()[:16] if source else ""
    return name


def added_planners(names: Iterable[str]) -> dict[str, Planner]:
    """Those of these names that are a user's own, themselves: another process does not know them by name."""
    return {name: _ADDED[name] for name in names if name in _ADDED}


def planner_digest(name: str) -> str:
    """A number in hexadecimal that another planner of the user's, of the same name, does not have: of the whole file
    that it was loaded from, or of the source of a function that was given itself. "" for one of ionn's own planners,
    and where the source is not known. What a file imports, and what a function calls, does not count."""
    return _SOURCES.get(name, "")


def _source(function: Callable[[ExecutionGraph], Any]) -> bytes:
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        return b""
