"""A fluid link on which features are given up and partitions are replaced while the clock goes on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.testbed.bandwidth import Steps
from ionn.testbed.fluid_link import Crossing, FluidLink


def link(works_ms: list[float], rates: tuple[float, ...] = (1.0,), begins: tuple[float, ...] = (0.0,)) -> FluidLink:
    made = FluidLink(Steps(begins, rates))
    made.upload(works_ms)
    return made


def test_features_that_are_given_up_go_on_beside_the_upload() -> None:
    slow = link([20.0, 10.0])
    assert slow.send_up(2.0, 8.0, until_ms=6.0) == Crossing(math.inf, math.inf)
    # 2 of the upload alone, then 2 of each; the features' other 6 take until 18, beside 6 of the upload.
    assert (slow.now_ms, slow.sent_ms, slow.features_left_ms) == (6.0, 4.0, None)
    slow.advance(17.0)
    assert slow.features_left_ms is None
    slow.advance(20.0)
    assert slow.features_left_ms == 18.0
    assert slow.sent_ms == 12.0
    slow.advance(100.0)
    assert slow.left_ms == [28.0, 38.0]
    assert not slow.uploading


def test_partitions_that_have_not_begun_are_replaced() -> None:
    uplink = link([10.0, 20.0, 30.0])
    assert uplink.begun == 0
    uplink.replace_rest([4.0, 4.0, 9.0])
    uplink.advance(5.0)
    assert uplink.begun == 2
    assert uplink.unsent_ms() == [3.0, 9.0]
    uplink.replace_rest([1.0])
    uplink.advance(100.0)
    assert uplink.left_ms == [4.0, 8.0, 9.0]
    assert uplink.begun == 3
    uplink.replace_rest([7.0])
    uplink.finish_next(until_ms=103.0)
    assert uplink.now_ms == 103.0
    uplink.finish_next()
    assert uplink.left_ms[-1] == 107.0


@given(
    st.lists(st.integers(1, 30).map(float), max_size=5),
    st.integers(0, 20).map(float),
    st.integers(1, 60).map(float),
    st.lists(st.integers(0, 200).map(float), max_size=5),
    st.floats(0.1, 10),
)
def test_giving_up_changes_nothing_on_the_link(
    works_ms: list[float], at_ms: float, features_ms: float, steps_ms: list[float], rate: float
) -> None:
    """Whether somebody waits for the features, and how often the clock stops, is all the same to what crosses."""
    rates, begins = (1.0, rate), (0.0, 25.0)
    patient, hasty = link(works_ms, rates, begins), link(works_ms, rates, begins)
    patient.send_up(at_ms, features_ms)
    hasty.send_up(at_ms, features_ms, until_ms=at_ms)
    for until_ms in sorted(steps_ms):
        if until_ms > hasty.now_ms:
            hasty.advance(until_ms)
    for each in (patient, hasty):
        each.advance(5000.0)
    assert hasty.features_left_ms == pytest.approx(patient.features_left_ms)
    assert hasty.left_ms == pytest.approx(patient.left_ms)
    assert hasty.sent_ms == pytest.approx(sum(works_ms))
