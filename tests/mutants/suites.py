"""Which tests must notice a fault in which module: those that are about it, the quickest first."""

from __future__ import annotations

PLANNERS = ["unit/test_planners.py", "unit/test_slices.py", "unit/test_custom.py", "integration/test_own_model.py"]
LAYERS = [
    "integration/test_layers.py",
    "unit/test_network.py",
    "unit/test_partial_net.py",
    "integration/test_upstream.py",
]
COSTS = ["unit/test_costs.py", "unit/test_fitting.py", "integration/test_calibration.py"]
REPORT = ["unit/test_summary.py", "unit/test_claims.py", "unit/test_report.py", "unit/test_figures.py"]

# Group -> module -> test files.
GROUPS: dict[str, dict[str, list[str]]] = {
    "planning": {
        "planning/graph": ["unit/test_graph.py", "unit/test_coding_costs.py", "unit/test_plan.py", *PLANNERS],
        "planning/plan": ["unit/test_plan.py", "unit/test_coding_costs.py", *PLANNERS],
        "planning/slice_costs": ["unit/test_slices.py", "unit/test_graph.py", "unit/test_plan.py", *PLANNERS],
        "planning/coding_costs": ["unit/test_coding_costs.py", "unit/test_slices.py", "unit/test_virtual.py"],
        "planning/grid": ["unit/test_coding_costs.py", "unit/test_graph.py"],
        "planning/planners/__init__": PLANNERS,
        "planning/planners/custom": ["unit/test_custom.py", *PLANNERS],
        "planning/planners/efficiency": PLANNERS,
        "planning/planners/optimal": PLANNERS,
        "planning/planners/original": PLANNERS,
        "planning/planners/reference": PLANNERS,
        "planning/planners/sliced": PLANNERS,
        "planning/planners/weightless": PLANNERS,
        "costs/models": COSTS,
        "costs/model_ratios": ["integration/test_coding_ratios.py"],
        "costs/loading": COSTS,
        "costs/features": COSTS,
        "costs/fitting": ["unit/test_fitting.py", *COSTS],
        "costs/calibration": ["integration/test_calibration.py", *COSTS],
    },
    "protocol": {
        "protocol/messages": [
            "unit/test_messages.py",
            "unit/test_schema.py",
            "fuzz/test_decoders.py",
            "integration/test_server.py",
        ],
        "coding": ["unit/test_coding.py"],
        "protocol/blobs": ["fuzz/test_fuzz_coding.py", "integration/test_coded_features.py"],
        "schema": ["unit/test_schema.py", "unit/test_messages.py", "unit/test_costs.py"],
        "protocol/sender": [
            "unit/test_sender.py",
            "unit/test_coded_upload.py",
            "integration/test_server.py",
            "faults/test_chunks.py",
            "integration/test_sliced_stages.py",
        ],
        "protocol/yielding": ["unit/test_yielding.py"],
        "protocol/receiver": [
            "unit/test_messages.py",
            "integration/test_session_state.py",
            "faults/test_chunks.py",
            "integration/test_server.py",
            "integration/test_sliced_stages.py",
        ],
        "protocol/curve": ["unit/test_keys.py", "faults/test_doors.py", "integration/test_cli.py"],
        "address": ["integration/test_link.py", "faults/test_doors.py", "integration/test_cli.py"],
    },
    "model": {
        "model/network": LAYERS,
        "model/proto": ["unit/test_proto.py", *LAYERS],
        "model/layers/__init__": LAYERS,
        "model/layers/arithmetic": LAYERS,
        "model/layers/rule": LAYERS,
        "model/layers/shaping": LAYERS,
        "model/layers/windows": LAYERS,
        "model/caffemodel": [
            "unit/test_caffemodel.py",
            "unit/test_partial_net.py",
            "fuzz/test_decoders.py",
            "integration/test_weights_change.py",
        ],
        "model/coded_weights": ["unit/test_coded_weights.py", "unit/test_coded_upload.py"],
        "model/comparison": ["unit/test_audit.py", "malicious/test_lies.py"],
        "model/slices": ["unit/test_slices.py", "integration/test_sliced_stages.py", *PLANNERS],
        "model/partial_net": [
            "unit/test_partial_net.py",
            "unit/test_messages.py",
            "unit/test_slices.py",
            "integration/test_session_state.py",
            "integration/test_own_model.py",
        ],
    },
    "testbed": {
        "testbed/experiment": ["unit/test_experiment.py", "unit/test_virtual.py", "integration/test_live.py"],
        "testbed/virtual": ["unit/test_virtual.py"],
        "client/audit": ["unit/test_audit.py", "malicious/test_lies.py"],
        "client/evidence": ["unit/test_audit.py", "malicious/test_lies.py"],
        "client/pacing": ["unit/test_pacing.py", "integration/test_live.py"],
        "testbed/bandwidth": ["unit/test_bandwidth.py", "unit/test_virtual.py"],
        "testbed/delay": ["unit/test_delay.py", "unit/test_virtual.py"],
        "testbed/fluid_link": ["unit/test_virtual.py"],
        "testbed/mobile_links": ["unit/test_mobile_links.py"],
        "testbed/link_pacer": ["unit/test_pacing.py", "integration/test_link.py"],
        "testbed/link": ["integration/test_link.py"],
        "testbed/runner": ["integration/test_runner.py", "integration/test_live.py"],
    },
    "evaluation": {
        "records": ["unit/test_trace.py", "unit/test_virtual.py", *REPORT],
        "testbed/trace": ["unit/test_trace.py", "unit/test_virtual.py", *REPORT],
        "testbed/settings": ["unit/test_settings.py", "integration/test_runner.py", *REPORT],
        "evaluation/summary": REPORT,
        "evaluation/claims": REPORT,
        "evaluation/slice_claims": REPORT,
        "evaluation/validation": REPORT,
        "evaluation/report": REPORT,
        "evaluation/figures": ["unit/test_figures.py", "unit/test_report.py"],
        "evaluation/coding_figures": ["unit/test_figures.py"],
        "evaluation/style": ["unit/test_figures.py", "unit/test_plan_figure.py"],
        "evaluation/plan_figure": ["unit/test_plan_figure.py", "integration/test_own_model.py"],
    },
}
