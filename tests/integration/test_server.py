"""A real server process, spoken to over real sockets."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq

from ionn.client.session import Client
from ionn.errors import InputError, ServerError, ServerUnreachableError
from ionn.model.network import OUTPUTS_MAX, Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.protocol import messages
from ionn.protocol.messages import PROTOCOL, PartitionEnd, PartitionHeader
from ionn.server.limits import Limits, option
from tests.support.command import Serving, serving
from tests.support.forward import boundary_blobs
from tests.support.machine import vacant
from tests.support.raw import Raw, upload_messages
from tests.support.world import PATIENT, WAIT_S, session_processes

Weights = dict[str, tuple[np.ndarray, ...]]
# Nothing is taken for a fault but what is one, and a server that is lost is not connected to again.
ONCE = dataclasses.replace(PATIENT, retry_s=WAIT_S, retry_max_s=WAIT_S)


@pytest.fixture(scope="module")
def process() -> Iterator[Serving]:
    """One server for all tests here: whatever is done to its sessions, it goes on."""
    with serving("--sessions", "100", "--sessions-per-client", "100") as process:
        yield process


@pytest.fixture(scope="module")
def server(process: Serving) -> str:
    return process.address


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((1, 3, 24, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def blobs(tiny: Network, tiny_weights: Weights, data: np.ndarray) -> list[np.ndarray]:
    """The blob before every stage in a local forward pass, and the output."""
    return boundary_blobs(tiny, tiny_weights, data)


def upload(client: Client, partitions: list[ExtractedPartition]) -> None:
    uploader = client.start_upload(partitions, time.monotonic)
    assert uploader.wait_ready(len(partitions), WAIT_S), uploader.error


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    client = Client(server, timeouts=ONCE)
    yield client
    client.close()


# Files that the system lets a process open are too few for the most sessions.
OPEN_FILES = {"sessions", "pending", "pending_per_address"}
SMALL = Network.from_text(
    'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 9 } } } '
    'layer { name: "f" type: "InnerProduct" bottom: "d" top: "f" inner_product_param { num_output: 5 } }',
    "small",
)


@pytest.mark.parametrize("end", ["least", "most"])
def test_a_session_works_at_the_ends_of_all_limits(end: str) -> None:
    """The least of the times are left out: a busy machine may need more."""
    chosen = [
        limit
        for limit in dataclasses.fields(Limits)
        if not (limit.name.endswith("_s") if end == "least" else limit.name in OPEN_FILES)
    ]
    options = [text for limit in chosen for text in (option(limit.name), str(limit.metadata[end]))]
    weights = {"f": (np.ones((5, 9), np.float32), np.zeros(5, np.float32))}
    with serving(*options) as process:
        client = Client(process.address, timeouts=ONCE)
        try:
            upload(client, [extract(SMALL, [1], weights)])
            outputs, _ = client.run(1, 1, np.arange(9, dtype=np.float32).reshape(1, 9))
        finally:
            client.close()
    np.testing.assert_array_equal(outputs[0], np.full((1, 5), 36, np.float32))


def test_the_most_outputs_that_a_network_may_have(client: Client) -> None:
    tops = " ".join(f'top: "t{index}"' for index in range(OUTPUTS_MAX))
    network = Network.from_text(
        f'layer {{ name: "d" type: "Input" top: "d" input_param {{ shape {{ dim: 1 dim: {OUTPUTS_MAX} }} }} }} '
        'layer { name: "b" type: "Bias" bottom: "d" top: "b" } '
        f'layer {{ name: "s" type: "Slice" bottom: "b" {tops} }} '
        'layer { name: "c" type: "Bias" bottom: "t0" top: "o" }',
        "many",
    )
    zeros = np.zeros(OUTPUTS_MAX, np.float32)
    last = network.stages[-1]
    assert len(last.outputs) == OUTPUTS_MAX
    upload(client, [extract(network, [last.index], {"b": (zeros,), "c": (zeros[:1],)})])
    data = np.arange(OUTPUTS_MAX, dtype=np.float32).reshape(1, -1)
    outputs, _ = client.run(last.index, last.index, data)
    assert sorted(float(output[0, 0]) for output in outputs) == data[0].tolist()


def test_queries_run_across_partitions(
    client: Client, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    """Whatever run of uploaded stages is asked for, over whatever partitions: bit-equal to the local forward."""
    offloadable = [stage.index for stage in tiny.stages if not stage.pinned]
    upload(client, [extract(tiny, stages, tiny_weights) for stages in ([2], [1, 3], offloadable[3:])])
    for first in offloadable:
        for last in range(first, offloadable[-1] + 1):
            outputs, result = client.run(first, last, blobs[first])
            np.testing.assert_array_equal(outputs[0], blobs[last + 1])
            assert len(result.stage_ms) == last - first + 1


def test_sessions_do_not_see_each_other(
    server: str, client: Client, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    other = Client(server, timeouts=ONCE)
    try:
        doubled = {name: tuple(blob * 2 for blob in blobs) for name, blobs in tiny_weights.items()}
        upload(client, [extract(tiny, [1, 2], tiny_weights)])
        with pytest.raises(ServerError, match="stage 1 is not uploaded"):
            other.run(1, 1, blobs[1])
        upload(other, [extract(tiny, [1], doubled)])
        np.testing.assert_array_equal(client.run(1, 1, blobs[1])[0][0], blobs[2])
        assert not np.array_equal(other.run(1, 1, blobs[1])[0][0], blobs[2])
    finally:
        other.close()


def test_a_failed_query_leaves_the_session_as_it_was(
    client: Client, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    upload(client, [extract(tiny, [1], tiny_weights)])
    for first, last, data, reason in (
        (2, 2, blobs[2], "stage 2 is not uploaded"),
        (1, 2, blobs[1], "stage 2 is not uploaded"),
        (1, 1, blobs[1][:, :2], r"the input of stage 1, .*: 4608 raw bytes, not 6912"),
        (2, 1, blobs[1], r"stages 2\.\.1 are not a run"),
    ):
        with pytest.raises(ServerError, match=reason) as caught:
            client.run(first, last, data)
        assert caught.value.code == messages.ERROR_QUERY
    np.testing.assert_array_equal(client.run(1, 1, blobs[1])[0][0], blobs[2])


def test_a_closed_session_leaves_no_process(process: Serving, tiny: Network, tiny_weights: Weights) -> None:
    before = session_processes(process.pid)
    client = Client(process.address, timeouts=ONCE)
    upload(client, [extract(tiny, [1], tiny_weights)])
    (mine,) = session_processes(process.pid) - before
    ended = psutil.Process(mine)
    client.close()
    assert psutil.wait_procs([ended], WAIT_S)[0]


@pytest.fixture
def raw(server: str) -> Iterator[Raw]:
    with Raw(server) as raw:
        yield raw


def test_another_protocol_version_is_told(raw: Raw) -> None:
    answer = raw.ask(raw.connect(), messages.Hello(PROTOCOL + 1, "control"))
    assert isinstance(answer, messages.Error)
    assert answer.code == messages.ERROR_VERSION
    assert f"speaks protocol {PROTOCOL}, the client {PROTOCOL + 1}" in answer.message


def test_a_client_that_meets_another_version_says_so() -> None:
    """A server of the future, played by a socket."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    command = [sys.executable, "-c", f"from ionn.client.session import Client; Client('tcp://127.0.0.1:{port}')"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert router.poll(int(WAIT_S * 1e3))
        identity, *_ = router.recv_multipart()
        router.send_multipart(
            [identity, *messages.Error(messages.ERROR_VERSION, "the server speaks protocol 9").frames()]
        )
        _, stderr = process.communicate(timeout=WAIT_S)
        assert re.fullmatch(r"ionn.errors.VersionError: .*: the server speaks protocol 9", stderr.splitlines()[-1])
    finally:
        process.kill()
        context.destroy(linger=0)


