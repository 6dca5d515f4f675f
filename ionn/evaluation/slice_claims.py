"""This project's own claims about slices, and whether runs support them.

As for the paper's claims, the virtual testbed decides about gains, and so do live runs with a dilation: in other live
runs, much of a query's latency is the time of the server's processor. Those also decide about what must hold anywhere:
the order of the algorithms, and exact outputs.
"""

from __future__ import annotations

from collections.abc import Iterable

from ionn.evaluation.claims import Claim, Evidence, Finding, MissingRuns
from ionn.evaluation.summary import ratio
from ionn.paper import ALGORITHMS, MODELS, ORIGINAL, RECURSIVE, SLICED, model_title

ALEXNET_GAIN = 2.0  # queries over original's
INCEPTION_GAIN = 1.35  # over recursive-efficiency's
LARGEST_SHARE = 0.1
PLANNING_MS = 3.0
# Live, the queries of two runs may differ by one, which ends just before the upload or just after, and by this share.
NOISE = 0.1
_WHERE = "docs/slicing.md"


def _gain(model: str, over: str, least: float) -> Claim:
    def check(evidence: Evidence) -> Finding:
        new, old = (evidence.row(model, algorithm).queries for algorithm in (SLICED, over))
        return f"{ratio(new, old).text(2)} x", new.mean >= least * old.mean

    text = f"{model_title(model)}: queries before the upload ended, against {over}"
    return Claim(text, f"at least {least:g} x", _WHERE, "none", check)


def _most_queries(model: str) -> Claim:
    def check(evidence: Evidence) -> Finding:
        counts = [evidence.row(model, algorithm).queries for algorithm in (*ALGORITHMS, SLICED)]
        *others, ours = (count.mean for count in counts)
        return ", ".join(count.count() for count in counts), ours > others[-1] >= max(others)

    text = f"{model_title(model)}: queries of {', '.join(ALGORITHMS)}, {SLICED}"
    return Claim(text, "most with slices, then recursive", _WHERE, "none", check, everywhere=True)


def _not_worse(model: str) -> Claim:
    def check(evidence: Evidence) -> Finding:
        rows = [evidence.row(model, algorithm) for algorithm in (RECURSIVE, SLICED)]
        old, new = (row.queries for row in rows)
        text = f"{old.count()} → {new.count()}"
        if len({trace.info.plan.partitions for row in rows for trace in row.traces}) == 1:
            return f"{text}, the same plan", True
        noise = 0.0 if evidence.settings.testbed == "virtual" else 1 + NOISE * old.mean
        return text, new.mean >= old.mean - noise

    text = f"{model_title(model)}: queries, {RECURSIVE} → {SLICED}"
    return Claim(text, "not fewer", _WHERE, f"live 1 query and {NOISE:.0%}", check, everywhere=True)


def _largest(model: str) -> Claim:
    def check(evidence: Evidence) -> Finding:
        share = evidence.row(model, SLICED).largest_share.mean
        return f"{share:.0%}", share <= LARGEST_SHARE

    text = f"{model_title(model)}: largest partition"
    return Claim(text, f"at most {LARGEST_SHARE:.0%} of the model", _WHERE, "none", check)


def _exact(evidence: Evidence) -> Finding:
    # Rows that are looked at are noted: `items` would look at those of all algorithms.
    found = [evidence.row(*key).outputs for key in evidence.rows if key[1] == SLICED]
    if any(each.wrong for each in found):
        return "not all", False
    runs = f"{evidence.settings.testbed} run with {SLICED}"
    if not any(each.computed for each in found):
        raise MissingRuns(f"no {runs} that computes outputs")
    if any(each.equal < each.computed or not each.computed for each in found):
        raise MissingRuns(f"a {runs} does not compute the same bits at both ends")
    return "all", True


def _planning(evidence: Evidence) -> Finding:
    times = [ms for (_, algorithm), ms in evidence.planning_ms.items() if algorithm == SLICED]
    if not times or evidence.settings.testbed != "virtual":
        raise MissingRuns("no plan")
    return f"{max(times):.1f} ms", max(times) < PLANNING_MS


def _claims() -> Iterable[Claim]:
    yield _gain("alexnet", ORIGINAL, ALEXNET_GAIN)
    yield _gain("inception", RECURSIVE, INCEPTION_GAIN)
    yield from map(_largest, ("alexnet", "inception"))
    yield from map(_most_queries, ("alexnet", "inception"))
    yield from map(_not_worse, MODELS)
    yield Claim("Outputs equal to the local forward, bit for bit", "all", _WHERE, "none", _exact, everywhere=True)
    yield Claim("Longest planning time of all models", f"under {PLANNING_MS:g} ms", _WHERE, "none", _planning)


SLICE_CLAIMS: tuple[Claim, ...] = tuple(_claims())
