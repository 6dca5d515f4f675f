"""The settings of a run: what is refused, and what they are called."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.settings import Settings

ADDRESSES = st.sampled_from(
    ["", "tcp://box:7675", "tcp://box:7676", "tcp://[fe80:1::2]:7675", "tcp://[fe80::1:2]:7675"]
)
NAMES = st.sampled_from(["odroid-xu4", "gtx1080ti", "a b (12345678)", "layers.csv:odroid (00000000)", "3 (ffffffff)"])
# Files of the same content whose names differ where a slug does not, or only far behind.
LIKE = st.builds(
    "{} (0a1b2c3d)".format,
    st.sampled_from(["my link", "my-link", "my--link", "-my link", "é", "ü", "a:b", "a-b", "a" * 56, "a" * 56 + "é"]),
)
POSITIVE = st.sampled_from([80.0, 8.0, 80.00000001, 1 / 3, 1e-9, 1e300])
SETTINGS = st.one_of(
    st.builds(
        Settings, st.just("virtual"), POSITIVE, client=NAMES, server=NAMES | st.just(""), seed=st.integers(0, 12),
        noise=st.sampled_from([0.0, 0.1, 0.5, 1 / 3, 1.0]), window_s=st.sampled_from([None, 1 / 3, 20.0]),
    ),
    st.builds(Settings, st.just("virtual"), coding=st.sampled_from(["none", "features", "lossless"])),
    st.builds(
        Settings, st.just("virtual"), coding=st.just("lossless"), weight_ratio=st.sampled_from([None, 0.5, 1 / 3, 1.0])
    ),
    st.builds(
        Settings, st.just("live"), POSITIVE, st.sampled_from([1.0, 2.0, 2.0000001, 1000.0]), NAMES,
        NAMES | st.just(""), st.integers(0, 12), connect=ADDRESSES,
    ),
    st.builds(Settings, st.just("live"), client=NAMES, paced=st.booleans(), connect=ADDRESSES),
    st.builds(Settings, st.just("virtual"), link=LIKE, client=LIKE, server=LIKE, arrivals=LIKE.map(Arrivals)),
    st.builds(
        Settings, st.sampled_from(["live", "virtual"]), link=st.sampled_from(["", "a.csv (0a)", "a.csv (b)", "b (0a)"]),
        delay_ms=st.sampled_from([20.0, 20.5, 500.0]), jitter_ms=st.sampled_from([0.0, 1 / 3, 20.0]),
        upload=st.sampled_from(["share", "yield"]),
    ),
    st.builds(
        Settings, st.sampled_from(["virtual", "live"]), busy=st.sampled_from(["wait", "drop"]),
        deadline_ms=st.sampled_from([None, 1 / 3, 100.0]), arrivals=st.sampled_from(
            ["fps:5", "fps:5.2", "poisson:5", "burst:5,2", "burst:5,2.5", "burst:52,5", "walk.txt (00000000)"]
        ).map(Arrivals),
    ),
)  # fmt: skip


@given(SETTINGS, SETTINGS)
def test_other_settings_have_another_slug(one: Settings, other: Settings) -> None:
    assert (one.slug == other.slug) == (one == other)
    assert re.fullmatch(r"(virtual|live)(-[A-Za-z0-9._-]{1,119})?", one.slug)


def test_names() -> None:
    assert (Settings("virtual").slug, Settings("live").slug) == ("virtual", "live")
    assert Settings("live", dilation=8.0).slug == "live-dilation8"
    everything = Settings(
        "live", 40.5, client="a-b (12ab)", server="c", seed=3, paced=False, connect="tcp://box:7", network="12ab"
    )
    assert everything.slug == "live-client-a-b-12ab-server-c-seed3-unpaced-connected-to-tcp-box-7-network12ab-40.5mbps"
    assert (
        everything.name
        == "live testbed, client a-b (12ab), server c, seed 3, unpaced, connected to tcp://box:7, network 12ab"
    )
    assert everything.device == "a-b (12ab), not paced"
    coded = Settings("virtual", coding="lossless", weight_ratio=0.85, window_s=28.5)
    assert coded.slug == "virtual-coding-lossless-weight-ratio0.85-window28.5-s"
    assert coded.name == "virtual testbed, coding lossless, weight ratio 0.85, window 28.5 s"
    linked = Settings("live", link="bus-ride.csv (0a1b2c)", delay_ms=20.0, jitter_ms=2.5, upload="yield")
    assert linked.slug == "live-link-bus-ride.csv-0a1b2c-delay20-ms-jitter2.5-ms-upload-yields"
    assert linked.name == "live testbed, link bus-ride.csv (0a1b2c), delay 20 ms, jitter 2.5 ms, upload yields"
    spaced = Settings("live", link="bus ride.csv (0a1b2c)")
    assert re.fullmatch("live-link-bus-ride.csv-0a1b2c-[0-9a-f]{8}", spaced.slug)
    assert Settings("virtual", noise=0.25).name == "virtual testbed, noise 0.25"


def test_which_are_the_papers() -> None:
    assert [Settings("virtual").are_papers, Settings("live").are_papers, Settings("live", dilation=8.0).are_papers] == [
        True, True, True,
    ]  # fmt: skip
    assert not Settings("live", 79.0).are_papers
    assert not Settings("virtual", coding="features").are_papers
    assert not Settings("virtual", window_s=30.0).are_papers
    assert not Settings("virtual", link="a 0a1b").are_papers
    assert not Settings("virtual", delay_ms=1.0).are_papers
    assert not Settings("virtual", upload="yield").are_papers


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"testbed": "moon"}, "there are 'virtual' and 'live'$"),
        ({"testbed": "vrtual"}, "testbed 'vrtual': there are 'virtual' and 'live'; did you mean virtual\\?"),
        ({"upload": "yeild"}, r"there are 'share' and 'yield'; did you mean yield\?"),
        ({"arrivals": Arrivals("fps:5"), "busy": "dropp"}, r"'drop' out; did you mean drop\?"),
        ({"mbps": 0.0}, "bandwidth 0"),
        ({"mbps": math.inf}, "bandwidth inf"),
        ({"testbed": "live", "dilation": 0.99}, "give a number from 1 to 1000"),
        ({"testbed": "live", "dilation": 1000.1}, "give a number from 1 to 1000"),
        ({"testbed": "live", "dilation": math.nan}, "give a number from 1 to 1000"),
        ({"noise": 1.001}, "give a number from 0 to 1"),
        ({"noise": -0.001}, "give a number from 0 to 1"),
        ({"noise": math.nan}, "give a number from 0 to 1"),
        ({"seed": -1}, "give a natural number"),
        ({"seed": 2**63}, "give a natural number"),
        ({"dilation": 2.0}, "are for the live testbed"),
        ({"connect": "tcp://box:7675"}, "are for the live testbed"),
        ({"paced": False}, "are for the live testbed"),
        ({"coding": "zip"}, "there are none, features, lossless"),
        ({"coding": "features", "weight_ratio": 0.5}, "a weight ratio is for the coding lossless"),
        ({"testbed": "live", "coding": "lossless", "weight_ratio": 0.5}, "a weight ratio is for the virtual testbed"),
        ({"window_s": 0.0}, "give a number above 0"),
        ({"window_s": math.nan}, "give a number above 0"),
        ({"window_s": 1e6}, "and at most 86400"),
        ({"delay_ms": -1.0}, "delay -1 ms: give a number from 0 to 500"),
        ({"delay_ms": 2.0, "jitter_ms": 3.0}, "jitter 3 ms: give a number from 0 to the delay"),
        ({"upload": "push"}, "upload 'push': there are 'share' and 'yield'"),
        ({"testbed": "live", "connect": "tcp://box:7675", "link": "a 0a1b"}, "put an 'ionn link' in front of"),
        ({"testbed": "live", "connect": "tcp://box:7675", "delay_ms": 1.0}, "put an 'ionn link' in front of"),
        ({"testbed": "live", "noise": 0.1}, "--noise is for the virtual testbed"),
        ({"testbed": "live", "dilation": 2.0, "paced": False}, "leave one of them out"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Settings(**{"testbed": "virtual", **given})


def test_what_ends_a_range_is_in_it() -> None:
    Settings("virtual", noise=1.0, seed=2**63 - 1, window_s=86_400.0)
    Settings("live", dilation=1000.0, delay_ms=500.0, jitter_ms=500.0)
