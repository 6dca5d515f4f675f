"""The paper's algorithms: efficiency-based partitioning (section 3.2), and recursive partitioning (section 3.3,
Algorithm 1). Also `densest`, which differs only in its beginning, and whose order is within a proven bound
(docs/optimality.md).

A candidate is a run of adjacent stages that are not uploaded yet. Its efficiency is the latency that it saves, divided
by the time to upload it. The saving depends on the neighbours: beside an uploaded stage, no transfer is needed. A
candidate without upload overhead has the efficiency inf, 0 or -inf, by the sign of its saving. Of candidates with equal
efficiency, the one with the earlier first stage is chosen, then the one with fewer stages.

Few of the O(n^2) candidates are evaluated again after a step. A gap is a maximal run of stages that are not uploaded.
What is uploaded outside it matters only to the O(n) candidates at its ends, which are evaluated each time. Of the
candidates inside, the best one that begins with each stage and the best one that ends with it are kept. When the gap
has become too short for such a candidate, its efficiency is still an upper bound for the shorter ones, which are
evaluated again only if this bound is the highest. Memory is O(n).
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ionn.model.slices import runs_of
from ionn.planning.graph import ExecutionGraph

# The smallest positive number. A gain divided by it is inf, 0 or -inf; added to any upload time but 0, it vanishes.
_SMALLEST = math.ulp(0.0)


def efficiency(graph: ExecutionGraph) -> list[list[int]]:
    """Efficiency-based partitioning (paper, section 3.2): the initial partition, then repeatedly the candidate with the
    highest efficiency."""
    return _plan(graph, _initial(graph), recursive=False)


def recursive_efficiency(graph: ExecutionGraph) -> list[list[int]]:
    """Recursive partitioning (paper, section 3.3): like `efficiency`, but as long as a part of the chosen candidate has
    positive efficiency, the best part is chosen instead."""
    return _plan(graph, _initial(graph), recursive=True)


def densest(graph: ExecutionGraph) -> list[list[int]]:
    """Plan like `recursive_efficiency`, but without the initial partition, which the paper does not divide."""
    return _plan(graph, [], recursive=True)


class Candidate(NamedTuple):
    """The run of stages `first`..`last`, both included. Of two candidates, the smaller tuple is uploaded first."""

    negative_efficiency: float
    first: int
    last: int


class Candidates:
    """Finds the best candidates in the gaps, which become smaller as stages are uploaded."""

    def __init__(self, graph: ExecutionGraph, uploaded: list[int]) -> None:
        self._graph = graph
        # Of a run a..b: gain = _gain_to[b] - _gain_from[a], upload time = _upload_to[b] - _upload_from[a].
        gain_ms = np.concatenate([[0.0], np.cumsum(graph.client_ms - graph.server_ms)])
        upload_ms = np.concatenate([[0.0], np.cumsum(graph.upload_ms)])
        self._gain_from, self._gain_to = gain_ms[:-1] + graph.up_ms[:-1], gain_ms[1:] - graph.down_ms[1:]
        self._upload_from, self._upload_to = upload_ms[:-1], upload_ms[1:]
        # For each stage, of the candidates inside its gap that begin (end) with it: a bound on their efficiencies, and
        # the end (begin) of the one that had this efficiency. If that one is still inside, it is the best, and of equal
        # ones the shortest.
        n = len(graph.stages)
        self._beginning = np.array([np.full(n, np.inf), np.full(n, n)])
        self._ending = np.array([np.full(n, np.inf), np.full(n, -1)])
        for first, last in runs_of(uploaded):
            self.upload(first, last)

    def upload(self, first: int, last: int) -> None:
        """Mark the stages `first`..`last` as uploaded. A run beside them then needs no transfer on that side."""
        if first > 0:
            self._gain_to[first - 1] += self._graph.down_ms[first] + self._graph.up_ms[first]
        if last + 1 < len(self._gain_from):
            self._gain_from[last + 1] -= self._graph.up_ms[last + 1] + self._graph.down_ms[last + 1]

    def best(self, first: int, last: int) -> Candidate:
        """The best candidate in the gap `first`..`last`."""
        from_first = self._efficiencies(first, slice(first, last + 1))
        to_last = self._efficiencies(slice(first, last + 1), last)
        touching = _touching(first, last, from_first, to_last)
        return min(touching, self._inside(first, last, -touching.negative_efficiency))

    def smallest_part(self, chosen: Candidate) -> Candidate:
        """Replace `chosen`, the best candidate of its gap, by its best proper part, that by its own best part, and so
        on, as long as there is a part with positive efficiency.
        """
        _, first, last = chosen
        beginning, ending = (bounds[:, first : last + 1].copy() for bounds in (self._beginning, self._ending))
        while (part := self._best_part(chosen.first, chosen.last)) is not None:
            chosen = part
        # The search has replaced bounds by those inside ever smaller parts. In the gaps that remain beside `chosen`,
        # these hold only for candidates that begin before it, and for those that end after it.
        self._beginning[:, chosen.last + 1 : last + 1] = beginning[:, chosen.last + 1 - first :]
        self._ending[:, first : chosen.first] = ending[:, : chosen.first - first]
        return chosen

    def _best_part(self, first: int, last: int) -> Candidate | None:
        """The best proper part of `first`..`last`, or a part that the recursion reaches from there; None if no part has
        positive efficiency.

        While runs that begin with `first` are better than every run inside, the best part is one of them, and so is the
        best part of that one: the recursion skips to the shortest run that is better than every run inside. Runs that
        end with `last` are treated likewise.
        """
        if first == last:
            return None
        from_first = self._efficiencies(first, slice(first, last))
        to_last = self._efficiencies(slice(first + 1, last + 1), last)
        touching = _touching(first, last, from_first, to_last)
        inside = self._inside(first, last, max(-touching.negative_efficiency, 0.0))
        part, floor = min(touching, inside), max(-inside.negative_efficiency, 0.0)
        if part.negative_efficiency >= 0:
            return None
        if part.first == first:
            skipped_to = int((from_first >= max(floor, _SMALLEST)).argmax())
            return Candidate(-float(from_first[skipped_to]), first, first + skipped_to)
        if part.last == last and -part.negative_efficiency > floor:
            skipped_to = int(np.flatnonzero(to_last > floor)[-1])
            return Candidate(-float(to_last[skipped_to]), first + 1 + skipped_to, last)
        return part

    def _inside(self, first: int, last: int, enough: float) -> Candidate:
        """The best candidate that begins after `first` and ends before `last`.

        If all are less efficient than `enough`, any candidate may be returned, with a bound on their efficiency that is
        less than `enough`.
        """
        while first + 1 < last:
            inside = slice(first + 1, last)
            begin = first + 1 + int(self._beginning[0, inside].argmax())
            end = first + 1 + int(self._ending[0, inside].argmax())
            best = Candidate(-float(self._beginning[0, begin]), begin, int(self._beginning[1, begin]))
            if best.last < last:
                return best
            if (bound := min(-best.negative_efficiency, float(self._ending[0, end]))) < enough:
                return Candidate(-bound, begin, end)
            efficiencies = self._efficiencies(begin, slice(begin, last))
            shortest = int(efficiencies.argmax())
            self._beginning[:, begin] = efficiencies[shortest], begin + shortest
            if self._ending[1, end] <= first:
                efficiencies = self._efficiencies(slice(first + 1, end + 1), end)[::-1]
                shortest = int(efficiencies.argmax())
                self._ending[:, end] = efficiencies[shortest], end - shortest
        return Candidate(math.inf, first, last)

    def _efficiencies(self, first: int | slice, last: int | slice) -> NDArray[np.float64]:
        """Return the efficiencies of the runs that begin with `first` and end with `last`, one of which is a slice."""
        gain_ms = self._gain_to[last] - self._gain_from[first]
        upload_ms = self._upload_to[last] - self._upload_from[first]
        return np.asarray(gain_ms / (upload_ms + _SMALLEST))


def _touching(first: int, last: int, from_first: NDArray[np.float64], to_last: NDArray[np.float64]) -> Candidate:
    """The best of the runs that begin with `first` or end with `last`, given their efficiencies in chain order."""
    end, begin = int(from_first.argmax()), int(to_last.argmax())  # the first maximum: the shortest, and the earliest
    return min(
        Candidate(-float(from_first[end]), first, first + end),
        Candidate(-float(to_last[begin]), last + 1 - len(to_last) + begin, last),
    )


def _optimal(graph: ExecutionGraph) -> frozenset[int]:
    """The stages that the fastest path uses when uploading costs nothing: the paper's optimal state (section 2.2)."""
    return graph.shortest_path(np.zeros(len(graph.stages)))


