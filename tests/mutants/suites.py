"""Which tests must notice a fault in which module: those that are about it, the quickest first."""

from __future__ import annotations

PLANNERS = ["test_planners.py", "test_slicing.py", "test_own_model.py"]
LAYERS = ["test_layers.py", "test_network.py", "test_partition.py"]
REPORT = ["test_summary.py", "test_report.py", "test_figures.py"]

# Group -> module -> test files.
GROUPS: dict[str, dict[str, list[str]]] = {
    "planning": {
        "graph": ["test_graph.py", "test_plan.py", *PLANNERS],
        "plan": ["test_plan.py", *PLANNERS],
        "slicing": ["test_slicing.py", "test_graph.py", "test_plan.py", *PLANNERS],
        "planners/__init__": PLANNERS,
        "planners/custom": PLANNERS,
        "planners/efficiency": PLANNERS,
        "planners/optimal": PLANNERS,
        "planners/original": PLANNERS,
        "planners/sliced": PLANNERS,
        "costs": ["test_costs.py", "test_fitting.py", "test_calibrate.py"],
        "cost_files": ["test_costs.py", "test_fitting.py", "test_calibrate.py"],
        "features": ["test_costs.py", "test_fitting.py", "test_calibrate.py"],
        "fitting": ["test_fitting.py", "test_costs.py", "test_calibrate.py"],
        "calibrate": ["test_calibrate.py", "test_fitting.py"],
    },
    "protocol": {
        "wire": ["test_wire.py", "fuzz/test_decoders.py", "test_server.py"],
        "upload": ["test_server.py", "faults/test_chunks.py", "faults/test_links.py", "test_shares.py"],
        "receiver": ["faults/test_chunks.py", "test_server.py", "test_shares.py", "faults/test_sessions.py"],
        "keys": ["faults/test_doors.py", "test_cli.py"],
    },
    "model": {
        "network": LAYERS,
        "layers/__init__": LAYERS,
        "layers/arithmetic": LAYERS,
        "layers/rule": LAYERS,
        "layers/shaping": LAYERS,
        "layers/windows": LAYERS,
        "caffemodel": ["test_caffemodel.py", "test_partition.py", "fuzz/test_decoders.py", "test_opencv.py"],
        "partition": ["test_partition.py", "test_slicing.py", "test_server.py", "test_own_model.py"],
    },
    "testbed": {
        "experiment": ["test_virtual.py", "test_live.py"],
        "virtual": ["test_virtual.py"],
        "pacing": ["test_pacing.py", "test_link.py"],
        "link": ["test_link.py"],
        "harness": ["test_live.py", "test_virtual.py", "test_cli.py"],
    },
    "evaluation": {
        "trace": ["test_virtual.py", "test_summary.py", "test_report.py", "test_live.py"],
        "summary": REPORT,
        "claims": REPORT,
        "slice_claims": REPORT,
        "validation": [*REPORT, "test_virtual.py"],
        "report": REPORT,
        "figures": ["test_figures.py", "test_report.py"],
        "drawing": ["test_figures.py", "test_own_model.py"],
        "plan_figure": ["test_own_model.py"],
    },
}
