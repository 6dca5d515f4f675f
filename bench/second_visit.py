"""How long a client's second visit takes at a server that keeps weights, and what it costs to ask a server that has
none of them. Half a minute.

Server and link are processes of their own, as in `ionn run`. A first visit uploads the model; each later one is a new
client with a new session, over an 80 Mbps link. Its time is from before the first connection is made until the last
partition is ready, planning included. In turns with the visits, stock Caffe loads the model, `caffe.Net(prototxt,
caffemodel)`, in a process that has done so before, so that the files are in memory in both cases.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import support
import zmq

from ionn import paper
from ionn.client import offloading
from ionn.client.connection import Connection
from ionn.client.offloading import Offloading, open_offloading
from ionn.client.session import Client
from ionn.costs.loading import load_costs
from ionn.model import zoo
from ionn.model.caffemodel import weights_path
from ionn.model.coded_weights import open_sidecar, update
from ionn.model.engine import StageNet
from ionn.model.network import Network
from ionn.model.partial_net import extract
from ionn.model.synthetic import load_net
from ionn.protocol.messages import AddressedPiece, Have, Holds, PartitionHeader
from ionn.testbed.processes import process

MODEL = "alexnet"
VISITS = 7
# The limit of a second visit, in times of stock Caffe's loading.
TIMES = 2.0
# The limit of asking a server that has nothing of a model, as a share of the model's upload.
ASKING = 0.01
_WAIT_S = 120.0

# Loads a model once for each line that it reads, and says how long that took.
LOAD = """
import sys, time, caffe
for _ in sys.stdin:
    began = time.perf_counter()
    net = caffe.Net(sys.argv[1], sys.argv[2], caffe.TEST)
    print(time.perf_counter() - began, flush=True)
    del net
"""


class _Timed(Client):
    """A client that remembers when it began to connect."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.began_s = time.perf_counter()
        super().__init__(*arguments, **named)


@contextmanager
def visit(network: Network, net: StageNet, address: str) -> Iterator[tuple[Offloading, _Timed, float]]:
    """A session that has uploaded everything, its client, and the seconds since its first Hello."""
    vars(offloading)["Client"] = _Timed  # which it makes
    here, there = load_costs(paper.CLIENT), load_costs(paper.SERVER)
    file = weights_path(network.name, None)
    with open_offloading(
        network, net, here, address, paper.MBPS, paper.RECURSIVE, weights_file=file, there=there
    ) as session:
        session.start_upload()
        assert session.upload is not None
        assert session.plan is not None
        assert session.upload.wait_ready(len(session.plan.partitions), _WAIT_S), session.fault
        client = session._client
        assert isinstance(client, _Timed)
        yield session, client, time.perf_counter() - client.began_s


def second_visits(network: Network, net: StageNet) -> Iterator[support.Row]:
    prototxt, caffemodel = zoo.definitions()[network.name], weights_path(network.name, None)
    command = [sys.executable, "-c", LOAD, str(prototxt), str(caffemodel)]
    visits_s, loads_s, sent = [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        process("serve", "--bind", "tcp://127.0.0.1:0", *_store(folder)) as server,
        process("link", "--listen", "tcp://127.0.0.1:0", "--to", server, "--mbps", str(paper.MBPS)) as link,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loader,
    ):
        assert loader.stdin is not None
        assert loader.stdout is not None

        def load_s() -> float:
            print(file=loader.stdin, flush=True)
            return float(loader.stdout.readline())  # type: ignore[union-attr]

        with visit(network, net, server) as (session, client, _):
            pieces = len(open_pieces(network, net))
            deadline = time.monotonic() + _WAIT_S
            while len(client.stored_pieces) < pieces:
                assert time.monotonic() < deadline, "not all is stored"
                time.sleep(0.05)
            weight_bytes = sum(record.bytes for record in session.records())
        load_s()
        for _ in range(VISITS):
            with visit(network, net, link) as (session, _, seconds):
                visits_s.append(seconds)
                sent.append(sum(record.bytes - record.stored_bytes for record in session.records()))
            loads_s.append(load_s())
        loader.stdin.close()
    support.keep(f"second visit, {network.name}", visits_s=visits_s, loads_s=loads_s, weight_bytes=weight_bytes)
    visit_s, load = statistics.median(visits_s), statistics.median(loads_s)
    print(f"{network.name}: {visit_s * 1e3:.0f} ms ({min(visits_s) * 1e3:.0f} to {max(visits_s) * 1e3:.0f}) from Hello "
          f"to the last READY, stock Caffe loads it in {load * 1e3:.0f} ms")  # fmt: skip
    yield f"second visit of {network.name}, weights sent", 0, max(sent), "B"
    yield f"second visit of {network.name}, of stock Caffe's loading", TIMES, visit_s / load, ""


