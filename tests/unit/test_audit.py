"""Which queries are audited and when, on a clock of the test's own; what counts as wrong; and what is kept of it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import os
import random
import secrets
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.api import load_costs, plan_upload
from ionn.client import audit, evidence
from ionn.client.audit import Answered, Auditor, Sampler
from ionn.errors import InputError, WrongResultError
from ionn.model import engine
from ionn.model.comparison import bit_equal, difference
from ionn.model.network import Network
from ionn.paper import CLIENT, MBPS, MODELS, SERVER
from ionn.planning.graph import ExecutionGraph
from tests.support.forward import Weights, boundary_blobs
from tests.support.liar import SMALL_CHANGES, an_ulp, the_sign_of_a_zero
from tests.support.nets import network_of

pytestmark = pytest.mark.usefixtures("evidence_folder")


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def seeded(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(secrets, "randbits", random.Random(seed).getrandbits)


def chances(
    sampler: Sampler, clock: Clock, times: list[tuple[float, float]], audited: Callable[[int], bool]
) -> list[float]:
    """The chance of each query, given by the time before it and what its audit takes; some are audited at once."""
    result = []
    for index, (query_s, audit_s) in enumerate(times):
        clock.s += query_s
        result.append(sampler._chance(audit_s))
        if audited(index):
            with sampler.auditing():
                clock.s += audit_s
    return result


# Bursts, pauses and anything between.
SOME_S = st.one_of(st.just(0.0), st.floats(1e-4, 1.0), st.floats(1.0, 1e4))
TIMES = st.lists(st.tuples(SOME_S, st.floats(1e-3, 10.0)), min_size=1, max_size=300)
SHARES = st.sampled_from([1e-6, 0.02, 0.3, 0.9, 0.999])


# --- Which queries ---------------------------------------------------------------------------------------------------


@given(share=SHARES, times=TIMES)
def test_chances_never_promise_more_than_half_of_the_share(share: float, times: list[tuple[float, float]]) -> None:
    """Of any sequence of queries, however long they and their audits take."""
    clock = Clock()
    promised_s = 0.0
    for chance, (_, audit_s) in zip(
        chances(Sampler(share, clock), clock, times, lambda index: False), times, strict=True
    ):
        assert 0 <= chance <= 1
        promised_s += chance * audit_s
        assert promised_s <= 0.5 * share / (1 - share) * clock.s * (1 + 1e-9)


@given(share=SHARES, times=TIMES, seed=st.integers(0, 99))
def test_a_chance_says_nothing_of_other_audits(share: float, times: list[tuple[float, float]], seed: int) -> None:
    """It is what it is without them: neither their number nor the time since the last of them has a part in it."""
    rng = random.Random(seed)
    quiet, busy = Clock(), Clock()
    expected = chances(Sampler(share, quiet), quiet, times, lambda index: False)
    got = chances(Sampler(share, busy), busy, times, lambda index: rng.random() < 0.5)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_a_chance_in_a_steady_session() -> None:
    """It grows to what the share allows for."""
    clock = Clock()
    steady = 0.5 * 0.1 / 0.9 * 0.2 / 3.0
    got = chances(Sampler(0.1, clock), clock, [(0.2, 3.0)] * 1000, lambda index: False)
    assert got[0] == pytest.approx(steady / 100)
    assert got[-1] == pytest.approx(steady, rel=1e-3)
    assert all(chance <= later * (1 + 1e-9) for chance, later in itertools.pairwise(got))


def test_the_time_before_the_first_query_counts() -> None:
    """As long as a session waits for its first partition, nobody can lie to it."""
    clock = Clock()
    got = chances(Sampler(0.1, clock), clock, [(20.0, 3.0), *[(0.2, 3.0)] * 99], lambda index: False)
    assert min(got) >= 0.5 * 0.1 / 0.9 * 0.2 / 3.0


def test_a_pause_tells_little_of_the_query_after_it() -> None:
    clock = Clock()
    sampler = Sampler(0.1, clock)
    *_, before, after = chances(sampler, clock, [*[(0.2, 3.0)] * 1000, (2.0, 3.0)], lambda index: False)
    assert before < after < 1.1 * before


@pytest.mark.parametrize(("share", "audit_s", "chance"), [(1.0, 3.0, 1.0), (0.02, 0.0, 1.0), (0.0, 3.0, 0.0)])
def test_the_ends(share: float, audit_s: float, chance: float) -> None:
    clock = Clock()
    assert set(chances(Sampler(share, clock), clock, [(0.0, audit_s), (0.2, audit_s)], lambda index: True)) == {chance}
    assert Sampler(share, clock).has_time()


def test_a_draw_is_as_likely_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """And draws are independent of each other: after one that hit the next hits as often as any."""
    seeded(monkeypatch, 1)
    clock = Clock()
    sampler = Sampler(0.5, clock)
    drawn = []
    for _ in range(40_000):
        clock.s += 1.0
        drawn.append(sampler.draw(2.0))
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.01)
    after = [later for hit, later in itertools.pairwise(drawn) if hit]
    assert np.mean(after) == pytest.approx(0.25, abs=0.02)


# --- A network whose stages take as long as the test says -------------------------------------------------------------


class Net:
    """Stage i gives i; each takes `stage_s` on the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.stage_s = 1.0
        self.runs: list[tuple[int, int]] = []

    def put(self, stage: int, data: np.ndarray) -> None:
        self.sent = data

    def run(self, first: int, last: int) -> tuple[float, ...]:
        self.runs.append((first, last))
        self._clock.s += self.stage_s * (last - first + 1)
        return (self.stage_s * 1e3,) * (last - first + 1)

    def outputs(self, stage: int) -> list[np.ndarray]:
        return [np.full((1, 2), stage, np.float32)]


