"""Planners of the user's own, in this process: how they are found, and which plans of theirs are refused and why."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ionn.errors import InputError, ProtocolError
from ionn.model.slices import TILE, Slice
from ionn.planning.graph import ExecutionGraph
from ionn.planning.planners import PLANNERS, add_planner, get_planner, planner_digest
from ionn.planning.planners.custom import checked, load_function
from tests.support.chains import chain, cut

GRAPH = chain([9, 9, 9, 9], [1, 1, 1, 1], [5, 5, 5, 5], [1] * 5, pinned=[3], cuts=[cut(1, tiles=10, least=2)])
LAST = 10 * TILE


@pytest.fixture(autouse=True)
def unchanged_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    assert sys.path == before


def plan_of(made: Any) -> list[list[Any]]:
    return checked("mine", lambda graph: made)(GRAPH)


def test_good_plans_are_sorted_within_partitions_and_joined() -> None:
    assert plan_of([[2, 0], (1,)]) == [[0, 2], [1]]
    assert plan_of([[np.int64(2)], np.array([1])]) == [[2], [1]]
    assert plan_of(iter([iter([0])])) == [[0]]
    assert plan_of([]) == []
    two = 2 * TILE
    assert plan_of([[2, (1, 0, two)], [Slice(1, two, LAST), 0]]) == [[Slice(1, 0, two), 2], [0, Slice(1, two, LAST)]]
    assert plan_of([[(1, 0, two), (1, two, 2 * two)], [(1, 2 * two, LAST)]]) == [
        [Slice(1, 0, 2 * two)],
        [Slice(1, 2 * two, LAST)],
    ]
    assert plan_of([[(1, 0, LAST)]]) == plan_of([[(1, 0, two), (1, two, LAST)]]) == [[1]]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([[4]], "there is no stage 4; they are 0 to 3"),
        ([[-1]], "there is no stage -1; they are 0 to 3"),
        ([[0], []], "partition 2 is empty"),
        ([[3]], r"stage 3 \(D\) stays at the client"),
        ([[0], [0]], r"stage 0 \(A\) is uploaded twice"),
        ([[0, 0]], r"stage 0 \(A\) is uploaded twice"),
        ([[1], [(1, 0, 96)]], r"stage 1 \(B\) is uploaded twice"),
        ([[(1, 0, 96)], [1]], r"stage 1 \(B\) is uploaded twice"),
        ([[(2, 0, 96)]], r"stage 2 \(C\) cannot be cut in slices"),
        (
            [[(1, 96, 480)]],
            "the next slice begins at 0, has at least 96 of the 480 channels and ends at a multiple of 48",
        ),
        ([[(1, 0, 96)], [(1, 0, 96)]], "the next slice begins at 96"),
        ([[(1, 0, 96)], [(1, 192, 480)]], "the next slice begins at 96"),
        ([[(1, 0, 48)]], "has at least 96"),
        ([[(1, 0, 100)]], "ends at a multiple of 48"),
        ([[(1, 0, 528)]], "of the 480 channels"),
        ([[(1, 0, LAST)], [(1, LAST, LAST + 96)]], "the next slice begins at 480"),
        ([[(1, 0, LAST), 1]], r"stage 1 \(B\) is uploaded twice"),
        ([[(1, 0, 432)], [(1, 432, 480)]], "has at least 96"),
        ([[(1, 0, 432)]], r"stage 1 \(B\): what is left of it has 48 channels; upload them too, or leave at least 96"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(made: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"planner mine: not a plan: .*{message}"):
        plan_of(made)


@pytest.mark.parametrize("made", [3, None, [1], [["0"]], [[0.5]], [[(0, 1)]], [[None]]])
def test_what_is_not_a_list_of_lists_of_numbers_is_refused(made: Any) -> None:
    with pytest.raises(InputError, match=r"planner mine: returned .*; return a list of lists of stage numbers"):
        plan_of(made)


def test_long_results_are_cut_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        plan_of("x" * 1000)
    assert len(str(caught.value)) < 130


def failing(error: BaseException) -> Any:
    def planner(graph: object) -> Iterator[list[int]]:
        raise error

    return planner


def test_a_planner_that_fails_is_named_with_its_place() -> None:
    place = rf"\(test_custom\.py:{failing.__code__.co_firstlineno + 2}\)"
    with pytest.raises(InputError, match=rf"planner mine: ValueError: two lines {place}$"):
        checked("mine", failing(ValueError("two\n lines")))(GRAPH)
    with pytest.raises(InputError, match=rf"planner mine: SystemExit: 3 {place}$"):
        checked("mine", failing(SystemExit(3)))(GRAPH)
    with pytest.raises(ProtocolError, match=r"^as it is$"):
        checked("mine", failing(ProtocolError("as it is")))(GRAPH)

    def generator(graph: object) -> Iterator[list[int]]:
        yield [0]
        raise KeyError(2)

    with pytest.raises(InputError, match=r"planner mine: KeyError: 2 \(test_custom\.py:\d+\)"):
        checked("mine", generator)(GRAPH)


def test_functions_of_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "beside.py").write_text("ANSWER = 'of a module that is found before'")
    monkeypatch.syspath_prepend(tmp_path / "before")
    (tmp_path / "beside.py").write_text("ANSWER = [[0]]")
    (tmp_path / "planner_file.py").write_text("import beside\ndef zero(graph): return beside.ANSWER\nnumber = 3")
    name, function, content = load_function(f"{tmp_path}/planner_file.py:zero")
    assert (name, function(GRAPH)) == ("zero", [[0]])
    assert content == (tmp_path / "planner_file.py").read_bytes()

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "planner_module.py").write_text("def one(graph): return [[1]]")
    monkeypatch.chdir(tmp_path / "folder")
    name, function, content = load_function("planner_module:one")
    assert (name, function(GRAPH)) == ("one", [[1]])
    assert content == (tmp_path / "folder" / "planner_module.py").read_bytes()
    for spec, message in {
        f"{tmp_path}/planner_file.py:number": "has no function number",
        f"{tmp_path}/planner_file.py:nothing": "has no function nothing",
        "no_such_module:zero": "cannot import it: ModuleNotFoundError",
        "planner_module": "not a planner; give FILE.py:FUNCTION or MODULE:FUNCTION",
        ":one": "not a planner",
        "planner_module:": "not a planner",
        "planner_module:a-b": "not a planner",
    }.items():
        with pytest.raises(InputError, match=f"^{spec}: .*{message}"):
            load_function(spec)
    with pytest.raises(InputError, match=f"^{tmp_path}/none.py: cannot read the planner: No such file"):
        load_function(f"{tmp_path}/none.py:zero")


WITH_A_DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Chosen:
    stages: list[int]

def chosen(graph):
    return [[stage] for stage in Chosen(sorted(graph.shortest_path([0.0] * len(graph.stages)))).stages]
"""


