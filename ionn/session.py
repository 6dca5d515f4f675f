"""A live session of the experiment: queries computed by real Caffe, here and at a server, on the wall clock."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from ionn import engine
from ionn.caffemodel import Floats
from ionn.client import FAULTS, Client, Patience
from ionn.engine import StageNet
from ionn.errors import ProtocolError
from ionn.graph import ExecutionGraph
from ionn.network import Network
from ionn.pacing import run_paced
from ionn.partition import Partition
from ionn.trace import PartitionRecord, QueryRecord, Segment
from ionn.upload import Upload

# How often a session that waits reports its progress.
PROGRESS_S = 0.2
# How long a lost server may stay away before the upload counts as ended.
GIVE_UP_S = 20.0


class LiveSession:
    """Implements `experiment.Session`.

    `net` is the client's own copy of the network and `layer_ms` (layers,) the pace of its layers, already dilated, or
    None to run them as fast as this machine does. `stages[i]` are the stages of `partitions[i]`. `inputs` are taken in
    turn, and every output is compared with `net`'s own forward.

    Stages run here where there is no `client`, and while its server is lost. A query that the server fails is completed
    here; its record says so, as those of the queries that follow do until the server is back. `give_up_s` is how long
    the experiment waits for that.
    """

    def __init__(
        self,
        network: Network,
        net: StageNet,
        graph: ExecutionGraph,
        layer_ms: Sequence[float] | None,
        inputs: Sequence[Floats],
        client: Client | None,
        partitions: Sequence[Partition],
        stages: Sequence[Sequence[int]],
        on_progress: Callable[[LiveSession], None] = lambda session: None,
        dilation: float = 1.0,
    ) -> None:
        self._network = network
        self._net = net
        self._graph = graph
        self._layer_ms = layer_ms
        self._inputs = inputs
        self._expected = [engine.forward(net, data) for data in inputs]
        self._client = client
        self._partitions = partitions
        self._stages = stages
        self._on_progress = on_progress
        self._dilation = dilation
        self.last_query: QueryRecord | None = None
        self.outputs: list[Floats] = []
        self._upload: Upload | None = None
        self._start_s = 0.0
        self._queries = 0
        # What each stage took at each side, for `measured_ms`.
        self._observed: dict[str, dict[int, list[float]]] = {"client": defaultdict(list), "server": defaultdict(list)}
        self.silence_s = (client.patience if client else Patience()).query_s
        self.give_up_s = GIVE_UP_S

    @property
    def total_bytes(self) -> int:
        """Of all partitions."""
        return sum(partition.caffemodel.size for partition in self._partitions)

    @property
    def uploaded_bytes(self) -> int:
        return self._upload.sent_bytes if self._upload else 0

    @property
    def fault(self) -> Exception | None:
        """Why the server is lost, or why it did not take the whole upload."""
        if self._client is None:
            return None
        return self._client.fault or (self._upload.error if self._upload else None)

    def now_s(self) -> float:
        return time.monotonic() - self._start_s

    def start_upload(self) -> None:
        self._start_s = time.monotonic()
        if self._client is not None and self._partitions:
            self._upload = self._client.start_upload(self._partitions, self.now_s)

    def wait_for_first_partition(self) -> None:
        """Return when the first partition is ready, or when nobody knows when it will be."""
        while self._upload is not None and not self._upload.ended and self.fault is None:
            if self._upload.wait_ready(1, timeout_s=PROGRESS_S):
                return
            self._on_progress(self)

    def uploaded(self) -> bool:
        """Whether nothing more will arrive: all partitions are usable, or the server has been lost for too long."""
        if self._upload is None or self._client is None or self._upload.ended:
            return True
        return self._client.fault is not None and time.monotonic() - self._client.lost_s > self.give_up_s

    def query(self, raised_s: float | None = None, data: Floats | None = None) -> QueryRecord:
        """One query, on `data` if given: its output, unlike that of an own input, is not compared. `outputs` are there
        until the next query."""
        index, self._queries = self._queries, self._queries + 1
        which = index % len(self._inputs)
        start_s = self.now_s()
        lost = self._client is not None and self._client.fault is not None
        segments, outputs, overruns, overrun_ms, failed = self._execute(self._inputs[which] if data is None else data)
        end_s = self.now_s()
        self.outputs = outputs
        equal = (
            None
            if data is not None
            else all(
                np.array_equal(got.view(np.uint32), wanted.view(np.uint32))
                for got, wanted in zip(outputs, self._expected[which], strict=True)
            )
        )
        record = QueryRecord(
            index, start_s if raised_s is None else raised_s, start_s, end_s,
            tuple(segments), overruns, overrun_ms, equal, lost or failed,
        )  # fmt: skip
        self.last_query = record
        self._on_progress(self)
        return record

    def _execute(self, data: Floats) -> tuple[list[Segment], list[Floats], int, float, bool]:
        """Segments, outputs, overruns, their ms, and whether the server failed the query."""
        last_stage = len(self._network.stages) - 1
        ready = self._upload.ready if self._upload else 0
        uploaded = [stage for stages in self._stages[:ready] for stage in stages]
        segments: list[Segment] = []
        overruns, overrun_ms = 0, 0.0
        outputs = [data]
        position = 0
        for first, last in (*self._graph.route(uploaded), (last_stage + 1, last_stage)):
            if position < first:
                segment, outputs, over, over_ms = self._run_here(position, first - 1, outputs[0])
                segments.append(segment)
                overruns, overrun_ms = overruns + over, overrun_ms + over_ms
            if first <= last:
                try:
                    segment, outputs = self._run_there(first, last, outputs[0])
                except FAULTS:
                    segment, outputs, over, over_ms = self._run_here(first, last_stage, outputs[0])
                    return [*segments, segment], outputs, overruns + over, overrun_ms + over_ms, True
                segments.append(segment)
            position = last + 1
        return segments, outputs, overruns, overrun_ms, False

    def _run_here(self, first: int, last: int, data: Floats) -> tuple[Segment, list[Floats], int, float]:
        began = time.perf_counter()
        self._net.put(first, data)
        if self._layer_ms is None:
            overruns, overrun_ms = 0, 0.0
            stage_ms = self._net.run(first, last)
        else:
            layers = self._net.layers(first, last)
            paced = run_paced(self._net.run_layer, layers, [self._layer_ms[layer] for layer in layers])
            overruns, overrun_ms = paced.overruns, paced.overrun_ms
            ends = np.cumsum([len(self._net.layers(stage, stage)) for stage in range(first, last + 1)])
            stage_ms = tuple(float(ms.sum()) for ms in np.split(np.array(paced.layer_ms), ends[:-1]))
        segment = self._segment("client", first, last, stage_ms, began)
        return segment, self._net.outputs(last), overruns, overrun_ms

    def _run_there(self, first: int, last: int, data: Floats) -> tuple[Segment, list[Floats]]:
        assert self._client is not None
        began = time.perf_counter()
        graph = self._graph
        expected_ms = graph.up_ms[first] + graph.server_ms[first : last + 1].sum() + graph.down_ms[last + 1]
        deadline_s = Patience(query_s=self.silence_s).deadline_s(expected_ms * self._dilation)
        outputs, result = self._client.run(first, last, data, deadline_s)
        shapes = tuple(output.shape for output in outputs)
        if shapes != self._network.stages[last].output_shapes or len(result.stage_ms) != last - first + 1:
            raise ProtocolError(f"{self._client.address}: a result that stages {first}..{last} do not have")
        return self._segment("server", first, last, result.stage_ms, began), outputs

    def _segment(self, where: str, first: int, last: int, stage_ms: tuple[float, ...], began: float) -> Segment:
        for stage, ms in zip(range(first, last + 1), stage_ms, strict=True):
            self._observed[where][stage].append(ms)
        return Segment(where, first, last, sum(stage_ms), (time.perf_counter() - began) * 1e3, stage_ms)

    def measured_ms(self, where: str) -> dict[int, float]:
        """The mean time in ms that each stage took at "client" or "server" in this session, where it ran there."""
        return {stage: float(np.mean(times)) for stage, times in self._observed[where].items()}

    def finish(self) -> list[PartitionRecord]:
        if self._upload is None:
            return []
        names = [tuple(self._network.stages[stage].name for stage in stages) for stages in self._stages]
        return self._upload.records(names)
