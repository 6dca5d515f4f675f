"""The planners: functions from an execution graph to partitions in upload order. A partition is a sorted list of
stage indices.

A planner may upload a stage in slices. A partition then has a `Slice` in place of the stage, and the slices of a stage
come in the order of its channels.

tests/support/algorithm_1.py has the paper's Algorithm 1 as it is printed. Read it first: the code here does the same,
faster.

Every planner uploads exactly the stages that the fastest path uses when uploading costs nothing (the paper's optimal
state, section 2.2). If offloading saves nothing, the plan is empty. Every partition has weights, unless no stage has
any. Users' own planners may do otherwise, and so may `BASELINES`, with which planners are compared.
"""

from __future__ import annotations

import hashlib
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
from ionn.planning.planners.custom import checked, content_of, load_function
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
_DIGESTS: dict[str, str] = {}


def known_planners() -> dict[str, Planner]:
    """All planners by name: ionn's own, those that the user added, and the baselines."""
    return {**PLANNERS, **BASELINES}


def get_planner(name: str) -> Planner:
    """The planner or baseline with this name. Raises InputError, which lists the known names, if there is none."""
    known = known_planners()
    if text_of(name, "algorithm") not in known:
        raise InputError(f"unknown algorithm {name!r}: known are {', '.join(known)}{did_you_mean(name, known)}")
    return known[name]


def add_planner(planner: str | Path | Callable[[ExecutionGraph], Any]) -> str:
    """Add a planner of your own for this process, under the name of its function, and return that name.

    `planner` is a function from an `ExecutionGraph` to a list of partitions, each a list of stage indices or slices
    (docs/extending.md), or a text that says where the function is: FILE.py:FUNCTION or MODULE:FUNCTION. Each plan that
    it makes is checked, and one that cannot be uploaded raises InputError.

    Raises InputError if there is no such function, or if one of ionn's own planners has its name.
    """
    if callable(planner):
        name, function, content = getattr(planner, "__name__", ""), planner, b""
        if not (isinstance(name, str) and name.isidentifier()):  # a lambda, or an object
            raise InputError(f"planner {shown(planner)}: it has no name; give a function made by def")
    else:
        name, function, content = load_function(name_of(planner, "planner"))
    if name in known_planners() and name not in _ADDED:
        raise InputError(f"{name} is one of ionn's own planners; rename the function")
    PLANNERS[name] = _ADDED[name] = checked(name, function)
    _DIGESTS[name] = hashlib.sha256(content or content_of(function)).hexdigest()[:16]
    return name


def added_planners(names: Iterable[str]) -> dict[str, Planner]:
    """The user's own planners among these names, as functions: another process does not know them by name."""
    return {name: _ADDED[name] for name in names if name in _ADDED}


def planner_digest(name: str) -> str:
    """A hexadecimal digest that tells a user's planner from another one of the same name; "" for ionn's own planners.

    It is the digest of the whole file that the planner was loaded from. For a function that was given as such, it is
    that of its code and of the values that it uses, as they were then: its defaults, what it has from the functions
    around it, and global constants. If these cannot be pickled, it is a new digest each time, so that no results are
    taken for the planner's that may be another one's. Code that a planner imports or calls does not count.
    """
    return _DIGESTS.get(name, "")
