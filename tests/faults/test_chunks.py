"""Messages arrive damaged, twice, late, in another order, or never; both ends go on, and nothing wrong is used."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from tests.support.world import Server, World, bit_equal, recover, wait_for

Frames = list[bytes]
# What becomes of a message: the messages that go on instead, None to hold it back until another one comes.
Mischief = Callable[[Frames], list[Frames] | None]


class Meddler:
    """Passes messages on between clients and a server, and does some mischief to one of those that `chosen` picks."""

    def __init__(self, to: str, chosen: Callable[[dict[str, Any]], bool], mischief: Mischief) -> None:
        self._to = to
        self._chosen = chosen
        self._mischief = mischief
        self.done = False
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        port = self._front.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"tcp://127.0.0.1:{port}"
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        servers: dict[bytes, zmq.Socket[bytes]] = {}
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while not self._stopped:
            ready = dict(poller.poll(20))
            if self._front in ready:
                client, *frames = self._front.recv_multipart()
                if client not in servers:
                    servers[client] = self._context.socket(zmq.DEALER)
                    servers[client].connect(self._to)
                    poller.register(servers[client], zmq.POLLIN)
                for message in self._meddled(frames):
                    servers[client].send_multipart(message)
            for client, server in servers.items():
                if server in ready:
                    for message in self._meddled(server.recv_multipart()):
                        self._front.send_multipart([client, *message])
        self._context.destroy(linger=0)

    def _meddled(self, frames: Frames) -> list[Frames]:
        if self.done or not self._chosen(json.loads(frames[0])):
            return [frames]
        messages = self._mischief(frames)
        self.done = messages is not None
        return messages or []

    def close(self) -> None:
        self._stopped = True
        self._thread.join()


def is_chunk(message: dict[str, Any]) -> bool:
    """The third and later chunks of the large partition."""
    return message["type"] == "chunk" and message["partition"] == 1 and int(message["offset"]) > 200_000


def is_type(name: str, partition: int = 1) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message["type"] == name and message.get("partition", partition) == partition


def damaged(frames: Frames) -> list[Frames]:
    return [[*frames[:-1], bytes([frames[-1][0] ^ 1]) + frames[-1][1:]]]


def cut_short(frames: Frames) -> list[Frames]:
    return [[*frames[:-1], frames[-1][:-4]]]


def twice(frames: Frames) -> list[Frames]:
    return [frames, frames]


def lost(frames: Frames) -> list[Frames]:
    return []


def late(frames: Frames) -> list[Frames]:
    time.sleep(0.3)
    return [frames]


def swapped() -> Mischief:
    """Hold a message back until the next one has gone."""
    held: list[Frames] = []

    def mischief(frames: Frames) -> list[Frames] | None:
        held.append(frames)
        return held[::-1] if len(held) == 2 else None

    return mischief


def wrong_digest(frames: Frames) -> list[Frames]:
    return [[json.dumps({**json.loads(frames[0]), "sha256": "0" * 64}).encode()]]


CASES: dict[str, tuple[Callable[[dict[str, Any]], bool], Callable[[], Mischief]]] = {
    "a damaged chunk": (is_chunk, lambda: damaged),
    "a truncated chunk": (is_chunk, lambda: cut_short),
    "a chunk twice": (is_chunk, lambda: twice),
    "a lost chunk": (is_chunk, lambda: lost),
    "a late chunk": (is_chunk, lambda: late),
    "two chunks swapped": (is_chunk, swapped),
    "a partition's header twice": (is_type("partition"), lambda: twice),
    "a partition's header lost": (is_type("partition"), lambda: lost),
    "a partition's end twice": (is_type("end"), lambda: twice),
    "a partition's end lost": (is_type("end"), lambda: lost),
    "a wrong digest": (is_type("end"), lambda: wrong_digest),
    "the acknowledgement of a chunk lost": (is_type("ack"), lambda: lost),
    "the news that a partition is ready lost": (is_type("ready", 2), lambda: lost),
    "a result lost": (is_type("result"), lambda: lost),
    "an answer twice": (is_type("ack"), lambda: twice),
    "the last chunk after the end": (
        lambda message: message["type"] in ("chunk", "end") and message["partition"] == 0,
        swapped,
    ),
}


@pytest.fixture
def meddler(request: pytest.FixtureRequest, steady: Server) -> Iterator[Meddler]:
    chosen, mischief = CASES[request.param]
    meddler = Meddler(steady.address, chosen, mischief())
    yield meddler
    meddler.close()


@pytest.mark.parametrize("meddler", CASES, indirect=True)
def test_the_upload_ends_well_all_the_same(meddler: Meddler, world: World) -> None:
    with world.client(meddler.address) as (client, session):
        session.start_upload()
        assert bit_equal(recover(session))
        assert meddler.done
        wait_for(lambda: client.fault is None, "the connection to be back")
