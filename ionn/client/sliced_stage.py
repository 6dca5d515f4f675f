"""A stage in slices at the client: it computes any of them at the pace of its device, to the same bits as the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ionn.client.pacing import PacedResult, run_paced
from ionn.model.caffemodel import Floats
from ionn.model.comparison import bit_equal
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.model.partial_net import extract_slice
from ionn.model.slices import Slice


class SlicedStage:
    """All slices of a stage, in order, each as a net of its own. Their weights are those of the `whole` network's net,
    in the same memory."""

    def __init__(self, network: Network, slices: Sequence[Slice], whole: StageNet) -> None:
        self.stage = slices[0].stage
        self.channels = slices[-1].end
        self._nets: dict[Slice, StageNet] = {}
        for piece in slices:
            net = self._nets[piece] = StageNet(extract_slice(network, piece))
            net.share(whole, piece.begin)

    def run(self, data: Floats, begin: int, end: int, layer_ms: Sequence[float] | None) -> tuple[Floats, PacedResult]:
        """Run channels `begin`..`end` (not included), which must be those of whole slices: their output, and the times.

        `layer_ms` are the times that the stage's layers are to take for these channels, None for no pace.
        """
        chosen = {piece: net for piece, net in self._nets.items() if begin <= piece.begin < end}
        jobs: list[tuple[StageNet, int]] = []
        pace_ms: list[float] = []
        for piece, net in chosen.items():
            net.put(self.stage, data)
            layers = net.layers(self.stage, self.stage)[1:]  # the first is the Input
            jobs += [(net, layer) for layer in layers]
            share = (piece.end - piece.begin) / (end - begin)
            pace_ms += [ms * share for ms in layer_ms] if layer_ms is not None else [0.0] * len(layers)

        def run_job(number: int) -> None:
            net, layer = jobs[number]
            net.run_layer(layer)

        paced = run_paced(run_job, range(len(jobs)), pace_ms)
        return np.concatenate([net.outputs(self.stage)[0] for net in chosen.values()], axis=1), paced

    def exact(self, data: Floats, output: Floats) -> bool:
        """Tell whether the slices make exactly the `output` that the whole stage makes on `data`, bit for bit.

        A BLAS may sum in another order for another shape; `ionn.model.slices` says which shapes avoid that.
        """
        joined, _ = self.run(data, 0, self.channels, None)
        return bit_equal(joined, output)


def slice_stages(network: Network, plan: Sequence[Sequence[object]], whole: StageNet) -> dict[int, SlicedStage]:
    """The stages that a plan (given by its partitions' pieces) uploads in slices, by stage, with the weights of the
    `whole` network's net. The part of such a stage that the plan does not upload is one more slice."""
    slices: dict[int, list[Slice]] = {}
    for piece in (piece for pieces in plan for piece in pieces if isinstance(piece, Slice)):
        slices.setdefault(piece.stage, []).append(piece)
    for stage, pieces in slices.items():
        end, channels = pieces[-1].end, network.stages[stage].output_shapes[0][1]
        if end < channels:
            pieces.append(Slice(stage, end, channels))
    return {stage: SlicedStage(network, pieces, whole) for stage, pieces in slices.items()}
