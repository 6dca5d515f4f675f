"""How outputs are compared, by what both ends say of themselves; and what is said of it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.client.offloading import Offloading
from ionn.evaluation.page import _outputs
from ionn.evaluation.report import make_report
from ionn.evaluation.summary import summary
from ionn.model import engine
from ionn.model.comparison import (
    TOLERANCE,
    Numerics,
    OutputCheck,
    difference,
    largest_difference,
    unsteady_layer,
)
from ionn.planning.graph import ExecutionGraph
from ionn.records import Outputs, QueryRecord
from ionn.testbed.trace import Trace
from tests.support.chains import chain
from tests.support.nets import network_of
from tests.support.runs import make_trace

HERE = Numerics("x86_64", "OpenBLAS 0.3.21", "Haswell", 1, "1.0.0", "glibc 2.36")
OTHERS = [
    dataclasses.replace(HERE, architecture="aarch64"),
    dataclasses.replace(HERE, blas="OpenBLAS 0.3.20"),
    dataclasses.replace(HERE, kernels="neoversen1"),
    dataclasses.replace(HERE, threads=2),
    dataclasses.replace(HERE, caffe="1.0.1"),
    dataclasses.replace(HERE, libm="glibc 2.35"),
]


# --- What is compared, and why ----------------------------------------------------------------------------------------


def test_the_same_numerics_have_the_same_bits() -> None:
    check = OutputCheck(HERE, (HERE,))
    assert check.tolerance == 0
    assert str(check) == (
        "bit for bit: both compute with OpenBLAS 0.3.21 Haswell (1 thread, Caffe 1.0.0, glibc 2.36, x86_64)"
    )
    assert str(OutputCheck(HERE)) == "bit for bit: no server took part"


@pytest.mark.parametrize("other", [*OTHERS, None])
@pytest.mark.parametrize("before", [(), (HERE,)])
def test_whatever_differs_the_tolerance_applies(other: Numerics | None, before: tuple[Numerics, ...]) -> None:
    check = OutputCheck(HERE, (*before, other))
    assert check.tolerance == TOLERANCE
    said = "what it does not say" if other is None else str(other)
    first = f"{HERE}, later with " if before else ""
    assert str(check) == (
        f"within 0.001 of the largest value: the server computes with {first}{said}, this machine with {HERE}"
    )


@pytest.mark.parametrize(
    ("layer", "shape", "type_"),
    [
        ("Normalize norm_param { across_spatial: false }", "dim: 1 dim: 4 dim: 5 dim: 5", "Normalize"),
        ("Reduction reduction_param { operation: ASUM axis: 1 }", "dim: 1 dim: 9", "Reduction"),
        ("Reduction reduction_param { operation: SUMSQ axis: 1 }", "dim: 1 dim: 9", ""),
        ("ReLU", "dim: 1 dim: 9", ""),
    ],
)
def test_layers_whose_bits_vary_on_one_machine(layer: str, shape: str, type_: str) -> None:
    network = network_of(layer, shape=shape)
    found = unsteady_layer(network)
    assert (found.type if found else "") == type_
    n = len(network.stages)
    graph: ExecutionGraph = chain([1.0] * n, [1.0] * n, [1.0] * n, [1.0] * (n + 1))
    check = Offloading(network, engine.new_network(network), graph).output_check
    assert check == OutputCheck(engine.numerics(), (), type_)
    assert check.tolerance == (TOLERANCE if type_ else 0)
    if type_:
        same = dataclasses.replace(check, servers=(check.client,))
        assert same.reason == f"layers of type {type_} have other last bits from process to process"


def test_a_process_says_what_it_computes_with() -> None:
    here = engine.numerics()
    assert f"{here.blas} " in engine.blas()
    assert here.kernels.lower() in engine.blas().lower()
    assert here.threads == 1
    assert all(getattr(here, field.name) for field in dataclasses.fields(here))


def test_the_tolerance_is_what_the_docs_say_and_leaves_room() -> None:
    """Five times the largest of the measured differences."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "two-machines.md").read_text(encoding="utf-8")
    measured = re.findall(r"^\| (\w+) \| (\S+e-\d+) \| (\S+e-\d+) \|$", page, re.MULTILINE)
    assert tuple(name for name, *_ in measured) == ("alexnet", "inception", "resnet", "googlenet", "mobilenet")
    worst = max(float(value) for _, *values in measured for value in values)
    assert 5 * worst <= TOLERANCE <= 10 * worst
    assert f"within {TOLERANCE:g} of the output's largest value" in page


# --- What the outputs were --------------------------------------------------------------------------------------------