def test_a_file_may_have_what_looks_for_its_module(tmp_path: Path) -> None:
    """A dataclass finds its annotations' names there. Afterwards there is no such module: others would import it."""
    path = tmp_path / "json.py"  # a name that a module of Python has, too
    path.write_text(WITH_A_DATACLASS)
    before = dict(sys.modules)
    _, function, _ = load_function(f"{path}:chosen")
    assert function(GRAPH) == [[0], [1], [2]]
    assert sys.modules == before
    assert function.__module__ not in sys.modules

    path.write_text("import sys\nsys.modules.pop(__name__)\n1 / 0")
    with pytest.raises(InputError, match=r"ZeroDivisionError: division by zero \(json\.py:3\)"):
        load_function(f"{path}:chosen")
    assert sys.modules == before


def test_a_planner_is_added_and_replaced_but_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ionn.planning.planners.PLANNERS", dict(PLANNERS))
    monkeypatch.setattr("ionn.planning.planners._ADDED", {})
    monkeypatch.setattr("sys.dont_write_bytecode", False)  # or bytecode of the first could not be taken for the second
    path = tmp_path / "mine.py"
    for stage in (0, 2):  # the second time it is another one
        path.write_text(f"def alone(graph): return [[{stage}]]\ndef optimal(graph): return []")
        assert add_planner(f"{path}:alone") == "alone"
        assert get_planner("alone")(GRAPH) == [[stage]]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="optimal is one of ionn's own planners; rename the function"):
        add_planner(f"{path}:optimal")
    path.write_text("def alone(graph): return [[9]]")
    add_planner(f"{path}:alone")
    with pytest.raises(InputError, match="planner alone: not a plan"):
        get_planner("alone")(GRAPH)


def test_a_function_is_added_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ionn.planning.planners.PLANNERS", dict(PLANNERS))
    monkeypatch.setattr("ionn.planning.planners._ADDED", {})

    def last_first(graph: ExecutionGraph) -> list[list[int]]:
        return [[2], [1], [0]]

    assert add_planner(last_first) == "last_first"
    assert get_planner("last_first")(GRAPH) == [[2], [1], [0]]
    last_first.__name__ = "optimal"
    with pytest.raises(InputError, match="optimal is one of ionn's own planners"):
        add_planner(last_first)
    for nameless in (lambda graph: [[0]], partial(last_first), type("Planner", (), {"__call__": last_first})()):
        with pytest.raises(InputError, match="it has no name; give a function made by def"):
            add_planner(nameless)


