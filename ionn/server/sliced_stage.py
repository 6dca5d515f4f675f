"""A stage that arrives in slices: what queries can use of it so far, and the whole that it becomes.

Every slice is a net of its own. As soon as it is complete, queries can use it, and its rows of the weights are copied
into the net of the whole stage. When all slices are complete, the whole net is as if the stage had been uploaded whole,
and the slices' nets are freed. Until then the weights of such a stage take up to twice their memory.
"""

from __future__ import annotations

import numpy as np

from ionn.errors import ProtocolError
from ionn.model.caffemodel import Floats
from ionn.model.engine import StageNet
from ionn.model.partial_net import Channels
from ionn.server.admission import CheckedNet, Usage


class Assembly:
    """A stage in slices, which may come in any order. `net` is the net of the whole stage, to be used once the stage is
    `complete`; `checked` is the same net as admission checked it."""

    def __init__(self, whole: CheckedNet) -> None:
        self.stage = whole.stage
        self.layers = whole.layers[whole.stage]
        self.net = StageNet(whole.net)
        self.checked = whole
        self._bytes = self.net.blob_bytes()
        self._announced: dict[Channels, Usage] = {}
        self._slices: dict[int, tuple[int, StageNet]] = {}  # by their first channel: their end, and their net
        self.complete = False

    @property
    def announced(self) -> bool:
        """Tell whether any slice has arrived or is arriving."""
        return bool(self._announced)

    @property
    def usage(self) -> Usage:
        """The usage of the whole stage and, until it is complete, of its slices."""
        return self.checked.usage if self.complete else sum(self._announced.values(), self.checked.usage)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.net.outputs(self.stage)[0].shape

    def check(self, part: CheckedNet) -> Channels:
        """The channels of a slice that may be announced. Raises ProtocolError for a slice of another stage, and for
        channels that were announced before."""
        channels, whole = part.net.channels, part.whole
        assert channels is not None
        assert whole is not None
        if whole.net != self.checked.net:
            raise ProtocolError(f"a slice of another stage {self.stage} than the one before")
        begin, end, _ = channels
        if any(map(channels.overlaps, self._announced)):
            raise ProtocolError(f"channels {begin} to {end} of stage {self.stage} were uploaded before")
        return channels

    def announce(self, part: CheckedNet) -> None:
        """Note that a slice is arriving, which `check` accepts."""
        self._announced[self.check(part)] = part.usage

    def withdraw(self, channels: Channels) -> None:
        """Forget a slice that was announced."""
        del self._announced[channels]

    def add(self, channels: Channels, net: StageNet) -> None:
        """Add an announced slice, whose net has all its weights."""
        whole = self.rows(channels)
        for key, rows in net.blob_bytes().items():
            whole[key][:] = rows
        self._slices[channels.begin] = channels.end, net
        self.complete = sum(end - begin for begin, (end, _) in self._slices.items()) == channels.of
        if self.complete:
            self._slices.clear()

    def rows(self, channels: Channels) -> dict[tuple[str, int], memoryview]:
        """Where a slice's weights are in the whole net: the bytes of every blob, by layer and number of the blob."""
        found = {}
        for key, whole in self._bytes.items():
            row_bytes = len(whole) // channels.of
            found[key] = whole[row_bytes * channels.begin : row_bytes * channels.end]
        return found

    def run(self, channels: int, data: Floats) -> tuple[float, Floats]:
        """Run the first `channels` channels on `data`: the time in ms, and their output.

        A client may not know yet that the stage is complete; then the whole net runs, for any number of channels.
        Otherwise, raises ProtocolError unless the first slices that have arrived make exactly so many channels.
        """
        nets = [self.net] if self.complete and 0 < channels < self.output_shape[1] else self._first(channels)
        stage_ms, outputs = 0.0, []
        for net in nets:
            net.put(self.stage, data)
            stage_ms += net.run(self.stage, self.stage)[0]
            outputs += net.outputs(self.stage)
        return stage_ms, np.concatenate(outputs, axis=1)[:, :channels]

    def _first(self, channels: int) -> list[StageNet]:
        nets, end = [], 0
        while end < channels and end in self._slices:
            end, net = self._slices[end]
            nets.append(net)
        if not nets or end != channels:
            raise ProtocolError(f"the first {channels} channels of stage {self.stage} are not slices that are here")
        return nets