CHAIN = network_of(*["ReLU"] * 4, shape="dim: 1 dim: 2")


def auditing(clock: Clock, share: float) -> tuple[Net, Auditor]:
    """An auditor that knows that a stage takes a second."""
    net: Any = Net(clock)
    auditor = Auditor(CHAIN, net, "tcp://1.2.3.4:5", share, now_s=clock)
    assert net.runs == [(0, 4)]
    net.runs.clear()
    return net, auditor


def outputs(stage: int) -> list[tuple[int, list[np.ndarray]]]:
    return [(stage, [np.full((1, 2), stage, np.float32)])]


def answered(value: float = 2.0) -> list[Answered]:
    return [Answered(1, np.zeros((1, 2), np.float32), [(2, [np.full((1, 2), value, np.float32)])])]


@given(
    share=st.sampled_from([1e-6, 0.02, 0.3, 0.9, 1.0]),
    times=st.lists(st.tuples(SOME_S, st.floats(1e-3, 10.0), st.booleans()), min_size=1, max_size=60),
)
def test_audits_take_no_more_than_the_share_and_one_audit(share: float, times: list[tuple[float, float, bool]]) -> None:
    """Whatever is drawn, and however wrong the expectation of an audit's time was."""
    clock = Clock()
    net, auditor = auditing(clock, share)
    start_s, spent_s, longest_s = clock.s, 0.0, 0.0
    with pytest.MonkeyPatch.context() as monkeypatch:
        for query_s, stage_s, drawn in times:
            monkeypatch.setattr(secrets, "randbits", lambda bits, drawn=drawn: 0 if drawn else 2**bits - 1)
            clock.s += query_s
            net.stage_s = stage_s
            before_s, count = clock.s, len(net.runs)
            auditor.audit(answered())
            if len(net.runs) > count:
                longest_s = max(longest_s, 2 * stage_s)
                spent_s += clock.s - before_s
            assert spent_s <= share * (clock.s - start_s) * (1 + 1e-9) + longest_s


def test_a_drawn_query_without_time_is_audited_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    net, auditor = auditing(clock, 0.1)
    monkeypatch.setattr(secrets, "randbits", lambda bits: 0)
    clock.s += 1.0
    assert auditor.audit(answered())
    clock.s += 1.0
    assert not auditor.audit(answered(3.0))  # a lie; 2 s of 4 are spent
    monkeypatch.setattr(secrets, "randbits", lambda bits: 2**bits - 1)
    clock.s += 15.0
    assert not auditor.audit(answered())
    clock.s += 1.0
    with pytest.raises(WrongResultError):
        auditor.audit([])
    assert net.runs == [(1, 2), (1, 2)]


