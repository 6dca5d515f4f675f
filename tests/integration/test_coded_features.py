"""Inputs and feature maps, coded on the wire: real servers, real Caffe, every output bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ionn
from ionn import coding
from ionn.api import _default_coding
from ionn.client.connection import Connection
from ionn.client.query import Coding, Wanted
from ionn.client.session import Client
from ionn.costs.loading import load_costs
from ionn.costs.models import Profile
from ionn.errors import ProtocolError
from ionn.evaluation.validation import predict
from ionn.model.inputs import natural_images
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.paper import MODELS
from ionn.planning.planners import PLANNERS
from ionn.protocol import messages
from ionn.protocol.blobs import make_payload, read_payload
from ionn.records import QueryRecord
from ionn.testbed import runner
from tests.support.forward import Weights, boundary_blobs
from tests.support.raw import Raw
from tests.support.runs import run_live
from tests.support.world import Server, connected, wait_for

MBPS = 8.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--sessions", "100", "--sessions-per-client", "100")
    yield server
    server.end_well()


@pytest.fixture
def slow_coder(tiny: Network, tmp_path: Path) -> str:
    """A client that is slow, so that all goes to the server, and codes at 5 ms per MB."""
    path = tmp_path / "slow.json"
    ms = [40.0 if layer.type in ("Convolution", "InnerProduct") else 1.0 for layer in tiny.layers]
    Profile.of(tiny, ms, encode_ms_per_mb=5.0, decode_ms_per_mb=5.0).save(path)
    return str(path)


def where(record: QueryRecord) -> list[tuple[str, int, int]]:
    return [(segment.where, segment.first, segment.last) for segment in record.segments]


@pytest.mark.parametrize("algorithm", sorted({*PLANNERS} - {"generated"}))
def test_a_live_run_of_every_planner(algorithm: str, tiny_files: Path, slow_coder: str) -> None:
    subject = runner.prepare_live(str(tiny_files), client=slow_coder)
    (trace,) = run_live(subject, [algorithm], mbps=MBPS, coding="features")
    assert trace.info.graph.coded
    assert all(query.bit_equal and not query.fallback for query in trace.queries)
    feature_bytes, feature_wire_bytes = trace.feature_bytes
    assert feature_bytes is not None
    assert feature_wire_bytes is not None
    assert feature_wire_bytes < feature_bytes / 1.5
    # The same queries on the virtual testbed have the same bytes.
    predicted = {tuple(where(query)): query.feature_bytes for query in predict(trace).queries}
    last = trace.queries[-1]
    assert last.feature_bytes == predicted[tuple(where(last))]


def test_nothing_is_coded_unless_it_is_asked_for(tiny_files: Path, slow_coder: str) -> None:
    subject = runner.prepare_live(str(tiny_files), client=slow_coder)
    (trace,) = run_live(subject, ["original"], mbps=MBPS)
    assert not trace.info.graph.coded
    raw_bytes, wire_bytes = trace.feature_bytes
    assert raw_bytes
    assert raw_bytes == wire_bytes


# --- Sessions --------------------------------------------------------------------------------------------------------


@pytest.fixture
def coding_costs(tiny: Network) -> Profile:
    """Of a device that codes in no time, and a network that shrinks to a hundredth."""
    ms = [40.0] * len(tiny.layers)
    return Profile.of(tiny, ms, encode_ms_per_mb=0.0, decode_ms_per_mb=0.0, output_ratios=[0.01] * len(tiny.layers))


@pytest.mark.parametrize(("asked", "coded"), [(None, False), ("none", False), ("features", True)])
def test_a_session_at_loopback_codes_only_if_it_is_told_to(
    asked: str | None, coded: bool, server: Server, tiny_files: Path, coding_costs: Profile
) -> None:
    given: dict[str, Any] = {} if asked is None else {"coding": asked}
    with ionn.connect(
        str(tiny_files), server.address, client=coding_costs, server=load_costs("gtx1080ti"), mbps=MBPS, **given
    ) as session:
        assert session.wait_uploaded(60)
        data = natural_images(session.network.input_shape, 1)[:1]
        answer = session.query(data)
    with ionn.connect(str(tiny_files)) as alone:
        wanted = alone.query(data)
    assert all(np.array_equal(answer.outputs[name], wanted.outputs[name]) for name in wanted.outputs)
    assert {segment.where for segment in answer.segments} == {"client", "server"}
    assert (answer.feature_wire_bytes < answer.feature_bytes / 2) == coded
    assert (wanted.feature_bytes, wanted.feature_wire_bytes) == (0, 0)


def test_elsewhere_a_session_codes_by_itself() -> None:
    assert _default_coding("tcp://192.0.2.1:7675") == coding.LOSSLESS
    assert _default_coding("tcp://[2001:db8::1]:7675") == coding.LOSSLESS
    assert _default_coding("tcp://no-such-host.invalid:7675") == coding.LOSSLESS
    assert _default_coding("tcp://127.0.0.1:7675") == coding.NONE
    assert _default_coding("tcp://[::1]:7675") == coding.NONE


def test_on_a_fast_link_nothing_is_coded() -> None:
    for name in MODELS:
        graph = ionn.ExecutionGraph.from_network(
            Network.load(name), load_costs("odroid-xu4"), load_costs("gtx1080ti"), 10_000, coding="features"
        )
        assert not graph.coded


# --- Messages --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def uploaded(server: Server, tiny: Network, tiny_weights: Weights, codecs: tuple[str, ...]) -> Iterator[Raw]:
    """A connection whose session has stage 1 of the tiny network, and takes these codecs."""
    with Raw(server.address) as raw:
        welcome = raw.ask(raw.control, messages.Hello(messages.PROTOCOL, "control", raw.session, codecs))
        assert isinstance(welcome, messages.Welcome)
        assert welcome.codecs == (coding.PLANES,)
        raw.upload(extract(tiny, [1], tiny_weights))
        yield raw


@pytest.fixture(scope="module")
def blobs(tiny: Network, tiny_weights: Weights) -> list[np.ndarray]:
    data = natural_images(tiny.input_shape, 1)[:1].astype(np.float32)
    return boundary_blobs(tiny, tiny_weights, data)


@pytest.mark.parametrize("codecs", [(), ("planes",), ("zip",), ("zip", "planes")])
@pytest.mark.parametrize("asked", [False, True])
def test_results_are_coded_for_who_asks_and_can_decode(
    codecs: tuple[str, ...], asked: bool, server: Server, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    sent = make_payload([blobs[1]], coded=True)
    assert sent.codecs == ("planes",)
    with uploaded(server, tiny, tiny_weights, codecs) as raw:
        query = messages.Query(1, 1, 1, sent.frames, sent.codecs, asked)
        result = raw.ask(raw.control, query)
    assert isinstance(result, messages.Result), result
    assert result.codecs == (("planes",) if asked and "planes" in codecs else ())
    (output,) = read_payload(result.payload, result.codecs, result.shapes)
    assert output.tobytes() == blobs[2].tobytes()
    assert (len(result.payload[0]) < output.nbytes) == bool(result.codecs)


def test_what_does_not_shrink_goes_raw_both_ways(server: Server, tiny: Network, tiny_weights: Weights) -> None:
    """Random bits go up, and of the last inner product ten numbers come down."""
    last = tiny.stages[5]
    noise = np.random.default_rng(3).integers(0, 2**32, last.input_shape, np.uint32).view(np.float32)
    sent = make_payload([np.nan_to_num(noise)], coded=True)
    assert sent.codecs == ("raw",)
    with uploaded(server, tiny, tiny_weights, ("planes",)) as raw:
        raw.upload(extract(tiny, [5], tiny_weights), 1)
        result = raw.ask(raw.control, messages.Query(1, 5, 5, sent.frames, sent.codecs, True))
    assert isinstance(result, messages.Result)
    assert result.codecs == ("raw",)
    assert len(result.payload[0]) == 4 * 10


REFUSED: dict[str, tuple[Callable[[bytes], Any], str]] = {
    "another codec": (lambda frame: ((frame,), ("zip",)), "unknown codec 'zip'"),
    "two codecs": (lambda frame: ((frame,), ("planes", "planes")), "1 frames with 2 codecs for 1 blobs"),
    "two frames": (lambda frame: ((frame, frame), ("planes", "planes")), "2 frames with 2 codecs for 1 blobs"),
    "coded, and said to be raw": (lambda frame: ((frame,), ("raw",)), "raw bytes, not"),
    "coded, and nothing said": (lambda frame: ((frame,), ()), "raw bytes, not"),
    "cut off": (lambda frame: ((frame[:-1],), ("planes",)), "cut off"),
    "of another size": (
        lambda frame: ((coding.encode(bytes(4 * 363))[1],), ("planes",)), "coded data that do not claim"
    ),
    "empty": (lambda frame: ((b"",), ("planes",)), "not coded by zstd"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_a_blob_is_an_error_of_that_query(
    what: str, server: Server, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    (frame,), codecs = make_payload([blobs[1]], coded=True)[::-1]
    change, reason = REFUSED[what]
    with uploaded(server, tiny, tiny_weights, ()) as raw:
        refused = raw.ask(raw.control, messages.Query(7, 1, 1, *change(bytes(frame))))
        assert isinstance(refused, messages.Error)
        assert (refused.code, refused.query) == (messages.ERROR_QUERY, 7)
        assert reason in refused.message
        good = raw.ask(raw.control, messages.Query(8, 1, 1, (frame,), codecs))
        assert isinstance(good, messages.Result)
        assert bytes(good.payload[0]) == blobs[2].tobytes()


def test_a_session_that_is_gone_on_with_takes_the_codecs_of_its_new_connection(
    server: Server, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    with uploaded(server, tiny, tiny_weights, ("planes",)) as raw:
        again = raw.connect()
        raw.ask(again, messages.Hello(messages.PROTOCOL, "control", raw.session))
        result = raw.ask(again, messages.Query(1, 1, 1, (blobs[1].tobytes(),), (), True))
    assert isinstance(result, messages.Result)
    assert result.codecs == ()


@pytest.mark.parametrize("codecs", [(), ("planes",)])
def test_the_upload_connection_takes_no_results(
    codecs: tuple[str, ...], server: Server, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    with uploaded(server, tiny, tiny_weights, codecs) as raw:
        others = () if codecs else ("planes",)
        upload = raw.connect()
        raw.ask(upload, messages.Hello(messages.PROTOCOL, "upload", raw.session, others))
        result = raw.ask(raw.control, messages.Query(1, 1, 1, (blobs[1].tobytes(),), (), True))
    assert isinstance(result, messages.Result)
    assert result.codecs == codecs


def test_codecs_of_no_frames_are_refused(server: Server, tiny: Network, tiny_weights: Weights) -> None:
    with uploaded(server, tiny, tiny_weights, ()) as raw:
        refused = raw.ask(raw.control, messages.Query(7, 1, 1, (), ("planes",)))
    assert isinstance(refused, messages.Error)
    assert (refused.code, refused.query) == (messages.ERROR_QUERY, 7)
    assert "codecs of no frames" in refused.message


@contextlib.contextmanager
def client_of(server: Server, tiny: Network, tiny_weights: Weights) -> Iterator[Client]:
    """A client that has uploaded stage 1 of the tiny network."""
    with connected(server.address, None) as client:
        upload = client.start_upload([extract(tiny, [1], tiny_weights)], lambda: 0.0)
        assert upload.wait_ready(1, 30)
        yield client


def test_to_a_server_without_codecs_all_goes_raw(
    server: Server, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = Connection.hello

    def without(*given: Any) -> messages.Welcome:
        return dataclasses.replace(hello(*given), codecs=())

    monkeypatch.setattr(Connection, "hello", without)
    with client_of(server, tiny, tiny_weights) as client:
        with client.query() as exchange:
            wanted = Wanted(tiny.stages[1].output_shapes, Coding())
            outputs, result = exchange.result(exchange.run(1, 1, blobs[1], Coding(), wanted))
            assert exchange.wire_bytes == exchange.raw_bytes == blobs[1].nbytes + blobs[2].nbytes
        assert result.codecs == ()
        assert outputs[0].tobytes() == blobs[2].tobytes()


def test_results_of_other_shapes_than_wanted_are_refused(
    server: Server, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    with client_of(server, tiny, tiny_weights) as client:
        with pytest.raises(ProtocolError, match="it has other shapes"), client.query() as exchange:
            exchange.result(exchange.run(1, 1, blobs[1], wanted=Wanted([(1, 2, 3)])))
        wait_for(lambda: client.fault is None, "the next connection")


def test_a_paced_client_codes_at_its_pace(
    server: Server, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    """Its coding takes at least so long; and what it took longer is counted."""
    with client_of(server, tiny, tiny_weights) as client:
        with client.query() as exchange:
            wanted = Wanted(tiny.stages[1].output_shapes, Coding(pace_ms=30.0))
            exchange.result(exchange.run(1, 1, blobs[1], Coding(pace_ms=0.0), wanted))
        encoded, decoded = exchange.paced
        assert encoded.overrun_ms > 0
        assert sum(decoded.layer_ms) >= 30.0
        with client.query() as exchange:
            exchange.result(exchange.run(1, 1, blobs[1], Coding(), Wanted(tiny.stages[1].output_shapes, Coding())))
        assert not exchange.paced
