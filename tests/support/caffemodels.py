"""Caffemodels, whatever network they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ionn.model.caffemodel import Floats, _fill, _layers, _opened


def read(path: Path) -> dict[str, tuple[Floats, ...]]:
    """The blobs of every layer in a file. Raises InputError as `open_weights` does."""
    with _opened(path) as file, file.reading():
        stored = _layers(file)
        layers = {name: tuple(np.empty(blob.shape, np.float32) for blob in blobs) for name, blobs in stored.items()}
        _fill(layers, stored)
    return layers
