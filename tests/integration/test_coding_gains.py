"""What coding is said to gain on the paper's testbed, computed again; and when the ends code slower or faster."""

from __future__ import annotations

from itertools import pairwise

import coding_gains
import pytest
import support

from ionn import coding, paper


def test_every_gain_is_as_large_as_is_said() -> None:
    rows = coding_gains.rows()
    assert len(rows) == len(paper.MODELS) + 2
    assert [row for row in rows if not support.met(row)] == []


@pytest.mark.parametrize("model", ["alexnet", "resnet"])
def test_ends_that_code_faster_answer_faster_and_slow_ones_no_later_than_raw(model: str) -> None:
    latencies_ms = [coding_gains.last_ms(model, speed) for speed in coding_gains.SPEEDS]
    assert all(slow_ms >= fast_ms for slow_ms, fast_ms in pairwise(latencies_ms))
    raw_ms = coding_gains.computed(model, paper.ORIGINAL, coding.NONE, 1.0).queries[-1].latency_ms
    assert latencies_ms[0] <= raw_ms
    assert latencies_ms[-1] < raw_ms / 2


def test_the_window_is_the_upload_of_original_raw() -> None:
    window_s = coding_gains.window_of("alexnet")
    original = coding_gains.computed("alexnet", paper.ORIGINAL, coding.NONE, window_s)
    assert original.upload_s == pytest.approx(window_s, abs=0.01)
    assert original.info.plan.model_bytes * 8 / 80e6 < window_s < 30
