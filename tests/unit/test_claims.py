"""Every claim at the edge of its tolerance, on numbers made up for it."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import pytest

from ionn.evaluation.claims import CLAIMS, Claim, Evidence, MissingRuns, interval_of_largest_difference, judge
from ionn.evaluation.slice_claims import SLICE_CLAIMS
from ionn.evaluation.summary import Stat, SummaryRow, summary
from ionn.paper import ALGORITHMS, MODELS, SLICED
from ionn.records import Outputs
from ionn.testbed.arrivals import Arrivals
from ionn.testbed.settings import Settings
from tests.support.runs import make_trace

VIRTUAL = Settings("virtual")
LIVE = Settings("live")
DILATED = Settings("live", dilation=8.0)


def row(model: str, algorithm: str, where: Settings = VIRTUAL, **quantities: Any) -> SummaryRow:
    """A summary row in which nothing is known but these quantities; numbers are means."""
    trace = make_trace(algorithm, testbed=where.testbed, dilation=where.dilation, model=model)
    made = SummaryRow.of(where, model, algorithm, [trace])
    stats = {
        field.name: Stat(math.nan, 0.0)
        for field in dataclasses.fields(SummaryRow)
        if isinstance(getattr(made, field.name), Stat)
    }
    known: dict[str, Any] = {name: Stat(value, 0.0) if name in stats else value for name, value in quantities.items()}
    return dataclasses.replace(made, **{**stats, **known})


def evidence(*rows: SummaryRow, planning_ms: dict[tuple[str, str], float] | None = None) -> Evidence:
    return Evidence(rows[0].settings, {(each.model, each.algorithm): each for each in rows}, planning_ms or {})


def claim(text: str) -> Claim:
    (found,) = [each for each in (*CLAIMS, *SLICE_CLAIMS) if text in each.text]
    return found


def check(text: str, *rows: SummaryRow) -> tuple[str, bool]:
    found, holds = claim(text).check(evidence(*rows))
    return found, bool(holds)


def both(
    model: str, quantity: str, old: float, new: float, algorithm: str = "recursive-efficiency"
) -> list[SummaryRow]:
    return [row(model, "original", VIRTUAL, **{quantity: old}), row(model, algorithm, VIRTUAL, **{quantity: new})]


@pytest.mark.parametrize(
    ("algorithm", "queries", "holds"),
    [
        ("original", 56.8 * 1.119, True),
        ("original", 56.8 * 1.121, False),
        ("original", 56.8 * 0.881, True),
        ("original", 56.8 * 0.879, False),
        ("recursive-efficiency", 88.1 * 1.119, True),
        ("recursive-efficiency", 88.1 * 1.121, False),
        ("recursive-efficiency", 88.1 * 0.879, False),
    ],
)
def test_numbers_of_queries(algorithm: str, queries: float, holds: bool) -> None:
    assert check(f"AlexNet, {algorithm}: queries before", row("alexnet", algorithm, queries=queries))[1] == holds


@pytest.mark.parametrize(
    ("what", "quantity", "paper"), [("before", "queries", 55), ("per second", "queries_per_s", 48)]
)
@pytest.mark.parametrize(("where", "points"), [(VIRTUAL, 5), (DILATED, 15)])
def test_gains_in_queries(what: str, quantity: str, paper: float, where: Settings, points: float) -> None:
    text = f"over original: queries {what}"

    def holds(percent: float) -> bool:
        old = row("alexnet", "original", where, **{quantity: 200.0})
        new = row("alexnet", "recursive-efficiency", where, **{quantity: 2.0 * (100 + percent)})
        found, held = check(text, old, new)
        assert found == f"{percent:+.0f}%"
        return held

    assert holds(paper)
    for sign in (-1, 1):
        assert holds(paper + sign * (points - 0.4))
        assert not holds(paper + sign * (points + 0.4))


@pytest.mark.parametrize("algorithm", ALGORITHMS[1:])
@pytest.mark.parametrize(("old", "new", "holds"), [(0.4, 0.39, True), (0.4, 0.4, False), (0.4, 0.41, False)])
def test_largest_partitions(algorithm: str, old: float, new: float, holds: bool) -> None:
    for model in ("alexnet", "resnet", "googlenet", "mobilenet"):
        found = check(f"{MODELS[model]}, {algorithm}: largest", *both(model, "largest_share", old, new, algorithm))
        assert found == (f"{old:.0%} → {new:.0%}", holds)


@pytest.mark.parametrize(
    ("old", "new", "holds"),
    [((2, 1), (2, 2), True), ((2, 1), (3, 1), True), ((2, 1), (1, 2), False), ((2, 2), (1, 2), False)],
)
def test_numbers_of_partitions(old: tuple[int, int], new: tuple[int, int], holds: bool) -> None:
    halves = [{"first_half": float(first), "second_half": float(second)} for first, second in (old, new)]
    for model, title in MODELS.items():
        for than, algorithm in pairwise(ALGORITHMS):
            rows = [row(model, than, VIRTUAL, **halves[0]), row(model, algorithm, VIRTUAL, **halves[1])]
            found = check(f"{title}, {algorithm}: total number", *rows)
            assert found == (f"{sum(old)} → {sum(new)}", holds)


@pytest.mark.parametrize(
    ("new", "holds"),
    [((3, 3), True), ((3, 2), False), ((2, 3), False), ((2, 2), False), ((9, 1), False), ((1, 9), False)],
)
def test_more_partitions_in_both_halves(new: tuple[int, int], holds: bool) -> None:
    for model in ("alexnet", "resnet"):
        rows = [
            row(model, algorithm, first_half=float(first), second_half=float(second))
            for algorithm, (first, second) in (("original", (2, 2)), ("recursive-efficiency", new))
        ]
        found = check(f"{MODELS[model]}, recursive-efficiency: more partitions in both", *rows)
        assert found == (f"2 + 2 → {new[0]} + {new[1]}", holds)


@pytest.mark.parametrize(
    ("model", "changes", "holds"),
    [
        ("resnet", (0, -10.4), True),
        ("resnet", (-20, -9.6), False),
        ("resnet", (0, 20), False),
        *((model, (-9.6, 9.6), True) for model in ("inception", "googlenet", "mobilenet")),
        *((model, (-10.4, 0), False) for model in ("inception", "googlenet", "mobilenet")),
        *((model, (0, 10.4), False) for model in ("inception", "googlenet", "mobilenet")),
    ],
)
def test_changes_of_mean_latency(model: str, changes: tuple[float, float], holds: bool) -> None:
    rows = [
        row(model, name, mean_ms=2.0 * (100 + change)) for name, change in zip(ALGORITHMS, (0, *changes), strict=True)
    ]
    found = check(f"{MODELS[model]}: mean latency", *rows)
    assert found == (", ".join(f"{change:+.0f}%" for change in changes), holds)


def test_which_changes_of_mean_latency_the_paper_states() -> None:
    stated = {model: claim(f"{title}: mean latency") for model, title in MODELS.items() if model != "alexnet"}
    assert {model: (each.paper, each.tolerance) for model, each in stated.items()} == {
        "resnet": ("some benefit", "recursive-efficiency -10% or less"),
        **dict.fromkeys(("inception", "googlenet", "mobilenet"), ("no clear difference", "each within ±10%")),
    }


def inception_trace(*sizes: tuple[tuple[str, ...], int]) -> SummaryRow:
    trace = make_trace("efficiency", ends_s=tuple(range(1, len(sizes) + 1)), sizes=[size for _, size in sizes])
    partitions = [
        dataclasses.replace(part, stages=stages) for part, (stages, _) in zip(trace.partitions, sizes, strict=True)
    ]
    trace = dataclasses.replace(trace, partitions=tuple(partitions))
    return SummaryRow.of(VIRTUAL, "inception", "efficiency", [trace])


def test_the_largest_partition_is_one_stage() -> None:
    text = "Inception, efficiency: the largest partition"
    assert check(text, inception_trace((("a", "b"), 10), (("fc",), 20))) == ("fc alone", True)
    assert check(text, inception_trace((("a", "b"), 30), (("fc",), 20))) == ("2 stages", False)
    assert check(text, inception_trace()) == ("0 stages", False)


def test_when_latencies_differ_most() -> None:
    text = "when latencies differ most"

    def found(from_s: float, to_s: float) -> tuple[str, bool]:
        """One algorithm is faster from one time on until another, in queries of a second."""
        slow = make_trace("original", [1000.0] * 60, ends_s=(1.0, 40.0))
        latencies_ms = [1000.0] * int(from_s - 1) + [500.0] * int(2 * (to_s - from_s)) + [1000.0] * int(61 - to_s)
        fast = make_trace("recursive-efficiency", latencies_ms, ends_s=(1.0, 40.0))
        return check(text, *summary([slow, fast]))

    assert found(22, 30) == ("22-30 s", True)
    assert found(18, 26) == ("18-26 s", True)
    assert found(17, 25) == ("17-25 s", False)
    assert found(26, 50) == ("26-50 s", True)
    assert found(27, 50) == ("27-50 s", False)
    assert found(23, 26) == ("23-26 s", False)
    assert found(60, 60) == ("never faster", False)


def interval(old_ms: list[float], new_ms: list[float]) -> tuple[float, float]:
    runs = [("original", old_ms), ("recursive-efficiency", new_ms)]
    return interval_of_largest_difference(*summary([make_trace(*run, ends_s=(1.0, 9.0)) for run in runs]))


def test_the_interval_has_at_least_half_of_the_largest_difference() -> None:
    """All times are multiples of 1/8 s, so that exactly half is exactly half."""
    slow = [1000.0] * 8
    assert interval(slow, [1000.0, 750.0, 500.0, 750.0, *[1000.0] * 5]) == (2.0, 4.0)
    assert interval(slow, [1000.0, 875.0, 500.0, 875.0, *[1000.0] * 5]) == (2.875, 3.375)
    assert interval(slow, [500.0] * 10) == (1.0, 6.0)
    assert interval([500.0, 500.0, *[1000.0] * 7], [500.0] * 16) == (2.0, 9.0)
    assert interval(slow, [500.0, 500.0, 1000.0, 500.0, 500.0, *[1000.0] * 5]) == (1.0, 2.0)  # the first of equals


def test_no_interval_where_none_is_faster_or_queries_do_not_overlap() -> None:
    assert all(map(math.isnan, interval([500.0] * 8, [1000.0] * 8)))
    assert all(map(math.isnan, interval([500.0] * 8, [500.0] * 8)))
    early, late = make_trace(), make_trace("recursive-efficiency", ends_s=(50.0, 60.0))
    assert all(map(math.isnan, interval_of_largest_difference(*summary([early, late]))))


@pytest.mark.parametrize(
    ("text", "models", "algorithms"),
    [
        ("original and efficiency: planning", MODELS, ("original", "efficiency")),
        ("original with steps", MODELS, ("original-0.0001",)),
        ("AlexNet, recursive-efficiency: planning", ["alexnet"], ["recursive-efficiency"]),
        ("MobileNet, recursive-efficiency: planning", ["mobilenet"], ["recursive-efficiency"]),
    ],
)
def test_planning_times(text: str, models: list[str], algorithms: list[str]) -> None:
    everything = {(m, a): 90.0 for m in MODELS for a in (*ALGORITHMS, "original-0.0001", SLICED)}
    chosen = {(m, a): 1.0 + index for index, (m, a) in enumerate((m, a) for m in models for a in algorithms)}
    where = evidence(row("alexnet", "original"), planning_ms={**everything, **chosen})
    shown = "1.0 ms" if len(chosen) == 1 else f"1.0 to {len(chosen)}.0 ms"
    assert claim(text).check(where) == (shown, True)
    with pytest.raises(MissingRuns):
        claim(text).check(evidence(row("alexnet", "original")))
    with pytest.raises(MissingRuns):
        claim(text).check(evidence(row("alexnet", "original", LIVE), planning_ms=chosen))


def test_settings() -> None:
    rows = [row("alexnet", "original"), row("resnet", "original")]
    assert check("bandwidth", *rows) == ("80", True)
    assert check("runs that are averaged", *rows) == ("1", True)
    assert check("queries raised after", *rows) == ("5", True)
    twice = dataclasses.replace(rows[1], traces=rows[1].traces * 2)
    assert check("runs that are averaged", rows[0], twice) == ("1 to 2", True)


# --- Judging --------------------------------------------------------------------------------------------------------


def test_which_runs_are_like_the_papers() -> None:
    assert [evidence(row("alexnet", "original", where)).judged for where in (VIRTUAL, DILATED, LIVE)] == [
        True, True, False,
    ]  # fmt: skip


OTHERS: list[dict[str, Any]] = [
    {"mbps": 40.0}, {"client": "phone"}, {"server": "cpu"}, {"seed": 1},
    {"noise": 0.1}, {"testbed": "live", "paced": False}, {"testbed": "live", "connect": "tcp://box:7675"},
    {"network": "0123456789abcdef"}, {"coding": "features"}, {"coding": "lossless", "weight_ratio": 0.5},
    {"window_s": 9.0}, {"link": "ride.csv (0a)"}, {"delay_ms": 9.0}, {"delay_ms": 9.0, "jitter_ms": 1.0},
    {"upload": "yield"}, {"arrivals": Arrivals("fps:5")},
    {"arrivals": Arrivals("fps:5"), "busy": "drop", "deadline_ms": 100.0},
    {"testbed": "live", "dilation": 8.0, "mbps": 79.9}, {"testbed": "live", "client": "phone"},
    {"testbed": "live", "server": "gtx1080ti"}, {"testbed": "live", "seed": 1},
]  # fmt: skip


def test_evidence_is_of_the_papers_settings() -> None:
    papers = [
        make_trace(),
        make_trace("efficiency"),
        make_trace(testbed="live"),
        make_trace(testbed="live", dilation=2.0),
    ]
    rows = summary([*papers, *(make_trace(**other) for other in OTHERS)])
    assert len(rows) == len(papers) + len(OTHERS)
    assert {each.name for each in dataclasses.fields(Settings)} == {name for other in OTHERS for name in other}
    found = Evidence.of(rows, {("alexnet", "original"): 1.0})
    assert [(each.settings, list(each.rows)) for each in found] == [
        (VIRTUAL, [("alexnet", "original"), ("alexnet", "efficiency")]),
        (LIVE, [("alexnet", "original")]),
        (Settings("live", dilation=2.0), [("alexnet", "original")]),
    ]
    assert all(each.planning_ms == {("alexnet", "original"): 1.0} for each in found)


def test_verdicts_of_several_testbeds() -> None:
    def verdict(*held: tuple[Settings, bool], everywhere: bool = False, unchecked: str = "") -> tuple[str, str, str]:
        holds = dict(held)
        asked = Claim(
            "text", "paper", "4.2", "none", lambda each: ("found", holds[each.settings]), unchecked, everywhere
        )
        found = judge(asked, [evidence(row("alexnet", "original", where)) for where, _ in held])
        assert found.checked == (not found.verdict.startswith("not checked"))
        return found.virtual, found.live, found.verdict

    assert verdict((VIRTUAL, True)) == ("found", "-", "supported")
    assert verdict((VIRTUAL, True), (LIVE, False)) == ("found", "found", "supported")
    assert verdict((VIRTUAL, True), (LIVE, False), everywhere=True)[2] == "not supported on the live testbed"
    both_fail = "not supported on the virtual testbed and the live testbed, dilation 8"
    assert verdict((VIRTUAL, False), (DILATED, False)) == ("found", "found (dilation 8)", both_fail)
    assert verdict((LIVE, True), (DILATED, True)) == ("-", "found; found (dilation 8)", "supported")
    assert verdict((LIVE, True))[2] == "not checked: no virtual run of odroid-xu4 and gtx1080ti at 80 Mbps"
    assert verdict((VIRTUAL, True), unchecked="a setting") == ("found", "-", "not checked: a setting")


def test_claims_without_their_runs_name_those_of_the_virtual_testbed() -> None:
    virtual, live = evidence(row("alexnet", "original")), evidence(row("alexnet", "original", LIVE))
    text = "not checked: no virtual run of ResNet with original"
    assert judge(claim("ResNet: mean latency"), [virtual]).verdict == text
    assert judge(claim("ResNet: mean latency"), [virtual, live]).verdict == text
    assert judge(claim("ResNet: mean latency"), [live]).verdict.endswith("odroid-xu4 and gtx1080ti at 80 Mbps")


# --- Slices ---------------------------------------------------------------------------------------------------------


def counts(model: str, where: Settings, *queries: float) -> list[SummaryRow]:
    names = (*ALGORITHMS, SLICED)
    return [row(model, name, where, queries=count) for name, count in zip(names, queries, strict=True)]


@pytest.mark.parametrize(
    ("title", "queries", "holds"),
    [
        ("AlexNet", (60.0, 70.0, 80.0, 120.0), True),
        ("AlexNet", (60.0, 50.0, 50.0, 119.0), False),
        ("Inception", (99.0, 50.0, 100.0, 135.5), True),
        ("Inception", (60.0, 50.0, 100.0, 134.5), False),
    ],
)
def test_gains_of_slices(title: str, queries: tuple[float, ...], holds: bool) -> None:
    assert (
        check(f"{title}: queries before the upload ended, against", *counts(title.lower(), VIRTUAL, *queries))[1]
        == holds
    )


@pytest.mark.parametrize(
    ("queries", "holds"),
    [((5, 5, 5, 6), True), ((5, 4, 5, 6), True), ((5, 6, 5, 7), False), ((6, 5, 5, 7), False), ((5, 5, 6, 6), False)],
)
def test_the_order_of_the_algorithms(queries: tuple[int, ...], holds: bool) -> None:
    for model in ("alexnet", "inception"):
        found = check(f"{MODELS[model]}: queries of", *counts(model, VIRTUAL, *map(float, queries)))
        assert found == (", ".join(map(str, queries)), holds)


@pytest.mark.parametrize(
    ("where", "old", "new", "holds"),
    [
        (VIRTUAL, 50.0, 50.0, True),
        (VIRTUAL, 50.0, 49.0, False),
        (LIVE, 50.0, 44.0, True),
        (LIVE, 50.0, 43.9, False),
        (LIVE, 50.0, 60.0, True),
    ],
)
def test_slices_are_not_worse(where: Settings, old: float, new: float, holds: bool) -> None:
    rows = [row("resnet", "recursive-efficiency", where, queries=old), row("resnet", SLICED, where, queries=new)]
    same = dataclasses.replace(rows[1], traces=rows[0].traces)
    assert check("ResNet: queries, recursive", rows[0], same) == (f"{old:.0f} → {new:.0f}, the same plan", True)
    other = make_trace(SLICED, ends_s=(1.0, 2.0), sizes=(5, 6), latencies_ms=(100.0,) * 9)
    rows[1] = dataclasses.replace(rows[1], traces=(other,))
    assert check("ResNet: queries, recursive", *rows)[1] == holds


def test_largest_slices_and_planning_time_and_outputs() -> None:
    for share, holds in ((0.1, True), (0.11, False)):
        assert check("Inception: largest", row("inception", SLICED, largest_share=share))[1] == holds
    equal, wrong, near = Outputs(7, 7, 0, 0.0, 0.0), Outputs(7, 6, 1, 1e-7, 0.0), Outputs(7, 6, 0, 1e-7, 1e-4)
    rows = [row("alexnet", SLICED, outputs=equal), row("resnet", SLICED, outputs=equal)]
    assert check("Outputs equal", *rows) == ("all", True)
    assert check("Outputs equal", rows[0], row("resnet", SLICED, outputs=wrong)) == ("not all", False)
    assert check("Outputs equal", *rows, row("resnet", "original", outputs=wrong)) == ("all", True)
    # Where the ends have other bits, slices are not what is seen; but what is wrong anywhere is wrong.
    elsewhere = row("inception", SLICED, outputs=near)
    assert check("Outputs equal", row("resnet", SLICED, outputs=wrong), elsewhere) == ("not all", False)
    for missing in ([row("alexnet", SLICED)], [row("alexnet", "original", outputs=equal)]):
        with pytest.raises(MissingRuns, match="no virtual run with sliced-efficiency that computes"):
            check("Outputs equal", *missing)
    with pytest.raises(MissingRuns, match="a virtual run with sliced-efficiency does not compute the same bits"):
        check("Outputs equal", rows[0], elsewhere)
    times = {("alexnet", SLICED): 2.9, ("resnet", SLICED): 1.0, ("resnet", "original"): 99.0}
    longest = claim("Longest planning time")
    assert longest.check(evidence(rows[0], planning_ms=times)) == ("2.9 ms", True)
    assert longest.check(evidence(rows[0], planning_ms={**times, ("x", SLICED): 3.0})) == ("3.0 ms", False)
    for incomplete in (evidence(rows[0]), evidence(row("alexnet", SLICED, LIVE), planning_ms=times)):
        with pytest.raises(MissingRuns):
            longest.check(incomplete)
