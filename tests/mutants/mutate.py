"""How strong are the tests? Small faults are put into the code, one at a time; the tests must notice: `make mutants`.

    python -m tests.mutants.mutate --mutants 300 --seed 0 [--modules graph wire ...]

A mutant is the code with one operator, number, statement or branch changed. Each of a seeded sample, the same number of
every group, meets the tests that suites.py names for its module, in a copy of this tree. It is killed if one of them
fails, or takes far too long. What survives is printed with its change; the exit code is 1 where less than 95 % of a
group was killed. equivalent.txt lists mutants that no test could notice, as the lines that are printed here:

    module | text of the line | change | why nothing can notice it
"""

from __future__ import annotations

import argparse
import ast
import bisect
import contextlib
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.mutants.suites import GROUPS

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
LEAST = 0.95
# A mutant may loop for ever: it has so many times the time that its tests take without it, and so much more.
PATIENCE = 3
MORE_S = 15.0

COMPARISONS = {
    ast.Lt: ("<", ["<=", ">="]), ast.LtE: ("<=", ["<", ">"]), ast.Gt: (">", [">=", "<="]), ast.GtE: (">=", [">", "<"]),
    ast.Eq: ("==", ["!="]), ast.NotEq: ("!=", ["=="]), ast.Is: ("is", ["is not"]), ast.IsNot: ("is not", ["is"]),
    ast.In: ("in", ["not in"]), ast.NotIn: ("not in", ["in"]),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitOr: ("|", "&"), ast.BitAnd: ("&", "|"), ast.BitXor: ("^", "|"),
    ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
}  # fmt: skip


# What Mutator leaves alone, for the reasons that it gives.
STYLE = "evaluation/style"
LOOKS = {"alpha", "bbox_to_anchor", "capsize", "fontsize", "length", "linewidth", "markersize", "ncols"}
UNCHANGED_ARGUMENTS = LOOKS | {"indent", "strict"}
UNCHANGED_CALLS = {"cast", "TypeVar", "new_figure", "axes.text"}
CLOCKS = {"time.monotonic", "time.perf_counter"}


class Mutant(NamedTuple):
    module: str
    begin: int  # in the module's text
    end: int
    new: str
    line: int
    text: str  # of the line
    change: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.module, self.text, self.change


