"""Inputs for queries: the user's photographs, or those that come with scikit-image, so that nothing is downloaded."""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ionn.arguments import path_of, shown
from ionn.errors import InputError, did_you_mean
from ionn.files import read_bytes
from ionn.model.caffemodel import Floats
from ionn.model.layers.rule import MAX_COUNT
from ionn.model.network import Network

# Queries take so many different inputs in turn, so that no output is right by being the previous one.
INPUTS = 8
# Larger than any photograph. Reading one of this size takes a second.
_IMAGE_BYTES_MAX = 100_000_000
# The ImageNet mean that Caffe's reference models subtract, in their channel order: blue, green, red.
MEAN_BGR = (104.0, 117.0, 123.0)
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")


@functools.cache
def _photographs() -> tuple[NDArray[np.uint8], ...]:
    from skimage import data  # slow to import, and only some runs need it

    return tuple(getattr(data, name)() for name in PHOTOGRAPHS)


def _window(photograph: NDArray[np.uint8], aspect: float, index: int) -> NDArray[np.uint8]:
    """The part of a photograph that image `index` shows, `aspect` = height / width."""
    height = min(photograph.shape[0], photograph.shape[1] * aspect)
    top = left = 0.5
    if index >= len(_photographs()):
        top, left, zoom = np.random.default_rng(index).uniform((0, 0, 0.4), (1, 1, 0.8))
        height *= zoom
    rows, columns = max(1, round(height)), max(1, round(height / aspect))
    y = round(top * (photograph.shape[0] - rows))
    x = round(left * (photograph.shape[1] - columns))
    return photograph[y : y + rows, x : x + columns]


def _resize(photograph: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """The photograph at another size: each pixel is the mean of the old ones that it covers, rounded."""
    pixels = photograph.astype(np.float64)
    for axis, size in enumerate((height, width)):
        starts = np.arange(size) * pixels.shape[axis] // size
        covered = np.maximum(np.diff(starts, append=pixels.shape[axis]), 1)
        pixels = np.add.reduceat(pixels, starts, axis) / np.expand_dims(covered, (1 - axis, 2))
    return np.rint(pixels)


def natural_images(network_input_shape: tuple[int, ...], count: int) -> NDArray[np.float32]:
    """`count` different photographs for a network whose input is (N, C, H, W): float32 of shape (count, C, H, W).

    They are always the same: first each bundled photograph, cut to the input's aspect ratio around its centre, then
    closer views of them. Pixels are 0..255 less MEAN_BGR, in BGR order. One channel gets their mean, any other number
    of channels repeats the three. Raises InputError if the shape is not that of an image.
    """
    photographs = _photographs()
    images = np.empty((count, *network_input_shape[1:]), np.float32)
    for index in range(count):
        images[index] = _planes(photographs[index % len(photographs)], network_input_shape, index)
    return images


def _planes(photograph: NDArray[np.uint8], network_input_shape: tuple[int, ...], index: int) -> NDArray[np.float64]:
    if len(network_input_shape) != 4 or min(network_input_shape) < 1 or math.prod(network_input_shape) > MAX_COUNT:
        raise InputError(f"input shape {network_input_shape}: not an image; ionn needs an input of N x C x H x W")
    channels, height, width = network_input_shape[1:]
    window = _window(photograph, height / width, index)
    centred = _resize(window, height, width)[..., ::-1] - MEAN_BGR
    planes = centred.mean(-1, keepdims=True) if channels == 1 else centred[..., np.arange(channels) % 3]
    return planes.transpose(2, 0, 1)


def query_inputs(network: Network, seed: int, count: int = INPUTS) -> Sequence[Floats]:
    """Inputs for queries: photographs if the network takes images, else random numbers from the seed."""
    if len(network.input_shape) == 4:
        images = natural_images(network.input_shape, count * network.input_shape[0])
        return list(images.reshape(count, *network.input_shape))
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(network.input_shape, np.float32) for _ in range(count)]


def image_input(image: str | Path | NDArray[np.uint8], network_input_shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Convert a photograph to the input of a network: float32 in the network's input shape (N, C, H, W), with the same
    image N times.

    `image` is the path of a file, the name of a photograph that comes with scikit-image (`PHOTOGRAPHS`: astronaut,
    chelsea, coffee and others), or pixels: uint8 of shape (H, W, 3) in RGB, (H, W) in grey, or (H, W, 4), whose
    transparency is ignored. The image is cut to the input's aspect ratio around its centre and resized. Its values are
    0..255 in the order blue, green, red, less the means of ImageNet (104, 117, 123), as Caffe's reference models take
    them. An input of one channel gets the mean of the three.

    Raises InputError if the file is missing or not an image, and if either shape is not that of an image.
    """
    try:
        shape = tuple(map(operator.index, network_input_shape))
    except TypeError:
        raise InputError(f"input shape {shown(network_input_shape)}: give a network's input_shape") from None
    if isinstance(image, np.ndarray):
        photograph = _colors(image, "image")
    elif isinstance(image, str) and image in PHOTOGRAPHS:
        photograph = _photographs()[PHOTOGRAPHS.index(image)]
    else:
        photograph = _read(path_of(image, "image"))
    planes = _planes(photograph, shape, index=0).astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(planes, shape))


def _read(path: Path) -> NDArray[np.uint8]:
    if not os.path.isfile(path):
        names = ", ".join(PHOTOGRAPHS)
        hint = did_you_mean(str(path), PHOTOGRAPHS)
        raise InputError(f"{path}: no such image; give a file, or one of {names}{hint}")
    content = read_bytes(path, "the image", _IMAGE_BYTES_MAX)
    from skimage import io, util

    try:
        pixels = np.asarray(util.img_as_ubyte(io.imread(BytesIO(content))))  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever its many readers raise
        raise InputError(f"{path}: not an image that can be read; give a PNG or JPEG") from error
    return _colors(pixels, str(path))


def _colors(pixels: NDArray[np.uint8], source: str) -> NDArray[np.uint8]:
    """Pixels as (H, W, 3). Raises InputError, which names their source, if they are not those of a photograph."""
    if pixels.dtype != np.uint8:
        raise InputError(f"{source}: not a photograph: its pixels are {pixels.dtype}, not uint8 from 0 to 255")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or not pixels.size:
        raise InputError(f"{source}: not a photograph: its pixels have shape {pixels.shape}, not height x width x 3")
    return pixels[..., :3]
