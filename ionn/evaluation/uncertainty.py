"""How often a claim holds if the costs of the devices are a little off, as measured costs are.

A draw multiplies the cost of each layer at each side by a random factor: lognormal, with mean 1, and with `sigma` as
the standard deviation of its logarithm. All algorithms plan and run with the draw's costs, on the virtual testbed in
the paper's settings, and `Claim.check` checks each claim on these runs. The share of draws in which a claim holds is
near 0 or 1 if the costs clearly decide it, and in between if small errors of the costs can change the verdict.

Claims about planning times, and those that no virtual run can decide, are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ionn.arguments import COUNT_MAX
from ionn.costs.loading import load_costs
from ionn.errors import InputError
from ionn.evaluation.claims import CLAIMS, Claim, Evidence, Finding, MissingRuns
from ionn.evaluation.slice_claims import SLICE_CLAIMS
from ionn.evaluation.summary import summary
from ionn.files import check_writable, read_bytes, write_file
from ionn.model.network import Network
from ionn.paper import CLIENT, MBPS, MODELS, SERVER, SHOWN
from ionn.planning.graph import ExecutionGraph
from ionn.planning.plan import make_plan
from ionn.schema import NATURAL_MAX, Natural, Real, read_json
from ionn.testbed.settings import NOISE_MAX, Settings
from ionn.testbed.trace import RunInfo, Trace
from ionn.testbed.virtual import run_virtual
from ionn.testbed.workers import as_they_end, local_workers

SCHEMA = 1
DRAWS = 1000
SIGMA = 0.05
# The file of the draws in a results folder.
FILE = "uncertainty.json"
# If at least this share of draws agrees on a verdict, it follows from the costs.
ROBUST_SHARE = 0.95
# Draws that a process takes at once: they take it less than a second.
_BATCH = 10

Progress = Callable[[int], object]


class ClaimDraws(msgspec.Struct, frozen=True):
    """A claim and its draws: what is `found` with the unchanged costs, whether it `holds` with them, and in how many
    draws it `held`."""

    claim: str
    paper: str
    tolerance: str
    found: str
    holds: bool
    held: Natural


class Uncertainty(msgspec.Struct, frozen=True):
    """In how many of `draws` draws each claim held. `digests` are those of the costs and networks, by name, which tell
    them from others of the same names."""

    sigma: Real
    draws: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
    seed: Natural
    digests: dict[str, str]
    claims: tuple[ClaimDraws, ...]
    schema: Natural = SCHEMA

    def share(self, claim: Claim, found: str) -> float | None:
        """The share of the draws in which a claim holds; None unless the draws were made of costs with which this was
        `found`."""
        subject = claim.text, claim.paper, claim.tolerance, found
        for each in self.claims:
            if (each.claim, each.paper, each.tolerance, each.found) == subject:
                return self.share_of(each)
        return None

    def share_of(self, claim: ClaimDraws) -> float:
        """The share of the draws in which a claim holds."""
        return claim.held / self.draws

    def is_robust(self, claim: ClaimDraws) -> bool:
        """Tell whether nearly all draws agree on a claim, one way or the other."""
        share = self.share_of(claim)
        return max(share, 1 - share) >= ROBUST_SHARE

    def to_json(self) -> dict[str, Any]:
        """What `load` reads."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document

    @classmethod
    def load(cls, path: Path) -> Uncertainty:
        """Read what `keep_uncertainty` wrote. Raises InputError for anything else."""
        try:
            found: Uncertainty = read_json(read_bytes(path, "the draws"), Uncertainty)
        except ValueError as error:
            raise InputError(f"{path}: not draws of claims ({error}); delete it and draw again") from error
        if found.schema != SCHEMA or any(each.held > found.draws for each in found.claims):
            raise InputError(f"{path}: not draws of claims of this version; delete it and draw again")
        return found


