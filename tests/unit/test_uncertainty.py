"""Claims in random draws of the costs: the draws are what they are said to be, each claim is checked by its own check,
and the documentation has the shares that come out."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.evaluation import uncertainty
from ionn.evaluation.claims import CLAIMS, Claim, Evidence, Finding, MissingRuns, judge
from ionn.evaluation.report import make_report, write_report
from ionn.evaluation.slice_claims import SLICE_CLAIMS
from ionn.evaluation.summary import summary
from ionn.evaluation.uncertainty import (
    FILE,
    ClaimDraws,
    Uncertainty,
    draw_claims,
    draw_evidence,
    draw_graphs,
    keep_uncertainty,
    load_uncertainty,
)
from ionn.files import locked
from ionn.model.network import Network
from ionn.paper import CLIENT, MBPS, MODELS, SERVER, SHOWN
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.testbed.runner import run_virtual_all
from ionn.testbed.trace import Trace, trace_path
from tests.support.chains import assert_alike

ROOT = Path(__file__).resolve().parents[2]
DRAWS = 60


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Uncertainty:
    """The first of the draws that the documentation tells of, drawn once for all processes that run these tests."""
    shared = tmp_path_factory.getbasetemp().parent / f"draws-{testrun_uid}"
    with locked(shared):
        if not (shared / FILE).exists():
            (shared / FILE).write_text(json.dumps(draw_claims(DRAWS, jobs=1).to_json()))
    kept = load_uncertainty(shared)
    assert kept
    return kept


@pytest.fixture(scope="module")
def papers() -> list[Trace]:
    """The virtual runs that `make reproduce` has."""
    return [trace for model in MODELS for trace in run_virtual_all(model, SHOWN)]


# --- Draws ----------------------------------------------------------------------------------------------------------


def test_without_noise_the_costs_are_those_of_the_devices() -> None:
    client, server = load_costs(CLIENT), load_costs(SERVER)
    evidence = draw_evidence(0.0, seed=3, draw=2)
    for model in MODELS:
        graph = ExecutionGraph.from_network(Network.load(model), client, server, MBPS)
        for algorithm in SHOWN:
            (trace,) = evidence.row(model, algorithm).traces
            assert_alike(trace.info.graph, graph)
    certain = draw_claims(2, sigma=0.0, jobs=1)
    assert [certain.share_of(each) for each in certain.claims] == [float(each.holds) for each in certain.claims]
    assert all(map(certain.is_robust, certain.claims))


def test_each_layer_has_a_lognormal_factor_of_its_own_at_each_side() -> None:
    sigma, draws = 0.2, 200
    # Only of a stage that is one layer is the factor its layer's; of others it is a mean of several.
    networks = [Network.load(model) for model in MODELS]
    alone = [
        np.array([len(stage.layers) == 1 and not stage.pinned for stage in network.stages]) for network in networks
    ]
    costs = draw_graphs(0.0, 0, 0)
    factors: dict[str, list[np.ndarray]] = {"client_ms": [], "server_ms": []}
    for draw in range(draws):
        for times, found in factors.items():
            drawn_ms, ms, single = (
                np.concatenate(each)
                for each in (
                    [getattr(graph, times) for graph in draw_graphs(sigma, 0, draw)],
                    [getattr(graph, times) for graph in costs],
                    alone,
                )
            )
            found.append((drawn_ms / np.where(ms > 0, ms, np.nan))[single])
    client, server = (np.array(found) for found in factors.values())  # (draws, stages)
    assert client.shape[1] >= 5
    for side in (client, server):
        assert np.log(side).std() == pytest.approx(sigma, abs=4 * sigma / math.sqrt(2 * side.size))
        assert side.mean() == pytest.approx(1.0, abs=4 * 0.21 / math.sqrt(side.size))
    # The factors of stages, and of sides, have nothing to do with each other.
    together = np.corrcoef(np.log(np.concatenate([client, server], axis=1)).T)
    others = together[~np.eye(len(together), dtype=bool)]
    assert np.abs(others).max() < 5 / math.sqrt(draws)
    assert len(np.unique(client.round(12))) == client.size


def test_all_algorithms_plan_with_a_draw_and_run_on_it() -> None:
    first, second = (draw_evidence(0.05, 0, draw) for draw in (0, 1))
    for model in MODELS:
        graphs = {id(first.row(model, name).traces[0].info.graph) for name in SHOWN}
        assert len(graphs) == 1
        assert (
            first.row(model, SHOWN[0]).traces[0].info.graph.client_ms
            != second.row(model, SHOWN[0]).traces[0].info.graph.client_ms
        ).any()
        network = Network.load(model)
        for name in SHOWN:
            info = first.row(model, name).traces[0].info
            assert info.plan.partitions == make_plan(network, info.graph, name, MBPS).partitions


def test_the_draws_depend_on_the_seed_and_not_on_the_processes() -> None:
    told: list[int] = []
    here = draw_claims(13, jobs=1)
    assert draw_claims(13, jobs=2, progress=told.append) == here
    assert sum(told) == 13
    assert draw_claims(13, seed=1, jobs=1).claims != here.claims
    few = draw_claims(7, jobs=1)
    assert all(0 <= b.held - a.held <= 6 for a, b in zip(few.claims, here.claims, strict=True))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"draws": 0}, "draws 0: give a whole number from 1"),
        ({"draws": 10**9}, "draws 1000000000: give a whole number"),
        ({"sigma": -0.1}, "sigma -0.1: give a number from 0 to 1"),
        ({"sigma": math.nan}, "sigma nan: give a number"),
        ({"sigma": 1.1}, "sigma 1.1: give a number"),
        ({"seed": -1}, "seed -1: give a natural number"),
    ],
)
def test_draws_that_cannot_be_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        draw_claims(**given)


# --- Claims ---------------------------------------------------------------------------------------------------------


def test_claims_have_texts_of_their_own() -> None:
    texts = [claim.text for claim in (*CLAIMS, *SLICE_CLAIMS)]
    assert len(set(texts)) == len(texts)


def test_all_claims_that_virtual_runs_decide_are_drawn(drawn: Uncertainty, papers: list[Trace]) -> None:
    evidence = Evidence.of(summary(papers), {})
    verdicts = [judge(claim, evidence) for claim in (*CLAIMS, *SLICE_CLAIMS)]
    decided = {each.claim.text: (each.virtual, each.verdict == "supported") for each in verdicts if each.checked}
    assert {each.claim: (each.found, each.holds) for each in drawn.claims} == decided
    assert len(decided) == 32 + 11


def coin(check: Callable[[Evidence], Finding], **changes: Any) -> Claim:
    return dataclasses.replace(Claim("a coin", "heads", "0", "none", check), **changes)


def test_a_share_is_counted_by_the_claims_own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Evidence] = []

    def check(evidence: Evidence) -> Finding:
        seen.append(evidence)
        return f"toss {len(seen)}", len(seen) in (2, 5, 6)

    def check_nothing(evidence: Evidence) -> Finding:
        raise MissingRuns("no live run")

    others = coin(check_nothing, text="a live coin"), coin(check_nothing, text="a setting", unchecked="a setting")
    monkeypatch.setattr(uncertainty, "CLAIMS", (coin(check), *others))
    monkeypatch.setattr(uncertainty, "SLICE_CLAIMS", ())
    tossed = draw_claims(12, jobs=1)
    assert tossed.claims == (ClaimDraws("a coin", "heads", "none", "toss 1", False, 3),)
    assert tossed.share(coin(check), "toss 1") == 0.25
    assert tossed.share(coin(check), "toss 2") is None
    assert tossed.share(coin(check, paper="tails"), "toss 1") is None
    assert tossed.share(coin(check, tolerance="wide"), "toss 1") is None
    assert len(seen) == 13
    latencies = {evidence.row("alexnet", "original").mean_ms.mean for evidence in seen}
    assert len(latencies) == 13, "a draw is repeated"


@pytest.mark.parametrize(("held", "robust"), [(0, True), (5, True), (6, False), (94, False), (95, True), (100, True)])
def test_nearly_all_draws_agree_on_a_robust_claim(held: int, robust: bool) -> None:
    claim = ClaimDraws("a coin", "heads", "none", "heads", True, held)
    assert Uncertainty(0.05, 100, 0, {}, (claim,)).is_robust(claim) == robust


# --- What is kept ---------------------------------------------------------------------------------------------------


def test_draws_are_kept_and_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_uncertainty(tmp_path) is None
    told: list[int] = []

    def keep(draws: int = 3, sigma: float = 0.05, seed: int = 0) -> tuple[Uncertainty, bool]:
        """What is kept, and whether it had to be drawn."""
        told.clear()
        kept = keep_uncertainty(tmp_path, draws, sigma, seed, jobs=1, progress=told.append)
        assert load_uncertainty(tmp_path) == kept
        return kept, sum(told) == draws

    first, was_drawn = keep()
    assert was_drawn
    assert first == draw_claims(3, jobs=1)
    assert set(first.digests) == {*MODELS, CLIENT, SERVER}
    assert keep() == (first, False)
    for other in ({"draws": 4}, {"sigma": 0.1}, {"seed": 1}, {}):
        assert keep(**other)[1]
        assert not keep(**other)[1]
    # Other costs, networks, claims and findings.
    digests = {**first.digests, "odroid-xu4": "0"}
    found = (msgspec.structs.replace(first.claims[0], found="62"), *first.claims[1:])
    for other_kept in (
        msgspec.structs.replace(first, digests=digests),
        msgspec.structs.replace(first, claims=found),
        msgspec.structs.replace(first, claims=first.claims[1:]),
    ):
        (tmp_path / FILE).write_text(json.dumps(other_kept.to_json()))
        assert keep() == (first, True)
    monkeypatch.setattr(uncertainty, "CLAIMS", CLAIMS[1:])
    assert len(keep()[0].claims) == len(first.claims) - 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"sigma": "x"}', b"\xff", "held", "schema", "draws"],
)
def test_a_file_that_is_something_else_is_refused(text: str | bytes, tmp_path: Path, papers: list[Trace]) -> None:
    claim = {"claim": "a", "paper": "b", "tolerance": "c", "found": "d", "holds": True, "held": 3}
    document: dict[str, Any] = {"sigma": 0.05, "draws": 2, "seed": 0, "digests": {}, "claims": [claim]}
    if text == "schema":
        text = json.dumps({**document, "draws": 3, "schema": 2})
    elif text == "draws":
        text = json.dumps({**document, "draws": 0, "claims": []})
    elif text == "held":
        text = json.dumps(document)
    (tmp_path / FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    papers[0].save(trace_path(tmp_path, papers[0].info.settings, "alexnet", "original", 1))
    for use in (load_uncertainty, lambda results: write_report(results, ()), keep_uncertainty):
        with pytest.raises(InputError, match=rf"{FILE}: not draws of claims.*; delete it and draw again"):
            use(tmp_path)


# --- The report -----------------------------------------------------------------------------------------------------


def test_the_report_has_the_shares(papers: list[Trace], drawn: Uncertainty, tmp_path: Path) -> None:
    shares = {each.claim: f"{drawn.share_of(each):.1%}" for each in drawn.claims}
    sections = {section.title: section for section in make_report(papers, uncertainty=drawn).sections}
    checked, slices = (
        sections[title] for title in ("The paper's claims", "Beyond the paper: slices below the layer")
    )  # fmt: skip
    for section in (checked, slices):
        assert section.header[-1] == "of draws"
        assert f"Of draws: the share of {DRAWS} random draws" in section.text
    assert {row[0]: row[-1] for row in (*checked.rows, *slices.rows) if row[-1] != "-"} == shares
    assert {row[-1] for row in checked.rows} == {shares[row[0]] for row in checked.rows}
    assert {row[-1] for row in sections["Claims that are not checked"].rows} == {"-"}
    assert "of draws" in make_report(papers, uncertainty=drawn).text()

    for trace in papers:
        trace.save(trace_path(tmp_path, trace.info.settings, trace.info.model, trace.info.algorithm, 1))
    assert "Of draws" not in write_report(tmp_path, ()).read_text()
    (tmp_path / FILE).write_text(json.dumps(drawn.to_json()))
    text = write_report(tmp_path, ()).read_text()
    assert all(f"| {share} |" in text for share in shares.values())


def test_a_verdict_of_other_runs_has_no_share(papers: list[Trace], drawn: Uncertainty) -> None:
    slower = [
        dataclasses.replace(trace, queries=trace.queries[::2]) if trace.info.model == "alexnet" else trace
        for trace in papers
    ]
    (checked,) = [
        part for part in make_report(slower, uncertainty=drawn).sections if part.title == "The paper's claims"
    ]
    shown = {row[0]: row[-1] for row in checked.rows}
    assert shown["AlexNet, original: queries before the upload ended"] == "-"
    assert shown["Inception, original: the largest partition is indivisible"] == "100.0%"


# --- The documentation ----------------------------------------------------------------------------------------------

# The claims of docs/reproduction.md in its order: what their texts have in common, row after row.
DOCUMENTED = (
    "queries before", "queries per second", "differ most", "mean latency", "total number", "in both halves",
    "is indivisible", "largest partition smaller",
)  # fmt: skip


def test_the_documentation_has_these_shares_and_verdicts(drawn: Uncertainty) -> None:
    texts = {claim.text for claim in CLAIMS}
    claims = [each for part in DOCUMENTED for each in drawn.claims if part in each.claim and each.claim in texts]
    assert len(claims) == len(set(claims)) == 32
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    tables = [table for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE) if "of draws" in table]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for table in tables for line in table.splitlines()]
    rows = [row for row in rows if row[-1] != "of draws" and not row[-1].startswith("---")]
    assert rows

    documented = [int(cell.removesuffix(" %")) / 100 for row in rows for cell in row[-1].split(", ")]
    assert len(documented) == len(claims)
    for claim, share in zip(claims, documented, strict=True):
        # Four standard deviations of so few draws, and what is rounded.
        spread = 4 * math.sqrt(share * (1 - share) / DRAWS) + 0.015
        assert drawn.share_of(claim) == pytest.approx(share, abs=spread), claim.claim

    verdicts = {"supported": True, "not supported": False}
    remaining = iter(claims)
    for row in rows:
        holds = [next(remaining).holds for _ in row[-1].split(", ")]
        if row[-2] == "recursive supported, efficiency not":
            assert holds == [False, True]
        else:
            assert set(holds) == {verdicts[row[-2]]}

    robust = sum(max(share, 1 - share) >= uncertainty.ROBUST_SHARE for share in documented)
    assert f"**{robust} verdicts mean something.**" in page
    assert f"**{len(documented) - robust} verdicts do not.**" in page


def test_a_file_without_counts_is_refused(tmp_path: Path, drawn: Uncertainty) -> None:
    document = drawn.to_json()
    for claim in document["claims"]:
        del claim["held"]
    (tmp_path / uncertainty.FILE).write_text(json.dumps(document))
    with pytest.raises(InputError, match=uncertainty.FILE):
        uncertainty.load_uncertainty(tmp_path)


def test_a_folder_that_cannot_be_is_refused_before_the_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncertainty, "_drawn", lambda *_: pytest.fail("it draws"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write there"):
        uncertainty.keep_uncertainty(tmp_path / "file", 1)
