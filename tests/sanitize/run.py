"""Caffe with AddressSanitizer and UBSan, given what strangers may upload and ask. `make sanitize` runs this.

    .venv/bin/python -m tests.sanitize.run --caffe build/sanitized/lib --nets 10000 --limit-s 600

Every net is uploaded to a `SessionState` in a process that has the sanitized Caffe, and queried there. Half of the nets
are single layers with extreme parameters, shapes and numbers, type after type; a quarter are mutated prototxts of the
fuzz tests; the others are those of tests/integration/test_answers.py. Exit 1: there is a finding that is not in
known.txt, a layer type that did not run, or the build does not find faults that are made on purpose.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from ionn.model.layers import LAYER_TYPES
from ionn.protocol import messages
from tests.fuzz.strategies import prototxts
from tests.integration.test_answers import check_case, check_stranger
from tests.sanitize.cases import ROWS, changed_rows, extreme, limits, rows, steps
from tests.support.choices import Seeded
from tests.support.oracle import Oracle
from tests.support.remote import ROOT, DiedError
from tests.support.schedules import are_exact
from tests.support.session_process import Sessions

KNOWN = Path(__file__).with_name("known.txt")
REPORT = ROOT / "results" / "sanitize" / "report.txt"

# What the probes of a build that is sanitized say (tests/sanitize/probe.py).
PROBES = {
    "read": ("use-after-poison", "relu_layer.cpp"),
    "blas": ("use-after-poison", "__wrap_cblas_sgem"),
    "overflow": ("signed integer overflow", "conv_layer.cpp"),
}

_PLACE = r"(?:\S*/)?(?P<file>[\w.]+):(?P<line>\d+)(?::\d+)?"
_UNDEFINED = re.compile(rf"^{_PLACE}: runtime error: (?P<what>.*)$", re.MULTILINE)
_MEMORY = re.compile(r"^==\d+==\s?ERROR: AddressSanitizer: (?P<what>[\w-]+)", re.MULTILINE)
_FRAME = re.compile(rf"^ +#\d+ 0x\w+ in .*/(?:src|include)/caffe/{_PLACE}", re.MULTILINE)
_CHECK = re.compile(rf"^F\d+ .* {_PLACE}\] (?P<what>.*)$", re.MULTILINE)


def sanitized(caffe: Path) -> dict[str, str]:
    """The environment of a process that loads Caffe from this folder."""
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    asan = {
        "detect_leaks": 0,  # Python leaves much to the system when it ends
        "detect_stack_use_after_return": 1,
        "strict_string_checks": 1,
        "redzone": 512,  # on either side of a block: what is far outside is found, too
        "max_malloc_fill_size": 2**31,  # what is not written yet is nonsense, so results differ that depend on it
        "max_allocation_size_mb": 2000,  # as the default of --memory-mb
        "allocator_may_return_null": 1,
    }
    return {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": str(caffe),
        "ASAN_OPTIONS": ":".join(f"{name}={value}" for name, value in asan.items()),
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "MALLOC_PERTURB_": "0",
    }


def located(said: str) -> str:
    """What the sanitizers say, with source lines where they know none, as of what is compiled in batches."""

    def line(match: re.Match[str]) -> str:
        command = ["addr2line", "--inlines", "--exe", match["library"], match["address"]]
        inner, *outer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
        return next((place for place in (inner, *outer) if "/caffe/" in place), inner)

    return re.sub(r"\((?P<library>\S*/_caffe\S*)\+(?P<address>0x[0-9a-f]+)\)", line, said)


def probe(environment: dict[str, str]) -> list[str]:
    """What is wrong with a build: the probes whose fault it does not report."""
    wrong = []
    for name, words in PROBES.items():
        command = [sys.executable, "-m", "tests.sanitize.probe", name]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
        )
        said = located(done.stderr)
        if not all(word in said for word in words):
            wrong.append(f"the build is not sanitized: it did not report the fault {name!r}, but said:\n{said[-2000:]}")
    return wrong


@dataclass
class Findings:
    """What was found, by its place and kind; with a report, the net that showed it first, and how often."""

    reports: dict[str, str] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)

    def add(self, key: str, report: str, case: str) -> None:
        self.times[key] += 1
        if key not in self.reports:
            self.reports[key] = f"{report.strip()}\n\n{case.strip()}\n"
            print(f"found: {key}", flush=True)

    def read(self, said: str, case: str) -> bool:
        """Add what the process said; whether there was something."""
        found = list(_UNDEFINED.finditer(said))
        for each in found:
            what = re.split(r"[:,]| -?\d", each["what"])[0]
            self.add(f"{each['file']}:{each['line']}: {what}", said[each.start() :][:3000], case)
        for each in (*_MEMORY.finditer(said), *_CHECK.finditer(said)):
            found.append(each)
            frame = _FRAME.search(said, each.start()) if each.re is _MEMORY else each
            place = f"{frame['file']}:{frame['line']}" if frame else "elsewhere"
            self.add(f"{place}: {each['what'].split(' (')[0]}", said[each.start() :][:6000], case)
        return bool(found)


class Judge:
    """Sessions with the sanitized Caffe, and with the ordinary one, which must answer the same."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._log = log
        self._file = log.open("ab")
        self.findings = Findings()
        self.nets: Counter[str] = Counter()  # that ran, by layer type
        self.cases: Counter[str] = Counter()  # by kind of case
        self._sanitized = Sessions(environment, self._file)
        self._ordinary = Sessions()
        self._oracle = Oracle()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exception: object) -> None:
        for remote in (self._sanitized, self._ordinary, self._oracle):
            remote.__exit__(*exception)
        self._file.close()

    def stranger(self, name: str, seed: int, text: str) -> None:
        """Upload and query this net in some way."""
        made = steps(Seeded(seed), text)
        if made is None:
            return
        network, expected = made
        asked = [step.step for step in expected]

        def run() -> None:
            answers = self._sanitized.answers(asked)
            for step, frames in zip(expected, answers, strict=True):
                step.check(frames)
            if are_exact(network.layers):
                _compare(answers, self._ordinary.answers(asked))
            self.nets.update({layer.type for layer in network.layers})
            self.cases[name] += 1

        self._watch(run, [text, *(step.what for step in expected)])

    def generated(self, seed: int, stranger: bool) -> None:
        case: list[str] = []

        def run() -> None:
            if stranger:
                check_stranger(Seeded(seed), self._oracle, self._sanitized, case.append, nearly=True)
                self.cases["generated nets in stages anywhere"] += 1
            else:
                network = check_case(Seeded(seed), self._oracle, self._sanitized, case.append, nearly=True)
                self.nets.update({layer.type for layer in network.layers} if network else ())
                self.cases["generated nets"] += 1

        self._watch(run, case)

    def _watch(self, run: Callable[[], None], case: list[str]) -> None:
        before = self._log.stat().st_size
        failure = ""
        try:
            run()
        except (DiedError, AssertionError) as error:
            failure = f"{type(error).__name__}: {error}"
        with self._log.open("rb") as log:
            log.seek(before)
            said = located(log.read().decode(errors="replace"))
        if not self.findings.read(said, "\n".join(case)) and failure:
            self.findings.add(failure.splitlines()[0][:150], f"{failure}\n{said[-3000:]}", "\n".join(case))


