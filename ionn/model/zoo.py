"""The models that come along: where their definitions are, and where their weights are kept.

In a checkout they are in its folders prototxt/ and models/. Where ionn is installed elsewhere, the definitions are in
the package, and the weights in a folder of the user's, who need not be the one who installed it.
"""

from __future__ import annotations

from pathlib import Path

import platformdirs

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "models" / "build_models.py").is_file() else None


def definitions() -> dict[str, Path]:
    """The prototxt of every model by the model's name, sorted."""
    return {path.stem: path for path in sorted(((_CHECKOUT or _PACKAGE) / "prototxt").glob("*.prototxt"))}


def weights_folder() -> Path:
    """Where the models' NAME.caffemodel are, or will be."""
    return (_CHECKOUT or platformdirs.user_data_path("ionn")) / "models"
