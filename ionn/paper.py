"""The models, algorithms, devices and bandwidth of the paper's experiment (its section 4.1), each named here only."""

from __future__ import annotations

# The models with their titles, in the order in which they are shown.
MODELS = {
    "alexnet": "AlexNet",
    "inception": "Inception",
    "resnet": "ResNet",
    "googlenet": "GoogLeNet",
    "mobilenet": "MobileNet",
}

ORIGINAL = "original"
EFFICIENCY = "efficiency"
RECURSIVE = "recursive-efficiency"
ALGORITHMS = (ORIGINAL, EFFICIENCY, RECURSIVE)
FINE = "original-0.0001"  # the paper's section 4.4: steps of 0.0001 for the penalty factor
SLICED = "sliced-efficiency"  # ours
SHOWN = (*ALGORITHMS, SLICED)  # in figures and tables, in this order

# The devices, by the names of their costs, and the link in 10^6 bit/s each way.
CLIENT = "odroid-xu4"
SERVER = "gtx1080ti"
MBPS = 80.0


def model_title(model: str) -> str:
    """Return the title of a model: as the paper writes it, or the model's own name if it is not one of the paper's."""
    return MODELS.get(model, model)