def _compare(sanitized: list[list[bytes]], ordinary: list[list[bytes]]) -> None:
    """The same values, whatever the compiler made of the code and whatever is in memory that was not written."""
    for mine, other in zip(sanitized, ordinary, strict=True):
        if not mine or not isinstance(messages.decode(mine), messages.Result):
            continue
        for got, want in zip(mine[1:], other[1:], strict=True):
            values, others = np.frombuffer(got, np.float32), np.frombuffer(want, np.float32)
            if not np.array_equal(values, others, equal_nan=True):
                different = (values != others) & ~(np.isnan(values) & np.isnan(others))
                at = int(np.flatnonzero(different)[0])
                raise AssertionError(f"other values than the ordinary build: {values[at]} for {others[at]}")


def mutated(number: int, first: int) -> list[str]:
    """So many mutated prototxts, of the fuzz tests' strategy."""
    texts: list[str] = []

    @seed(first)
    @settings(max_examples=number, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(prototxts())
    def collect(text: str) -> None:
        texts.append(text)

    collect()
    return texts


def cases(judge: Judge, nets: int, first: int) -> Iterator[None]:
    """Run case after case."""
    for number, text in enumerate(rows()):
        judge.stranger("rows of the table's tests", number, text)
        yield
    for number, text in enumerate(limits()):
        judge.stranger("layers as large as Caffe can count", number, text)
        yield
    for number, text in enumerate(changed_rows()):
        judge.stranger("rows with an extreme parameter", number, text)
        yield
    kinds = cycle(sorted(kind for kind in LAYER_TYPES if ROWS[kind]))
    seeds = count(first << 32)
    texts = iter(mutated(max(nets // 4, 1), first))  # many are refused
    for number in range(nets):
        match number % 8:
            case 6:
                judge.generated(next(seeds), stranger=False)
            case 7:
                judge.generated(next(seeds), stranger=True)
            case 2 | 5:
                judge.stranger("mutated prototxts", number, next(texts, ""))
            case _:
                kind = next(kinds)
                made = (extreme(Seeded(seed), kind) for seed in seeds)
                judge.stranger("extreme layers", number, next(filter(None, made)))
        yield


def known() -> dict[str, str]:
    """The findings that are harmless, with their reasons."""
    lines = (line for line in KNOWN.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    return {key: reason for key, _, reason in (line.partition(" | ") for line in lines)}


def report(judge: Judge, wrong: list[str], took_s: float) -> str:
    lines = [f"{sum(judge.cases.values())} nets in {took_s:.0f} s"]
    lines += [f"{number:>6} {name}" for name, number in sorted(judge.cases.items())]
    lines += ["", "nets with each layer type:"]
    lines += [f"{judge.nets[kind]:>6} {kind}" for kind in sorted(LAYER_TYPES)]
    reasons = known()
    for key, text in sorted(judge.findings.reports.items()):
        lines += ["", f"--- {key}, {judge.findings.times[key]} times"]
        lines += [f"known: {reasons[key]}"] if key in reasons else [text]
    return "\n".join([*lines, "", *wrong, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="Look for memory errors and undefined behaviour in Caffe.")
    parser.add_argument("--caffe", type=Path, required=True, help="the folder with the sanitized package")
    parser.add_argument("--nets", type=int, default=10_000)
    parser.add_argument("--limit-s", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    environment = sanitized(arguments.caffe)
    wrong = probe(environment)
    if wrong:
        sys.exit("\n".join(wrong))
    begin_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="ionn-sanitize-") as folder,
        Judge(environment, Path(folder, "said")) as judge,
    ):
        for _ in cases(judge, arguments.nets, arguments.seed):
            if time.monotonic() - begin_s > arguments.limit_s:
                print("the time is over", flush=True)
                break
    missing = sorted(kind for kind in LAYER_TYPES if not judge.nets[kind])
    if missing:
        wrong.append(f"these layer types did not run: {', '.join(missing)}")
    new = sorted(judge.findings.reports.keys() - known().keys())
    wrong += [f"found, and not in {KNOWN.name}: {key}" for key in new]
    said = report(judge, wrong, time.monotonic() - begin_s)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(said, encoding="utf-8")
    print(said)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
