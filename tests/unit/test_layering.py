"""Imports point one way, and planning is pure: it loads no Caffe, opens no socket and reads no clock."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ionn"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# From a network and costs to partitions in upload order.
PLANNING = [
    "ionn.costs.loading",
    "ionn.costs.fitting",
    "ionn.model.network",
    *(module for module in MODULES if module.startswith(("ionn.model.layers", "ionn.planning"))),
]
# It reports the planning time.
PLANNING.remove("ionn.planning.plan")
IMPURE = {"caffe", "zmq", "socket", "select", "selectors", "subprocess", "threading", "multiprocessing", "time"}
# These read traces, and nothing else: no network, no cost model, no process.
EVALUATION = ["ionn.evaluation.summary", "ionn.evaluation.claims", "ionn.evaluation.figures"]
# The one module that may touch each, apart from tests.
ONLY = {
    "caffe": {"ionn.model.engine"},
    "click": {module for module in MODULES if module.startswith("ionn.cli")},
}
# Protocols without sockets: bytes in, messages out.
SOCKETS = {"socket", "select", "selectors", "subprocess", "multiprocessing"}
# Floors that import nothing of each other.
APART = {("server", "client"), ("client", "server")}


def floors() -> dict[str, int]:
    """How high each package, or module of none, lies: the table of docs/design.md, whose first row is the highest."""
    table = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8").split("## Modules")[1]
    rows = [re.findall(r"`([a-z]+)/?`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    return {name: floor for floor, names in enumerate(reversed(rows)) for name in names}


FLOORS = floors()


def floor_name(module: str) -> str:
    """The package that a module is in, or the module itself."""
    return module.split(".")[1]


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
    assert {"ionn", "ionn.cli.options", "ionn.planning.graph", "ionn.model.layers", "ionn.model.layers.windows"} <= set(
        MODULES
    )
    assert {"ionn.planning.graph", "ionn.planning.slice_costs", "numpy", "math"} <= reached("ionn.planning.planners")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_itself_by_a_detour(module: str) -> None:
    assert module not in reached(module)


def test_every_floor_is_in_the_table_and_no_other() -> None:
    inner = {floor_name(module) for module in MODULES if "." in module}
    assert set(FLOORS) == inner - {"__main__"}


@pytest.mark.parametrize("module", sorted(module for module in MODULES if floor_name(f"{module}.") in FLOORS))
def test_imports_go_down(module: str) -> None:
    """Or stay on their floor. `TYPE_CHECKING` and imports within functions are no excuse."""
    name = floor_name(module)
    for other in (floor_name(other) for other in imports(module) if other.startswith("ionn.")):
        assert FLOORS[other] <= FLOORS[name], f"{module} imports {other}, which is above it"
        assert (name, other) not in APART


@pytest.mark.parametrize("module", PLANNING)
def test_planning_imports_nothing_impure(module: str) -> None:
    assert IMPURE.isdisjoint({name.partition(".")[0] for name in reached(module)})


@pytest.mark.parametrize("module", sorted(module for module in MODULES if module.startswith("ionn.protocol")))
def test_protocols_open_no_sockets(module: str) -> None:
    assert SOCKETS.isdisjoint(imports(module))


@pytest.mark.parametrize("module", EVALUATION)
def test_figures_read_traces_only(module: str) -> None:
    assert {"ionn.testbed.trace", "numpy"} <= reached(module)
    assert {"model", "costs", "protocol", "server", "client"}.isdisjoint(
        floor_name(name) for name in imports(module) if name.startswith("ionn.")
    )
    assert {"ionn.model.engine", "ionn.testbed.live"}.isdisjoint(reached(module))


@pytest.mark.parametrize("library", ONLY)
def test_one_module_touches_each_library(library: str) -> None:
    users = {module for module in MODULES if library in {name.partition(".")[0] for name in imports(module)}}
    assert users
    assert users <= ONLY[library]


def test_planners_run_without_caffe_sockets_and_clocks() -> None:
    code = """
import socket, sys, time
from ionn.costs.loading import load_costs
from ionn.planning.graph import ExecutionGraph
from ionn.model.network import Network
from ionn.paper import CLIENT, MBPS, SERVER
from ionn.planning.planners import PLANNERS

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
