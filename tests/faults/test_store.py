"""A server's store while things die, freeze, fill up and are tampered with: what comes of it is right to the last bit,
what was said to be stored is there, and sessions go on."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq

from ionn.client.connection import ping
from ionn.model.network import Network
from ionn.model.partial_net import ExtractedPartition, extract
from ionn.model.slices import Slice
from ionn.protocol import messages
from ionn.protocol.curve import client_keys, make_keys
from ionn.server.store import SHARED, owner_of
from tests.support import machine
from tests.support.forward import Weights, boundary_blobs, random_weights
from tests.support.nets import network_of
from tests.support.raw import Raw
from tests.support.stored import addressed, digests_of, held_by, upload, upload_messages, wait_held
from tests.support.world import WAIT_S, Server, freeze, wait_for

SHARED_STORE = ("--store-gb", "1", "--store-shared")
MANY = ("--sessions", "100", "--sessions-per-client", "100")
PIECE_BYTES = 40_000


def stages_of(network: Network) -> list[int]:
    return [stage.index for stage in network.stages if not stage.pinned]


class Model:
    """A network with weights of its own, whose answers are known."""

    def __init__(self, network: Network, weights: Weights) -> None:
        self.network, self.weights = network, weights
        self.partition: ExtractedPartition = extract(network, stages_of(network), weights)
        self.pieces = addressed(self.partition, PIECE_BYTES)
        self.digests = digests_of(self.pieces)
        data = np.random.default_rng(5).standard_normal(network.input_shape).astype(np.float32)
        self._blobs = boundary_blobs(network, weights, data)

    def upload(self, raw: Raw, socket: zmq.Socket[Any], stored: set[str] | None = None, index: int = 0) -> int:
        """Upload it but for what is stored; the bytes that were sent."""
        pieces = addressed(self.partition, PIECE_BYTES, stored or set())
        return upload(raw, socket, self.partition, pieces, index)

    def check(self, raw: Raw) -> None:
        """A query over all its stages gives the bits that the client computes by itself."""
        first, last = stages_of(self.network)[0], stages_of(self.network)[-1]
        result = raw.ask(raw.control, messages.Query(1, first, last, (self._blobs[first].tobytes(),)))
        assert isinstance(result, messages.Result), result
        assert bytes(result.payload[0]) == self._blobs[last + 1].tobytes()

    def visit(self, server: Server, keep: bool = True) -> int:
        """A session that uploads what the store has not, and waits until it has all; the bytes that were sent."""
        with Raw(server.address) as raw:
            socket = raw.upload_connection()
            sent = self.upload(raw, socket, held_by(raw, socket, self.digests))
            self.check(raw)
            if keep:
                wait_held(raw, socket, self.digests)
            raw.bye()
        return sent

    @property
    def least_bytes(self) -> int:
        """What is sent where all is stored: the bytes between the floats."""
        return self.partition.caffemodel.size - sum(span.size for span in self.partition.caffemodel.blobs)


@pytest.fixture(scope="session")
def model(tiny: Network, tiny_weights: Weights) -> Model:
    return Model(tiny, tiny_weights)


def other_model(network: Network, seed: int) -> Model:
    weights = random_weights(network, scale=0.1)
    return Model(network, {name: tuple(blob + seed for blob in blobs) for name, blobs in weights.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "store"


@pytest.fixture(scope="module")
def steady(folder: Path, model: Model) -> Iterator[Server]:
    server = Server("--store", str(folder), *SHARED_STORE, *MANY)
    yield server
    assert model.visit(server) <= model.partition.caffemodel.size
    server.end_well()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/??/*"))


# --- What it is for ---------------------------------------------------------------------------------------------------


def test_a_second_visit_and_a_second_client_send_nothing(steady: Server, model: Model) -> None:
    model.visit(steady)
    assert model.visit(steady) == model.least_bytes
    with Raw(steady.address) as raw:
        assert raw.welcome.stores
        assert 0 < raw.welcome.store_ms_per_mb < 100


def test_a_model_with_the_same_backbone_sends_its_head(steady: Server, model: Model) -> None:
    """Its last stage has other weights."""
    model.visit(steady)
    last = stages_of(model.network)[-1]
    head = model.network.stages[last].layers
    weights = {
        name: tuple(blob + 1 for blob in blobs) if name in head else blobs for name, blobs in model.weights.items()
    }
    head_bytes = sum(blob.nbytes for name in head for blob in weights.get(name, ()))
    assert Model(model.network, weights).visit(steady) == model.least_bytes + head_bytes


def test_slices_are_stored_as_pieces_of_their_stage(steady: Server) -> None:
    """In any cut: what one session sent in slices, another takes as a whole, and in other slices."""
    network = network_of("InnerProduct inner_product_param { num_output: 512 }", shape="dim: 1 dim: 300")
    model = Model(network, random_weights(network))
    tile = 64 * 300 * 4

    def cut(pieces: list[int | Slice]) -> ExtractedPartition:
        return extract(network, pieces, model.weights)

    def sent(*partitions: ExtractedPartition) -> int:
        with Raw(steady.address) as raw:
            socket = raw.upload_connection()
            digests = {sha for each in partitions for sha in digests_of(addressed(each, tile))}
            stored = held_by(raw, socket, digests)
            total = sum(
                upload(raw, socket, each, addressed(each, tile, stored), index) - each.caffemodel.size
                + sum(span.size for span in each.caffemodel.blobs)
                for index, each in enumerate(partitions)
            )  # fmt: skip
            model.check(raw)
            wait_held(raw, socket, digests)
            return total

    bias = 512 * 4
    first = [cut([Slice(1, 0, 192)]), cut([Slice(1, 192, 256), Slice(1, 256, 512)])]
    assert sent(*first) == 8 * tile + bias
    assert sent(cut([1])) == bias  # of which a slice has a part
    assert sent(cut([1])) == 0
    assert sent(cut([Slice(1, 256, 512)]), cut([Slice(1, 0, 256)])) == bias - 256 * 4
    assert sent(*first) == 0


def test_what_came_is_stored_though_the_partition_is_not_complete(steady: Server, tiny: Network) -> None:
    model = other_model(tiny, 11)
    with Raw(steady.address) as raw:
        socket = raw.upload_connection()
        header, chunks, _ = upload_messages(model.partition, model.pieces)
        raw.ask(socket, header)
        for chunk in chunks[:3]:
            raw.ask(socket, chunk)
        received = chunks[3].offset
        came = {piece.sha256 for piece in model.pieces if max(a + b for a, b in piece.spans) <= received}
        assert 5 < len(came) < len(model.digests)
        wait_held(raw, socket, came)
        assert held_by(raw, socket, model.digests) == came
    assert model.visit(steady) == model.partition.caffemodel.size - sum(
        size for piece in model.pieces if piece.sha256 in came for _, size in piece.spans
    )


def test_a_session_that_says_goodbye_at_once_is_stored(steady: Server, tiny: Network) -> None:
    model = other_model(tiny, 12)
    model.visit(steady, keep=False)
    with Raw(steady.address) as raw:
        wait_held(raw, raw.upload_connection(), model.digests)


def test_a_reconnect_goes_on_behind_what_is_stored(steady: Server, model: Model) -> None:
    """`held` says where: never in what is stored, nor before it."""
    model.visit(steady)
    largest = max(model.partition.caffemodel.blobs, key=lambda span: span.size)
    inside = {
        piece.sha256 for piece in model.pieces
        if largest.offset + PIECE_BYTES <= piece.spans[0][0] < largest.offset + largest.size
    }  # fmt: skip
    with Raw(steady.address) as raw:
        socket = raw.upload_connection()
        header, chunks, end = upload_messages(model.partition, addressed(model.partition, PIECE_BYTES, inside))
        assert raw.ask(socket, header) == messages.Ack(0, 0)
        while chunks[0].offset < largest.offset + PIECE_BYTES:
            answer = raw.ask(socket, chunks.pop(0))
        assert isinstance(answer, messages.Ack)
        assert answer.received == chunks[0].offset == largest.offset + largest.size
        for role in ("control", "upload"):
            again = raw.connect()
            welcome = raw.ask(again, messages.Hello(messages.PROTOCOL, role, raw.session))
            assert isinstance(welcome, messages.Welcome)
            assert welcome.held == (messages.Held(0, answer.received, False),)
            raw.control = again if role == "control" else raw.control
        for chunk in chunks:
            assert isinstance(raw.ask(again, chunk), messages.Ack)
        assert raw.ask(again, end) == messages.Ready(0)
        model.check(raw)


@pytest.mark.parametrize("payload", [(b"x",), (bytes(31),), (bytes(32 * 10_001),), (bytes(32), b"y")])
def test_a_question_that_is_none(payload: tuple[bytes, ...], steady: Server) -> None:
    with Raw(steady.address) as raw:
        socket = raw.upload_connection()
        answer = raw.ask(socket, messages.Have(payload))
        assert isinstance(answer, messages.Error)
        assert answer.code == messages.ERROR_PROTOCOL
        assert held_by(raw, socket, ["00" * 32] * 10_000) == set()


def test_a_partition_is_as_if_never_announced_after_missing(steady: Server, tiny: Network) -> None:
    model = other_model(tiny, 13)
    with Raw(steady.address) as raw:
        socket = raw.upload_connection()
        pieces = addressed(model.partition, PIECE_BYTES, model.digests)
        header, chunks, end = upload_messages(model.partition, pieces)
        for _ in range(2):
            answer = raw.ask(socket, header)
            assert isinstance(answer, messages.Error)
            assert (answer.code, answer.partition) == (messages.ERROR_MISSING, 0)
            assert answer.pieces == tuple(range(len(pieces)))
            for message in (chunks[0], end):
                late = raw.ask(socket, message)
                assert isinstance(late, messages.Error)
                assert "is not arriving" in late.message
        assert model.upload(raw, socket) == model.partition.caffemodel.size
        model.check(raw)


def test_a_server_without_a_store_says_that_nothing_is_stored(server: str, model: Model) -> None:
    with Raw(server) as raw:
        assert not raw.welcome.stores
        assert raw.welcome.store_ms_per_mb == 0
        socket = raw.upload_connection()
        assert held_by(raw, socket, model.digests) == set()
        assert model.upload(raw, socket, set(model.digests)) == model.partition.caffemodel.size
        model.check(raw)


def test_metrics_count_what_is_stored(tmp_path: Path, model: Model) -> None:
    server = UntriedServer("--store", str(tmp_path / "store"), *SHARED_STORE, "--metrics", "127.0.0.1:0")
    errors = server._process.stderr
    assert errors is not None
    found = re.search(r"http://\S+/metrics", errors.readline())
    assert found
    for _ in range(2):
        model.visit(server)
    count = len(set(model.digests))

    def counted() -> bool:
        with urllib.request.urlopen(found[0], timeout=WAIT_S) as answer:
            metrics = answer.read().decode()
        wanted = (f"pieces {count}.0", f"stored_total {count}.0", f"opened_total {len(model.digests)}.0")
        return all(f"\nionn_store_{each}\n" in metrics for each in wanted)

    wait_for(counted, "the metrics")
    server.end_well()


class UntriedServer(Server):
    """A server that is not tried at its start: it takes only clients with keys, or has something else to say first."""

    def start(self) -> None:
        super(Server, self).start()


# --- Who may know -----------------------------------------------------------------------------------------------------


def test_a_key_finds_what_it_has_brought_and_nothing_else(tmp_path: Path, model: Model) -> None:
    for name in ("server", "one", "two"):
        make_keys(tmp_path / name)
    publics = [(tmp_path / f"{name}.public").read_text() for name in ("one", "two")]
    (tmp_path / "allowed").write_text("".join(publics))
    keys = [client_keys(tmp_path / f"{name}.secret", tmp_path / "server.public") for name in ("one", "two")]
    store = tmp_path / "store"
    options = ("--key", str(tmp_path / "server.secret"), "--allow", str(tmp_path / "allowed"))
    server = UntriedServer(*options, "--store", str(store), "--store-gb", "1", *MANY)
    stored = []
    for visit in (0, 0, 1, 1, 0):
        with Raw(server.address, keys[visit]) as raw:
            socket = raw.upload_connection()
            held = held_by(raw, socket, model.digests)
            stored.append(len(held))
            # It may say that it is stored, whatever it was told.
            sent = model.upload(raw, socket, set(model.digests))
            assert (sent == model.least_bytes) == (held == set(model.digests))
            model.check(raw)
            wait_held(raw, socket, model.digests)
    everything = len(set(model.digests))
    assert stored == [0, everything, 0, everything, everything]
    owners = {path.name for path in store.iterdir()} - {"lock", "unfinished"}
    assert len(owners) == 2
    assert owner_of(b"") not in owners
    assert SHARED not in owners
    paths = files(store)
    assert len({path.stat().st_ino for path in paths}) == len(paths) == 2 * everything
    server.end_well()


# --- Deaths -----------------------------------------------------------------------------------------------------------


def test_kills_of_the_store_process(steady: Server, tiny: Network) -> None:
    """At any moment of an upload: it ends well, what was said to be stored is there, and the next session finds it."""
    chosen = random.Random(3)
    told: set[str] = set()
    models = [other_model(tiny, 100 + number) for number in range(8)]
    for model in models:
        with Raw(steady.address) as raw:
            assert raw.welcome.stores
            socket = raw.upload_connection()
            struck = psutil.Process(steady.store_process())
            killer = threading.Timer(chosen.random() * 0.2, struck.kill)
            killer.start()
            sent = model.upload(raw, socket, held_by(raw, socket, model.digests))
            assert sent == model.partition.caffemodel.size
            told |= held_by(raw, socket, model.digests)
            killer.join()
            model.check(raw)
        psutil.wait_procs([struck], WAIT_S)
        wait_for(lambda: has_store(steady), "another store process")
        with Raw(steady.address) as raw:
            socket = raw.upload_connection()
            assert held_by(raw, socket, told) == told
    for model in models:
        model.visit(steady)
        assert model.visit(steady) == model.least_bytes


def has_store(server: Server) -> bool:
    """Tell whether a new session has a store."""
    with Raw(server.address) as raw:
        raw.bye()
        return raw.welcome.stores


def kill_and_come_back(tiny: Network, folder: Path, kills: int) -> None:
    """Every other upload is cut off soon after one of its messages, the others when the store has some of their
    pieces."""
    chosen = random.Random(4)
    server = Server("--store", str(folder), *SHARED_STORE, *MANY)
    told: set[str] = set()
    for number in range(kills):
        model = other_model(tiny, 200 + number)
        with Raw(server.address) as raw:
            socket = raw.upload_connection()
            assert held_by(raw, socket, told) == told
            header, chunks, end = upload_messages(model.partition, model.pieces)
            sent = [header, *chunks, end]
            if number % 2:
                for message in sent[: chosen.randrange(1, len(sent))]:
                    socket.send_multipart(message.frames())
            else:
                model.upload(raw, socket)
                stored = model.digests[: chosen.randrange(1, len(model.digests))]
                wait_held(raw, socket, stored)
                told.update(stored)
            time.sleep(chosen.random() * 0.05)
            server.strike(signal.SIGKILL)
        server.start()
    assert told
    with Raw(server.address) as raw:
        assert held_by(raw, raw.upload_connection(), told) == told
    for number in range(kills):
        model = other_model(tiny, 200 + number)
        model.visit(server)
        assert model.visit(server) == model.least_bytes
    server.end_well()


def test_kills_of_the_server(tmp_path: Path, tiny: Network) -> None:
    kill_and_come_back(tiny, tmp_path / "store", 4)


@pytest.mark.long
def test_fifty_kills_of_the_server(tmp_path: Path, tiny: Network) -> None:
    kill_and_come_back(tiny, tmp_path / "store", 50)


def test_a_session_that_is_killed_while_it_gives(steady: Server, tiny: Network) -> None:
    model = other_model(tiny, 14)
    before = steady.session_processes()
    with Raw(steady.address) as raw:
        socket = raw.upload_connection()
        (process,) = steady.session_processes() - before
        model.upload(raw, socket)
        os.kill(process, signal.SIGKILL)
    wait_for(lambda: process not in steady.session_processes(), "the end of the process")
    model.visit(steady)
    assert model.visit(steady) == model.least_bytes


def test_nobody_waits_for_a_store_that_is_frozen(steady: Server, model: Model, tiny: Network) -> None:
    """Uploads become ready, sessions start, and what is asked is answered. A session that had its store frozen does
    without it from then on; others have it again."""
    other = other_model(tiny, 15)
    model.visit(steady)
    with Raw(steady.address) as raw:
        socket = raw.upload_connection()
        assert held_by(raw, socket, model.digests) == set(model.digests)
        frozen = steady.store_process()
        freeze(frozen)
        try:
            assert other.upload(raw, socket) == other.partition.caffemodel.size
            other.check(raw)
            assert ping(steady.address, timeout_s=WAIT_S).room
            with Raw(steady.address) as newcomer:
                upload_socket = newcomer.upload_connection()
                assert model.upload(newcomer, upload_socket, set(model.digests)) == model.partition.caffemodel.size
                model.check(newcomer)
                assert held_by(newcomer, upload_socket, model.digests) == set()
        finally:
            os.kill(frozen, signal.SIGCONT)
        assert isinstance(raw.ask(socket, messages.Ping()), messages.Pong)
    assert model.visit(steady) == model.least_bytes


def test_a_server_whose_store_is_frozen_stops(tmp_path: Path) -> None:
    server = Server("--store", str(tmp_path / "store"), *SHARED_STORE)
    freeze(server.store_process())
    server.end_well()


def test_a_store_process_that_dies_is_said_in_a_line(tmp_path: Path, model: Model) -> None:
    server = Server("--store", str(tmp_path / "store"), *SHARED_STORE)
    with Raw(server.address) as raw:
        socket = raw.upload_connection()
        os.kill(server.store_process(), signal.SIGKILL)
        assert model.upload(raw, socket) == model.partition.caffemodel.size
        model.check(raw)
        wait_for(lambda: not welcome_again(raw).stores, "the session to know")
    code, said = server.stop()
    assert code == 0
    assert said.count("the store process has died") == 1
    assert "Traceback" not in said


def welcome_again(raw: Raw) -> messages.Welcome:
    """What a hello on the connection for uploads is told, after a question that the store has to answer."""
    socket = raw.upload_connection()
    held_by(raw, socket, ["00" * 32])
    again = raw.connect()
    answer = raw.ask(again, messages.Hello(messages.PROTOCOL, "upload", raw.session))
    assert isinstance(answer, messages.Welcome)
    return answer


# --- Folders that somebody has been at --------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap(path: Path) -> None:
    other = next(each for each in files(path.parents[2]) if each != path and each.stat().st_size == path.stat().st_size)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize("poison", [flip, lambda p: os.truncate(p, 1000), link, pipe, folder_there, swap, os.unlink])
def test_a_poisoned_folder_is_noticed_and_its_pieces_sent_again(
    poison: object, steady: Server, folder: Path, model: Model, tiny: Network
) -> None:
    """Between the question and the upload, which is the worst moment."""
    assert callable(poison)
    model.visit(steady)
    other_model(tiny, 18).visit(steady)  # for `swap`: another piece of each size
    with Raw(steady.address) as raw:
        socket = raw.upload_connection()
        held = held_by(raw, socket, model.digests)
        assert held == set(model.digests)
        names = sorted(held)[:: len(held) // 3]
        for name in names:
            poison(folder / SHARED / name[:2] / name)
        sent = model.upload(raw, socket, held)
        assert sent > model.least_bytes
        model.check(raw)
        wait_held(raw, socket, model.digests)
    assert model.visit(steady) == model.least_bytes


def test_a_folder_that_is_removed(tmp_path: Path, model: Model, tiny: Network) -> None:
    store = tmp_path / "store"
    server = Server("--store", str(store), *SHARED_STORE, *MANY)
    model.visit(server)
    subprocess.run(["rm", "-r", str(store)], check=True)
    for each in (model, other_model(tiny, 16)):
        assert each.visit(server) == each.partition.caffemodel.size
        assert each.visit(server) == each.least_bytes
    server.end_well()


# --- Full disks, full stores ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with machine.small_disk(tmp_path / "disk", "1m") as path:
        yield path


def test_a_full_disk_turns_the_store_off_and_nothing_else(small_disk: Path, model: Model) -> None:
    server = Server("--store", str(small_disk / "store"), *SHARED_STORE, *MANY)
    assert model.partition.caffemodel.size > 1_100_000
    with Raw(server.address) as raw:
        socket = raw.upload_connection()
        model.upload(raw, socket)
        model.check(raw)
        wait_for(lambda: len(files(small_disk / "store")) > 10, "some pieces to be stored")
        wait_until_steady(lambda: len(held_by(raw, socket, model.digests)))
    wait_for(lambda: shutil.disk_usage(small_disk).free < PIECE_BYTES, "the disk to be full")
    first = model.visit(server, keep=False)
    assert model.least_bytes < first < 0.5 * model.partition.caffemodel.size
    # What is stored is used on.
    assert model.visit(server, keep=False) == first
    code, said = server.stop()
    assert code == 0
    assert said.count("nothing more is stored: No space left on device") == 1
    assert "Traceback" not in said


def wait_until_steady(count: object) -> None:
    """Wait until a number has stayed the same for a second."""
    assert callable(count)
    since, before = time.monotonic(), count()
    while time.monotonic() - since < 1:
        time.sleep(0.02)
        if (now := count()) != before:
            since, before = time.monotonic(), now


def test_a_store_that_is_too_small_for_eight_clients(tmp_path: Path, tiny: Network) -> None:
    """Never has it more than it may, and every answer is right."""
    store = tmp_path / "store"
    server = Server("--store", str(store), "--store-gb", "0.01", "--store-shared", *MANY)
    most = 10_000_000
    stop = threading.Event()
    peaks: list[int] = []

    def look() -> dict[tuple[int, int], int]:
        """How much of its room each file takes."""
        found = {}
        for path in files(store):
            with contextlib.suppress(FileNotFoundError):
                seen = path.stat()
                found[seen.st_ino, seen.st_ctime_ns] = max(seen.st_size, 64 * 1024)
        return found

    def watch() -> None:
        before: dict[tuple[int, int], int] = {}
        while not stop.is_set():
            now = look()
            # Files come and go while it looks. Those that it has seen twice were there together in between.
            peaks.append(sum(now[file] for file in now.keys() & before.keys()))
            before = now

    failed: list[BaseException] = []

    def visits(number: int) -> None:
        try:
            model = other_model(tiny, 300 + number)
            for _ in range(4):
                with Raw(server.address) as raw:
                    socket = raw.upload_connection()
                    model.upload(raw, socket, held_by(raw, socket, model.digests))
                    model.check(raw)
                    raw.bye()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=visits, args=(number,)) for number in range(8)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watcher.join()
    assert not failed
    assert max(peaks) <= most
    server.end_well()
    assert most / 2 < sum(look().values()) <= most


def test_two_servers_with_one_folder(folder: Path, steady: Server, tiny: Network) -> None:
    """What one has stored, the other has."""
    model = other_model(tiny, 17)
    second = Server("--store", str(folder), *SHARED_STORE, *MANY)
    model.visit(steady)
    assert model.visit(second) == model.least_bytes
    models = [other_model(tiny, 400 + number) for number in range(4)]
    threads = [
        threading.Thread(target=each.visit, args=((steady, second)[number % 2],)) for number, each in enumerate(models)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, each in enumerate(models):
        assert each.visit((second, steady)[number % 2]) == each.least_bytes
    second.end_well()
