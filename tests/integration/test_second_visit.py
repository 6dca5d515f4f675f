"""Clients that come back to a server that keeps weights: what it has is not sent again, and all answers are Caffe's."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import ionn
from ionn.client.offloading import Offloading, open_offloading
from ionn.client.session import Client, Timeouts
from ionn.coding import LOSSLESS, NONE
from ionn.costs.models import Profile
from ionn.model import engine, zoo
from ionn.model.caffemodel import read_weights, serialise, weights_path
from ionn.model.coded_weights import open_sidecar, update
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.model.slices import TILE, Slice
from ionn.planning.planners import PLANNERS
from ionn.protocol.curve import ClientKeys, client_keys, make_keys
from ionn.records import PartitionRecord, QueryRecord
from ionn.testbed.live_session import LiveSession
from tests.support.command import ionn as command
from tests.support.command import serving
from tests.support.forward import random_weights
from tests.support.machine import weights_of
from tests.support.nets import network_of
from tests.support.world import WAIT_S, Link, Server, Wire, wait_for

Weights = Mapping[str, Sequence[np.ndarray]]

# Stage 1 can be cut: four tiles of 442 kB. The others cannot; the last has most of the bytes, in two pieces.
NETWORK = network_of(
    "Convolution convolution_param { num_output: 192 kernel_size: 3 }",
    "*ReLU",
    "Convolution convolution_param { num_output: 64 kernel_size: 5 group: 2 }",
    "Pooling pooling_param { kernel_size: 2 stride: 2 }",
    "InnerProduct inner_product_param { num_output: 1200 }",
    "InnerProduct inner_product_param { num_output: 30 }",
    "Softmax",
)


class Model(NamedTuple):
    """A network with its caffemodel in a file and a sidecar beside that."""

    network: Network
    weights: Weights
    file: Path

    @property
    def digests(self) -> set[str]:
        sidecar = open_sidecar(self.file, self.network, self.weights)
        assert sidecar is not None
        with sidecar:
            return {piece.sha256 for piece in sidecar.pieces}


def model_in(folder: Path, network: Network, weights: Weights) -> Model:
    file = folder / f"{network.name}.caffemodel"
    file.write_bytes(serialise(network.name, network.layers, weights).tobytes())
    update(file, network)
    return Model(network, weights, file)


@pytest.fixture(autouse=True)
def ask_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may store nothing for longer than clients go on asking."""
    monkeypatch.setattr("ionn.protocol.stored._QUIET_S", WAIT_S)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_in(tmp_path_factory.mktemp("model"), NETWORK, random_weights(NETWORK, scale=0.02))


@contextlib.contextmanager
def storing(folder: Path) -> Iterator[Server]:
    server = Server("--store", str(folder), "--store-gb", "1", "--store-shared")
    yield server
    server.end_well()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with storing(tmp_path / "store") as running:
        yield running


class Visit(NamedTuple):
    """A session, which has not begun to upload."""

    offloading: Offloading
    session: LiveSession
    client: Client

    def upload(self) -> list[PartitionRecord]:
        """Upload all; the server then gives Caffe's answers."""
        self.session.start_upload()
        wait_for(self.session.uploaded, "the upload")
        assert self.offloading.fault is None
        record = self.session.query()
        assert record.bit_equal
        assert not record.fallback
        assert {segment.where for segment in record.segments} & {"server", "both"}
        return self.session.finish()


@contextlib.contextmanager
def visiting(
    model: Model,
    address: str,
    algorithm: str = "recursive-efficiency",
    mbps: float | None = 80.0,
    layer_ms: float = 10.0,
    **given: Any,
) -> Iterator[Visit]:
    network = model.network
    net = engine.load_network(network, model.weights)
    here = Profile.of(network, np.full(len(network.layers), layer_ms))
    there = Profile.of(network, np.full(len(network.layers), 0.1))
    with open_offloading(
        network, net, here, address, mbps, algorithm, weights_file=model.file, there=there, **given
    ) as offloading:
        assert offloading._client is not None
        yield Visit(offloading, LiveSession(offloading, net, query_inputs(network, 0)), offloading._client)


