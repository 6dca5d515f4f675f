"""The tool that runs the sanitized Caffe: what it reads of the sanitizers, and that every layer type is run."""

from __future__ import annotations

import pytest

from ionn.model.layers import LAYER_TYPES
from tests.sanitize.cases import changed_rows, limits, rows, steps
from tests.sanitize.run import Findings, known
from tests.support.choices import Seeded

UNDEFINED = """noise
/build/src/caffe/layers/pooling_layer.cpp:168:35: runtime error: signed integer overflow: 1 + 2147483647 cannot be
    #0 0x7f98800f793f in caffe::PoolingLayer<float>::Forward_cpu /build/src/caffe/layers/pooling_layer.cpp:168
"""
MEMORY = """=================================================================
==3506==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x61d00066ef80 at pc 0x7fe3763fbf68
READ of size 4 at 0x61d00066ef80 thread T0
    #0 0x7fe3763fbf67 in std::max /usr/include/c++/12/bits/stl_algobase.h:259
    #1 0x7fe3748db0c3 in caffe::caffe_cpu_gemm /build/src/caffe/util/math_functions.cpp:19
"""
CHECK = "F20261127 12:36:23.156975  1860 syncedmem.hpp:25] Check failed: *ptr host allocation of size 8 failed\n"


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        ("", []),
        ("a warning\n", []),
        (UNDEFINED, ["pooling_layer.cpp:168: signed integer overflow"]),
        (MEMORY, ["math_functions.cpp:19: heap-buffer-overflow"]),
        (CHECK, ["syncedmem.hpp:25: Check failed: *ptr host allocation of size 8 failed"]),
        (
            UNDEFINED + MEMORY,
            ["math_functions.cpp:19: heap-buffer-overflow", "pooling_layer.cpp:168: signed integer overflow"],
        ),
    ],
)
def test_what_the_sanitizers_say_is_a_finding(said: str, keys: list[str]) -> None:
    findings = Findings()
    assert findings.read(said, "the net") == bool(keys)
    assert findings.read(said, "another net") == bool(keys)
    assert sorted(findings.reports) == keys
    assert all(findings.times[key] == 2 for key in keys)
    assert all("the net" in report for report in findings.reports.values())


def test_every_layer_type_is_run() -> None:
    kinds = set()
    for seed, text in enumerate(rows()):
        made = steps(Seeded(seed), text)
        assert made is not None, text
        kinds |= {layer.type for layer in made[0].layers}
    assert kinds == set(LAYER_TYPES)


def test_layers_at_the_limits_are_run() -> None:
    assert len(list(limits())) > 10
    assert len(list(changed_rows())) > 1000


def test_what_is_known_has_a_reason() -> None:
    assert all(known().values())
