"""Writes the deploy definitions of the paper's five models (section 4.1) beside itself: batch 1, inference only.

    python prototxt/write_prototxt.py

The architectures are the published Caffe models: AlexNet and GoogLeNet of the BVLC reference models, ResNet-50,
Inception-BN with the 21,841 classes of ImageNet-21k, and MobileNet v1 (1.0, 224), under their layer names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from ionn.model.proto import NetParameter, PoolingParameter

MAX = PoolingParameter.MAX
AVERAGE = PoolingParameter.AVE


class Definition:
    """A network under construction. Each method appends its layers and returns the name of the blob they write."""

    def __init__(self, name: str, size: int, input_layer: str = "data") -> None:
        self.param = NetParameter(name=name)
        self.add("Input", input_layer, top="data", input_param={"shape": [{"dim": [1, 3, size, size]}]})

    def add(self, type_: str, name: str, *bottoms: str, top: str = "", **param: Any) -> str:
        """One layer; it writes the blob `top`, by default one of its own name."""
        self.param.layer.add(name=name, type=type_, bottom=bottoms, top=[top or name], **param)
        return top or name

    def conv(
        self, name: str, bottom: str, outputs: int, kernel: int, stride: int = 1, pad: int | None = None, **param: Any
    ) -> str:
        """A convolution; by default it is padded so that stride 1 keeps the size of the image."""
        pad = kernel // 2 if pad is None else pad
        param |= {"stride": [stride]} if stride > 1 else {}
        param |= {"pad": [pad]} if pad else {}
        param |= {"num_output": outputs, "kernel_size": [kernel]}
        return self.add("Convolution", name, bottom, convolution_param=param)

    def inner_product(self, name: str, bottom: str, outputs: int) -> str:
        return self.add("InnerProduct", name, bottom, inner_product_param={"num_output": outputs})

    def pool(self, name: str, bottom: str, method: int, **param: Any) -> str:
        return self.add("Pooling", name, bottom, pooling_param={"pool": method, **param})

    def halve(self, name: str, bottom: str) -> str:
        """Half the image size: the maximum of 3 x 3 pixels at every second."""
        return self.pool(name, bottom, MAX, kernel_size=3, stride=2)

    def lrn(self, name: str, bottom: str) -> str:
        return self.add("LRN", name, bottom, lrn_param={"local_size": 5, "alpha": 0.0001, "beta": 0.75})

    def relu(self, name: str, blob: str) -> str:
        return self.add("ReLU", name, blob, top=blob)

    def dropout(self, name: str, blob: str, ratio: float) -> str:
        return self.add("Dropout", name, blob, top=blob, dropout_param={"dropout_ratio": ratio})

    def batch_norm(self, name: str, scale_name: str, blob: str) -> str:
        """Normalise by stored statistics, then scale and shift: Caffe's two halves of a batch normalisation."""
        self.add("BatchNorm", name, blob, top=blob, batch_norm_param={"use_global_stats": True})
        return self.add("Scale", scale_name, blob, top=blob, scale_param={"bias_term": True})


def alexnet() -> Definition:
    net = Definition("alexnet", 227)
    x = net.relu("relu1", net.conv("conv1", "data", 96, 11, 4, pad=0))
    x = net.halve("pool1", net.lrn("norm1", x))
    x = net.relu("relu2", net.conv("conv2", x, 256, 5, group=2))
    x = net.halve("pool2", net.lrn("norm2", x))
    x = net.relu("relu3", net.conv("conv3", x, 384, 3))
    x = net.relu("relu4", net.conv("conv4", x, 384, 3, group=2))
    x = net.relu("relu5", net.conv("conv5", x, 256, 3, group=2))
    x = net.halve("pool5", x)
    for i in (6, 7):
        x = net.dropout(f"drop{i}", net.relu(f"relu{i}", net.inner_product(f"fc{i}", x, 4096)), 0.5)
    net.add("Softmax", "prob", net.inner_product("fc8", x, 1000))
    return net