def first_visit(model: Model, address: str, **given: Any) -> None:
    """Upload all, and wait until all of it is stored."""
    with visiting(model, address, **given) as visit:
        assert visit.client.stored_pieces == set()
        records = visit.upload()
        assert sum(record.stored_bytes for record in records) == 0
        wait_for(lambda: visit.client.stored_pieces == model.digests, "all to be stored")


def sent_bytes(records: Sequence[PartitionRecord]) -> int:
    return sum(record.bytes - record.stored_bytes for record in records)


def weight_bytes(network: Network) -> int:
    return sum(stage.weight_bytes for stage in network.stages)


@pytest.mark.parametrize("coding", [NONE, LOSSLESS])
def test_a_second_visit_sends_no_weights_whatever_the_planner(coding: str, model: Model, server: Server) -> None:
    first_visit(model, server.address, coding=coding)
    for algorithm in PLANNERS:
        with visiting(model, server.address, algorithm, coding=coding) as visit:
            assert visit.offloading.plan is not None
            assert sum(part.wire_bytes for part in visit.offloading.plan.partitions) == 0
            records = visit.upload()
        assert sent_bytes(records) == 0
        assert sum(record.stored_bytes for record in records) == weight_bytes(model.network)
        # What lies between the floats of a caffemodel is no weight, and always sent.
        assert all(record.wire_bytes is not None and record.wire_bytes < 500 for record in records)


def in_slices(graph: ionn.ExecutionGraph) -> list[list[int | Slice]]:
    return [[Slice(1, 0, TILE)], [3, 5], [2, Slice(1, TILE, 3 * TILE)], [4, Slice(1, 3 * TILE, 4 * TILE)]]


def whole(graph: ionn.ExecutionGraph) -> list[list[int | Slice]]:
    return [[1, 2], [3, 4, 5]]


def half(graph: ionn.ExecutionGraph) -> list[list[int | Slice]]:
    return [[Slice(1, 0, 2 * TILE)], [5]]


