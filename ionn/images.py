"""Photographs as network inputs: the ones that scikit-image bundles, so nothing is downloaded."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from ionn.errors import InputError

# The ImageNet mean that Caffe's reference models subtract, in their channel order: blue, green, red.
MEAN_BGR = (104.0, 117.0, 123.0)


@functools.cache
def _photographs() -> tuple[NDArray[np.uint8], ...]:
    from skimage import data  # slow to import, and only some runs need it

    names = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
    return tuple(getattr(data, name)() for name in names)


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
    """Each new pixel is the mean of the old ones that it covers, at least one, rounded to a whole number."""
    pixels = photograph.astype(np.float64)
    for axis, size in enumerate((height, width)):
        starts = np.arange(size) * pixels.shape[axis] // size
        covered = np.maximum(np.diff(starts, append=pixels.shape[axis]), 1)
        pixels = np.add.reduceat(pixels, starts, axis) / np.expand_dims(covered, (1 - axis, 2))
    return np.rint(pixels)


def natural_images(network_input_shape: tuple[int, ...], count: int) -> NDArray[np.float32]:
    """`count` different photographs for a network whose input is (N, C, H, W): float32 (count, C, H, W).

    Always the same ones: first each bundled photograph, cut to the input's aspect ratio around its centre, then closer
    views of them. Pixels are 0..255 less MEAN_BGR, in BGR order; one channel gets their grey mean, any other number of
    channels repeats them. Raises InputError if the shape is not that of an image.
    """
    if len(network_input_shape) != 4 or min(network_input_shape[1:]) < 1:
        raise InputError(f"input shape {network_input_shape}: not an image; ionn needs an input of N x C x H x W")
    photographs = _photographs()
    channels, height, width = network_input_shape[1:]
    images = np.empty((count, channels, height, width), np.float32)
    for index in range(count):
        window = _window(photographs[index % len(photographs)], height / width, index)
        centred = _resize(window, height, width)[..., ::-1] - MEAN_BGR
        planes = centred.mean(-1, keepdims=True) if channels == 1 else centred[..., np.arange(channels) % 3]
        images[index] = planes.transpose(2, 0, 1)
    return images
