"""The features of a layer, from which its time is predicted: numbers that follow from its type, shapes and parameters.

`ionn.costs.models` has the prediction functions over them, after Neurosurgeon (paper, section 2.1).
"""

from __future__ import annotations

import math

from ionn.model.network import Layer
from ionn.model.proto import PoolingParameter
from ionn.model.slices import SMALL_PRODUCT

_FLOAT_BYTES = 4

# The features over which the time of a layer type is fitted, the most important first. Other types have
# DEFAULT_FEATURES.
#
# Caffe convolves by im2col and a matrix product per group. A product takes time for its operations and for each element
# of its matrices, as large operands are packed (copied in the order of use) and the result is written. Hence flat and
# narrow products are slow, and the many small ones of a depthwise convolution less so. On a GPU, which one layer rarely
# fills, the length of each sum (`depth`) counts, but less for 3x3 kernels of stride 1, which have fast algorithms. An
# inner product of batch 1 mostly packs; it is slower if the rows of its weights are whole pages apart, and so compete
# for the same cache lines, and if there are many rows. Pooling looks up its blobs anew for every plane. Max pooling
# branches on its data, and the branches are least predictable where a window begins.
FEATURES: dict[str, tuple[str, ...]] = {
    "Convolution": (
        "operations",
        "weight_bytes",
        "column_bytes",
        "output_bytes",
        "im2col_bytes",
        "constant",
        "depth",
        "depth_3x3",
        "packed_bytes",
    ),
    "InnerProduct": ("weight_bytes", "constant", "packed_bytes", "page_rows_bytes", "extra_rows_bytes"),
    "Pooling": ("operations", "max_operations", "constant", "input_bytes", "planes", "max_output_bytes"),
}
DEFAULT_FEATURES = ("operations", "constant", "large_bytes")
ALL_FEATURES = frozenset({"filters", *DEFAULT_FEATURES}.union(*FEATURES.values()))

# Larger blobs do not stay in the caches of a small core, which slows layers down that compute little per element.
_LARGE_BYTES = 512 * 1024

# Packing reads a piece of every row in turn. With more rows than this, each in pages of its own, it misses the TLB.
_PAGE_BYTES = 4096
_TLB_ROWS = 2048


def features(layer: Layer) -> dict[str, float]:
    """Return the features of a layer. A feature that is not in the result is 0.

    - All types: `constant` (1), `operations` (as `ionn.model.layers` defines them), `weight_bytes`, `input_bytes`,
      `output_bytes`, and `large_bytes` (input and output bytes, if together they exceed 512 KiB and the layer computes
      anything).
    - Pooling: `planes` (the channels of all images); for max pooling also `max_operations` and `max_output_bytes`, its
      operations and output bytes.
    - Convolution, Deconvolution and InnerProduct: `depth`, the multiply-adds per output element, and `packed_bytes`,
      the bytes of the larger operand of the matrix products, unless these are small: an InnerProduct's weights, a
      convolution's columns.
    - InnerProduct: `page_rows_bytes`, equal to `packed_bytes` if the rows of the weights are whole pages of 4 KiB, and
      `extra_rows_bytes`, the bytes of the rows after the 2048th.
    - Convolution and Deconvolution: `filters` (output channels), `column_bytes` (the matrix that the weights are
      multiplied with), `im2col_bytes` (the same, but 0 if Caffe need not build that matrix: for a 1x1 kernel of stride
      1 without padding), and for 3x3 kernels of stride 1 `depth_3x3` in place of `depth`.
    """
    blob_bytes = float(layer.input_bytes + layer.output_bytes)
    values = {
        "constant": 1.0,
        "operations": float(layer.operations),
        "weight_bytes": float(layer.weight_bytes),
        "input_bytes": float(layer.input_bytes),
        "output_bytes": float(layer.output_bytes),
        "large_bytes": blob_bytes if layer.operations and blob_bytes > _LARGE_BYTES else 0.0,
    }
    if layer.type == "Pooling":
        values["planes"] = float(math.prod(layer.bottom_shapes[0][:2]))
        if layer.param.pooling_param.pool == PoolingParameter.MAX:
            values |= {"max_operations": values["operations"], "max_output_bytes": values["output_bytes"]}
    if layer.type == "InnerProduct" and layer.operations > SMALL_PRODUCT:
        rows, length = layer.weight_shapes[0]
        values["packed_bytes"] = values["weight_bytes"]
        values["extra_rows_bytes"] = float(max(0, rows - _TLB_ROWS) * length * _FLOAT_BYTES)
        if length * _FLOAT_BYTES % _PAGE_BYTES == 0:
            values["page_rows_bytes"] = values["weight_bytes"]
    if layer.type in ("Convolution", "Deconvolution", "InnerProduct"):
        values["depth"] = layer.operations * _FLOAT_BYTES / layer.output_bytes
    if layer.type in ("Convolution", "Deconvolution"):
        values |= _convolution_features(layer, values["depth"])
    return values


def _convolution_features(layer: Layer, depth: float) -> dict[str, float]:
    p = layer.param.convolution_param
    weights = layer.weight_shapes[0]
    kernel = weights[2:]
    stride = max(1, *p.stride, p.stride_h, p.stride_w)
    pad = max(0, *p.pad, p.pad_h, p.pad_w)
    columns = layer.operations / math.prod(weights)  # of all images
    column_bytes = columns * p.group * math.prod(weights[1:]) * _FLOAT_BYTES
    needs_im2col = math.prod(kernel) > 1 or stride > 1 or pad > 0
    fast = kernel == (3, 3) and stride == 1
    small = layer.operations <= SMALL_PRODUCT * p.group * layer.bottom_shapes[0][0]
    return {
        "filters": float(p.num_output),
        "column_bytes": column_bytes,
        "packed_bytes": 0.0 if small else column_bytes,
        "im2col_bytes": column_bytes if needs_im2col else 0.0,
        "depth": 0.0 if fast else depth,
        "depth_3x3": depth if fast else 0.0,
    }
