"""`Blob.share_data`, which Caffe has from caffe-build/: each case in a process of its own, which a fault would end."""

from __future__ import annotations

import subprocess
import sys

import pytest

NETS = """
import gc, tempfile
from ionn.model.engine import load_caffe
caffe = load_caffe()
def net(rows, batch=1):
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write('name: "x" layer { name: "i" type: "Input" top: "i" input_param { shape { dim: %d dim: 4 } } } '
                   'layer { name: "f" type: "InnerProduct" bottom: "i" top: "f" '
                   'inner_product_param { num_output: %d } }' % (batch, rows))
        file.flush()
        return caffe.Net(file.name, caffe.TEST)
def weights(rows):
    return net(rows).params["f"][0]
"""

SHARED = {
    "what is written to either is in both": """
whole, part = weights(8), weights(3)
part.share_data(whole, 8)
whole.data[...] = [[4 * row + column for column in range(4)] for row in range(8)]
assert part.data.tolist() == [[4 * row + column for column in range(4)] for row in range(2, 5)]
part.data[0, 0] = 99
assert whole.data[2, 0] == 99
""",
    "the memory stays as long as any of them": """
nets = [net(400_000) for _ in range(2)]
part = nets[1].params["f"][0]
nets[0].params["f"][0].data[...] = 7
part.share_data(nets[0].params["f"][0], 0)
view = part.data
del nets, part
gc.collect()
others = [net(400_000) for _ in range(2)]
assert view.min() == view.max() == 7
""",
    "a larger shape than what it has gets memory of its own": """
whole, part = weights(8), weights(4000)
part.reshape(4, 4)
part.share_data(whole, 0)
part.reshape(4000, 4)
part.data[...] = 1
assert whole.data.max() == 0
""",
}

REFUSED = {
    "itself": ("ValueError", "part.share_data(part, 0)"),
    "from before the beginning": ("IndexError", "part.share_data(whole, -1)"),
    "beyond the end": ("IndexError", "part.share_data(whole, 21)"),
    "from a smaller one": ("IndexError", "whole.share_data(part, 0)"),
    "without elements, of which there is no memory": (
        "IndexError",
        "whole.reshape(0, 4); part.reshape(0, 4); part.share_data(whole, 0)",
    ),
}


def ends_well(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", NETS + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SHARED)
def test_blobs_share_memory(name: str) -> None:
    ends_well(SHARED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_part_of_a_blob_is_refused(name: str) -> None:
    error, call = REFUSED[name]
    refused = f"try:\n    {call}\nexcept {error}:\n    pass\nelse:\n    raise SystemExit(1)"
    ends_well(f"whole, part = weights(8), weights(3)\n{refused}")