def googlenet() -> Definition:
    net = Definition("googlenet", 224, input_layer="input")

    def unit(prefix: str, name: str, bottom: str, outputs: int, kernel: int, stride: int = 1) -> str:
        kind = name.removesuffix("_s2")
        return net.relu(f"{prefix}/relu_{kind}", net.conv(f"{prefix}/{name}", bottom, outputs, kernel, stride))

    x = net.halve("pool1/3x3_s2", unit("conv1", "7x7_s2", "data", 64, 7, 2))
    x = unit("conv2", "3x3_reduce", net.lrn("pool1/norm1", x), 64, 1)
    x = net.halve("pool2/3x3_s2", net.lrn("conv2/norm2", unit("conv2", "3x3", x, 192, 3)))
    # outputs of: 1x1, 3x3 reduction, 3x3, 5x5 reduction, 5x5, pool projection
    for module, (one, reduce3, three, reduce5, five, projection) in {
        "3a": (64, 96, 128, 16, 32, 32),
        "3b": (128, 128, 192, 32, 96, 64),
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
        "5a": (256, 160, 320, 32, 128, 128),
        "5b": (384, 192, 384, 48, 128, 128),
    }.items():
        if module in ("4a", "5a"):
            x = net.halve(f"pool{int(module[0]) - 1}/3x3_s2", x)
        prefix = f"inception_{module}"
        branches = [unit(prefix, "1x1", x, one, 1)]
        branches.append(unit(prefix, "3x3", unit(prefix, "3x3_reduce", x, reduce3, 1), three, 3))
        branches.append(unit(prefix, "5x5", unit(prefix, "5x5_reduce", x, reduce5, 1), five, 5))
        y = net.pool(f"{prefix}/pool", x, MAX, kernel_size=3, stride=1, pad=1)
        branches.append(unit(prefix, "pool_proj", y, projection, 1))
        x = net.add("Concat", f"{prefix}/output", *branches)
    x = net.pool("pool5/7x7_s1", x, AVERAGE, kernel_size=7, stride=1)
    x = net.dropout("pool5/drop_7x7_s1", x, 0.4)
    net.add("Softmax", "prob", net.inner_product("loss3/classifier", x, 1000))
    return net


def resnet() -> Definition:
    net = Definition("resnet", 224)

    def unit(stem: str, bottom: str, outputs: int, kernel: int, stride: int = 1) -> str:
        blob = net.conv(f"res{stem}", bottom, outputs, kernel, stride, bias_term=False)
        return net.batch_norm(f"bn{stem}", f"scale{stem}", blob)

    x = net.batch_norm("bn_conv1", "scale_conv1", net.conv("conv1", "data", 64, 7, 2))
    x = net.halve("pool1", net.relu("conv1_relu", x))
    # blocks of each group, and the width of their 3x3 convolution
    for group, (blocks, width) in enumerate([("abc", 64), ("abcd", 128), ("abcdef", 256), ("abc", 512)], start=2):
        for block in blocks:
            stem = f"{group}{block}_branch"
            stride = 2 if block == "a" and group > 2 else 1
            shortcut = unit(f"{stem}1", x, 4 * width, 1, stride) if block == "a" else x
            x = net.relu(f"res{stem}2a_relu", unit(f"{stem}2a", x, width, 1, stride))
            x = net.relu(f"res{stem}2b_relu", unit(f"{stem}2b", x, width, 3))
            x = net.add("Eltwise", f"res{group}{block}", shortcut, unit(f"{stem}2c", x, 4 * width, 1))
            net.relu(f"res{group}{block}_relu", x)
    x = net.pool("pool5", x, AVERAGE, kernel_size=7, stride=1)
    net.add("Softmax", "prob", net.inner_product("fc1000", x, 1000))
    return net


