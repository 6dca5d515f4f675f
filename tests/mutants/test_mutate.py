"""The mutants are what they are said to be, and the lists beside them fit the code."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.mutate import ROOT, Mutator, candidates, path_of
from tests.mutants.suites import GROUPS

CODE = """
def f(a: int = 2, *, b: int | None = None) -> int:
    '''A docstring.'''
    if not (a < 3 and b is None):
        raise ValueError(f"{a + 1}")
    for c in range(a):
        a += -c * 2
        g(a)
    assert a == 1
    return [d for d in (a, True) if d] if a else 1e3
"""
LEFT_ALONE = """
from typing import cast
x: Literal[3]
y = zip(a, b, strict=True)
z = json.dumps(a, indent=1)
print(f"{a + 1}", cast("int", a or b))
plot(a, linewidth=2, **{"alpha": 0.5})
new_figure(3, 4)
"""
CHANGES = [
    "2 -> 2 + 1", "if -> if not", "not ->", "and -> or", "< -> <=", "< -> >=", "3 -> 3 + 1", "is -> is not", "deleted",
    "+= -> -=", "deleted", "* -> /", "- ->", "2 -> 2 + 1", "deleted", "return None", "if -> if not", "if -> if not #2",
    "True -> False", "1e3 -> 1e3 * 2",
]  # fmt: skip


def test_what_is_changed() -> None:
    assert sorted(mutant.change for mutant in Mutator("example", CODE).mutants) == sorted(CHANGES)


def test_what_is_left_alone() -> None:
    """But the statements are, which call functions for what they do."""
    changes = [mutant.change for mutant in Mutator("example", LEFT_ALONE).mutants]
    assert changes == ["deleted"] * 3
    late = "late = time.monotonic() > end"
    assert [mutant.change for mutant in Mutator("example", late).mutants] == ["> -> <="]
    style = "WIDTH = 4\ndef f():\n    return WIDTH + 1\n"
    assert [mutant.line for mutant in Mutator("evaluation/style", style).mutants] == [3, 3, 3]


@pytest.mark.parametrize("module", [module for modules in GROUPS.values() for module in modules])
def test_mutants_are_other_programs(module: str) -> None:
    source = path_of(module).read_text(encoding="utf-8")
    mutants = Mutator(module, source).mutants[::20]
    assert mutants
    programs = {ast.dump(ast.parse(source[: mutant.begin] + mutant.new + source[mutant.end :])) for mutant in mutants}
    assert ast.dump(ast.parse(source)) not in programs


def test_equivalent_mutants_exist() -> None:
    assert set(candidates([])) == set(GROUPS)  # exits if an entry matches nothing


@pytest.mark.parametrize("tests", {tuple(tests) for modules in GROUPS.values() for tests in modules.values()})
def test_the_tests_of_modules_exist(tests: tuple[str, ...]) -> None:
    assert all((ROOT / "tests" / name).is_file() for name in tests)