def _store(folder: str) -> list[str]:
    return ["--store", folder, "--store-gb", "2", "--store-shared"]


def open_pieces(network: Network, net: StageNet) -> set[str]:
    """The digests of a model's weight pieces."""
    sidecar = open_sidecar(weights_path(network.name, None), network, net.weights())
    assert sidecar is not None
    with sidecar:
        return {piece.sha256 for piece in sidecar.pieces}


def asking(network: Network, net: StageNet, link: str) -> support.Row:
    """By how much asking a server that has nothing makes an upload longer: by the question and its answer, and by the
    digests with which partitions are announced."""
    sidecar = open_sidecar(weights_path(network.name, None), network, net.weights())
    assert sidecar is not None
    with sidecar:
        partition = extract(network, range(1, len(network.stages)), net.weights(), None, sidecar.pieces)
        digests = [piece.sha256 for piece in sidecar.pieces]
    context: zmq.Context[Any] = zmq.Context()
    control, upload = (Connection(context, link) for _ in range(2))
    upload.hello("upload", control.hello("control", "", _WAIT_S).session, _WAIT_S)
    began_s = time.perf_counter()
    answer = upload.ask(Have((bytes.fromhex("".join(digests)),)), _WAIT_S)
    ask_s = time.perf_counter() - began_s
    assert isinstance(answer, Holds)
    context.destroy(linger=0)
    model = partition.caffemodel
    pieces = tuple(AddressedPiece(*piece, False) for piece in partition.addressed)
    headers = [PartitionHeader(0, partition.nets, model.blobs, model.size, given) for given in (pieces, ())]
    with_addresses, without = (sum(map(len, header.frames())) for header in headers)
    link_bytes_s = paper.MBPS * 1e6 / 8
    added_s, upload_s = ask_s + (with_addresses - without) / link_bytes_s, model.size / link_bytes_s
    support.keep(f"asking, {network.name}", ask_s=ask_s, address_bytes=with_addresses - without, pieces=len(pieces))
    print(f"{network.name}: asked for {len(pieces)} pieces in {ask_s * 1e3:.1f} ms; "
          f"their addresses have {with_addresses - without} bytes")  # fmt: skip
    return f"asking a server that has nothing of {network.name}, of its upload", ASKING, added_s / upload_s, ""


def rows(every: bool = False) -> list[support.Row]:
    """Second visits of AlexNet, or of `every` model."""
    result: list[support.Row] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        process("serve", "--bind", "tcp://127.0.0.1:0", *_store(folder)) as server,
        process("link", "--listen", "tcp://127.0.0.1:0", "--to", server, "--mbps", str(paper.MBPS)) as link,
    ):
        for model in paper.MODELS:
            network = Network.load(model)
            net = load_net(model, None, network)
            update(weights_path(model, None), network)
            result.append(asking(network, net, link))
            if every or model == MODEL:
                result += second_visits(network, net)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="all five models")
    support.main(lambda: rows(parser.parse_args().all))
