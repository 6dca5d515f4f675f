"""The table of layer types, with Caffe itself as the judge of every row."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from ionn.errors import InputError
from ionn.model.engine import StageNet
from ionn.model.layers import LAYER_TYPES, REASONS, Inferred, Shape, essential, infer
from ionn.model.partial_net import NetStage, PartialNet
from ionn.model.proto import LayerParameter, NetParameter, blank_unread
from tests.support.oracle import Oracle, Question

caffe = pytest.importorskip("caffe")

IMAGE = (2, 6, 9, 7)
WIDE = (1, 8, 12, 12)

# type, parameters, shapes of the bottoms, number of tops
GOOD: list[tuple[str, str, tuple[Shape, ...], int]] = [
    ("AbsVal", "", (IMAGE,), 1),
    ("ArgMax", "", (IMAGE,), 1),
    ("ArgMax", "argmax_param { top_k: 3 out_max_val: true }", (IMAGE,), 1),
    ("ArgMax", "argmax_param { top_k: 2 axis: -3 }", (IMAGE,), 1),
    ("ArgMax", "argmax_param { top_k: 4 }", ((3, 2, 2, 2, 2),), 1),
    ("ArgMax", "argmax_param { top_k: 3 }", ((2, 3),), 1),
    ("ArgMax", "argmax_param { top_k: 3 axis: 1 }", ((2, 3),), 1),
    ("ArgMax", "", ((3,),), 1),
    ("BNLL", "", (IMAGE,), 1),
    ("BatchNorm", "", (IMAGE,), 1),
    ("BatchNorm", "batch_norm_param { use_global_stats: true eps: 0.1 }", ((3, 4),), 1),
    ("BatchNormKyle", "", (IMAGE,), 1),
    ("BatchNormKyle", "batch_norm_param { use_alpha_beta: true }", (IMAGE,), 1),
    ("Bias", "", (IMAGE,), 1),
    ("Bias", "bias_param { axis: -2 num_axes: -1 }", (IMAGE,), 1),
    ("Bias", "bias_param { axis: 1 num_axes: 0 }", (IMAGE,), 1),
    ("Bias", "bias_param { axis: 2 }", (IMAGE, (9, 7)), 1),
    ("Bias", "bias_param { axis: 9 }", (IMAGE, ()), 1),
    ("Concat", "", (IMAGE, (2, 1, 9, 7), IMAGE), 1),
    ("Concat", "concat_param { axis: -1 }", ((2, 3), (2, 5)), 1),
    ("Concat", "concat_param { concat_dim: 0 }", ((2, 3), (1, 3)), 1),
    ("Concat", "", (IMAGE,), 1),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 }", (IMAGE,), 1),
    (
        "Convolution",
        "convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 bias_term: false }",
        (IMAGE,),
        1,
    ),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 1 group: 2 }", (IMAGE,), 1),
    ("Convolution", "convolution_param { num_output: 6 kernel_size: 3 group: 6 dilation: 2 }", (IMAGE,), 1),
    ("Convolution", "convolution_param { num_output: 4 kernel_h: 5 kernel_w: 1 stride_h: 2 pad_w: 3 }", (IMAGE,), 1),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 5 kernel_size: 2 pad: 0 pad: 1 }", (IMAGE,), 1),
    ("Convolution", "convolution_param { num_output: 2 kernel_size: 2 stride: 2 }", ((2, 3, 6, 6, 6),), 1),
    ("Convolution", "convolution_param { num_output: 3 kernel_size: 3 }", ((2, 5, 8),), 1),
    ("Convolution", "convolution_param { num_output: 3 kernel_size: 3 axis: 2 }", (IMAGE,), 1),
    ("Convolution", "convolution_param { num_output: 3 kernel_size: 2 force_nd_im2col: true }", (IMAGE,), 1),
    ("Convolution", "convolution_param { num_output: 3 }", ((2, 5),), 1),
    ("Convolution", "convolution_param { num_output: 1 kernel_size: 1 }", (IMAGE,), 1),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 }", (IMAGE, IMAGE), 2),
    ("Crop", "", (IMAGE, (1, 1, 4, 3)), 1),
    ("Crop", "", (IMAGE, IMAGE), 1),
    ("Crop", "crop_param { axis: 1 offset: 2 }", (IMAGE, (9, 3, 4, 3)), 1),
    ("Crop", "crop_param { axis: 2 offset: 5 offset: 4 }", (IMAGE, (1, 1, 4, 3)), 1),
    ("Crop", "crop_param { axis: -3 offset: 1 offset: 2 offset: 3 }", (IMAGE, (1, 3, 4, 3)), 1),
    ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 }", (IMAGE,), 1),
    ("Deconvolution", "convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 group: 6 }", (IMAGE,), 1),
    ("Deconvolution", "convolution_param { num_output: 2 kernel_size: 2 dilation: 3 bias_term: false }", (IMAGE,), 1),
    ("Dropout", "", (IMAGE,), 1),
    ("Dropout", "dropout_param { dropout_ratio: 0.3 }", ((2, 3),), 1),
    ("Dropout", "dropout_param { dropout_ratio: 0 }", ((2, 3),), 1),
    ("ELU", "elu_param { alpha: 0.5 }", (IMAGE,), 1),
    ("Eltwise", "", (IMAGE, IMAGE), 1),
    ("Eltwise", "eltwise_param { operation: MAX }", (IMAGE, IMAGE, IMAGE), 1),
    ("Eltwise", "eltwise_param { operation: PROD }", ((3,), (3,)), 1),
    ("Eltwise", "eltwise_param { coeff: 1 coeff: -0.5 }", (IMAGE, IMAGE), 1),
    ("Exp", "", (IMAGE,), 1),
    ("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }", (IMAGE,), 1),
    ("Flatten", "", (IMAGE,), 1),
    ("Flatten", "flatten_param { axis: -3 end_axis: 2 }", (IMAGE,), 1),
    ("Flatten", "flatten_param { axis: 2 end_axis: 1 }", (IMAGE,), 1),
    ("HardSigmoid", "", (IMAGE,), 1),
    ("HardSwish", "", (IMAGE,), 1),
    ("Im2col", "convolution_param { kernel_size: 3 stride: 2 pad: 1 }", (IMAGE,), 1),
    ("Im2col", "convolution_param { kernel_size: 3 }", ((2, 5, 8),), 1),
    ("Im2col", "convolution_param { kernel_h: 2 kernel_w: 3 dilation: 2 }", (IMAGE,), 1),
    ("InnerProduct", "inner_product_param { num_output: 5 }", (IMAGE,), 1),
    ("InnerProduct", "inner_product_param { num_output: 5 axis: -1 bias_term: false }", (IMAGE,), 1),
    ("InnerProduct", "inner_product_param { num_output: 5 axis: 2 transpose: true }", (IMAGE,), 1),
    ("InnerProduct", "inner_product_param { num_output: 5 axis: 0 }", ((4,),), 1),
    ("InnerProduct", "inner_product_param { num_output: 1 axis: -4 }", (IMAGE,), 1),
    ("Input", "input_param { shape { dim: 2 dim: 3 } }", (), 1),
    ("Input", "input_param { shape { dim: 2 } shape { dim: 1 dim: 1 dim: 1 dim: 1 dim: 4 } }", (), 2),
    ("Input", "input_param { shape { dim: 2 dim: 3 } }", (), 3),
    ("Input", "input_param { shape { dim: 2 " + "dim: 1 " * 31 + "} }", (), 1),
    ("LRN", "", (IMAGE,), 1),
    ("LRN", "lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL }", (IMAGE,), 1),
    ("LRN", "lrn_param { local_size: 9 }", ((1, 2, 3, 3),), 1),
    ("Log", "", (IMAGE,), 1),
    ("Log", "log_param { base: 10 shift: 2 }", (IMAGE,), 1),
    ("MVN", "", (IMAGE,), 1),
    ("MVN", "mvn_param { across_channels: true normalize_variance: false }", ((2, 5),), 1),
    ("MVN", "", ((),), 1),
    ("Normalize", "", (IMAGE,), 1),
    ("Normalize", "norm_param { across_spatial: false channel_shared: false }", (IMAGE,), 1),
    ("PReLU", "", (IMAGE,), 1),
    ("PReLU", "prelu_param { channel_shared: true }", ((2, 3),), 1),
    ("Pad", "pad_param { pad_u: 1 pad_l: 2 pad_r: 3 }", (IMAGE,), 1),
    ("Pad", "pad_param { pad_u: 8 pad_d: 1 pad_r: 6 pad_type: REFLECT }", (IMAGE,), 1),
    ("Pad", "pad_param { pad_d: 8 pad_l: 6 pad_type: REFLECT }", (IMAGE,), 1),
    ("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", (IMAGE,), 1),
    ("Permute", "permute_param { order: 2 }", (IMAGE,), 1),
    ("PixelShuffle", "pixelshuffle_param { upscale_factor: 2 }", (WIDE,), 1),
    ("PixelShuffle", "pixelshuffle_param { upscale_factor: 1 }", (WIDE,), 1),
    ("PixelShuffle", "pixelshuffle_param { upscale_factor: 2 }", ((1, 12, 3, 4),), 1),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 }", (IMAGE,), 1),
    ("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", ((1, 2, 5, 5),), 1),
    ("Pooling", "pooling_param { kernel_size: 2 stride: 2 ceil_mode: false }", ((1, 2, 5, 5),), 1),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 2 stride: 2 pad: 1 }", ((1, 2, 5, 6),), 1),
    (
        "Pooling",
        "pooling_param { pool: AVE kernel_h: 3 kernel_w: 2 stride_h: 1 stride_w: 4 pad_h: 1 pad_w: 0 }",
        (IMAGE,),
        1,
    ),
    ("Pooling", "pooling_param { kernel_size: 1 stride: 2 }", ((1, 2, 8, 8),), 1),
    ("Pooling", "pooling_param { kernel_size: 8 stride: 2 }", ((1, 2, 7, 7),), 1),
    ("Pooling", "pooling_param { kernel_size: 3 pad: 2 }", (IMAGE,), 1),
    ("Pooling", "pooling_param { pool: AVE global_pooling: true }", (IMAGE,), 1),
    ("Pooling", "pooling_param { pad_h: 0 pad_w: 0 stride_h: 1 stride_w: 1 global_pooling: true }", (IMAGE,), 1),
    ("Pooling", "pooling_param { kernel_size: 3 }", (IMAGE,), 2),
    ("Power", "power_param { power: 2 scale: 3 shift: 1 }", (IMAGE,), 1),
    ("ReLU", "relu_param { negative_slope: 0.1 }", (IMAGE,), 1),
    ("ReLU6", "", ((4,),), 1),
    ("Reduction", "", (IMAGE,), 1),
    ("Reduction", "reduction_param { axis: -2 operation: MEAN }", (IMAGE,), 1),
    ("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }", (IMAGE,), 1),
    ("Reshape", "reshape_param { shape { dim: 3 dim: 2 } axis: 1 num_axes: 1 }", (IMAGE,), 1),
    ("Reshape", "reshape_param { shape { dim: 1 } axis: -1 num_axes: 0 }", (IMAGE,), 1),
    ("Reshape", "reshape_param { shape { dim: 1 } axis: 4 num_axes: 0 }", (IMAGE,), 1),
    ("Reshape", "reshape_param { shape { dim: 0 dim: 3 dim: -1 } axis: -5 }", (IMAGE,), 1),
    ("Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: 7 dim: -1 } }", (IMAGE,), 1),
    ("Resize", "resize_param { height: 5 width: 20 }", (IMAGE,), 1),
    ("Resize", "resize_param { height: 1 width: 1 }", (IMAGE,), 1),
    ("Resize", "resize_param { height: 2 width: 3 }", ((3,),), 1),
    ("Resize", "resize_param { height: 2 width: 3 }", ((),), 1),
    ("SPP", "spp_param { pyramid_height: 1 }", (WIDE,), 1),
    ("SPP", "spp_param { pyramid_height: 3 pool: AVE }", (WIDE,), 1),
    ("SPP", "spp_param { pyramid_height: 2 }", ((2, 3, 7, 5),), 1),
    ("SPP", "spp_param { pyramid_height: 2 }", ((1, 1, 2, 3),), 1),
    ("SPP", "spp_param { pyramid_height: 4 }", ((1, 1, 20, 26),), 1),
    ("Scale", "", (IMAGE,), 1),
    ("Scale", "scale_param { bias_term: true }", (IMAGE,), 1),
    ("Scale", "scale_param { axis: 0 num_axes: 2 bias_term: true }", (IMAGE,), 1),
    ("Scale", "scale_param { axis: 2 num_axes: 2 }", (IMAGE,), 1),
    ("Scale", "scale_param { bias_term: true }", (IMAGE, ()), 1),
    ("Scale", "scale_param { num_axes: 0 }", (IMAGE,), 1),
    ("Scale", "scale_param { axis: 0 bias_term: true }", (IMAGE, (2, 6)), 1),
    ("Sigmoid", "", (IMAGE,), 1),
    ("Silence", "", (IMAGE, (2,)), 0),
    ("Slice", "", (IMAGE,), 3),
    ("Slice", "slice_param { axis: 2 slice_point: 1 slice_point: 4 }", (IMAGE,), 3),
    ("Slice", "slice_param { slice_point: 1 slice_point: 5 }", (IMAGE,), 3),
    ("Slice", "slice_param { slice_dim: 0 }", (IMAGE,), 1),
    ("Softmax", "", (IMAGE,), 1),
    ("Softmax", "softmax_param { axis: -1 }", ((2, 3),), 1),
    ("Split", "", (IMAGE,), 3),
    ("TanH", "", (IMAGE,), 1),
    ("Threshold", "threshold_param { threshold: 0.5 }", (IMAGE,), 1),
    ("Tile", "tile_param { tiles: 3 }", (IMAGE,), 1),
    ("Tile", "tile_param { tiles: 1 }", (IMAGE,), 1),
    ("Tile", "tile_param { tiles: 2 axis: -1 }", (IMAGE,), 1),
    ("Unsqueeze", "unsqueeze_param { dim: -1 }", (IMAGE,), 1),
    ("Unsqueeze", "unsqueeze_param { dim: -5 }", (IMAGE,), 1),
    ("Unsqueeze", "unsqueeze_param { dim: 4 }", (IMAGE,), 1),
    ("Unsqueeze", "unsqueeze_param { dim: 0 }", ((3, 2),), 1),
    ("Upsample", "upsample_param { scale: 3 }", (IMAGE,), 1),
    ("Upsample", "upsample_param { scale: 1 }", (IMAGE,), 1),
    ("Upsample", "upsample_param { scale: 2 dims_num: 3 }", ((2, 3, 4),), 1),
]

# type, parameters, shapes of the bottoms, number of tops, part of the message
BAD: list[tuple[str, str, tuple[Shape, ...], int, str]] = [
    ("ReLU", "", (), 1, "takes 1 bottom blobs, not 0"),
    ("ReLU", "", (IMAGE,), 2, "takes 1 top blobs, not 2"),
    ("ReLU", "", (IMAGE, IMAGE), 1, "takes 1 bottom blobs, not 2"),
    ("ReLU", "", (IMAGE,), 0, "takes 1 top blobs, not 0"),
    ("Input", "input_param { shape { dim: 2 } }", (IMAGE,), 1, "takes 0 bottom"),
    ("Crop", "", (IMAGE,), 1, "takes 2 bottom"),
    ("Crop", "", (IMAGE,) * 3, 1, "takes 2 bottom"),
    ("Bias", "", (IMAGE,) * 3, 1, "takes 1 to 2 bottom"),
    ("Concat", "", (), 1, "takes at least 1 bottom"),
    ("Scale", "", (IMAGE,) * 3, 1, "takes 1 to 2 bottom"),
    ("Silence", "", (IMAGE,), 1, "takes 0 top"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 }", (IMAGE, IMAGE), 1, "as many tops"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 }", (IMAGE, WIDE), 2, "different shapes"),
    ("Convolution", "", (IMAGE,), 1, "kernel_size is given 0 times"),
    ("Convolution", "convolution_param { kernel_size: 3 }", (IMAGE,), 1, "num_output"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 0 }", (IMAGE,), 1, "kernel must be at least 1"),
    ("Convolution", "convolution_param { num_output: 4 kernel_h: 3 }", (IMAGE,), 1, "kernel must be at least 1"),
    (
        "Convolution",
        "convolution_param { num_output: 4 kernel_h: 3 kernel_w: 3 kernel_size: 3 }",
        (IMAGE,),
        1,
        "not both",
    ),
    (
        "Convolution",
        "convolution_param { num_output: 4 kernel_h: 3 kernel_w: 3 }",
        ((2, 3, 4),),
        1,
        "for 2 spatial axes",
    ),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 stride: 0 }", (IMAGE,), 1, "stride must be"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 kernel_size: 3 }", ((1,) * 5,), 1, "2 times"),
    (
        "Convolution",
        "convolution_param { num_output: 4 kernel_size: 3 stride_h: 0 stride_w: 0 }",
        (IMAGE,),
        1,
        "stride must",
    ),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 pad: 4294967295 }", (IMAGE,), 1, "pad must be"),
    (
        "Convolution",
        "convolution_param { num_output: 4 kernel_size: 3 pad: 2147483647 }",
        (IMAGE,),
        1,
        "larger than Caffe",
    ),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 group: 0 }", (IMAGE,), 1, "group must be"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 group: 4 }", (IMAGE,), 1, "6 input channels"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 group: 3 }", (IMAGE,), 1, "num_output 4 cannot"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 8 }", (IMAGE,), 1, "kernel of 8 is larger"),
    (
        "Convolution",
        "convolution_param { num_output: 4 kernel_size: 3 dilation: 4 }",
        (IMAGE,),
        1,
        "kernel of 9 is larger",
    ),
    (
        "Convolution",
        "convolution_param { num_output: 4 kernel_size: 3 axis: 4 }",
        (IMAGE,),
        1,
        "axis 4 is out of range",
    ),
    ("Convolution", "convolution_param { num_output: 4000000000 kernel_size: 1 }", (IMAGE,), 1, "larger than Caffe"),
    (
        "Convolution",
        "convolution_param { num_output: 1 kernel_size: 30000 pad: 30000 }",
        (IMAGE,),
        1,
        "larger than Caffe",
    ),
    # the column buffer alone is too large
    ("Convolution", "convolution_param { num_output: 1 kernel_size: 10 }", ((1, 6, 2009, 2009),), 1, "600x2000x2000"),
    ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 2 pad: 6 }", (IMAGE,), 1, "every size must be"),
    (
        "Deconvolution",
        "convolution_param { num_output: 4 kernel_size: 2 stride: 999999999 }",
        (IMAGE,),
        1,
        "end farther out than Caffe can count",
    ),
    ("Im2col", "convolution_param { kernel_size: 3 axis: 3 }", (IMAGE,), 1, "no spatial axes"),
    ("InnerProduct", "", (IMAGE,), 1, "num_output"),
    ("InnerProduct", "inner_product_param { num_output: 5 axis: 4 }", (IMAGE,), 1, "axis 4 is out of range"),
    ("InnerProduct", "inner_product_param { num_output: 5 axis: -5 }", (IMAGE,), 1, "axis -5 is out of range"),
    ("InnerProduct", "inner_product_param { num_output: 2147483647 }", (IMAGE,), 1, "larger than Caffe"),
    ("Pooling", "pooling_param { kernel_size: 3 }", ((2, 3, 4),), 1, "4 axes, not 2x3x4"),
    ("Pooling", "", (IMAGE,), 1, "give either kernel_size"),
    ("Pooling", "pooling_param { kernel_size: 3 kernel_h: 3 kernel_w: 3 }", (IMAGE,), 1, "give either kernel_size"),
    ("Pooling", "pooling_param { kernel_h: 3 }", (IMAGE,), 1, "give either kernel_size"),
    ("Pooling", "pooling_param { kernel_w: 3 }", (IMAGE,), 1, "give either kernel_size"),
    ("Pooling", "pooling_param { kernel_size: 0 }", (IMAGE,), 1, "kernel must be"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 0 }", (IMAGE,), 1, "stride must be"),
    ("Pooling", "pooling_param { kernel_size: 3 stride_h: 2 }", (IMAGE,), 1, "both stride_h and stride_w"),
    ("Pooling", "pooling_param { kernel_size: 3 stride_w: 2 }", (IMAGE,), 1, "both stride_h and stride_w"),
    ("Pooling", "pooling_param { kernel_size: 3 pad: 3 }", (IMAGE,), 1, "smaller than its kernel"),
    ("Pooling", "pooling_param { kernel_size: 3 pad: 1 pad_h: 1 pad_w: 1 }", (IMAGE,), 1, "both pad_h and pad_w"),
    ("Pooling", "pooling_param { kernel_size: 16 stride: 3 }", (IMAGE,), 1, "every size must be"),
    ("Pooling", "pooling_param { kernel_size: 3 global_pooling: true }", (IMAGE,), 1, "no kernel size"),
    ("Pooling", "pooling_param { kernel_h: 3 global_pooling: true }", (IMAGE,), 1, "no kernel size"),
    ("Pooling", "pooling_param { kernel_w: 3 global_pooling: true }", (IMAGE,), 1, "no kernel size"),
    ("Pooling", "pooling_param { global_pooling: true pad: 1 }", (IMAGE,), 1, "no pad and no stride"),
    ("Pooling", "pooling_param { global_pooling: true stride: 2 }", (IMAGE,), 1, "no pad and no stride"),
    ("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 3 }", (IMAGE,), 1, "STOCHASTIC"),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 3 }", (IMAGE,), 2, "only MAX"),
    ("Pooling", "pooling_param { kernel_size: 3 }", (IMAGE,), 3, "takes 1 to 2 top"),
    ("LRN", "lrn_param { local_size: 4 }", (IMAGE,), 1, "must be odd"),
    ("LRN", "", ((2, 3),), 1, "4 axes"),
    ("SPP", "", (IMAGE,), 1, "pyramid_height"),
    ("SPP", "spp_param { pyramid_height: 6 }", (IMAGE,), 1, "smaller than its kernel"),
    ("SPP", "spp_param { pyramid_height: 24 }", (IMAGE,), 1, "smaller than its kernel"),
    ("SPP", "spp_param { pyramid_height: 25 }", (IMAGE,), 1, "pyramid_height"),
    ("SPP", "spp_param { pyramid_height: 2 pool: STOCHASTIC }", (IMAGE,), 1, "STOCHASTIC"),
    ("BatchNorm", "", ((4,),), 1, "at least 2 axes"),
    ("BatchNorm", "batch_norm_param { use_global_stats: false }", (IMAGE,), 1, "between queries; remove use_global"),
    ("BatchNormKyle", "batch_norm_param { use_global_stats: false }", (IMAGE,), 1, "it keeps state between queries"),
    ("Scale", "scale_param { axis: 4 }", (IMAGE,), 1, "axis 4 is out of range"),
    ("Scale", "scale_param { num_axes: 4 }", (IMAGE,), 1, "exceed an input"),
    ("Scale", "scale_param { axis: 9 bias_term: true }", (IMAGE, ()), 1, "axis 9 is out of range"),
    ("Scale", "scale_param { num_axes: -2 }", (IMAGE,), 1, "num_axes must be"),
    ("Scale", "", (IMAGE, (5,)), 1, "does not match"),
    ("Bias", "bias_param { axis: 3 }", (IMAGE, (7, 1)), 1, "does not match"),
    ("PReLU", "", ((4,),), 1, "2 to 4 axes"),
    ("PReLU", "", ((1,) * 5,), 1, "2 to 4 axes"),
    ("MVN", "", ((1, 2, 3, 4, 5),), 1, "at most 4 axes"),
    ("Dropout", "dropout_param { dropout_ratio: 1 }", (IMAGE,), 1, "[0, 1)"),
    ("Dropout", "dropout_param { dropout_ratio: -0.1 }", (IMAGE,), 1, "[0, 1)"),
    ("Exp", "exp_param { base: 0 }", (IMAGE,), 1, "base must be positive"),
    ("Exp", "exp_param { base: -2 }", (IMAGE,), 1, "base must be positive"),
    ("Exp", "exp_param { base: inf }", (IMAGE,), 1, "base must be positive"),
    ("Exp", "exp_param { base: nan }", (IMAGE,), 1, "base must be positive"),
    ("Log", "log_param { base: 1 }", (IMAGE,), 1, "base must not be 1"),
    ("Softmax", "softmax_param { axis: 2 }", ((2, 3),), 1, "axis 2 is out of range"),
    ("Eltwise", "", (IMAGE,), 1, "at least 2 bottom"),
    ("Eltwise", "", (IMAGE, WIDE), 1, "different shapes"),
    ("Eltwise", "eltwise_param { coeff: 1 }", (IMAGE, IMAGE), 1, "1 coefficients for 2"),
    ("Eltwise", "eltwise_param { coeff: 1 coeff: 1 operation: PROD }", (IMAGE, IMAGE), 1, "not for PROD"),
    ("Reduction", "reduction_param { axis: 4 }", (IMAGE,), 1, "axis 4 is out of range"),
    ("ArgMax", "argmax_param { top_k: 0 }", (IMAGE,), 1, "top_k must be"),
    ("ArgMax", "argmax_param { top_k: 7 axis: 1 }", (IMAGE,), 1, "top_k must be"),
    ("ArgMax", "argmax_param { top_k: 4 }", ((2, 3),), 1, "top_k must be"),
    ("ArgMax", "", ((),), 1, "at least 1 axis"),
    ("Input", "", (), 1, "give one shape per top"),
    ("Input", "input_param { shape { dim: 1 } shape { dim: 1 } }", (), 3, "give one shape per top"),
    ("Input", "input_param { shape { dim: 0 } }", (), 1, "every size must be"),
    ("Input", "input_param { shape { dim: 4294967297 } }", (), 1, "larger than Caffe"),
    ("Input", "input_param { shape {" + "dim: 1 " * 33 + "} }", (), 1, "at most 32"),
    ("Concat", "", (IMAGE, (2, 6, 9)), 1, "differ on more"),
    ("Concat", "", (IMAGE, (2, 6, 9, 8)), 1, "differ on more"),
    ("Concat", "concat_param { axis: 1 concat_dim: 1 }", (IMAGE,), 1, "not both"),
    ("Concat", "concat_param { concat_dim: 4 }", (IMAGE,), 1, "axis 4 is out of range"),
    ("Slice", "", (IMAGE,), 4, "into 4 equal parts"),
    ("Slice", "slice_param { slice_point: 1 }", (IMAGE,), 3, "takes 2 slice points"),
    ("Slice", "slice_param { slice_point: 3 slice_point: 3 }", (IMAGE,), 3, "must rise"),
    ("Slice", "slice_param { slice_point: 6 }", (IMAGE,), 2, "must rise"),
    ("Flatten", "flatten_param { axis: 3 end_axis: 1 }", (IMAGE,), 1, "behind its end_axis"),
    ("Reshape", "reshape_param { shape { dim: -1 dim: -1 } }", (IMAGE,), 1, "one -1"),
    ("Reshape", "reshape_param { shape { dim: -2 } }", (IMAGE,), 1, "one -1"),
    ("Reshape", "reshape_param { shape { dim: 5 dim: -1 } }", (IMAGE,), 1, "cannot make 5x-1"),
    ("Reshape", "reshape_param { shape { dim: 5 } }", (IMAGE,), 1, "cannot make 5 "),
    ("Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: 0 } axis: 2 }", (IMAGE,), 1, "no input axis"),
    ("Reshape", "reshape_param { shape { dim: 1 } axis: 5 }", (IMAGE,), 1, "axis 5 is out of range"),
    ("Reshape", "reshape_param { shape { dim: 1 } axis: -6 }", (IMAGE,), 1, "axis -6 is out of range"),
    ("Reshape", "reshape_param { shape { dim: 1 } num_axes: -2 }", (IMAGE,), 1, "num_axes must be"),
    ("Reshape", "reshape_param { shape { dim: 1 } axis: 3 num_axes: 2 }", (IMAGE,), 1, "exceed an input"),
    ("Crop", "", (IMAGE, (1, 1, 10, 3)), 1, "cannot crop"),
    ("Crop", "crop_param { axis: 2 offset: 5 offset: 5 }", (IMAGE, (1, 1, 4, 3)), 1, "cannot crop"),
    ("Crop", "crop_param { offset: 4294967295 }", (IMAGE, (1, 1, 4, 3)), 1, "cannot crop"),
    ("Crop", "crop_param { axis: 1 offset: 1 offset: 1 }", (IMAGE, (1, 1, 4, 3)), 1, "takes 1 or 3 offsets"),
    ("Crop", "", (IMAGE, (1, 1)), 1, "cannot crop"),
    ("Tile", "", (IMAGE,), 1, "tiles must be"),
    ("Tile", "tile_param { tiles: 2000000000 }", (IMAGE,), 1, "larger than Caffe"),
    ("Permute", "permute_param { order: 1 order: 1 }", (IMAGE,), 1, "appears twice"),
    ("Permute", "permute_param { order: 4 }", (IMAGE,), 1, "exceeds the 4 axes"),
    ("Unsqueeze", "", (IMAGE,), 1, "dim is missing"),
    ("Unsqueeze", "unsqueeze_param { dim: 5 }", (IMAGE,), 1, "dim 5 is out of range"),
    ("Unsqueeze", "unsqueeze_param { dim: -6 }", (IMAGE,), 1, "dim -6 is out of range"),
    ("Pad", "pad_param { pad_u: -1 }", (IMAGE,), 1, "at least 0"),
    ("Pad", "pad_param { pad_d: -1 }", (IMAGE,), 1, "at least 0"),
    ("Pad", "pad_param { pad_l: -1 }", (IMAGE,), 1, "at least 0"),
    ("Pad", "pad_param { pad_r: -1 }", (IMAGE,), 1, "at least 0"),
    ("Pad", "pad_param { pad_u: 9 pad_type: REFLECT }", (IMAGE,), 1, "to reflect"),
    ("Pad", "pad_param { pad_d: 9 pad_type: REFLECT }", (IMAGE,), 1, "to reflect"),
    ("Pad", "pad_param { pad_r: 7 pad_type: REFLECT }", (IMAGE,), 1, "to reflect"),
    ("Pad", "pad_param { pad_l: 7 pad_type: REFLECT }", (IMAGE,), 1, "to reflect"),
    ("PixelShuffle", "pixelshuffle_param { upscale_factor: 0 }", (WIDE,), 1, "upscale_factor"),
    ("PixelShuffle", "pixelshuffle_param { upscale_factor: 3 }", (WIDE,), 1, "3 x 3"),
    ("Resize", "resize_param { height: 5 }", (IMAGE,), 1, "height and width"),
    ("Resize", "resize_param { width: 5 }", (IMAGE,), 1, "height and width"),
    ("Resize", "resize_param { height: 5 width: 5 }", ((1,) * 5,), 1, "at most 4 axes"),
    ("Resize", "resize_param { is_pyramid_test: true }", (IMAGE,), 1, "is_pyramid_test"),
    ("Upsample", "upsample_param { dims_num: 2 }", (IMAGE,), 1, "dims_num must be"),
    ("Upsample", "upsample_param { dims_num: 5 }", ((1,) * 5,), 1, "dims_num must be"),
    ("Upsample", "upsample_param { dims_num: 3 }", (IMAGE,), 1, "takes an input of 3 axes"),
    ("Upsample", "upsample_param { scale: 0 }", (IMAGE,), 1, "scale must be"),
    ("Data", 'data_param { source: "/etc/passwd" }', (), 1, "reads or writes files"),
    ("Python", 'python_param { module: "os" layer: "x" }', (IMAGE,), 1, "runs code"),
    ("SoftmaxWithLoss", "", (IMAGE, IMAGE), 1, "for training"),
    ("LSTM", "", (IMAGE,), 1, "keeps state"),
    ("Embed", "embed_param { num_output: 2 input_dim: 2 }", (IMAGE,), 1, "which memory it reads"),
    ("Convolutional", "", (IMAGE,), 1, "no such layer type"),
]


# What is as large as Caffe can count, and more than a test should allocate: type, parameters, the shape of its bottom
# or none, the shape of its top if it is accepted.
MOST = 2**31 - 1
LIMITS: list[tuple[str, str, Shape | None, Shape | None]] = [
    ("Input", f"input_param {{ shape {{ dim: {MOST} }} }}", None, (MOST,)),
    ("Input", f"input_param {{ shape {{ dim: {MOST + 1} }} }}", None, None),
    ("Convolution", f"convolution_param {{ num_output: 1 kernel_size: 1 stride: {MOST} }}", IMAGE, (2, 1, 1, 1)),
    ("Convolution", f"convolution_param {{ num_output: 1 kernel_size: 1 stride: {MOST + 1} }}", IMAGE, None),
    # padded to 2^31 - 1, and one more
    (
        "Convolution",
        f"convolution_param {{ num_output: 1 kernel_size: 1 pad: {2**30 - 5} stride: {MOST} }}",
        (1, 1, 9),
        (1, 1, 1),
    ),
    (
        "Convolution",
        f"convolution_param {{ num_output: 1 kernel_size: 1 pad: {2**30 - 5} stride: {MOST} }}",
        (1, 1, 10),
        None,
    ),
    # After its last window Caffe goes on by a stride, to the end of the kernel: to 2^31 - 1, and one more.
    ("Convolution", f"convolution_param {{ num_output: 1 kernel_size: 2 stride: {MOST - 1} }}", IMAGE, (2, 1, 1, 1)),
    ("Convolution", f"convolution_param {{ num_output: 1 kernel_size: 2 stride: {MOST} }}", IMAGE, None),
    ("Im2col", f"convolution_param {{ kernel_size: 2 stride: {MOST} }}", IMAGE, None),
    # (2^30 - 1) * 2 and 2^30 * 2
    (
        "Deconvolution",
        f"convolution_param {{ num_output: 1 kernel_size: 1 stride: {2**30 - 1} }}",
        (1, 1, 2),
        (1, 1, 2**30),
    ),
    ("Deconvolution", f"convolution_param {{ num_output: 1 kernel_size: 1 stride: {2**30} }}", (1, 1, 2), None),
    # Caffe numbers the elements of the padding too: (2 + 2 * 16382) * 256 * 256 of them, and 2^31.
    (
        "Im2col",
        "convolution_param { kernel_size: 1 pad: 16382 pad: 0 pad: 0 stride: 40000 stride: 256 stride: 256 }",
        (1, 1, 2, 256, 256),
        (1, 1, 1, 1, 1),
    ),
    (
        "Im2col",
        "convolution_param { kernel_size: 1 pad: 16383 pad: 0 pad: 0 stride: 40000 stride: 256 stride: 256 }",
        (1, 1, 2, 256, 256),
        None,
    ),
    (
        "Convolution",
        "convolution_param { num_output: 1 kernel_size: 1 pad: 40000 pad: 0 pad: 0 "
        "stride: 40000 stride: 256 stride: 256 }",
        (1, 1, 2, 256, 256),
        None,
    ),
    # The sides of a window, and of windows that are outside of the input: 46340^2 is an int, 46341^2 is not.
    ("Pooling", "pooling_param { kernel_size: 1 stride: 46339 }", IMAGE, (2, 6, 2, 2)),
    ("Pooling", "pooling_param { kernel_size: 1 stride: 46340 }", IMAGE, None),
    ("Pooling", f"pooling_param {{ kernel_size: 1 stride: {MOST - 1} }}", (1, 1, 1, 9), (1, 1, 1, 2)),
    ("Pooling", f"pooling_param {{ kernel_size: 1 stride: {MOST} }}", (1, 1, 1, 9), None),
    ("Pooling", f"pooling_param {{ kernel_size: 1 stride: {MOST + 1} }}", IMAGE, None),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 46339 pad: 23169 }", (1, 1, 2, 2), (1, 1, 2, 2)),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 46340 pad: 23170 }", (1, 1, 2, 2), None),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 46342 pad: 23171 }", (1, 1, 2, 2), None),
    ("Pooling", f"pooling_param {{ pool: AVE kernel_size: 1 stride: {MOST} }}", IMAGE, None),
    (
        "Pooling",
        f"pooling_param {{ kernel_h: 1 kernel_w: {2**24 - 1} pad_h: 0 pad_w: {2**23 - 5} stride: 3 }}",
        (1, 1, 1, 9),
        (1, 1, 1, 1),
    ),
    (
        "Pooling",
        f"pooling_param {{ kernel_h: 1 kernel_w: {2**24 - 1} pad_h: 0 pad_w: {2**23 - 4} stride: 3 }}",
        (1, 1, 1, 8),
        None,
    ),
    ("Pooling", f"pooling_param {{ kernel_h: 1 kernel_w: {2**24} pad_h: 0 pad_w: {2**23 - 5} }}", (1, 1, 1, 9), None),
    ("LRN", f"lrn_param {{ local_size: {MOST - 2} }}", (1, 1, 1, 1), (1, 1, 1, 1)),
    ("LRN", f"lrn_param {{ local_size: {MOST} }}", (1, 1, 1, 1), None),
    ("LRN", f"lrn_param {{ local_size: {MOST - 2} }}", (1, 3, 1, 1), None),
    ("LRN", "lrn_param { local_size: 46339 norm_region: WITHIN_CHANNEL }", (1, 1, 1, 1), (1, 1, 1, 1)),
    ("LRN", "lrn_param { local_size: 46341 norm_region: WITHIN_CHANNEL }", (1, 1, 1, 1), None),
    ("Resize", f"resize_param {{ height: {2**22} width: 1 }}", IMAGE, (2, 6, 2**22, 1)),
    ("Resize", f"resize_param {{ height: 1 width: {2**22} }}", IMAGE, (2, 6, 1, 2**22)),
    ("Resize", f"resize_param {{ height: {2**22 + 1} width: 1 }}", IMAGE, None),
    ("Resize", f"resize_param {{ height: 1 width: {2**22 + 1} }}", IMAGE, None),
]

# What Caffe may compute in place; the others would overwrite what they still need, or have another top's shape.
IN_PLACE = (
    "BNLL BatchNorm BatchNormKyle Bias Dropout ELU Exp HardSigmoid HardSwish Log PReLU Power ReLU ReLU6 Scale Sigmoid "
    "Softmax TanH Threshold"
)

# Whether they are accepted or not.
STATS: list[tuple[str, str, tuple[Shape, ...], int]] = [
    (kind, f"batch_norm_param {{ use_global_stats: {value} }}", (IMAGE,), 1)
    for kind in ("BatchNorm", "BatchNormKyle")
    for value in ("true", "false")
]


def make_layer(kind: str, params: str, bottoms: int, tops: int) -> Any:
    layer = text_format.Parse(blank_unread(params), LayerParameter(name="it", type=kind))
    layer.bottom.extend(f"in{i}" for i in range(bottoms))
    layer.top.extend(f"out{i}" for i in range(tops))
    return layer


def net_text(layer: Any, shapes: Sequence[Shape]) -> str:
    """A net of an Input layer with one top per shape, and the layer."""
    net = NetParameter(name="net")
    if shapes:
        source = net.layer.add(name="source", type="Input", top=[f"in{i}" for i in range(len(shapes))])
        for shape in shapes:
            source.input_param.shape.add(dim=shape)
    net.layer.append(layer)
    return str(text_format.MessageToString(net))


def caffe_net(layer: Any, shapes: Sequence[Shape], folder: Path) -> Any:
    path = folder / "net.prototxt"
    path.write_text(net_text(layer, shapes))
    return caffe.Net(str(path), caffe.TEST)


def as_caffe(layer: Any, shapes: Sequence[Shape], folder: Path) -> Inferred:
    """What Caffe makes of the layer; it must compute, too."""
    net = caffe_net(layer, shapes, folder)
    net.forward()
    tops = tuple(tuple(net.blobs[top].data.shape) for top in layer.top)
    return Inferred(tops, tuple(tuple(blob.data.shape) for blob in net.layers[-1].blobs))


def test_every_type_is_tested() -> None:
    assert {kind for kind, *_ in GOOD} == set(LAYER_TYPES)


def test_every_layer_type_of_caffe_is_allowed_or_has_a_reason() -> None:
    types = set(caffe.layer_type_list())
    assert types <= set(LAYER_TYPES) | set(REASONS)
    assert set(LAYER_TYPES) <= types
    assert types.isdisjoint({"Clip", "Swish"})  # their reason is that only BVLC's Caffe has them
    assert not set(LAYER_TYPES) & set(REASONS)


@pytest.mark.parametrize(("kind", "params", "bottoms", "tops"), GOOD)
def test_shapes_and_weights_are_those_of_caffe(
    kind: str, params: str, bottoms: tuple[Shape, ...], tops: int, tmp_path: Path
) -> None:
    layer = make_layer(kind, params, len(bottoms), tops)
    ours = infer(layer, bottoms)
    theirs = as_caffe(layer, bottoms, tmp_path)
    assert (ours.tops, ours.weights) == (theirs.tops, theirs.weights)
    assert all(type(size) is int for shape in (*ours.tops, *ours.weights) for size in shape)


@pytest.mark.parametrize(("kind", "params", "bottoms", "tops", "message"), BAD)
def test_bad_layers_are_refused(kind: str, params: str, bottoms: tuple[Shape, ...], tops: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        infer(make_layer(kind, params, len(bottoms), tops), bottoms)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"layer 'it' of type '{kind}': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "params", "bottom", "top"), LIMITS)
def test_a_layer_may_be_as_large_as_caffe_can_count(
    kind: str, params: str, bottom: Shape | None, top: Shape | None
) -> None:
    bottoms = [] if bottom is None else [bottom]
    layer = make_layer(kind, params, len(bottoms), 1)
    if top is not None:
        assert infer(layer, bottoms).tops == (top,)
    else:
        with pytest.raises(InputError):
            infer(layer, bottoms)


@pytest.mark.parametrize(("kind", "params", "bottoms", "tops"), [case for case in GOOD if case[2]])
def test_no_blob_is_read_or_written_where_it_was_before_a_layer_ran(
    kind: str, params: str, bottoms: tuple[Shape, ...], tops: int, tmp_path: Path
) -> None:
    """Some layers give their top other memory when they run, and free what it had."""
    layer = make_layer(kind, params, len(bottoms), tops)
    # A stage that hands on the layer's tops, and one behind it, which takes the first of them.
    outputs = tuple(layer.top) or ("in0",)
    net = text_format.Parse(net_text(layer, bottoms), NetParameter())
    net.layer.add(name="last", type="Power", bottom=outputs[:1], top=["last"]).power_param.scale = 3
    text = text_format.MessageToString(net)
    split = kind == "Silence"  # then "in0" is used twice
    cuts = (NetStage(0, int(split), ("in0",)), NetStage(1, 1 + split, outputs), NetStage(2, 2 + split, ("last",)))
    staged = StageNet(PartialNet(text, "in0", cuts))
    (tmp_path / "net.prototxt").write_text(text)
    stock = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    rng = np.random.default_rng(5)
    for name, blobs in stock.params.items():
        for index, blob in enumerate(blobs):
            blob.data[...] = rng.random(blob.data.shape)
            staged.blob_bytes()[name, index][:] = blob.data.tobytes()
    staged.outputs(1)  # as it is before anything has run
    for first in (0, 2, 1, 0, 2):
        for blob, shape in zip((f"in{index}" for index in range(len(bottoms))), bottoms, strict=True):
            data = rng.standard_normal(shape).astype(np.float32)
            stock.blobs[blob].data[...] = data
            staged._net.blobs[blob].data[...] = data
        stock.forward()
        if first == 2:
            staged.put(2, stock.blobs[outputs[0]].data)
        staged.run(first, 2)
        names = ["last", *(outputs if first < 2 else ())]
        for got, name in zip([*staged.outputs(2), *staged.outputs(1)], names, strict=False):
            want = stock.blobs[name].data
            assert got.shape == want.shape
            # OpenBLAS's sum of absolute values goes in an order that depends on where in memory they lie.
            same = np.allclose(got, want, rtol=1e-5) if kind == "Normalize" else got.tobytes() == want.tobytes()
            assert same, (name, got, want)


@pytest.mark.parametrize(("kind", "params", "bottoms", "tops"), [*(case for case in GOOD if case[2]), *STATS])
def test_layers_keep_nothing_between_queries(
    kind: str, params: str, bottoms: tuple[Shape, ...], tops: int, tmp_path: Path
) -> None:
    """What is accepted writes to no weights, and computes the same again whatever it computed meanwhile."""
    layer = make_layer(kind, params, len(bottoms), tops)
    try:
        infer(layer, bottoms)
    except InputError:
        return
    net = caffe_net(layer, bottoms, tmp_path)
    rng = np.random.default_rng(5)
    blobs = [blob for each in net.layers for blob in each.blobs]
    for blob in blobs:
        blob.data[...] = rng.random(blob.data.shape) + 0.5
    before = [blob.data.tobytes() for blob in blobs]
    inputs = [[rng.standard_normal(shape).astype(np.float32) for shape in bottoms] for _ in range(2)]
    outputs = []
    for index in (0, 1, 0, 0):
        for number, data in enumerate(inputs[index]):
            net.blobs[f"in{number}"].data[...] = data
        net.forward()
        outputs.append([net.blobs[top].data.tobytes() for top in layer.top])
        assert [blob.data.tobytes() for blob in blobs] == before
        assert [net.blobs[f"in{number}"].data.tobytes() for number in range(len(bottoms))] == [
            data.tobytes() for data in inputs[index]
        ]
    assert outputs[0] == outputs[2] == outputs[3]


def test_strangers_names_stay_on_one_line() -> None:
    with pytest.raises(InputError) as caught:
        infer(LayerParameter(name="a\nb", type="c\nd"), ())
    assert "\n" not in str(caught.value)


# Each of these ends Caffe's process, by a failed CHECK or a signal; one process tries them all, in forks.
FATAL = [
    ("ReLU", "takes 1 bottom blobs, not 0"),
    ("Convolution", "stride must"),
    ("Convolution", "group must be"),
    ("Convolution", "num_output 4 cannot"),
    ("Convolution", "axis 4 is out of range"),
    ("Convolution", "600x2000x2000"),
    ("Deconvolution", "every size must be"),
    ("InnerProduct", "larger than Caffe"),
    ("Input", "at most 32"),
    ("Concat", "differ on more"),
    ("Slice", "equal parts"),
    ("Reshape", "one -1"),
    ("ArgMax", "top_k must be"),
    ("Convolutional", "no such layer type"),
]


def test_caffe_aborts_on_what_is_refused() -> None:
    cases = [next(case for case in BAD if case[0] == kind and message in case[4]) for kind, message in FATAL]
    texts = [
        net_text(make_layer(kind, params, len(bottoms), tops), bottoms) for kind, params, bottoms, tops, _ in cases
    ]
    script = """if True:
        import json, os, resource, sys, tempfile
        import caffe
        results = []
        for text in json.load(sys.stdin):
            child = os.fork()
            if child == 0:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
                    file.write(text)
                    file.flush()
                    caffe.Net(file.name, caffe.TEST)
                os._exit(0)
            results.append(os.WIFSIGNALED(os.waitpid(child, 0)[1]))
        print(json.dumps(results))
    """
    child = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(texts), capture_output=True, text=True, timeout=120, check=True
    )
    survived = [case for case, aborted in zip(cases, json.loads(child.stdout), strict=True) if not aborted]
    assert survived == []


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


def agree_with_caffe(layer: Any, shape: Shape, oracle: Oracle) -> None:
    """Caffe makes the same of the layer, or aborts on what is refused."""
    try:
        ours, refused = infer(layer, [shape]), ""
    except InputError as error:
        ours, refused = None, str(error)
    if ours is None:
        theirs = oracle.compute(Question(net_text(layer, [shape]), fill=True, fatal=True))
        assert theirs is None, f"refused: {refused}, but Caffe makes {theirs}"
        return
    theirs = oracle.compute(Question(net_text(layer, [shape]), fill=True))
    assert theirs is not None
    assert (ours.tops, ours.weights) == (theirs.top_shapes[1], theirs.weight_shapes[1])


small = st.sampled_from([1, 2, 3, 1, 2, 4, 0])
images = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))


@st.composite
def window_layers(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(["Convolution", "Deconvolution", "Im2col", "Pooling"]))
    layer = make_layer(kind, "", 1, 1)
    p = layer.pooling_param if kind == "Pooling" else layer.convolution_param
    if kind == "Pooling":
        p.pool = draw(st.sampled_from([p.MAX, p.AVE]))
        p.ceil_mode = draw(st.booleans())
        p.kernel_size, p.stride, p.pad = draw(small), draw(small), draw(small)
    else:
        p.num_output, p.group = draw(small), draw(st.sampled_from([1, 1, 2]))
        for field, least in ((p.kernel_size, 1), (p.stride, 0), (p.pad, 0), (p.dilation, 0)):
            field.extend(draw(st.lists(small, min_size=least, max_size=2)))
    return layer


@settings(max_examples=150)
@given(layer=window_layers(), shape=images)
def test_windows_are_those_of_caffe(layer: Any, shape: Shape, oracle: Oracle) -> None:
    agree_with_caffe(layer, shape, oracle)


@settings(max_examples=150)
@given(
    new=st.lists(st.sampled_from([0, -1, 1, 2, 3, 4, 6]), max_size=4),
    axis=st.integers(-5, 4),
    num_axes=st.integers(-1, 4),
    shape=st.lists(st.sampled_from([1, 2, 3, 4]), max_size=4).map(tuple),
)
def test_reshapes_are_those_of_caffe(new: list[int], axis: int, num_axes: int, shape: Shape, oracle: Oracle) -> None:
    layer = make_layer("Reshape", f"reshape_param {{ axis: {axis} num_axes: {num_axes} }}", 1, 1)
    layer.reshape_param.shape.dim.extend(new)
    agree_with_caffe(layer, shape, oracle)


@pytest.mark.parametrize("kind", IN_PLACE.split())
def test_in_place_gives_the_same_output(kind: str, tmp_path: Path) -> None:
    layer = make_layer(kind, "scale_param { bias_term: true }" if kind == "Scale" else "", 1, 1)
    rng = np.random.default_rng(3)
    data = rng.standard_normal(IMAGE).astype(np.float32)
    weights = [rng.random(shape).astype(np.float32) for shape in infer(layer, [IMAGE]).weights]
    outputs = []
    for top in ("out0", "in0"):
        layer.top[0] = top
        infer(layer, [IMAGE])
        net = caffe_net(layer, [IMAGE], tmp_path)
        net.blobs["in0"].data[...] = data
        for blob, weight in zip(net.layers[-1].blobs, weights, strict=True):
            blob.data[...] = weight
        net.forward()
        outputs.append(net.blobs[top].data.copy())
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("kind", [kind for kind in LAYER_TYPES if kind not in (*IN_PLACE.split(), "Input", "Silence")])
def test_other_types_are_refused_in_place(kind: str) -> None:
    _, params, bottoms, tops = next(case for case in GOOD if case[0] == kind)
    layer = make_layer(kind, params, len(bottoms), tops)
    layer.top[0] = layer.bottom[0]
    with pytest.raises(InputError, match="cannot work in place on 'in0'"):
        infer(layer, bottoms)


def test_only_the_first_bottom_may_be_overwritten() -> None:
    layer = LayerParameter(name="it", type="Scale", bottom=["a", "b"], top=["a"])
    assert infer(layer, [IMAGE, (6,)]).tops == (IMAGE,)
    layer.type = "Eltwise"
    with pytest.raises(InputError, match="in place"):
        infer(layer, [IMAGE, IMAGE])


@pytest.mark.parametrize(
    ("kind", "params", "bottoms", "tops", "operations"),
    [
        # multiply-adds, worked out by hand
        (
            "Convolution",
            "convolution_param { num_output: 4 kernel_size: 3 }",
            ((2, 6, 9, 7),),
            1,
            2 * 4 * 7 * 5 * 6 * 9,
        ),
        (
            "Convolution",
            "convolution_param { num_output: 4 kernel_size: 3 group: 2 }",
            ((1, 6, 9, 7),),
            1,
            4 * 7 * 5 * 27,
        ),
        ("Convolution", "convolution_param { num_output: 1 kernel_size: 1 }", ((1, 2, 3, 3),) * 2, 2, 2 * 2 * 9),
        (
            "Convolution",
            "convolution_param { num_output: 2 kernel_size: 3 axis: 2 }",
            ((2, 3, 2, 5),),
            1,
            6 * 2 * 3 * 6,
        ),
        ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 }", ((2, 6, 9, 7),), 1, 2 * 6 * 63 * 4 * 9),
        ("InnerProduct", "inner_product_param { num_output: 5 }", ((2, 6, 3, 3),), 1, 2 * 54 * 5),
        ("InnerProduct", "inner_product_param { num_output: 5 axis: 3 }", ((2, 6, 3, 4),), 1, 36 * 4 * 5),
        # elements read
        ("Pooling", "pooling_param { kernel_size: 3 stride: 2 }", ((1, 2, 9, 7),), 1, 2 * 4 * 3 * 9),
        ("Pooling", "pooling_param { global_pooling: true }", ((1, 2, 9, 7),), 1, 2 * 63),
        ("LRN", "lrn_param { local_size: 3 }", ((1, 2, 3, 3),), 1, 18 * 3),
        ("LRN", "lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL }", ((1, 2, 3, 3),), 1, 18 * 9),
        ("SPP", "spp_param { pyramid_height: 2 }", ((1, 2, 4, 4),), 1, 32 * 2),
        ("Eltwise", "", ((1, 2, 3, 3),) * 3, 1, 18 * 3),
        ("ReLU", "", ((1, 2, 3, 3),), 1, 18),
        ("Concat", "", ((1, 2), (1, 3)), 1, 5),
        ("Reduction", "", ((4, 5),), 1, 20),
        ("Split", "", ((4, 5),), 2, 0),
        ("Flatten", "", ((4, 5),), 1, 0),
    ],
)
def test_operations(kind: str, params: str, bottoms: tuple[Shape, ...], tops: int, operations: int) -> None:
    assert infer(make_layer(kind, params, len(bottoms), tops), bottoms).operations == operations


def test_essential_drops_what_does_not_compute(tmp_path: Path) -> None:
    params = """
        phase: TEST  loss_weight: 1  propagate_down: true propagate_down: true
        param { name: "w" lr_mult: 2 } param {} param {} param {}
        include { phase: TEST }  data_param { source: "/etc/passwd" }
        convolution_param { num_output: 4 kernel_size: 3 engine: CUDNN weight_filler { type: "none such" } }
    """
    layer = make_layer("Convolution", params, 1, 1)
    wanted = make_layer("Convolution", "convolution_param { num_output: 4 kernel_size: 3 }", 1, 1)
    assert essential(layer) == wanted
    assert as_caffe(essential(layer), [IMAGE], tmp_path).weights == infer(layer, [IMAGE]).weights
    assert math.prod(infer(layer, [IMAGE]).weights[0]) == 4 * 6 * 9
