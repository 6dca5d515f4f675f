"""Which tests must notice a fault in which module: those that are about it, the quickest first."""

from __future__ import annotations

PLANNERS = ["test_planners.py", "test_slicing.py", "test_custom.py", "test_own_model.py"]
LAYERS = ["test_layers.py", "test_network.py", "test_partition.py"]
COSTS = ["test_costs.py", "test_fitting.py", "test_calibrate.py"]
REPORT = ["test_summary.py", "test_claims.py", "test_report.py", "test_figures.py"]

# Group -> module -> test files.
GROUPS: dict[str, dict[str, list[str]]] = {
    "planning": {
        "graph": ["test_graph.py", "test_plan.py", *PLANNERS],
        "plan": ["test_plan.py", *PLANNERS],
        "slicing": ["test_slicing.py", "test_graph.py", "test_plan.py", *PLANNERS],
        "planners/__init__": PLANNERS,
        "planners/custom": ["test_custom.py", *PLANNERS],
        "planners/efficiency": PLANNERS,
        "planners/optimal": PLANNERS,
        "planners/original": PLANNERS,
        "planners/sliced": PLANNERS,
        "planners/weightless": PLANNERS,
        "costs": COSTS,
        "cost_files": COSTS,
        "features": COSTS,
        "fitting": ["test_fitting.py", *COSTS],
        "calibrate": ["test_calibrate.py", *COSTS],
    },
    "protocol": {
        "wire": ["test_wire.py", "test_strict.py", "fuzz/test_decoders.py", "test_server.py"],
        "strict": ["test_strict.py", "test_wire.py", "test_costs.py"],
        "upload": ["test_upload.py", "test_server.py", "faults/test_chunks.py", "test_shares.py"],
        "receiver": ["test_session_state.py", "faults/test_chunks.py", "test_server.py", "test_shares.py"],
        "keys": ["faults/test_doors.py", "test_cli.py"],
    },
    "model": {
        "network": LAYERS,
        "layers/__init__": LAYERS,
        "layers/arithmetic": LAYERS,
        "layers/rule": LAYERS,
        "layers/shaping": LAYERS,
        "layers/windows": LAYERS,
        "caffemodel": ["test_caffemodel.py", "test_partition.py", "fuzz/test_decoders.py", "test_weights_change.py"],
        "partition": ["test_partition.py", "test_slicing.py", "test_session_state.py", "test_own_model.py"],
    },
    "testbed": {
        "experiment": ["test_experiment.py", "test_virtual.py", "test_live.py"],
        "virtual": ["test_virtual.py"],
        "pacing": ["test_pacing.py", "test_link.py"],
        "link": ["test_link.py"],
        "harness": ["test_harness.py", "test_live.py"],
    },
    "evaluation": {
        "trace": ["test_trace.py", "test_virtual.py", *REPORT],
        "summary": REPORT,
        "claims": REPORT,
        "slice_claims": REPORT,
        "validation": REPORT,
        "report": REPORT,
        "figures": ["test_figures.py", "test_report.py"],
        "drawing": ["test_figures.py", "test_plan_figure.py"],
        "plan_figure": ["test_plan_figure.py", "test_own_model.py"],
    },
}