def refused(raw: Raw, message: messages.Message | list[bytes], code: str, socket: zmq.Socket[Any] | None = None) -> str:
    """Why a message is refused."""
    answer = raw.ask(socket or raw.control, message)
    assert isinstance(answer, messages.Error), answer
    assert answer.code == code, answer
    return answer.message


JUNK = [
    (b"", f"not a message of protocol {PROTOCOL}: "),
    (b"junk", f"not a message of protocol {PROTOCOL}: "),
    (b'{"type": "ack"}', "`partition`"),
]


@pytest.mark.parametrize(("frame", "reason"), JUNK)
def test_junk_gets_an_error_and_the_session_goes_on(raw: Raw, frame: bytes, reason: str) -> None:
    for socket in (raw.control, raw.connect()):
        assert reason in refused(raw, [frame], messages.ERROR_PROTOCOL, socket)
    assert isinstance(raw.ask(raw.control, messages.Ping()), messages.Pong)


def test_what_only_a_server_says_gets_an_error(raw: Raw) -> None:
    assert "'ready' is not for a session" in refused(raw, messages.Ready(1), messages.ERROR_PROTOCOL)
    assert "say hello first" in refused(raw, messages.Ready(1), messages.ERROR_SESSION, raw.connect())
    assert isinstance(raw.ask(raw.control, messages.Ping()), messages.Pong)


