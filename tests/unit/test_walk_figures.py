"""What is drawn of walks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ionn.evaluation.walk_figures import fig_gains, fig_walk
from ionn.testbed.walking import Gain, Walked, compare, gains
from ionn.testbed.walks import Walk

TEXT = """
model = "mobilenet"
seconds = 20
every_s = 0.5
[[servers]]
name = "here"
mbps = 80
store_gb = 1
has = "model"
[[servers]]
name = "there"
mbps = 80
store_gb = 1
[[visits]]
server = "here"
from_s = 0
until_s = 10.01
[[visits]]
server = "there"
told_s = 4
from_s = 12
until_s = 20
"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    path = tmp_path_factory.mktemp("walks") / "walk.toml"
    path.write_text(TEXT)
    return Walk.load(path)


@pytest.fixture(scope="module")
def variants(walk: Walk) -> tuple[Walked, ...]:
    return compare(walk)


def test_a_walk_is_drawn_and_the_same_walk_alike(walk: Walk, variants: tuple[Walked, ...], tmp_path: Path) -> None:
    paths = fig_walk(walk, variants, "mine", tmp_path)
    assert [path.name for path in paths] == ["walk-mine.png", "walk-mine.pdf"]
    drawn = [path.read_bytes() for path in paths]
    assert all(len(content) > 10_000 for content in drawn)
    assert [path.read_bytes() for path in fig_walk(walk, variants, "mine", tmp_path)] == drawn
    slower = [dataclasses.replace(variants[0], queries=variants[0].queries[:-3]), *variants[1:]]
    assert [path.read_bytes() for path in fig_walk(walk, slower, "mine", tmp_path)] != drawn


def test_what_sending_ahead_brings_is_drawn_where_something_is_sent(walk: Walk, tmp_path: Path) -> None:
    found = gains(walk)
    assert 0.5 < found[-1].gain <= 1
    paths = fig_gains(walk, found, "mine", tmp_path)
    assert [path.name for path in paths] == ["walk-mine-ahead.png", "walk-mine-ahead.pdf"]
    drawn = paths[0].read_bytes()
    fig_gains(walk, [Gain(each.share, 0, 0.0, each.share) for each in found], "mine", tmp_path)
    assert paths[0].read_bytes() != drawn
    assert fig_gains(walk, (), "mine", tmp_path) == []
