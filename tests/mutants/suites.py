"""Which tests must notice a fault in which module: those that are about it, the quickest first."""

from __future__ import annotations

PLANNERS = ["test_planners.py", "test_slicing.py", "test_custom.py", "test_own_model.py"]
LAYERS = ["test_layers.py", "test_network.py", "test_partition.py"]
COSTS = ["test_costs.py", "test_fitting.py", "test_calibrate.py"]
REPORT = ["test_summary.py", "test_claims.py", "test_report.py", "test_figures.py"]

# Group -> module -> test files.
GROUPS: dict[str, dict[str, list[str]]] = {
    "planning": {
        "planning/graph": ["test_graph.py", "test_plan.py", *PLANNERS],
        "planning/plan": ["test_plan.py", *PLANNERS],
        "planning/slice_costs": ["test_slicing.py", "test_graph.py", "test_plan.py", *PLANNERS],
        "planning/planners/__init__": PLANNERS,
        "planning/planners/custom": ["test_custom.py", *PLANNERS],
        "planning/planners/efficiency": PLANNERS,
        "planning/planners/optimal": PLANNERS,
        "planning/planners/original": PLANNERS,
        "planning/planners/reference": PLANNERS,
        "planning/planners/sliced": PLANNERS,
        "planning/planners/weightless": PLANNERS,
        "costs/models": COSTS,
        "costs/loading": COSTS,
        "costs/features": COSTS,
        "costs/fitting": ["test_fitting.py", *COSTS],
        "costs/calibration": ["test_calibrate.py", *COSTS],
    },
    "protocol": {
        "protocol/messages": ["test_wire.py", "test_strict.py", "fuzz/test_decoders.py", "test_server.py"],
        "strict": ["test_strict.py", "test_wire.py", "test_costs.py"],
        "protocol/sender": ["test_upload.py", "test_server.py", "faults/test_chunks.py", "test_shares.py"],
        "protocol/receiver": ["test_session_state.py", "faults/test_chunks.py", "test_server.py", "test_shares.py"],
        "protocol/curve": ["faults/test_doors.py", "test_cli.py"],
        "address": ["test_link.py", "faults/test_doors.py", "test_cli.py"],
    },
    "model": {
        "model/network": LAYERS,
        "model/layers/__init__": LAYERS,
        "model/layers/arithmetic": LAYERS,
        "model/layers/rule": LAYERS,
        "model/layers/shaping": LAYERS,
        "model/layers/windows": LAYERS,
        "model/caffemodel": [
            "test_caffemodel.py",
            "test_partition.py",
            "fuzz/test_decoders.py",
            "test_weights_change.py",
        ],
        "model/slices": ["test_slicing.py", "test_shares.py", *PLANNERS],
        "model/partial_net": ["test_partition.py", "test_slicing.py", "test_session_state.py", "test_own_model.py"],
    },
    "testbed": {
        "testbed/experiment": ["test_experiment.py", "test_virtual.py", "test_live.py"],
        "testbed/virtual": ["test_virtual.py"],
        "client/pacing": ["test_pacing.py", "test_live.py"],
        "testbed/link_pacer": ["test_pacing.py", "test_link.py"],
        "testbed/link": ["test_link.py"],
        "testbed/runner": ["test_harness.py", "test_live.py"],
    },
    "evaluation": {
        "records": ["test_trace.py", "test_virtual.py", *REPORT],
        "testbed/trace": ["test_trace.py", "test_virtual.py", *REPORT],
        "evaluation/summary": REPORT,
        "evaluation/claims": REPORT,
        "evaluation/slice_claims": REPORT,
        "evaluation/validation": REPORT,
        "evaluation/report": REPORT,
        "evaluation/figures": ["test_figures.py", "test_report.py"],
        "evaluation/style": ["test_figures.py", "test_plan_figure.py"],
        "evaluation/plan_figure": ["test_plan_figure.py", "test_own_model.py"],
    },
}
