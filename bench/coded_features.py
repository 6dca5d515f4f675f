"""Coded features: what coding takes, by how much they shrink, and whether it gains what the graph says. 1.5 minutes.

The time to code is the CPU time of the one thread that computes, for a photograph as AlexNet's input and for its
feature maps. The overhead is that of bench/query_overhead.py: the latency of a query less the times of its wire bytes,
its layers and its coding; coded and raw queries take turns. Both ends code after a sleep, which makes their processors
slow for a while.

The gain is that of AlexNet's last queries, live, with the whole model at the server, raw and coded in turns: their raw
latency less their coded latency, compared with the same difference of the latencies that the graph predicts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time

import numpy as np
import query_overhead
import support

from ionn.client.offloading import open_offloading
from ionn.coding import FEATURES, NONE
from ionn.costs import profiling
from ionn.costs.profiling import code_fastest, stage_outputs
from ionn.model import inputs
from ionn.paper import ORIGINAL
from ionn.planning.coding_costs import DOWN, UP, CodedTransfer
from ionn.planning.graph import ExecutionGraph
from ionn.records import QueryRecord
from ionn.testbed import processes, runner
from ionn.testbed.live import Subject
from ionn.testbed.live_session import LiveSession
from ionn.testbed.runner import PROFILE_RUNS
from ionn.testbed.settings import Settings

MODEL = "alexnet"
MBPS = 80.0
QUERIES = 60
LAST_QUERIES = 20
OVERHEAD_MS = 2.0
RATIO = 0.25
GAIN_OFF = 0.1
# What a server core takes at most, in CPU ms per raw MB; the paper's server is assumed to take 2 and 1.5.
SPEED_MS = 4.0


def speeds(subject: Subject) -> list[support.Row]:
    """What coding takes on this machine, at either end."""
    data = inputs.query_inputs(subject.network, seed=0, count=1)[0]
    maps = [blob for outputs in stage_outputs(subject.net, data) for blob in outputs]
    result: list[support.Row] = []
    for what, blobs in (("inputs", [data]), ("feature maps", maps[1:])):
        speed = code_fastest(blobs)
        support.keep(
            f"coding, {what}", encode_ms_per_mb=speed.encode_ms_per_mb, decode_ms_per_mb=speed.decode_ms_per_mb
        )
        result += [
            (f"CPU time to encode {what}, per raw MB", SPEED_MS, speed.encode_ms_per_mb, "ms"),
            (f"CPU time to decode {what}, per raw MB", SPEED_MS, speed.decode_ms_per_mb, "ms"),
        ]
    return result


def overhead() -> list[support.Row]:
    """How much longer a coded query takes than a raw one, apart from the bytes on the link and the coding itself."""
    network = query_overhead.chain()
    ends = (1, UP), (query_overhead.SERVER_STAGES + 1, DOWN)
    coded = [CodedTransfer(boundary, direction, 0.0, 1.0, 0.0, 1) for boundary, direction in ends]
    speed = code_fastest(inputs.query_inputs(network, seed=0))
    speed_ms = speed.encode_ms_per_mb + speed.decode_ms_per_mb
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(processes.process("serve", "--bind", "tcp://127.0.0.1:0"))
        through = ("--to", server, "--mbps", str(MBPS))
        address = stack.enter_context(processes.process("link", "--listen", "tcp://127.0.0.1:0", *through))
        sessions = {
            NONE: query_overhead.session(network, address, 1, stack),
            FEATURES: query_overhead.session(network, address, 1, stack, coded=coded),
        }
        overheads_ms: dict[str, list[float]] = {NONE: [], FEATURES: []}
        for _ in range(query_overhead.WARM_UP + QUERIES):
            for coding, session in sessions.items():
                query = session.query()
                assert query.bit_equal
                assert not query.fallback, session.offloading.fault
                assert query.feature_bytes is not None
                assert query.feature_wire_bytes is not None
                known_ms = sum(part.compute_ms for part in query.segments) + query.feature_wire_bytes * 8 / MBPS / 1e3
                known_ms += speed_ms * query.feature_bytes / 1e6 if coding == FEATURES else 0.0
                overheads_ms[coding].append(query.latency_ms - known_ms)
    raw_ms, coded_ms = (float(np.median(ms[query_overhead.WARM_UP :])) for ms in overheads_ms.values())
    support.keep("query overhead", raw_ms=raw_ms, coded_ms=coded_ms)
    return [("query overhead, 80 Mbps, coded, beyond a raw query's, median", OVERHEAD_MS, coded_ms - raw_ms, "ms")]


def without_coding(graph: ExecutionGraph) -> ExecutionGraph:
    """The same graph where all blobs go raw."""
    raw_ms = np.array(graph.boundary_bytes) * 8 / MBPS / 1e3
    return dataclasses.replace(graph, up_ms=raw_ms, down_ms=raw_ms, coded=())


def gain(subject: Subject) -> list[support.Row]:
    """The gain for AlexNet, live. Plans are made with a profile of this machine as the server's costs, with the ratios
    of a photograph. The layers' own times are left out, as on a busy machine they vary by more than coding gains."""
    network, server_costs = subject.network, profiling.profile_network(subject.network, subject.net, PROFILE_RUNS)
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(processes.start_testbed(Settings("live", MBPS))).address
        sessions: dict[str, LiveSession] = {}
        for coding in (NONE, FEATURES):
            offloading = stack.enter_context(
                open_offloading(
                    network, subject.net, subject.client, address, MBPS, ORIGINAL,
                    coding=coding, there=server_costs, paced=True,
                )
            )  # fmt: skip
            sessions[coding] = LiveSession(offloading, subject.net, inputs.query_inputs(network, seed=0))
            sessions[coding].start_upload()
        while not all(session.uploaded() for session in sessions.values()):
            time.sleep(0.1)
        queries: dict[str, list[QueryRecord]] = {NONE: [], FEATURES: []}
        for _ in range(LAST_QUERIES):
            for coding, session in sessions.items():
                queries[coding].append(session.query())
        graph, plan = sessions[FEATURES].offloading.graph, sessions[FEATURES].offloading.plan
    assert plan is not None
    for each in zip(*queries.values(), strict=True):
        assert all(query.bit_equal and not query.fallback for query in each)
        places = [[(part.where, part.first, part.last) for part in query.segments] for query in each]
        assert places[0] == places[1], "the layers must run at the same places"
    feature_bytes = sum(query.feature_bytes or 0 for query in queries[FEATURES])
    wire_bytes = sum(query.feature_wire_bytes or 0 for query in queries[FEATURES])
    last_ms = [
        float(np.median([query.latency_ms - sum(part.compute_ms for part in query.segments) for query in each]))
        for each in queries.values()
    ]
    measured_ms = last_ms[0] - last_ms[1]
    uploaded = [piece for partition in plan.partitions for piece in partition.pieces]
    predicted_ms = without_coding(graph).latency_ms(uploaded) - graph.latency_ms(uploaded)
    support.keep(
        f"{MODEL}, live", gain_ms=measured_ms, predicted_gain_ms=predicted_ms, feature_bytes=feature_bytes,
        feature_wire_bytes=wire_bytes,
    )  # fmt: skip
    return [
        (f"{MODEL}, live: feature bytes on the wire, of raw", RATIO, wire_bytes / feature_bytes, ""),
        (f"{MODEL}, live: the last latency's gain, off what the graph says", GAIN_OFF,
         abs(measured_ms / predicted_ms - 1), ""),
    ]  # fmt: skip


def rows() -> list[support.Row]:
    subject = runner.prepare_live(MODEL)
    return [*speeds(subject), *overhead(), *gain(subject)]


if __name__ == "__main__":
    support.main(rows)
