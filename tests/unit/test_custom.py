"""Planners of the user's own, in this process: how they are found, and which plans of theirs are refused and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