@pytest.mark.parametrize("coding", [NONE, LOSSLESS])
def test_what_was_uploaded_in_one_way_is_taken_in_another(coding: str, model: Model, server: Server) -> None:
    """Half of a stage in a slice; then all in slices; then whole stages. Each byte is sent once."""
    digests: set[str] = set()
    stages = {stage.index: stage for stage in NETWORK.stages}
    sizes = [stages[1].weight_bytes // 2 + stages[5].weight_bytes]
    sizes.append(weight_bytes(NETWORK) - sizes[0])
    for planner, wanted in zip((half, in_slices, whole), (*sizes, 0), strict=True):
        with visiting(model, server.address, ionn.add_planner(planner), coding=coding) as visit:
            assert visit.client.stored_pieces == digests
            records = visit.upload()
            assert sent_bytes(records) == wanted
            if planner is not half:
                digests = model.digests
                wait_for(lambda: visit.client.stored_pieces == model.digests, "all to be stored")
            else:
                wait_for(lambda: len(visit.client.stored_pieces) == 3, "what came to be stored")
                digests = set(visit.client.stored_pieces)


FORGET: dict[str, Callable[[list[Path]], object]] = {
    "all files are gone": lambda files: shutil.rmtree(files[0].parents[1]),
    "one file is gone": lambda files: files[0].unlink(),
    "a bit is wrong": lambda files: files[1].write_bytes(flipped(files[1].read_bytes())),
    "a file is cut": lambda files: files[2].write_bytes(files[2].read_bytes()[:-100]),
}


def flipped(content: bytes) -> bytes:
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.parametrize("what", FORGET)
def test_what_the_server_had_when_it_was_asked_and_has_not_any_more(what: str, model: Model, tmp_path: Path) -> None:
    with storing(tmp_path / "store") as server:
        first_visit(model, server.address)
        with visiting(model, server.address) as visit:
            assert visit.client.stored_pieces == model.digests
            files = sorted(path for path in (tmp_path / "store" / "shared").rglob("*") if len(path.name) == 64)
            assert len(files) == len(model.digests)
            FORGET[what](files)
            records = visit.upload()
            if what == "all files are gone":
                assert sent_bytes(records) == weight_bytes(model.network)
            else:
                assert 0 < sent_bytes(records) < weight_bytes(model.network) * 0.8
            wait_for(lambda: visit.client.stored_pieces == model.digests, "what was sent again to be stored")
        with visiting(model, server.address) as visit:
            assert sent_bytes(visit.upload()) == 0


def test_what_a_client_brought_is_found_by_its_key_only(model: Model, tmp_path: Path) -> None:
    public = {name: make_keys(tmp_path / name)[1] for name in ("phone", "watch", "server")}
    (tmp_path / "allowed").write_text("".join(public[name].read_text() for name in ("phone", "watch")))

    def keys(name: str) -> ClientKeys:
        made = client_keys(tmp_path / f"{name}.secret", public["server"])
        assert made is not None
        return made

    options = ("--store", str(tmp_path / "store"), "--store-gb", "1")
    with serving(*options, "--key", f"{tmp_path}/server.secret", "--allow", f"{tmp_path}/allowed") as process:
        first_visit(model, process.address, keys=keys("phone"))
        with visiting(model, process.address, keys=keys("watch")) as visit:
            assert visit.client.stored_pieces == set()
            assert sent_bytes(visit.upload()) == weight_bytes(model.network)
        with visiting(model, process.address, keys=keys("phone")) as visit:
            assert sent_bytes(visit.upload()) == 0


def test_a_server_that_takes_little_at_once(model: Model, tmp_path: Path) -> None:
    """Of so many pieces it cannot be asked at once."""
    options = ("--store", f"{tmp_path}/store", "--store-gb", "1", "--store-shared", "--window-kb", "10")
    with serving(*options, "--chunk-kb", "5", "--header-kb", "20") as process:
        first_visit(model, process.address)
        with visiting(model, process.address) as visit:
            assert sent_bytes(visit.upload()) == 0
        strange = [f"{number:064x}" for number in range(9_000)]
        client = Client(process.address, digests=[*model.digests, *strange])
        try:
            assert client.fault is None
            assert client.stored_pieces == model.digests
        finally:
            client.close()


def test_a_partition_of_more_than_two_thousand_pieces(server: Server, tmp_path: Path) -> None:
    network = network_of("InnerProduct inner_product_param { num_output: 100000 }", "Softmax", shape="dim: 1 dim: 64")
    many = model_in(tmp_path, network, random_weights(network, 0.02))
    assert len(many.digests) == 2084

    def sent() -> int:
        with visiting(many, server.address, layer_ms=500.0) as visit:
            sent = sent_bytes(visit.upload())
            # A busy machine may not have stored all by then; what it has not is sent again.
            assert visit.client.wait_stored(WAIT_S) or sent > 0
        return sent

    assert sent() == weight_bytes(network)
    wait_for(lambda: sent() == 0, "all to be stored")


def test_a_question_that_takes_long_on_a_slow_link(model: Model, server: Server) -> None:
    """Of 474 pieces, as Inception has: it takes 6 s, longer than a server has to answer anything else."""
    first_visit(model, server.address)
    link = Link(server.address, 0.02)
    asked = [*model.digests, *(f"{number:064x}" for number in range(474 - len(model.digests)))]
    client = Client(link.address, digests=asked)
    try:
        assert client.stored_pieces == model.digests
    finally:
        client.close()
        link.stop()


def test_the_time_to_read_is_divided_by_the_dilation(model: Model, server: Server) -> None:
    """As all times of a server that is not paced are."""
    first_visit(model, server.address, layer_ms=100.0)
    read_ms = []
    for dilation in (1.0, 10.0):
        with visiting(model, server.address, layer_ms=100.0, dilation=dilation) as visit:
            assert visit.offloading.plan is not None
            read_ms.append(sum(part.upload_ms for part in visit.offloading.plan.partitions))
    assert read_ms[0] > 0
    assert read_ms[1] == pytest.approx(read_ms[0] / 10, rel=1e-3)


def test_a_client_without_addresses_uploads_as_everywhere(model: Model, server: Server, tmp_path: Path) -> None:
    first_visit(model, server.address)
    bare = model._replace(file=Path(shutil.copy(model.file, tmp_path)))
    with visiting(bare, server.address) as visit:
        assert visit.client.stored_pieces == set()
        assert sent_bytes(visit.upload()) == weight_bytes(model.network)


def test_connections_that_are_lost(model: Model, server: Server) -> None:
    """The session goes on where it was, in partitions of which some pieces are stored and some are not."""
    with visiting(model, server.address, ionn.add_planner(half)) as visit:
        visit.upload()
        wait_for(lambda: len(visit.client.stored_pieces) == 3, "what came to be stored")
        stored_bytes = sum(record.bytes for record in visit.session.finish())
    wire = Wire(server.address)
    wire.delay_s = 0.005  # for each 64 kB
    try:
        with visiting(model, wire.address, ionn.add_planner(whole)) as visit:
            visit.client.timeouts = Timeouts(retry_s=0.02, retry_max_s=0.1)
            visit.session.start_upload()
            token = visit.client._session
            for megabytes in range(1, 5):
                wait_for(lambda: visit.offloading.uploaded_bytes > megabytes * 1e6, f"{megabytes} MB")  # noqa: B023
                wire.lose(visit.client)
                wait_for(lambda: visit.client.fault is None, "another connection")
            wait_for(visit.session.uploaded, "the upload")
            assert visit.client._session == token
            record = visit.session.query()
            assert record.bit_equal
            records = visit.session.finish()
            assert sum(each.stored_bytes for each in records) == stored_bytes
            assert sent_bytes(records) == weight_bytes(model.network) - stored_bytes
    finally:
        wire.close()


def test_a_client_that_measures(model: Model, tmp_path: Path) -> None:
    """What it believes of its link comes from what crosses it: half of the model, then nothing of it."""
    with storing(tmp_path / "store") as server:
        link = Link(server.address, 16.0)
        with visiting(model, server.address, ionn.add_planner(half)) as visit:
            visit.upload()
            wait_for(lambda: len(visit.client.stored_pieces) == 3, "what came to be stored")
        for _ in range(2):
            # So slow that all of it is worth the 100 ms which a query's input has on the link.
            with visiting(model, link.address, mbps=None, layer_ms=60.0, paced=True) as visit:
                visit.session.start_upload()
                records = [visit.session.query()]
                while not visit.session.uploaded():
                    records.append(visit.session.query())

                def all_stored() -> bool:
                    records.append(visit.session.query())  # noqa: B023
                    return visit.client.stored_pieces == model.digests

                wait_for(all_stored, "all to be stored")
                assert visit.offloading.fault is None
                assert all(record.bit_equal for record in records)
                assert visit.offloading.measuring is not None
                seen = visit.offloading.measuring.records
                # The next observation will do: this machine may be busy.
                wait_for(lambda: visit.session.query() and 4.0 < seen[-1].mbps < 40.0, "the rate")  # noqa: B023
                sent = sent_bytes(visit.session.finish())
        assert sent == 0
        link.stop()


def test_a_client_that_goes_from_one_server_to_another(model: Model, tmp_path: Path) -> None:
    """While it asks the first, it sends half of the model ahead to the second: only the other half is to be sent there.
    Its queries go on all the while."""
    with storing(tmp_path / "first") as first, storing(tmp_path / "second") as second:
        link, queries = Link(first.address, 80.0), list[QueryRecord]()
        with visiting(model, link.address) as here:

            def ask() -> QueryRecord:
                queries.append(here.session.query())
                return queries[-1]

            here.session.start_upload()
            with visiting(model, second.address, ionn.add_planner(half)) as ahead:
                ahead.session.start_upload()
                wait_for(lambda: ask() and ahead.session.uploaded(), "what is sent ahead")
                wait_for(lambda: ask() and len(ahead.client.stored_pieces) == 3, "it to be stored")
            wait_for(lambda: "server" in {segment.where for segment in ask().segments}, "a query at the first server")
            link.stop()  # out of reach
            assert {segment.where for segment in ask().segments[-1:]} == {"client"}
            assert here.offloading.fault is not None
        with visiting(model, second.address) as there:
            assert there.client.stored_pieces
            records = there.upload()
            held = sum(record.stored_bytes for record in records)
            assert 0 < held < weight_bytes(model.network)
            assert sent_bytes(records) + held == weight_bytes(model.network)
        assert all(query.bit_equal for query in queries)


@pytest.mark.parametrize("times", [1, pytest.param(13, marks=pytest.mark.long)])
def test_a_server_that_is_killed_again_and_again(times: int, model: Model, tmp_path: Path) -> None:
    """Three times in each upload, and once more. The client loses its sessions, and none of what it was told to be
    stored."""
    for time in range(times):
        check_kills(model, tmp_path / str(time))


def check_kills(model: Model, folder: Path) -> None:
    with storing(folder) as server:
        link = Link(server.address, 12.0)
        with visiting(model, link.address, ionn.add_planner(in_slices)) as visit:
            client, session = visit.client, visit.session
            client.timeouts = Timeouts(retry_s=0.05, retry_max_s=0.3)
            session.start_upload()
            answers = []
            known: set[str] = set()
            for kill in range(3):
                wait_for(
                    lambda: client.stored_pieces > known or len(known) == len(model.digests),  # noqa: B023
                    f"a piece to be stored, {kill}",
                )
                known, token = set(client.stored_pieces), client._session
                server.strike(signal.SIGKILL)
                answers.append(session.query())
                server.start()
                while client.fault is not None or client._session == token:
                    answers.append(session.query())
                assert client.stored_pieces >= known
            while not session.uploaded():
                answers.append(session.query())
            server.strike(signal.SIGKILL)  # all is there
            answers.append(session.query())
            server.start()
            while client.fault is not None or not session.uploaded() or answers[-1].fallback:
                answers.append(session.query())
            assert all(record.bit_equal for record in answers)
            assert any(segment.where != "client" for segment in answers[-1].segments)
            records = session.finish()
            of_pieces = sum(record.stored_bytes for record in records)
            assert of_pieces > 0
            wait_for(lambda: client.stored_pieces == model.digests, "all to be stored")
        link.stop()
        with visiting(model, server.address) as visit:
            assert sent_bytes(visit.upload()) == 0


# --- The models that come along --------------------------------------------------------------------------------------

STOCK = """
import sys
import caffe, numpy as np
net = caffe.Net(sys.argv[1], sys.argv[2], caffe.TEST)
net.blobs[net.inputs[0] if net.inputs else "data"].data[...] = np.load(sys.argv[3])
np.save(sys.argv[4], next(iter(net.forward().values())))
"""


def stock_output(prototxt: Path, caffemodel: Path, data: np.ndarray, folder: Path) -> bytes:
    """What Caffe alone computes of the whole net."""
    np.save(folder / "in.npy", data)
    arguments = [str(prototxt), str(caffemodel), str(folder / "in.npy"), str(folder / "out.npy")]
    subprocess.run([sys.executable, "-c", STOCK, *arguments], check=True, capture_output=True)
    output: np.ndarray = np.load(folder / "out.npy")
    return output.tobytes()


def zoo_model(name: str) -> Path:
    path = weights_of(name)
    update(path, Network.load(name))
    return path


def run_alexnet(address: str) -> dict[str, Any]:
    done = command(
        "run", "alexnet", "--connect", address, "--server", "gtx1080ti", "--unpaced", "--mbps", "80", "--json"
    )
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert run["bit_equal"]
    assert run["weight_bytes_sent"] + run["weight_bytes_held"] == run["weight_bytes"] == 243_860_896
    return dict(run)


def test_a_run_says_what_was_sent_and_held(server: Server, tiny_files: Path, slow_client: str) -> None:
    assert command("models", "--build", tiny_files).returncode == 0
    options = ["--connect", server.address, "--client", slow_client, "--server", "gtx1080ti", "--mbps", "80"]
    first = command("run", tiny_files, *options)
    assert "store" not in first.stdout
    second = command("run", tiny_files, *options)
    assert "\n    of the weights, 0.00 MB were sent, and 1.18 MB were in the server's store\n" in second.stdout
    assert first.stderr == second.stderr == ""


def test_a_second_visit_of_alexnet_over_80_mbps(server: Server, tmp_path: Path) -> None:
    """The first one is quick, at the server itself."""
    path = zoo_model("alexnet")
    first = run_alexnet(server.address)
    assert first["weight_bytes_held"] == 0
    wait_for(lambda: run_alexnet(server.address)["weight_bytes_sent"] == 0, "all to be stored, also on a busy machine")
    link = Link(server.address, 80.0)
    second = run_alexnet(link.address)
    assert second["weight_bytes_sent"] == 0
    assert second["weight_wire_bytes"] < 1000
    # Nothing is sent: the upload would take 24 s.
    data = query_inputs(Network.load("alexnet"), seed=7, count=1)[0]
    with ionn.connect("alexnet", link.address, client="odroid-xu4", server="gtx1080ti", mbps=80.0) as session:
        assert session.wait_uploaded(WAIT_S)
        answer = session.query(data)
        assert (session.weight_bytes_sent, session.weight_bytes_held) == (0, 243_860_896)
    assert "server" in {segment.where for segment in answer.segments}
    (output,) = answer.outputs.values()
    assert output.tobytes() == stock_output(zoo.definitions()["alexnet"], path, data, tmp_path)
    link.stop()


def test_a_model_that_shares_its_backbone_uploads_only_its_head(server: Server, tmp_path: Path) -> None:
    """Two networks made from one: their last layers have 10 and 100 outputs, and numbers of their own."""
    zoo_model("mobilenet")
    backbone = Network.load("mobilenet")
    weights = read_weights(weights_path("mobilenet", None), backbone)
    text = zoo.definitions()["mobilenet"].read_text()
    link = Link(server.address, 80.0)
    data = query_inputs(backbone, seed=3, count=1)[0]
    sent = []
    for outputs in (10, 100):
        folder = tmp_path / str(outputs)
        folder.mkdir()
        assert text.count("num_output: 1000\n") == 1
        prototxt = folder / "net.prototxt"
        prototxt.write_text(text.replace("num_output: 1000\n", f"num_output: {outputs}\n"))
        network = Network.load(prototxt)
        head = random_weights(network, scale=0.05)["fc7"]
        made = model_in(folder, network, {**weights, "fc7": head})
        with ionn.connect(
            prototxt, link.address, client="odroid-xu4", server="gtx1080ti", mbps=80.0, coding=NONE
        ) as session:
            assert session.wait_uploaded(WAIT_S)
            answer = session.query(data)
            sent.append(session.weight_bytes_sent)
            assert session.weight_bytes_sent + session.weight_bytes_held == weight_bytes(network)
            client = session._offloading._client
            assert client is not None
            wait_for(lambda: client.stored_pieces == made.digests, "all to be stored")  # noqa: B023
        assert "server" in {segment.where for segment in answer.segments}
        assert answer.outputs["prob"].tobytes() == stock_output(prototxt, made.file, data, folder)
        head_bytes = sum(blob.nbytes for blob in head)
    assert sent == [weight_bytes(backbone) - 4 * 1025 * (1000 - 10), head_bytes]
    link.stop()


def test_a_sidecar_of_a_former_format_is_built_again(tiny_files: Path) -> None:
    """Until then weights are uploaded as they always were."""
    assert command("models", "--build", tiny_files).returncode == 0
    sidecar = tiny_files.with_suffix(".coded")
    content = sidecar.read_bytes()
    sidecar.write_bytes(content.replace(b"ionn coded weights 2\n", b"ionn coded weights 1\n"))
    done = command("models", tiny_files, "--json")
    assert (done.returncode, json.loads(done.stdout)["models"][0]["coded"]) == (0, "of a former format")
    run = command("run", tiny_files, "--testbed", "live", "--mbps", "500", "--json")
    assert run.returncode == 0
    assert run.stderr == (
        f"ionn: {sidecar}: the coded weights are of a former format; 'ionn models --build' codes them again\n"
    )
    assert command("models", "--build", tiny_files).returncode == 0
    assert sidecar.read_bytes() == content
