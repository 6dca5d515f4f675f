"""Plan which layers of a Caffe model to upload to an edge server first, and offload what has arrived.

The names below are the library; each is documented in `ionn.api`, with shapes, units and errors. They are loaded when
they are used first, so that `import ionn` costs nothing, and Caffe and sockets come only with what needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ionn.api import (
        Answer,
        InputError,
        IonnError,
        Network,
        Plan,
        Session,
        Trace,
        add_planner,
        connect,
        image_input,
        load_costs,
        load_network,
        plan_upload,
        read_traces,
        run,
    )

__all__ = [
    "Answer",
    "InputError",
    "IonnError",
    "Network",
    "Plan",
    "Session",
    "Trace",
    "add_planner",
    "connect",
    "image_input",
    "load_costs",
    "load_network",
    "plan_upload",
    "read_traces",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ionn' has no attribute {name!r}")
    return getattr(importlib.import_module("ionn.api"), name)


def __dir__() -> list[str]:
    return __all__
