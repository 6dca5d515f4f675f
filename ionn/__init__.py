"""Plan which layers of a Caffe model to upload to an edge server first, and offload what has arrived.

The names below are the library. `ionn.api` documents them with shapes, units and errors, and `ionn.protocol.curve`
documents `ClientKeys`. A name is loaded at its first use: `import ionn` itself is fast, and Caffe and sockets are
imported only by what needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ionn.api import (
        Answer,
        ExecutionGraph,
        InputError,
        IonnError,
        Network,
        Plan,
        Session,
        Slice,
        Trace,
        add_planner,
        connect,
        image_input,
        load_costs,
        load_network,
        plan_upload,
        read_table,
        read_traces,
        run,
        sweep,
    )
    from ionn.protocol.curve import ClientKeys

__all__ = [
    "Answer",
    "ClientKeys",
    "ExecutionGraph",
    "InputError",
    "IonnError",
    "Network",
    "Plan",
    "Session",
    "Slice",
    "Trace",
    "add_planner",
    "connect",
    "image_input",
    "load_costs",
    "load_network",
    "plan_upload",
    "read_table",
    "read_traces",
    "run",
    "sweep",
]

# Names whose module needs a library (pyzmq) that planning does not need.
_ELSEWHERE = {"ClientKeys": "ionn.protocol.curve"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ionn' has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "ionn.api")), name)


def __dir__() -> list[str]:
    return __all__
