"""Plan the upload of a Caffe model, and print the latency after each partition. Takes a second.

python examples/plan_my_model.py [MODEL]
"""

from __future__ import annotations

import sys

import ionn


def main(model: str = "alexnet") -> None:
    network = ionn.load_network(model)
    print(f"{network.name}: {len(network.layers)} layers, {len(network.stages)} stages, input {network.input_shape}")
    for algorithm in ("original", "recursive-efficiency"):
        plan = ionn.plan_upload(network, client="odroid-xu4", server="gtx1080ti", mbps=80, algorithm=algorithm)
        print(f"\n{algorithm}: {plan.local_ms:.0f} ms before the upload, {plan.best_ms:.0f} ms after it")
        elapsed_ms = 0.0
        for partition in plan.partitions:
            elapsed_ms += partition.upload_ms
            print(f"  after {elapsed_ms / 1e3:5.1f} s: {partition.latency_ms:6.1f} ms with {partition.stage_names[-1]}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except ionn.IonnError as error:
        sys.exit(f"plan_my_model: {error}")
