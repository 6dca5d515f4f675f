"""The paper's algorithms: partitions by efficiency (section 3.2) and recursively smaller ones (3.3, Algorithm 1).

The efficiency of a candidate, a run of adjacent stages not uploaded yet, is the latency that it saves per time to
upload it. What it saves depends on its neighbours: next to an uploaded stage a transfer vanishes, elsewhere one is
added. A candidate without upload overhead has efficiency inf, 0 or -inf, by the sign of what it saves.

Candidates of equal efficiency: the one with the earlier first stage, then the one with fewer stages.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ionn.graph import ExecutionGraph, runs_of


def efficiency(graph: ExecutionGraph) -> list[list[int]]:
    """The initial partition, then again and again the candidate with the highest efficiency."""
    return _plan(graph, recursive=False)


def recursive_efficiency(graph: ExecutionGraph) -> list[list[int]]:
    """Like `efficiency`, but a part of the candidate goes first while a part of it has positive efficiency."""
    return _plan(graph, recursive=True)


class Candidate(NamedTuple):
    """Stages `first`..`last`, both included. Of two candidates, the smaller tuple is uploaded first."""

    negative_efficiency: float
    first: int
    last: int


class Candidates:
    """Efficiencies of all candidates, given which stages are uploaded."""

    def __init__(self, graph: ExecutionGraph, uploaded: list[int]) -> None:
        self._graph = graph
        # Of a run a..b: gain = _gain_to[b] - _gain_from[a], upload time = _upload_to[b] - _upload_from[a].
        gain_ms = np.concatenate([[0.0], np.cumsum(graph.client_ms - graph.server_ms)])
        upload_ms = np.concatenate([[0.0], np.cumsum(graph.upload_ms)])
        self._gain_from, self._gain_to = gain_ms[:-1] + graph.up_ms[:-1], gain_ms[1:] - graph.down_ms[1:]
        self._upload_from, self._upload_to = upload_ms[:-1], upload_ms[1:]
        for first, last in runs_of(uploaded):
            self.upload(first, last)

    def upload(self, first: int, last: int) -> None:
        """From now on stages `first`..`last` are at the server: a run that touches them saves a transfer there."""
        if first > 0:
            self._gain_to[first - 1] += self._graph.down_ms[first] + self._graph.up_ms[first]
        if last + 1 < len(self._gain_from):
            self._gain_from[last + 1] -= self._graph.up_ms[last + 1] + self._graph.down_ms[last + 1]

    def best(self, first: int, last: int) -> Candidate:
        """The best candidate within `first`..`last`, none of which is uploaded."""
        return self._best(first, last, self._efficiencies(first, last))

    def best_part(self, first: int, last: int) -> Candidate | None:
        """The best candidate with positive efficiency that is a proper part of `first`..`last`, if there is one."""
        efficiencies = self._efficiencies(first, last)
        efficiencies[0, -1] = -np.inf
        part = self._best(first, last, efficiencies)
        return part if part.negative_efficiency < 0 else None

    def _efficiencies(self, first: int, last: int) -> NDArray[np.float64]:
        """[a, b] is the efficiency of the run first+a .. first+b, -inf where b < a."""
        stages = slice(first, last + 1)
        gain_ms = self._gain_to[stages] - self._gain_from[stages, None]
        upload_ms = self._upload_to[stages] - self._upload_from[stages, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            efficiencies: NDArray[np.float64] = gain_ms / upload_ms
        efficiencies[np.isnan(efficiencies)] = 0
        efficiencies[np.tri(last - first + 1, k=-1, dtype=bool)] = -np.inf
        return efficiencies

    @staticmethod
    def _best(first: int, last: int, efficiencies: NDArray[np.float64]) -> Candidate:
        a, b = divmod(int(efficiencies.argmax()), last - first + 1)  # the first maximum: earliest, then shortest
        return Candidate(-float(efficiencies[a, b]), first + a, first + b)


def _plan(graph: ExecutionGraph, *, recursive: bool) -> list[list[int]]:
    optimal = graph.shortest_path(np.zeros(len(graph.stages)))
    initial = sorted(graph.shortest_path(graph.upload_ms) & optimal)
    plan = [initial] if initial else []
    candidates = Candidates(graph, initial)
    # A run of missing stages is only ever changed by an upload out of itself, so each keeps its best candidate.
    queue = [(candidates.best(*gap), gap) for gap in runs_of(optimal.difference(initial))]
    heapify(queue)
    while queue:
        chosen, (gap_first, gap_last) = heappop(queue)
        while recursive and (part := candidates.best_part(chosen.first, chosen.last)):
            chosen = part
        plan.append(list(range(chosen.first, chosen.last + 1)))
        candidates.upload(chosen.first, chosen.last)
        for gap in ((gap_first, chosen.first - 1), (chosen.last + 1, gap_last)):
            if gap[0] <= gap[1]:
                heappush(queue, (candidates.best(*gap), gap))
    return plan