def _initial(graph: ExecutionGraph) -> list[int]:
    """The paper's initial partition (section 3.4): the stages at the server on the fastest path with a penalty factor
    of 1."""
    return sorted(graph.shortest_path(graph.upload_ms) & _optimal(graph))


@np.errstate(over="ignore")  # a gain divided by _SMALLEST
def _plan(graph: ExecutionGraph, initial: list[int], *, recursive: bool) -> list[list[int]]:
    """The initial partition, unless it is empty, and all partitions that follow."""
    optimal = _optimal(graph)
    plan = [initial] if initial else []
    candidates = Candidates(graph, initial)
    # Only an upload of its own stages changes a gap, so each gap keeps its best candidate until then.
    queue = [(candidates.best(*gap), gap) for gap in runs_of(optimal.difference(initial))]
    heapify(queue)
    while queue:
        chosen, (gap_first, gap_last) = heappop(queue)
        if recursive:
            chosen = candidates.smallest_part(chosen)
        plan.append(list(range(chosen.first, chosen.last + 1)))
        candidates.upload(chosen.first, chosen.last)
        for gap in ((gap_first, chosen.first - 1), (chosen.last + 1, gap_last)):
            if gap[0] <= gap[1]:
                heappush(queue, (candidates.best(*gap), gap))
    return plan