class Mutator(ast.NodeVisitor):
    """Finds what can be changed in a module.

    Some kinds of code are left alone, as no test of behaviour could notice, wherever they occur:

    - what is only said to mypy: annotations, casts, and imports for them;
    - assertions, which hold wherever the code is right: `assert`, and zip's `strict`, which is one;
    - texts: the values in an f-string are written for people, and JSON is the same however it is indented;
    - how a figure looks: the constants of evaluation/style, a figure's size, where a text stands, and what LOOKS names;
    - which of the two false values, False and None, a function returns (False also becomes True);
    - whether a comparison with a clock includes the instant itself, which no reading of a clock meets on purpose.
    """

    def __init__(self, module: str, source: str) -> None:
        self._module = module
        self._source = source
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self.mutants: list[Mutant] = []
        self.visit(ast.parse(source))

    def _at(self, line: int, column: int) -> int:
        """The place in the text of what Python names by a line and a column in UTF-8 bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _begin(self, node: ast.expr | ast.stmt) -> int:
        return self._at(node.lineno, node.col_offset)

    def _end(self, node: ast.expr | ast.stmt) -> int:
        return self._at(node.end_lineno or 0, node.end_col_offset or 0)

    def _change(self, begin: int, end: int, new: str, change: str) -> None:
        line = bisect.bisect_right(self._starts, begin)
        text = self._lines[line - 1].strip()
        # The same change may be possible at several places of a line.
        again = sum(m.line == line and m.change.partition(" #")[0] == change for m in self.mutants)
        name = f"{change} #{again + 1}" if again else change
        self.mutants.append(Mutant(self._module, begin, end, new, line, text, name))

    def _operator(self, left: ast.expr | ast.stmt, right: ast.expr, old: str, new: str) -> None:
        """Change the operator between two operands."""
        begin, end = self._end(left), self._begin(right)
        words = r"\s+".join(map(re.escape, old.split()))
        match = re.search(rf"(?<!\w){words}(?!\w)" if old[0].isalpha() else re.escape(old), self._source[begin:end])
        assert match is not None, (self._module, old, self._source[begin:end])
        # A bar would look like the end of a column of equivalent.txt.
        change = f"{old} -> {new}".replace("|", "bar")
        self._change(begin + match.start(), begin + match.end(), new, change)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            old, news = COMPARISONS[type(op)]
            if _reads_clock(left) or _reads_clock(right):
                news = news[-1:]
            for new in news:
                self._operator(left, right, old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC:
            self._operator(node.left, node.right, *ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in ARITHMETIC:
            old, new = ARITHMETIC[type(node.op)]
            self._operator(node.target, node.value, f"{old}=", f"{new}=")
        self._delete(node)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._operator(left, right, old, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            old = "not" if isinstance(node.op, ast.Not) else "-"
            self._change(self._begin(node), self._begin(node) + len(old), "", f"{old} ->")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._change(self._begin(node), self._end(node), str(not node.value), f"{node.value} -> {not node.value}")
        elif isinstance(node.value, int | float):
            old = self._source[self._begin(node) : self._end(node)]
            # One more makes no difference to a million, where it is a factor and not a count.
            new = f"{old} * 2" if isinstance(node.value, float) and node.value >= 1000 else f"{old} + 1"
            self._change(self._begin(node), self._end(node), f"({new})", f"{old} -> {new}")

    def _negate(self, test: ast.expr) -> None:
        text = self._source[self._begin(test) : self._end(test)]
        self._change(self._begin(test), self._end(test), f"(not ({text}))", "if -> if not")

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self._negate(node.test)
            self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def _delete(self, node: ast.stmt) -> None:
        self._change(self._begin(node), self._end(node), "pass", "deleted")

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self._delete(node)
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._delete(node)  # what it says is not changed

    visit_Continue = visit_Break = _delete

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and ast.unparse(node.value) not in ("None", "False"):
            self._change(self._begin(node), self._end(node), "return None", "return None")
        self.generic_visit(node)

    def visit_Assert(self, node: ast.AST) -> None:
        """They tell mypy what is so."""

    visit_Import = visit_ImportFrom = visit_JoinedStr = visit_Assert

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Module(self, node: ast.Module) -> None:
        for statement in node.body:
            if self._module != STYLE or isinstance(statement, ast.FunctionDef):
                self.visit(statement)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """The arguments' defaults and the body; not the annotations."""
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        for statement in node.body:
            self.visit(statement)

    visit_FunctionDef = visit_AsyncFunctionDef = _visit_function

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) not in UNCHANGED_CALLS:
            self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in UNCHANGED_ARGUMENTS:
            self.visit(node.value)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None:
                self.visit(key)
            if not (isinstance(key, ast.Constant) and key.value in LOOKS):
                self.visit(value)


def _reads_clock(node: ast.expr) -> bool:
    names = {ast.unparse(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)}
    return bool(names & CLOCKS)


def equivalents() -> Iterator[tuple[str, str, str]]:
    for line in EQUIVALENT.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            module, *text, change, reason = (part.strip() for part in line.split(" | "))
            if not (text and reason):
                sys.exit(f"{EQUIVALENT.name}: not 'module | line | change | reason': {line}")
            yield module.removeprefix("ionn/").removesuffix(".py"), " | ".join(text), change


def candidates(wanted: list[str]) -> dict[str, list[Mutant]]:
    """The mutants of each group. Exits if equivalent.txt names some that are none."""
    found = {
        group: [
            mutant
            for module in modules
            if not wanted or module in wanted
            for mutant in Mutator(module, path_of(module).read_text(encoding="utf-8")).mutants
        ]
        for group, modules in GROUPS.items()
    }
    known = set(equivalents())
    stale = known - {mutant.key for mutants in found.values() for mutant in mutants}
    stale = {entry for entry in stale if not wanted or entry[0] in wanted}
    for entry in sorted(stale):
        print(f"{EQUIVALENT.name}: no longer there: {' | '.join(entry)}")
    if stale:
        sys.exit(2)
    return {group: [m for m in mutants if m.key not in known] for group, mutants in found.items() if mutants}


def path_of(module: str, root: Path = ROOT) -> Path:
    return root / "ionn" / f"{module}.py"


