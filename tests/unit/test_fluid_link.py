"""The virtual testbed's link by itself: the tests of the virtual testbed have the rest."""

from __future__ import annotations

from ionn.testbed.bandwidth import Bandwidth
from ionn.testbed.delay import Delay
from ionn.testbed.fluid_link import FluidLink

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
