"""The virtual testbed's link by itself: the tests of the virtual testbed have the rest."""

from __future__ import annotations

import math

from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.delay import Delay
from ionn.testbed.fluid_link import Crossing, FluidLink

CONSTANT = Bandwidth.constant(80.0).work_ms(80.0)


def test_an_allowance_is_used_up_alone_and_beside_features() -> None:
    link = FluidLink(CONSTANT)
    link.upload([100.0, 10.0])
    link.allowance_ms = 30.0
    link.advance(20.0)
    assert link.allowance_ms == 10.0
    assert link.send_up(20.0, 5.0) == (30.0, 30.0)  # each had half of the link
    assert link.allowance_ms == 5.0
    assert link.send_up(32.0, 10.0) == (45.0, 45.0)  # two alone; the other three beside it, which takes six for three
    link.advance(100.0)
    assert link.left_ms == []
    link.allowance_ms = 80.0
    link.finish_next()
    assert link.left_ms == [170.0]
    link.finish_next()
    assert (link.left_ms, link.now_ms) == ([170.0, 180.0], 180.0)


def test_directions_have_their_delays_and_do_not_wait_for_each_other() -> None:
    link = FluidLink(CONSTANT, Delay(7.0), Delay(11.0))
    assert link.send_up(2.0, 4.0) == (6.0, 13.0)
    assert link.send_down(3.0, 4.0) == (7.0, 18.0)
    assert link.now_ms == 6.0


def test_what_has_begun_and_what_has_arrived() -> None:
    link = FluidLink(CONSTANT, Delay(7.0), Delay(11.0))
    assert (link.uploading, link.begun) == (False, 0)
    link.upload([4.0, 4.0])
    assert (link.uploading, link.begun) == (True, 0)
    link.advance(0.5)
    assert (link.uploading, link.begun, link.unsent_ms()) == (True, 1, [3.5, 4.0])
    assert (link.arrived_up_ms(2.0), link.arrived_down_ms(2.0)) == (9.0, 13.0)
    link.advance(8.0)
    assert (link.uploading, link.begun, link.unsent_ms()) == (False, 2, [])
    assert link.send_down(math.inf, 3.0) == Crossing(math.inf, math.inf)