def draw_claims(
    draws: int = DRAWS,
    sigma: float = SIGMA,
    seed: int = 0,
    *,
    jobs: int | None = None,
    progress: Progress = lambda draws: None,
) -> Uncertainty:
    """Check the claims in so many draws, in `jobs` processes, by default one per core. `progress` is called with the
    number of draws that were made since the last call. The result depends on the first three arguments alone.

    Raises InputError for numbers out of their ranges, and IonnError if a process is killed.
    """
    return _drawn(_undrawn(draws, sigma, seed), jobs, progress)


def keep_uncertainty(
    results: Path,
    draws: int = DRAWS,
    sigma: float = SIGMA,
    seed: int = 0,
    *,
    jobs: int | None = None,
    progress: Progress = lambda draws: None,
) -> Uncertainty:
    """Do as `draw_claims`, and keep the result in a results folder, for its report. If the folder has the result for
    the same arguments, costs, networks, claims and findings, nothing is computed.

    Raises InputError also if the file there is something else, and if it cannot be written.
    """
    path = results / FILE
    undrawn = _undrawn(draws, sigma, seed)
    if path.exists():
        kept = Uncertainty.load(path)
        claims = tuple(msgspec.structs.replace(each, held=0) for each in kept.claims)
        if msgspec.structs.replace(kept, claims=claims) == undrawn:
            return kept
    check_writable(path)
    drawn = _drawn(undrawn, jobs, progress)
    write_file(path, (json.dumps(drawn.to_json(), indent=1) + "\n").encode())
    return drawn


def load_uncertainty(results: Path) -> Uncertainty | None:
    """The draws that a results folder has, or None. Raises InputError if the file is something else."""
    path = results / FILE
    return Uncertainty.load(path) if path.exists() else None


def draw_graphs(sigma: float, seed: int, draw: int) -> list[ExecutionGraph]:
    """Each model's graph, with the costs that its layers have in one draw."""
    return [
        subject.graph(sigma, np.random.default_rng([seed, draw, index])) for index, subject in enumerate(_subjects())
    ]


def draw_evidence(sigma: float = 0.0, seed: int = 0, draw: int = 0) -> Evidence:
    """The virtual runs of all models and algorithms in one draw; with a `sigma` of 0, with the unchanged costs.
    Planning times are left out, as they do not depend on the costs."""
    traces: list[Trace] = []
    for subject, graph in zip(_subjects(), draw_graphs(sigma, seed, draw), strict=True):
        for algorithm in SHOWN:
            plan = make_plan(subject.network, graph, algorithm, MBPS)
            traces.append(run_virtual(RunInfo(Settings("virtual"), 1, plan, graph)))
    (evidence,) = Evidence.of(summary(traces), {})
    return evidence


def _undrawn(draws: int, sigma: float, seed: int) -> Uncertainty:
    """The claims with what is found of them without a draw, and no draw in which they held."""
    if not 1 <= draws <= COUNT_MAX:
        raise InputError(f"draws {draws}: give a whole number from 1 to {COUNT_MAX}")
    if not 0 <= sigma <= NOISE_MAX:
        raise InputError(f"sigma {sigma:g}: give a number from 0 to {NOISE_MAX:g}")
    if not 0 <= seed <= NATURAL_MAX:
        raise InputError(f"seed {seed}: give a natural number")
    networks = {subject.network.name: subject.network.digest for subject in _subjects()}
    costs = {name: _digest(load_costs(name).to_json()) for name in (CLIENT, SERVER)}
    evidence = draw_evidence()
    found = [(claim, _finding(claim, evidence)) for claim in _claims()]
    claims = (
        ClaimDraws(claim.text, claim.paper, claim.tolerance, *finding, held=0)
        for claim, finding in found
        if finding is not None
    )
    return Uncertainty(sigma, draws, seed, {**networks, **costs}, tuple(claims))


