"""The bundled models: the places of their definitions and weights.

In a checkout, these are its folders prototxt/ and models/. Where ionn is installed elsewhere, the definitions are in
the package, and the weights in the user's data folder, since another user may have installed ionn.
"""

from __future__ import annotations

from pathlib import Path

import platformdirs

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "models" / "build_models.py").is_file() else None


def definitions() -> dict[str, Path]:
    """The prototxt of every bundled model, by name, sorted."""
    return {path.stem: path for path in sorted(((_CHECKOUT or _PACKAGE) / "prototxt").glob("*.prototxt"))}


def weights_folder() -> Path:
    """The folder of the bundled models' weights, NAME.caffemodel. It need not exist yet."""
    return (_CHECKOUT or platformdirs.user_data_path("ionn")) / "models"