def inception() -> Definition:
    net = Definition("inception", 224)

    def unit(name: str, bottom: str, outputs: int, kernel: int, stride: int = 1) -> str:
        blob = net.conv(f"conv_{name}", bottom, outputs, kernel, stride)
        return net.relu(f"relu_{name}", net.batch_norm(f"bn_{name}", f"scale_conv_{name}", blob))

    x = net.halve("pool1", unit("conv1", "data", 96, 7, 2))
    x = net.halve("pool2", unit("conv2", unit("conv2red", x, 128, 1), 288, 3))
    # outputs of: 1x1, 3x3 reduction, 3x3, double 3x3 reduction, double 3x3 (both), pool projection.
    # A module without 1x1 and projection halves the image.
    for module, (one, reduce3, three, reduce_double, double, projection) in {
        "3a": (96, 96, 96, 96, 144, 48),
        "3b": (96, 96, 144, 96, 144, 96),
        "3c": (0, 192, 240, 96, 144, 0),
        "4a": (224, 64, 96, 96, 128, 128),
        "4b": (192, 96, 128, 96, 128, 128),
        "4c": (160, 128, 160, 128, 160, 128),
        "4d": (96, 128, 192, 160, 96, 128),
        "4e": (0, 128, 192, 192, 256, 0),
        "5a": (352, 192, 320, 160, 224, 128),
        "5b": (352, 192, 320, 192, 224, 128),
    }.items():
        stride = 1 if projection else 2
        branches = [unit(f"{module}_1x1", x, one, 1)] if one else []
        y = unit(f"{module}_3x3_reduce", x, reduce3, 1)
        branches.append(unit(f"{module}_3x3", y, three, 3, stride))
        y = unit(f"{module}_double_3x3_reduce", x, reduce_double, 1)
        y = unit(f"{module}_double_3x3_0", y, double, 3)
        branches.append(unit(f"{module}_double_3x3_1", y, double, 3, stride))
        if not projection:
            y = net.halve(f"max_pool_{module}_pool", x)
        elif module == "5b":
            y = net.pool(f"max_pool_{module}_pool", x, MAX, kernel_size=3, stride=1, pad=1)
        else:
            y = net.pool(f"ave_pool_{module}_pool", x, AVERAGE, kernel_size=3, stride=1, pad=1)
        branches.append(unit(f"{module}_proj", y, projection, 1) if projection else y)
        x = net.add("Concat", f"ch_concat_{module}_chconcat", *branches)
    x = net.pool("global_pool", x, AVERAGE, kernel_size=7, stride=1)
    net.add("Softmax", "softmax", net.inner_product("fc1", x, 21841))
    return net


def mobilenet() -> Definition:
    net = Definition("mobilenet", 224, input_layer="input")

    def unit(name: str, relu: str, bottom: str, outputs: int, kernel: int, stride: int = 1, **param: Any) -> str:
        blob = net.conv(name, bottom, outputs, kernel, stride, bias_term=False, **param)
        return net.relu(relu, net.batch_norm(f"{name}/bn", f"{name}/scale", blob))

    x = unit("conv1", "relu1", "data", 32, 3, 2)
    channels = 32
    # a depthwise convolution, with the stride, and a pointwise one with the outputs
    for stem, outputs, stride in [
        ("2_1", 64, 1), ("2_2", 128, 2), ("3_1", 128, 1), ("3_2", 256, 2), ("4_1", 256, 1), ("4_2", 512, 2),
        *((f"5_{i}", 512, 1) for i in range(1, 6)), ("5_6", 1024, 2), ("6", 1024, 1),
    ]:  # fmt: skip
        x = unit(f"conv{stem}/dw", f"relu{stem}/dw", x, channels, 3, stride, group=channels)
        x = unit(f"conv{stem}/sep", f"relu{stem}/sep", x, outputs, 1)
        channels = outputs
    x = net.pool("pool6", x, AVERAGE, global_pooling=True)
    net.add("Softmax", "prob", net.conv("fc7", x, 1000, 1))
    return net


MODELS: dict[str, Callable[[], Definition]] = {
    f.__name__: f for f in (alexnet, inception, resnet, googlenet, mobilenet)
}


def definition(model: str) -> str:
    """The prototxt of one of MODELS, as text."""
    return str(text_format.MessageToString(MODELS[model]().param))


if __name__ == "__main__":
    for model in MODELS:
        Path(__file__).with_name(f"{model}.prototxt").write_text(definition(model), encoding="utf-8")
