"""Answer queries while the model is uploaded, and print where each query ran and how long it took.

Start a server first, on this machine or another, then give its address. The program ends with the upload.

    ionn profile googlenet --save server.json
    ionn serve --bind tcp://127.0.0.1:7675 --costs server.json
    python examples/offload_queries.py tcp://127.0.0.1:7675 googlenet
"""

from __future__ import annotations

import sys
import time

import ionn


def main(address: str, model: str = "googlenet", client: str = "odroid-xu4") -> None:
    # The first plan is made as if this machine were as slow as an Odroid, so that there is more to gain.
    with ionn.connect(model, address, client=client) as session:
        image = ionn.image_input("chelsea", session.network.input_shape)
        while True:
            uploaded = session.uploaded
            answer = session.query(image)
            places = [f"{part.last - part.first + 1} stages at the {part.where}" for part in answer.segments]
            label = next(iter(answer.outputs.values())).argmax()
            print(f"{uploaded:4.0%} uploaded, {answer.latency_ms:6.1f} ms: class {label}, {', '.join(places)}")
            if uploaded == 1 or session.fault is not None:
                break
            time.sleep(0.1)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("offload_queries: give the server's address, tcp://HOST:PORT")
    try:
        main(*sys.argv[1:])
    except ionn.IonnError as error:
        sys.exit(f"offload_queries: {error}")
