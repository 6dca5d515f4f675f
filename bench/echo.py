"""Round trips of bare pyzmq through two processes: one passes messages on, the other answers them.

python bench/echo.py front                   prints where clients and where workers connect
python bench/echo.py worker ADDRESS BYTES    answers each message with so many bytes
"""

from __future__ import annotations

import sys
from typing import Any

import zmq


def front(context: zmq.Context[Any]) -> None:
    clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket in (clients, workers):
        print(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}", flush=True)
    zmq.proxy(clients, workers)


def worker(context: zmq.Context[Any], address: str, answer_bytes: int) -> None:
    socket = context.socket(zmq.REP)
    socket.connect(address)
    answer = bytes(answer_bytes)
    while True:
        socket.recv(copy=False)
        socket.send(answer, copy=False)


if __name__ == "__main__":
    if sys.argv[1] == "front":
        front(zmq.Context())
    else:
        worker(zmq.Context(), sys.argv[2], int(sys.argv[3]))