def test_whatever_changes_in_its_file_makes_it_another_planner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ionn.planning.planners.PLANNERS", dict(PLANNERS))
    monkeypatch.setattr("ionn.planning.planners._ADDED", {})
    path = tmp_path / "mine.py"
    function = "def counted(graph): return [[stage] for stage in range(COUNT)]\n"
    digests = []
    for constant in ("COUNT = 1", "COUNT = 2", "COUNT = 1"):
        path.write_text(f"{constant}\n{function}")
        digests.append(planner_digest(add_planner(f"{path}:counted")))
    assert digests[0] == digests[2] != digests[1]


LIMIT = 0


def of_closure(value: Any) -> Callable[[Any], Any]:
    def planner(graph: Any) -> Any:
        return [[value]]

    return planner


def of_default(value: Any) -> Callable[[Any], Any]:
    def planner(graph: Any, stage: Any = value) -> Any:
        return [[stage]]

    return planner


def of_keyword(value: Any) -> Callable[[Any], Any]:
    def planner(graph: Any, *, stage: Any = value) -> Any:
        return [[stage]]

    return planner


def of_global(value: Any) -> Callable[[Any], Any]:
    def planner(graph: Any) -> Any:
        return [[LIMIT]]

    global LIMIT
    LIMIT = value
    return planner


def of_global_within(value: Any) -> Callable[[Any], Any]:
    def planner(graph: Any) -> Any:
        return [sorted(range(3), key=lambda stage: abs(LIMIT - stage))]

    global LIMIT
    LIMIT = value
    return planner


def of_array(value: Any) -> Callable[[Any], Any]:
    array = np.zeros(5000)
    array[2500] = value * 1e-15
    return of_closure(array)


def of_function(value: Any) -> Callable[[Any], Any]:
    return of_closure(lambda: value)


@dataclass
class Planning:
    value: Any

    def planner(self, graph: Any) -> Any:
        return [[self.value]]


def of_object(value: Any) -> Callable[[Any], Any]:
    return Planning(value).planner


def of_decorator(value: Any) -> Callable[[Any], Any]:
    def instead(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(function)
        def wrapper(graph: Any) -> Any:
            return [*function(graph), [value]]

        return wrapper

    @instead
    def planner(graph: Any) -> Any:
        return [[0]]

    return planner


def of_unknown_source(value: Any) -> Callable[[Any], Any]:
    names: dict[str, Any] = {}
    exec(f"def planner(graph): return [[stage + {value} for stage in (0,)]]", names)
    made: Callable[[Any], Any] = names["planner"]
    return made


MAKERS = (
    of_closure, of_default, of_keyword, of_global, of_global_within, of_array, of_function, of_object, of_decorator,
    of_unknown_source,
)  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_functions_that_differ_in_a_value_are_different_planners(make: Callable[[Any], Callable[[Any], Any]]) -> None:
    digests = [planner_digest(add_planner(make(value))) for value in (1, 2, 1)]
    assert digests[0] == digests[2] != digests[1]


def test_functions_with_equal_values_are_the_same_planner() -> None:
    first, second = "".join("conv1"), "".join("conv1")
    assert first is not second
    digests = {planner_digest(add_planner(of_closure(value))) for value in ([first, first], [first, second])}
    assert len(digests) == 1


def test_a_function_whose_values_cannot_be_compared_is_always_another_planner() -> None:
    def unset(graph: Any) -> Any:
        return [[later]]

    digests = {planner_digest(add_planner(planner)) for planner in (of_closure(threading.Lock()), unset) * 2}
    assert len(digests) == 4
    later = 0


def test_a_function_is_the_same_planner_in_another_process(tmp_path: Path) -> None:
    """Sets have another order there, and its module was compiled in the first one."""
    (tmp_path / "own.py").write_text("""
import logging, re

KEPT = {"fc6", "fc7", "fc8"}
PAIRS = {frozenset({"conv1", name}) for name in ("conv2", "conv3", "conv4", "conv5")}
LAYER, LOG = re.compile("conv[0-9]"), logging.getLogger("own")

def make(names):
    def planner(graph):
        LOG.info("%s %s", PAIRS, LAYER)
        return [[0] for name in names if name in KEPT or name in {"conv1", "conv2", "conv3"} if "fc6" != "of names"]
    return planner
""")
    program = """
import own
from ionn.planning.planners import add_planner, planner_digest
print(planner_digest(add_planner(own.make(["fc6", "of names", "of names"]))))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    digests = set()
    for seed in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env={**environment, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        digests.add(done.stdout)
    assert len(digests) == 1
    assert (tmp_path / "__pycache__").is_dir()