def test_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    net, auditor = auditing(clock, 0.1)
    monkeypatch.setattr(secrets, "randbits", lambda bits: 0)
    for _ in range(20):
        clock.s += 0.01
        auditor.audit(answered())
    monkeypatch.setattr(secrets, "randbits", lambda bits: 2**bits - 1)
    clock.s += 1000.0
    assert not auditor.audit(answered())
    assert len(net.runs) == 1 + 4


def test_what_an_audit_takes_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage took a second, and then two."""
    clock = Clock()
    net, auditor = auditing(clock, 0.5)
    asked: list[float] = []

    def draw(audit_s: float) -> bool:
        asked.append(audit_s)
        return len(asked) == 1

    monkeypatch.setattr(auditor._sampler, "draw", draw)
    net.stage_s = 2.0
    for first in (1, 1, 2, 3):
        auditor.audit([Answered(first, np.zeros((1, 2), np.float32), outputs(first + 1))])
    assert asked == [2.0, 4.0, 3.0, 2.0]


def test_stages_run_once_in_an_audit() -> None:
    clock = Clock()
    net, auditor = auditing(clock, 1.0)
    assert auditor.audit([Answered(1, np.zeros((1, 2), np.float32), [*outputs(2), *outputs(4)])])
    assert net.runs == [(1, 2), (3, 4)]


@pytest.mark.parametrize("lies", [1, 10, 40])
def test_the_chance_to_be_caught(lies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 - (1 - p)^k after k wrong answers, in sessions in which every tenth answer is wrong."""
    seeded(monkeypatch, lies)
    share, query_s, audit_s, sessions = 0.2, 0.5, 2.0, 600
    p = 0.5 * share / (1 - share) * query_s / audit_s
    caught = 0
    for _ in range(sessions):
        clock = Clock()
        _, auditor = auditing(clock, share)
        monkeypatch.setattr(auditor, "_wrong", lambda *what: WrongResultError("caught"))
        sampler = auditor._sampler
        chances(sampler, clock, [(query_s, audit_s)] * 1000, lambda index: False)  # it has come to its chance
        try:
            for index in range(10 * lies):
                clock.s += query_s
                auditor.audit(answered(3.0 if index % 10 == 9 else 2.0))
        except WrongResultError:
            caught += 1
    expected = 1 - (1 - p) ** lies
    assert caught / sessions == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / sessions))


# --- What is wrong ---------------------------------------------------------------------------------------------------

ULP = float(np.float32(np.nextafter(np.float32(1), np.float32(2)))) - 1


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def bits(*values: int) -> np.ndarray:
    return np.array(values, np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("got", "wanted", "off"),
    [
        (floats(1, 2), floats(1, 2), 0.0),
        (floats(1 + ULP, 2), floats(1, 2), ULP / 2),
        (floats(0.0), floats(-0.0), 0.0),
        (floats(1e-45, 0), floats(0, 0), math.inf),
        (floats(1, -4), floats(2, -4), 0.25),
        (floats(math.nan, 1), floats(0, 1), math.inf),
        (floats(0, 1), floats(math.nan, 1), math.inf),
        (bits(0x7FC00000, 0x3F800000), bits(0x7FC00001, 0x3F800000), 0.0),
        (floats(math.inf, 1), floats(math.inf, 1), 0.0),
        (floats(math.inf, 1), floats(-math.inf, 1), math.inf),
        (floats(math.inf, 1), floats(3e38, 1), math.inf),
        (floats(1, 1), floats(math.inf, 1), math.inf),
        (floats(math.inf, 3), floats(math.inf, 2), 0.5),  # infinities lend no scale to the others
        (floats(-3e38), floats(3e38), 2.0),
        (np.zeros((0,), np.float32), np.zeros((0,), np.float32), 0.0),
    ],
)
def test_how_far_values_are_off(got: np.ndarray, wanted: np.ndarray, off: float) -> None:
    assert difference(got, wanted) == pytest.approx(off, rel=1e-6)
    assert bit_equal(got, wanted) == (got.tobytes() == wanted.tobytes())


# --- A real network --------------------------------------------------------------------------------------------------

FC = 4  # an inner product with a ReLU: many of its values are zeros


@pytest.fixture(scope="module")
def net(tiny: Network, tiny_weights: Weights) -> engine.StageNet:
    return engine.load_network(tiny, tiny_weights)


