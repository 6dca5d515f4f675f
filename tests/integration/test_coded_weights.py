"""Weights that are uploaded coded to a real server: fewer bytes, the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ionn.client.offloading import Offloading, open_offloading
from ionn.coding import FEATURES, LOSSLESS, NONE
from ionn.costs.loading import load_costs
from ionn.model import engine
from ionn.model.coded_weights import sidecar_paths, update
from ionn.model.comparison import bit_equal
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.model.slices import stage_of
from ionn.records import PartitionRecord
from tests.support.command import ionn
from tests.support.forward import Weights
from tests.support.world import wait_for

MBPS = 8.0


@pytest.fixture
def weights_file(tiny: Network, tiny_files: Path) -> Path:
    path = tiny_files.with_suffix(".caffemodel")
    update(path, tiny)
    return path


def uploaded(
    network: Network, weights: Weights, path: Path, address: str, client: str, coding: str, mbps: float = MBPS
) -> tuple[Offloading, list[PartitionRecord]]:
    """An upload that has ended, after which the server answers what the client computes."""
    net = engine.load_network(network, weights)
    data = query_inputs(network, seed=0, count=1)[0]
    wanted = engine.forward(net, data)
    with open_offloading(
        network, net, load_costs(client), address, mbps, "sliced-efficiency",
        coding=coding, weights_file=path, there=load_costs("gtx1080ti"),
    ) as offloading:  # fmt: skip
        offloading.start_upload()
        wait_for(offloading.uploaded, "the upload")
        assert offloading.fault is None
        done = offloading.executor.execute(data)
        assert "server" in {segment.where for segment in done.segments}
        assert not done.fallback
        assert all(bit_equal(got, want) for got, want in zip(done.outputs, wanted, strict=True))
        return offloading, offloading.records()


def test_an_upload_goes_coded_where_that_pays(
    tiny: Network,
    tiny_weights: Weights,
    weights_file: Path,
    server: str,
    slow_client: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    offloading, records = uploaded(tiny, tiny_weights, weights_file, server, slow_client, LOSSLESS)
    coded = {each.stage: each.wire_bytes for each in offloading.graph.coded_weights}
    fc1 = next(stage.index for stage in tiny.stages if stage.layers[0] == "fc1")
    assert coded[fc1] < 0.9 * tiny.stages[fc1].weight_bytes
    assert sum(record.wire_bytes or 0 for record in records) < 0.9 * sum(record.bytes for record in records)
    # What was planned is what was sent, but for the headers between the blobs.
    assert offloading.plan is not None
    pieces = [piece for part in offloading.plan.partitions for piece in part.pieces]
    planned = sum(offloading.graph.wire_bytes(piece, tiny.stages[stage_of(piece)].weight_bytes) for piece in pieces)
    assert sum(record.wire_bytes or 0 for record in records) == pytest.approx(planned, abs=300 * len(records))
    assert offloading.uploaded_bytes == offloading.total_bytes == sum(record.bytes for record in records)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "why", ["not asked for", "features only", "a fast link", "no sidecar", "other weights", "damaged"]
)
def test_an_upload_goes_raw(
    why: str,
    tiny: Network,
    tiny_weights: Weights,
    weights_file: Path,
    server: str,
    slow_client: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sidecar, _ = sidecar_paths(weights_file)
    weights = dict(tiny_weights)
    coding, mbps, said = LOSSLESS, MBPS, ""
    match why:
        case "not asked for":
            coding = NONE
        case "features only":
            coding = FEATURES
        case "a fast link":
            mbps = 100_000.0
        case "no sidecar":
            sidecar.unlink()
        case "other weights":
            weights["fc2"] = (weights["fc2"][0] * 2, weights["fc2"][1])
            said = f"ionn: {sidecar}: the coded weights are those of other weights; 'ionn models --build' codes them"
        case "damaged":
            sidecar.write_bytes(sidecar.read_bytes()[:-1])
            said = f"ionn: {sidecar}: the coded weights are damaged (its index is not what was written); "
    offloading, records = uploaded(tiny, weights, weights_file, server, slow_client, coding, mbps)
    assert offloading.graph.coded_weights == ()
    assert all(record.wire_bytes == record.bytes > 0 for record in records)
    assert capsys.readouterr().err.startswith(said)
    assert bool(said) == (why in ("other weights", "damaged"))


def test_the_command_codes_and_checks_weights(tiny: Network, tiny_files: Path) -> None:
    """Those of the user's own network, whose caffemodel it leaves alone."""
    sidecar, _ = sidecar_paths(tiny_files.with_suffix(".caffemodel"))
    before = tiny_files.with_suffix(".caffemodel").read_bytes()

    def state(*arguments: str) -> tuple[str, int | None]:
        done = ionn("models", *arguments, tiny_files, "--json")
        assert done.stderr == ""
        (row,) = json.loads(done.stdout)["models"]
        assert row["weights"] == "not built by ionn"
        return row["coded"], row["coded_bytes"]

    assert state() == ("missing", None)
    assert not sidecar.exists()
    built, coded_bytes = state("--build")
    assert built == "built"
    assert coded_bytes is not None
    assert coded_bytes < sum(stage.weight_bytes for stage in tiny.stages)
    assert state() == state("--build") == ("verified", coded_bytes)
    sidecar.write_bytes(sidecar.read_bytes()[:-1])
    done = ionn("models", tiny_files)
    assert done.returncode == 1
    assert done.stderr == f"ionn: damaged weights: 'ionn models --build {tiny_files}' builds them again\n"
    assert state("--build") == ("built", coded_bytes)
    assert tiny_files.with_suffix(".caffemodel").read_bytes() == before