class Copy:
    """A copy of this tree, one mutant at a time in it."""

    def __init__(self, folder: Path) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        self._root = folder / "ionn"
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self._root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self._root / name)
        for weights in (ROOT / "models").glob("*.caffemodel"):
            (self._root / "models" / weights.name).symlink_to(weights)
        self._home = folder / "home"
        self._home.mkdir()
        # Python takes a compiled file for that of a source by size and time in seconds: no two sources have one time.
        self._time_s = int(time.time())

    def _write(self, module: str, source: str) -> None:
        path = path_of(module, self._root)
        path.write_text(source, encoding="utf-8")
        self._time_s += 1
        os.utime(path, (self._time_s, self._time_s))

    def test(self, tests: list[str], limit_s: float | None) -> tuple[bool, float, str]:
        """Whether the tests passed, how long they took, and the end of what they said."""
        command = [
            sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile", "mutants",
            *(f"tests/{name}" for name in tests),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(self._root), "TMPDIR": str(self._home)}
        begin_s = time.monotonic()
        process = subprocess.Popen(
            command, cwd=self._root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            said = "took too long"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return process.returncode == 0, time.monotonic() - begin_s, said[-2000:]

    def survives(self, mutant: Mutant, limit_s: float) -> bool:
        source = path_of(mutant.module).read_text(encoding="utf-8")
        changed = source[: mutant.begin] + mutant.new + source[mutant.end :]
        ast.parse(changed)  # what is no program would be killed by any test
        self._write(mutant.module, changed)
        try:
            return self.test(tests_of(mutant.module), limit_s)[0]
        finally:
            self._write(mutant.module, source)


def tests_of(module: str) -> list[str]:
    return next(modules[module] for modules in GROUPS.values() if module in modules)


def describe(mutant: Mutant) -> str:
    source = path_of(mutant.module).read_text(encoding="utf-8")
    begin = source.rfind("\n", 0, mutant.begin) + 1
    end = source.find("\n", mutant.end)
    old = source[begin:end].splitlines()
    new = (source[begin : mutant.begin] + mutant.new + source[mutant.end : end]).splitlines()
    lines = [f"ionn/{mutant.module}.py:{mutant.line}", *(f"    -{line}" for line in old)]
    lines += [*(f"    +{line}" for line in new), f"    {' | '.join(mutant.key)} | "]
    return "\n".join(lines)


def sample(found: dict[str, list[Mutant]], count: int, seed: int) -> dict[str, list[Mutant]]:
    """So many in all, and the same number of each group as far as it has them."""
    rng = random.Random(seed)
    return {group: rng.sample(mutants, min(len(mutants), -(-count // len(found)))) for group, mutants in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the small faults that the tests notice.")
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--modules", nargs="*", default=[], help="only these, for example graph planners/original")
    arguments = parser.parse_args()
    chosen = sample(candidates(arguments.modules), arguments.mutants, arguments.seed)
    mutants = [mutant for group in chosen.values() for mutant in group]
    modules = sorted({mutant.module for mutant in mutants})
    print(f"{len(mutants)} mutants of {len(modules)} modules, seed {arguments.seed}", flush=True)

    with tempfile.TemporaryDirectory(prefix="ionn-mutants-") as folder:
        copies: queue.Queue[Copy] = queue.Queue()
        for index in range(arguments.workers):
            copies.put(Copy(Path(folder) / str(index)))
        lock = threading.Lock()
        limits_s: dict[tuple[str, ...], float] = {}

        def baseline(tests: tuple[str, ...]) -> None:
            copy = copies.get()
            passed, took_s, said = copy.test(list(tests), None)
            copies.put(copy)
            if not passed:
                sys.exit(f"without a mutant, {' '.join(tests)} fail:\n{said}")
            limits_s[tests] = PATIENCE * took_s + MORE_S

        survivors: set[Mutant] = set()

        def attempt(mutant: Mutant) -> None:
            copy = copies.get()
            survived = copy.survives(mutant, limits_s[tuple(tests_of(mutant.module))])
            copies.put(copy)
            if survived:
                with lock:
                    survivors.add(mutant)
                    print(describe(mutant), flush=True)

        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(baseline, {tuple(tests_of(module)) for module in modules}))
            list(pool.map(attempt, random.Random(0).sample(mutants, len(mutants))))

    print(f"\n{'module':<28} {'mutants':>7} {'killed':>6} {'survived':>8}")
    total, left = (Counter(mutant.module for mutant in some) for some in (mutants, survivors))
    for module in modules:
        print(f"{module:<28} {total[module]:>7} {total[module] - left[module]:>6} {left[module]:>8}")
    weak = False
    for group, some in chosen.items():
        killed = 1 - sum(mutant in survivors for mutant in some) / len(some)
        weak |= killed < LEAST
        print(f"{group:<28} {killed:>7.1%} of {len(some)} killed{'' if killed >= LEAST else ': too few'}")
    sys.exit(weak)


if __name__ == "__main__":
    main()