def query(bit_equal: bool | None, off: float = 0.0, tolerance: float | None = 0.0) -> QueryRecord:
    return QueryRecord(0, 0.0, 0.0, 1.0, (), bit_equal=bit_equal, difference=off, tolerance=tolerance)


@pytest.mark.parametrize(
    ("record", "right"),
    [
        (query(None), None),
        (query(True), True),
        (query(True, tolerance=1e-4), True),
        (query(False, 1e-9), False),
        (query(False, 0.0), False),  # the sign of a zero
        (query(False, 0.0, 1e-4), True),
        (query(False, 1e-4, 1e-4), True),
        (query(False, 1.01e-4, 1e-4), False),
    ],
)
def test_whether_an_output_is_right(record: QueryRecord, right: bool | None) -> None:
    assert record.is_right is right


@pytest.mark.parametrize(
    ("queries", "found", "said"),
    [
        ([], Outputs(0, 0, 0, 0.0, None), "not computed"),
        ([query(None)], Outputs(0, 0, 0, 0.0, None), "not computed"),
        ([query(True), query(True, tolerance=1e-4)], Outputs(2, 2, 0, 0.0, 1e-4), "bit-equal"),
        ([query(True), query(False, 3e-7, 1e-4)], Outputs(2, 1, 0, 3e-7, 1e-4), "within 3e-07"),
        ([query(None), query(False, 2e-6)], Outputs(1, 0, 1, 2e-6, 0.0), "WRONG, off by 2e-06"),
        # What is said of the wrong ones is not of those that are right.
        ([query(False, 3e-7, 1e-4), query(False, 2e-8)], Outputs(2, 0, 1, 2e-8, 1e-4), "WRONG, off by 2e-08"),
        # A trace of an earlier version does not say by how much they may differ.
        ([query(True, 0.0, None), query(False, 2e-6, None)], Outputs(2, 1, 0, 2e-6, None), "differ by 2e-06"),
    ],
)  # fmt: skip
def test_the_outputs_of_queries(queries: list[QueryRecord], found: Outputs, said: str) -> None:
    assert Outputs.of(queries) == found
    assert str(found) == said


@given(st.lists(st.tuples(st.floats(-10, 10, width=32), st.floats(-10, 10, width=32)), min_size=1, max_size=9))
def test_the_largest_difference_is_that_of_one_of_them(pairs: list[tuple[float, float]]) -> None:
    got = [np.array([one, 1], np.float32) for one, _ in pairs]
    wanted = [np.array([other, 1], np.float32) for _, other in pairs]
    assert largest_difference(got, wanted) == max(map(difference, got, wanted))
    assert largest_difference([], []) == 0


# --- What is kept and told of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("servers", [(), (HERE,), (HERE, OTHERS[0]), (None,)])
def test_a_trace_has_the_comparison(servers: tuple[Numerics | None, ...], tmp_path: Path) -> None:
    made = make_trace(testbed="live", bit_equal=False, difference=3e-7, tolerance=1e-4)
    check = OutputCheck(HERE, servers, "Normalize")
    made = dataclasses.replace(made, info=dataclasses.replace(made.info, output_check=check))
    made.save(path := tmp_path / "run.jsonl")
    loaded = Trace.load(path)
    assert loaded == made
    assert loaded.info.output_check == check
    assert loaded.outputs == Outputs(9, 0, 0, 3e-7, 1e-4)


def test_the_page_and_the_report_say_what_was_compared() -> None:
    equal = make_trace(testbed="live", bit_equal=True)
    near = make_trace("efficiency", testbed="live", bit_equal=False, difference=3e-7, tolerance=1e-4)
    near = dataclasses.replace(near, info=dataclasses.replace(near.info, output_check=OutputCheck(HERE, (OTHERS[0],))))
    wrong = make_trace("original", testbed="live", bit_equal=False, difference=2e-3, tolerance=1e-4)
    start = "outputs that were computed are those of the whole net at the client"
    assert _outputs(summary([make_trace()])) == ""
    assert _outputs(summary([equal])) == f"All 9 {start}, bit for bit."
    assert _outputs(summary([equal, near])) == (
        f"All 18 {start}: 9 bit for bit, and the others, for which a server with other last bits computed, within "
        "0.0001 of the largest value (at most 3e-07)."
    )
    assert _outputs(summary([near, wrong])) == "9 of 18 outputs are not those of the whole net at the client."
    (section,) = [part for part in make_report([equal, near]).sections if part.title == "Where the runs were made"]
    (said,) = [value for _, what, value in section.rows if what == "outputs compared"]
    assert said == str(near.info.output_check)
