"""A fault in Caffe, made on purpose: a build that is sanitized reports it. The argument says which.

python -m tests.sanitize.probe read|blas|overflow
"""

from __future__ import annotations

import ctypes
import sys

from ionn.model.engine import StageNet
from ionn.model.partial_net import NetStage, PartialNet
from tests.support.nets import layer

DATA = layer("Input", "data", params="input_param { shape { dim: 1 dim: 64 dim: 3 dim: 3 } }")
LAYERS = {
    "read": layer("ReLU", "it", "data"),
    "blas": layer("InnerProduct", "it", "data", None, "inner_product_param { num_output: 4 }"),
    # ionn refuses it: twice the pad is no int.
    "overflow": layer("Convolution", "it", "data", None, f"convolution_param {{ num_output: 1 pad: {2**30} "
                      f"kernel_size: 1 stride: {2**31 - 1} }}"),
}  # fmt: skip


def main(which: str) -> None:
    net = StageNet(PartialNet(DATA + LAYERS[which], "data", (NetStage(0, 1, ("it",)),)))
    if which != "overflow":
        # As if the input ended here.
        end = net.blob("data").ctypes.data + 4 * 64
        ctypes.CDLL(None).__asan_poison_memory_region(ctypes.c_void_p(end), ctypes.c_size_t(32))
    net.run(0, 0)


if __name__ == "__main__":
    main(sys.argv[1])
