"""Imports point one way, and planning is pure: it loads no Caffe, opens no socket and reads no clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ionn"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# From a network and costs to partitions in upload order.
PLANNING = [
    "ionn.network",
    "ionn.cost_files",
    "ionn.fitting",
    "ionn.graph",
    *(module for module in MODULES if module.startswith(("ionn.layers", "ionn.planners"))),
]
IMPURE = {"caffe", "zmq", "socket", "select", "selectors", "subprocess", "threading", "multiprocessing", "time"}
# These read traces, and nothing else: no network, no cost model, no process.
EVALUATION = ["ionn.summary", "ionn.claims", "ionn.figures"]
# The one module that may touch each, apart from tests.
ONLY = {
    "caffe": {"ionn.engine"},
    "click": {module for module in MODULES if module.startswith("ionn.cli")},
}


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports anywhere in its code; `from package import module` counts as the module."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module}: a relative import"
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return frozenset(found - {module})


@cache
def reached(module: str) -> frozenset[str]:
    """What a module imports, directly or not. Parents of packages count only where they are imported themselves."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for name in imports(waiting.pop()) - seen:
            seen.add(name)
            if name in MODULES:
                waiting.append(name)
    return frozenset(seen)


def test_every_module_is_found() -> None:
    assert {"ionn", "ionn.cli.options", "ionn.graph", "ionn.layers", "ionn.layers.windows"} <= set(MODULES)
    assert {"ionn.graph", "ionn.slicing", "numpy", "math"} <= reached("ionn.planners")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_itself_by_a_detour(module: str) -> None:
    assert module not in reached(module)


@pytest.mark.parametrize("module", PLANNING)
def test_planning_imports_nothing_impure(module: str) -> None:
    assert IMPURE.isdisjoint({name.partition(".")[0] for name in reached(module)})


@pytest.mark.parametrize("module", EVALUATION)
def test_figures_read_traces_only(module: str) -> None:
    assert {"ionn.trace", "numpy"} <= reached(module)
    assert {"ionn.network", "ionn.costs", "ionn.engine"}.isdisjoint(reached(module))


@pytest.mark.parametrize("library", ONLY)
def test_one_module_touches_each_library(library: str) -> None:
    users = {module for module in MODULES if library in {name.partition(".")[0] for name in imports(module)}}
    assert users
    assert users <= ONLY[library]


def test_planners_run_without_caffe_sockets_and_clocks() -> None:
    code = """
import socket, sys, time
from ionn.cost_files import load_costs
from ionn.graph import ExecutionGraph
from ionn.network import Network
from ionn.paper import CLIENT, MBPS, SERVER
from ionn.planners import PLANNERS

def impure(*arguments, **named):
    raise AssertionError("not pure")

for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "sleep"):
    setattr(time, name, impure)
socket.socket = impure
graph = ExecutionGraph.from_network(Network.load("alexnet"), load_costs(CLIENT), load_costs(SERVER), MBPS)
assert all(planner(graph) for planner in PLANNERS.values())
assert {"caffe", "zmq", "click", "matplotlib"}.isdisjoint(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_starts_light() -> None:
    """`ionn --help` must be there at once: what takes long to import is imported by the commands that need it."""
    code = "import sys, ionn.cli; print({'numpy', 'caffe', 'zmq', 'matplotlib', 'google'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