@pytest.fixture(scope="module")
def blobs(tiny: Network, tiny_weights: Weights) -> list[np.ndarray]:
    data = np.random.default_rng(5).standard_normal(tiny.input_shape).astype(np.float32)
    return boundary_blobs(tiny, tiny_weights, data)


def truth(blobs: list[np.ndarray]) -> list[Answered]:
    """Two groups of stages: 1..4, of which stage 2's output came down too, and 5."""
    return [
        Answered(1, blobs[1].copy(), [(2, [blobs[3].copy()]), (FC, [blobs[FC + 1].copy()])]),
        Answered(5, blobs[5].copy(), [(5, [blobs[6].copy()])]),
    ]


def auditor_of(tiny: Network, net: engine.StageNet, tolerance: float = 0.0) -> Auditor:
    return Auditor(tiny, net, "tcp://1.2.3.4:5", 1.0, tolerance)


def test_the_truth_is_right(tiny: Network, net: engine.StageNet, blobs: list[np.ndarray]) -> None:
    auditor = auditor_of(tiny, net)
    for _ in range(3):
        assert auditor.audit(truth(blobs))


def test_what_an_audit_costs_is_what_its_stages_took_last(
    tiny: Network, net: engine.StageNet, blobs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    auditor, run = auditor_of(tiny, net), net.run
    before_ms = list(auditor._stage_ms)
    taken_ms: list[float] = []

    def recorded(first: int, last: int) -> tuple[float, ...]:
        stage_ms = run(first, last)
        taken_ms.extend(stage_ms)
        return stage_ms

    monkeypatch.setattr(net, "run", recorded)
    assert auditor.audit(truth(blobs))
    assert auditor._stage_ms == [before_ms[0], *taken_ms, *before_ms[6:]]


@pytest.mark.parametrize(
    ("change", "group", "which", "last"),
    [(change, 0, 1, FC) for change in SMALL_CHANGES]
    + [(change, *place) for change in ("an ulp", "no number") for place in ((0, 0, 2), (1, 0, 5))],
)
def test_every_bit_counts(
    change: str, group: int, which: int, last: int, tiny: Network, net: engine.StageNet, blobs: list[np.ndarray],
    evidence_folder: Path,
) -> None:  # fmt: skip
    query = truth(blobs)
    values = query[group].outputs[which][1][0]
    sent = values.copy()
    SMALL_CHANGES[change](values)
    assert values.tobytes() != sent.tobytes()
    first = query[group].first
    names = tiny.stages[first].name, tiny.stages[last].name
    with pytest.raises(WrongResultError, match=rf"stages {first}\.\.{last} \({names[0]} to {names[1]}\)") as caught:
        auditor_of(tiny, net).audit(query)
    (path,) = evidence_folder.iterdir()
    assert str(caught.value).startswith("tcp://1.2.3.4:5: ")
    assert str(path) in str(caught.value)
    assert "1 of " in str(caught.value)
    with np.load(path, allow_pickle=False) as kept:
        report = json.loads(str(kept["report"]))
        assert kept["sent"].tobytes() == query[group].data.tobytes()
        assert kept["answered_0"].tobytes() == values.tobytes()
        assert kept["computed_0"].tobytes() == sent.tobytes()
    assert (report["first_stage"], report["last_stage"], report["wrong_values"]) == (first, last, 1)
    assert report["stages"] == [stage.name for stage in tiny.stages[first : last + 1]]
    assert report["outputs"] == list(tiny.stages[last].outputs)


def test_a_tolerance_is_relative_to_the_largest_value(
    tiny: Network, net: engine.StageNet, blobs: list[np.ndarray]
) -> None:
    largest = float(abs(blobs[6]).max())
    for off, caught in ((0.5, False), (0.99, False), (1.01, True), (-0.99, False), (-1.01, True)):
        query = truth(blobs)
        query[1].outputs[0][1][0][0, 3] += np.float32(1e-3 * off * largest)
        auditor = auditor_of(tiny, net, tolerance=1e-3)
        if caught:
            with pytest.raises(WrongResultError):
                auditor.audit(query)
        else:
            assert auditor.audit(query)


def test_what_is_off_by_the_tolerance_is_within_it() -> None:
    net: Any = Net(Clock())
    for tolerance, right in ((0.25, True), (0.2499, False)):
        auditor = Auditor(CHAIN, net, "tcp://1.2.3.4:5", 1.0, tolerance)
        assert auditor._right(floats(1, -4), floats(2, -4)) == right


def test_a_tolerance_does_not_grow_with_what_the_server_says(
    tiny: Network, net: engine.StageNet, blobs: list[np.ndarray]
) -> None:
    for value in (3e38, math.inf, math.nan):
        query = truth(blobs)
        query[1].outputs[0][1][0][0, 3] = value
        with pytest.raises(WrongResultError):
            auditor_of(tiny, net, tolerance=1.0).audit(query)


def test_with_a_tolerance_the_sign_of_a_zero_is_no_matter(
    tiny: Network, net: engine.StageNet, blobs: list[np.ndarray]
) -> None:
    query = truth(blobs)
    the_sign_of_a_zero(query[0].outputs[1][1][0])
    assert auditor_of(tiny, net, tolerance=1e-9).audit(query)


def test_some_channels_are_compared_with_as_many(tiny: Network, net: engine.StageNet, blobs: list[np.ndarray]) -> None:
    part = blobs[FC + 1][:, :144].copy()
    query = [Answered(FC, blobs[FC].copy(), [(FC, [part])])]
    assert auditor_of(tiny, net).audit(query)
    the_sign_of_a_zero(part)
    with pytest.raises(WrongResultError, match="1 of 144 values"):
        auditor_of(tiny, net).audit(query)


@pytest.mark.parametrize("layer", ["Normalize", "Reduction reduction_param { operation: ASUM axis: 1 }"])
def test_layers_whose_last_bits_vary_need_a_tolerance(layer: str) -> None:
    network = network_of(layer, shape="dim: 1 dim: 4 dim: 3 dim: 3")
    net: Any = Net(Clock())
    with pytest.raises(InputError, match=r"audit: layer 'a' of type '(Normalize|Reduction)'.* tolerance"):
        Auditor(network, net, "tcp://1.2.3.4:5", 0.5)
    Auditor(network, net, "tcp://1.2.3.4:5", 0.5, 1e-4)


# --- Evidence --------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_only_the_user_may_read_it(evidence_folder: Path) -> None:
    path = evidence.keep_evidence({"a": 1}, {"sent": floats(1, 2)})
    assert path.parent == evidence_folder == evidence.evidence_folder()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(evidence_folder.stat().st_mode) == 0o700
    with np.load(path, allow_pickle=False) as kept:
        assert json.loads(str(kept["report"])) == {"a": 1, "time": json.loads(str(kept["report"]))["time"]}
        np.testing.assert_array_equal(kept["sent"], floats(1, 2))


def test_the_oldest_goes_first(evidence_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "FILES_MAX", 3)
    paths = [evidence.keep_evidence({}, {}) for _ in range(5)]
    assert names(evidence_folder) == [path.name for path in paths[2:]]


def test_its_bytes_are_bounded(evidence_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.zeros(25_000, np.float32)
    size = evidence.keep_evidence({}, {"sent": data}).stat().st_size
    monkeypatch.setattr(evidence, "BYTES_MAX", 2 * size)
    # Of a process that was killed.
    (evidence_folder / "20200101T000000.000000Z-00000000.npz.part").write_bytes(bytes(100_000))
    paths = [evidence.keep_evidence({}, {"sent": data}) for _ in range(4)]
    assert names(evidence_folder) == [path.name for path in paths[2:]]
    with pytest.raises(InputError, match=r"more than 0\.2\d* MB"):
        evidence.keep_evidence({}, {"sent": np.zeros(75_000, np.float32)})
    assert names(evidence_folder) == [path.name for path in paths[2:]]
    monkeypatch.setattr(evidence, "BYTES_MAX", size)
    paths.append(evidence.keep_evidence({}, {"sent": data}))
    assert names(evidence_folder) == [paths[-1].name]


def test_what_is_no_evidence_stays(evidence_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "FILES_MAX", 2)
    evidence_folder.mkdir(parents=True, mode=0o755)
    others = ["20200101T000000.000000Z-notes.npz", "data.npz", "20200101T000000.000000Z-00000000.npz.txt"]
    for name in others:
        (evidence_folder / name).write_bytes(b"mine")
    folder, link = (f"20200101T000000.{at:06}Z-00000000.npz" for at in range(2))
    (evidence_folder / folder).mkdir()
    (evidence_folder / link).symlink_to("/nowhere")
    paths = [evidence.keep_evidence({}, {}) for _ in range(4)]
    assert names(evidence_folder) == sorted([*others, folder, link, *(path.name for path in paths[2:])])
    assert stat.S_IMODE(evidence_folder.stat().st_mode) == 0o700


def test_evidence_of_a_clock_that_was_ahead_goes_first(evidence_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "FILES_MAX", 3)
    evidence_folder.mkdir(parents=True)
    for at in range(3):
        (evidence_folder / f"20990101T000000.{at:06}Z-00000000.npz").write_bytes(b"")
    paths = [evidence.keep_evidence({}, {}) for _ in range(4)]
    assert names(evidence_folder) == [path.name for path in paths[1:]]


def keep_some(count: int) -> list[str]:
    return [evidence.keep_evidence({}, {"sent": floats(1, 2)}).name for _ in range(count)]


def test_many_processes_keep_evidence(evidence_folder: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        kept = [name for some in pool.map(keep_some, [30] * 4) for name in some]
    assert names(evidence_folder) == sorted(kept)[-evidence.FILES_MAX :]


def no_folder() -> Path:
    raise RuntimeError("could not determine the home directory")


def no_version(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize("what", ["no home", "no version"])
def test_whatever_is_wrong_with_evidence_a_lie_is_told(
    what: str, tiny: Network, net: engine.StageNet, blobs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "no home":
        monkeypatch.setattr(evidence, "evidence_folder", no_folder)
    else:
        monkeypatch.setattr(importlib.metadata, "version", no_version)
    query = truth(blobs)
    an_ulp(query[0].outputs[0][1][0])
    with pytest.raises(WrongResultError, match=r"the evidence is lost \((no folder for evidence: |No package)"):
        auditor_of(tiny, net).audit(query)


def test_evidence_that_cannot_be_kept_is_said(
    tiny: Network, net: engine.StageNet, blobs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/state")
    query = truth(blobs)
    an_ulp(query[0].outputs[0][1][0])
    with pytest.raises(WrongResultError, match=r"the evidence is lost \(/dev/null/state/ionn/audit: cannot make "):
        auditor_of(tiny, net).audit(query)


def test_what_is_kept_is_not_changed_by_the_audit(tiny: Network, net: engine.StageNet, blobs: list[np.ndarray]) -> None:
    query = truth(blobs)
    before = [dataclasses.replace(each, data=each.data.copy()) for each in truth(blobs)]
    auditor_of(tiny, net).audit(query)
    for each, same in zip(query, before, strict=True):
        assert each.data.tobytes() == same.data.tobytes()
        for (_, got), (_, want) in zip(each.outputs, same.outputs, strict=True):
            assert [output.tobytes() for output in got] == [output.tobytes() for output in want]


# --- What the documentation says --------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", MODELS)
def test_the_table_of_chances(model: str) -> None:
    """By another way than the sampler's: sessions of steady queries on its clock."""
    network = Network.load(model)
    plan = plan_upload(network)
    graph = ExecutionGraph.from_network(network, load_costs(CLIENT), load_costs(SERVER), MBPS)
    at_server = [
        leg
        for leg in graph.legs([piece for partition in plan.partitions for piece in partition.pieces])
        if leg.where == "server"
    ]
    again_s = sum(float(graph.client_ms[leg.first : leg.last + 1].sum()) for leg in at_server) / 1e3
    cells = [model, f"{plan.best_ms:.0f}", f"{again_s * 1e3:.0f}"]
    for query_s in (plan.best_ms / 1e3, 1.0):
        clock = Clock()
        chance = chances(Sampler(0.02, clock), clock, [(query_s, again_s)] * 2000, lambda index: False)[-1]
        cells.append(f"{chance:.2%}")
        cells += [f"{1 - (1 - chance) ** lies:.1%}" for lies in (10, 100, 1000)]
    assert f"| {' | '.join(cells)} |".replace("%", " %") in PAGE


def test_the_constants_are_those_of_the_docs() -> None:
    assert f"{evidence.FILES_MAX} files and {evidence.BYTES_MAX // 10**6} MB" in PAGE
    assert f"the last {audit._QUERIES} or so" in PAGE
    assert f"up to {audit._WAITING_MAX} of them" in PAGE