def _drawn(undrawn: Uncertainty, jobs: int | None, progress: Progress) -> Uncertainty:
    """The same, with the number of draws in which each claim held."""
    from joblib import delayed

    draws, sigma, seed = undrawn.draws, undrawn.sigma, undrawn.seed
    texts = [each.claim for each in undrawn.claims]
    batches = [range(begin, min(begin + _BATCH, draws)) for begin in range(0, draws, _BATCH)]
    held = np.zeros(len(texts), dtype=np.int64)
    calls = (delayed(_count_held)(batch, sigma, seed, texts) for batch in batches)
    with local_workers(jobs), closing(as_they_end(calls, "the draws", "draw again")) as found:
        for count, counts in found:
            held += counts
            progress(count)
    claims = (msgspec.structs.replace(each, held=int(n)) for each, n in zip(undrawn.claims, held, strict=True))
    return msgspec.structs.replace(undrawn, claims=tuple(claims))


def _count_held(draws: range, sigma: float, seed: int, texts: Sequence[str]) -> tuple[int, NDArray[np.int64]]:
    """How many draws these are, and in how many of them each of the claims with these texts holds."""
    claims = {claim.text: claim for claim in _claims()}
    held = np.zeros(len(texts), dtype=np.int64)
    for draw in draws:
        evidence = draw_evidence(sigma, seed, draw)
        held += [(finding := _finding(claims[text], evidence)) is not None and finding[1] for text in texts]
    return len(draws), held


def _claims() -> list[Claim]:
    return [claim for claim in (*CLAIMS, *SLICE_CLAIMS) if not claim.unchecked]


def _finding(claim: Claim, evidence: Evidence) -> Finding | None:
    """Check a claim; None if no virtual run can decide it."""
    try:
        text, holds = claim.check(evidence)
    except MissingRuns:
        return None
    return text, bool(holds)


@dataclass(frozen=True)
class _Subject:
    """A model with its costs at the client and at the server."""

    network: Network
    client: _LayerCosts
    server: _LayerCosts

    def graph(self, sigma: float, random: np.random.Generator) -> ExecutionGraph:
        client, server = (side.drawn(sigma, random) for side in (self.client, self.server))
        return ExecutionGraph.from_network(self.network, client, server, MBPS)


@cache
def _subjects() -> tuple[_Subject, ...]:
    networks = map(Network.load, MODELS)
    return tuple(
        _Subject(network, *(_LayerCosts.of(name, network) for name in (CLIENT, SERVER))) for network in networks
    )


@dataclass(frozen=True, eq=False)
class _LayerCosts:
    """The `Costs` of the layers of one network as an array, so that a cost model predicts them once and not in each
    draw. Nothing is coded in the paper's settings, so the speed of coding and the ratios are left unknown."""

    name: str
    times_ms: NDArray[np.float64]  # (3, len(network.layers)): layer_ms, load_ms, fixed_ms
    encode_ms_per_mb: None = None
    decode_ms_per_mb: None = None

    @classmethod
    def of(cls, device: str, network: Network) -> _LayerCosts:
        costs = load_costs(device)
        return cls(device, np.array([costs.layer_ms(network), costs.load_ms(network), costs.fixed_ms(network)]))

    def drawn(self, sigma: float, random: np.random.Generator) -> _LayerCosts:
        """The costs in a draw: all times of a layer are multiplied by the same random factor."""
        factors = random.lognormal(-(sigma**2) / 2, sigma, self.times_ms.shape[1])
        return _LayerCosts(self.name, self.times_ms * factors)

    def layer_ms(self, network: Network) -> NDArray[np.float64]:
        return self.times_ms[0, :]

    def load_ms(self, network: Network) -> NDArray[np.float64]:
        return self.times_ms[1, :]

    def fixed_ms(self, network: Network) -> NDArray[np.float64]:
        return self.times_ms[2, :]

    def output_ratios(self, network: Network) -> NDArray[np.float64]:
        return np.full(len(network.layers), np.nan)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "times_ms": self.times_ms.tolist()}


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