def test_only_a_complete_partition_is_used(
    raw: Raw, tiny: Network, tiny_weights: Weights, blobs: list[np.ndarray]
) -> None:
    header, chunks, end = upload_messages(extract(tiny, [1], tiny_weights))
    query = messages.Query(1, 1, 1, (blobs[1].tobytes(),))
    absent = "stage 1 is not uploaded"

    assert raw.ask(raw.control, header) == messages.Ack(0, 0)
    assert refused(raw, query, messages.ERROR_QUERY) == absent
    assert raw.ask(raw.control, chunks[0]) == messages.Ack(0, header.size)
    assert refused(raw, query, messages.ERROR_QUERY) == absent
    assert "digest" in refused(raw, PartitionEnd(0, "0" * 64), messages.ERROR_DAMAGED)
    assert refused(raw, query, messages.ERROR_QUERY) == absent

    for message in (header, *chunks):
        raw.ask(raw.control, message)
    assert raw.ask(raw.control, end) == messages.Ready(0)
    assert isinstance(raw.ask(raw.control, query), messages.Result)
    assert "announced before" in refused(raw, header, messages.ERROR_DAMAGED)


def test_weights_must_be_all_there(raw: Raw, tiny: Network, tiny_weights: Weights) -> None:
    header, _, _ = upload_messages(extract(tiny, [1], tiny_weights))
    for blobs, reason in (
        (header.blobs[:-1], "blob 1 of layer 'conv1' is not sent"),
        ((), "blob 0 of layer 'conv1' is not sent"),
        ((*header.blobs, header.blobs[0]), "blob 0 of layer 'conv1' is sent twice"),
    ):
        wrong = PartitionHeader(0, header.nets, blobs, header.size)
        assert reason in refused(raw, wrong, messages.ERROR_PARTITION)


def test_a_net_that_caffe_would_abort_on_is_refused(raw: Raw, tiny: Network, tiny_weights: Weights) -> None:
    header, _, _ = upload_messages(extract(tiny, [1], tiny_weights))
    net = header.nets[0]
    for old, new, reason in (
        ("kernel_size: 3", "kernel_size: 300", "its kernel of 300 is larger"),
        ('"Convolution"', '"Python"', "it runs code"),
        ("layer {", "layer {{", "Expected identifier"),
        ("layer {", "layer { " + "own { " * 5000 + "} " * 5000, 'has no field named "own"'),
    ):
        nets = (type(net)(net.prototxt.replace(old, new), net.input, net.stages),)
        wrong = PartitionHeader(0, nets, header.blobs, header.size)
        assert reason in refused(raw, wrong, messages.ERROR_PARTITION)
    assert isinstance(raw.ask(raw.control, messages.Ping()), messages.Pong)


def test_a_killed_session_process_is_reported(process: Serving, blobs: list[np.ndarray]) -> None:
    before = session_processes(process.pid)
    client = Client(process.address, timeouts=ONCE)
    (mine,) = session_processes(process.pid) - before
    os.kill(mine, signal.SIGKILL)
    with pytest.raises((ServerError, ServerUnreachableError), match=r"process was ended by signal 9 \(Killed\)"):
        client.run(1, 1, blobs[1], timeout_s=WAIT_S)
    client.close()
    Client(process.address, timeouts=ONCE).close()


def serve_with(sitecustomize: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(sitecustomize)
    return subprocess.run(
        [sys.executable, "-m", "ionn", "serve", "--bind", "tcp://127.0.0.1:0"],
        env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip


def test_a_server_that_cannot_load_caffe_gives_no_address(tmp_path: Path) -> None:
    """The address is printed when sessions can start, not before."""
    process = serve_with("import sys\nsys.modules['caffe._caffe'] = None\n", tmp_path)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert process.stderr.startswith("ionn: Caffe cannot be loaded: import of caffe._caffe halted")


BROKEN = """
import sys

class Broken:
    def find_spec(name, path=None, target=None):
        if name == "caffe._caffe":
            raise RuntimeError("not the fault of a missing library")

sys.meta_path.insert(0, Broken)
"""


def test_a_server_whose_fork_server_dies_as_it_starts_gives_no_address(tmp_path: Path) -> None:
    process = serve_with(BROKEN, tmp_path)
    assert (process.returncode, process.stdout) == (1, "")
    assert "RuntimeError: not the fault of a missing library" in process.stderr
    assert process.stderr.endswith("ionn: the process that loads Caffe for all sessions ended; it has said why\n")


def test_nobody_listens() -> None:
    with vacant() as (_, port), pytest.raises(ServerUnreachableError, match=f":{port}: no server there"):
        Client(f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["", "127.0.0.1", "tcp://", "tcp://x:99999", "tcp://127.0.0.1:0"])
def test_garbage_addresses(address: str) -> None:
    with pytest.raises(InputError, match=r"address|port"):
        Client(address)
