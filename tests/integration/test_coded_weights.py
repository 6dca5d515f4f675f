"""Weights that are uploaded coded to a real server: fewer bytes, the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ionn import coding
from ionn.client.offloading import Offloading, open_offloading
from ionn.coding import FEATURES, LOSSLESS, NONE
from ionn.costs.loading import load_costs
from ionn.model import engine
from ionn.model.coded_weights import DAMAGED, check, sidecar_paths, update, write
from ionn.model.comparison import bit_equal
from ionn.model.inputs import query_inputs
from ionn.model.network import Network
from ionn.model.slices import stage_of
from ionn.records import PartitionRecord
from tests.support.command import ionn
from tests.support.forward import Weights
from tests.support.world import Server, wait_for

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
    assert offloading.uploaded_bytes == offloading.total_bytes
    assert capsys.readouterr().err == ""


def test_a_plan_counts_with_what_the_server_takes(
    tiny: Network, tiny_weights: Weights, weights_file: Path, slow_client: str
) -> None:
    """Chunks of 100 kB are smaller than most frames."""
    server = Server("--chunk-kb", "100")
    offloading, records = uploaded(tiny, tiny_weights, weights_file, server.address, slow_client, LOSSLESS)
    server.end_well()
    assert offloading.plan is not None
    sent, planned = (sum(part.wire_bytes or 0 for part in parts) for parts in (records, offloading.plan.partitions))
    assert sent == pytest.approx(planned, abs=300 * len(records))
    assert sent > 0.9 * sum(record.bytes for record in records)


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
    _, sidecar = sidecar_paths(weights_file)
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
    # What lies between the floats of a caffemodel is sent, too.
    assert all(0 < record.bytes < (record.wire_bytes or 0) < record.bytes + 300 for record in records)
    assert capsys.readouterr().err.startswith(said)
    assert bool(said) == (why in ("other weights", "damaged"))


ENCODE = coding.encode
WRONG: dict[str, Callable[[bytes], tuple[str, coding.Bytes]]] = {
    "other numbers": lambda raw: ENCODE(raw[::-1]),
    "no numbers": lambda raw: ENCODE(b"\xff" * len(raw)),
    "no frame": lambda raw: (coding.PLANES, bytes(ENCODE(raw)[1])[::-1]),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_sidecar_that_was_wrong_from_the_beginning(
    what: str,
    tiny: Network,
    tiny_weights: Weights,
    weights_file: Path,
    server: str,
    slow_client: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sizes and checksums fit. The server finds out, and gets the weights raw, over a new connection."""
    _, sidecar = sidecar_paths(weights_file)
    with monkeypatch.context() as patch:
        patch.setattr(coding, "encode", lambda raw: WRONG[what](bytes(raw)))
        write(sidecar, tiny, tiny_weights)
    assert check(weights_file, tiny).state == DAMAGED
    _, records = uploaded(tiny, tiny_weights, weights_file, server, slow_client, LOSSLESS)
    assert records
    said = capsys.readouterr().err
    assert said.startswith(f"ionn: {server}: ")
    assert said.endswith("; weights go raw from now on, and 'ionn models' tells whether the coded ones are right\n")
    assert said.count("\n") == 1


def test_the_command_codes_and_checks_weights(tiny: Network, tiny_files: Path) -> None:
    """Those of the user's own network, whose caffemodel it leaves alone."""
    _, sidecar = sidecar_paths(tiny_files.with_suffix(".caffemodel"))
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
    assert done.stderr == f"ionn: damaged coded weights: 'ionn models --build {tiny_files}' builds them again\n"
    assert state("--build") == ("built", coded_bytes)
    assert tiny_files.with_suffix(".caffemodel").read_bytes() == before


def test_a_caffemodel_elsewhere_has_a_sidecar_of_its_own(tiny_files: Path, tmp_path: Path) -> None:
    weights = tiny_files.with_suffix(".caffemodel").rename(tmp_path / "elsewhere.caffemodel")
    done = ionn("models", "--build", tiny_files, "--weights", weights, "--json")
    (row,) = json.loads(done.stdout)["models"]
    assert row["coded"] == "built"
    assert weights.with_suffix(".coded").exists()
    weights.with_suffix(".coded").write_bytes(b"")
    done = ionn("models", tiny_files, "--weights", weights)
    advice = f"ionn models --build {tiny_files} --weights {weights}"
    assert done.stderr == f"ionn: damaged coded weights: '{advice}' builds them again\n"
    assert ionn(*advice.split()[1:]).returncode == 0
    refused = ionn("models", "--weights", weights)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("named", ["given", "symbolic link", "hard link"])
def test_a_caffemodel_is_not_replaced_by_its_sidecar(named: str, tiny_files: Path, tmp_path: Path) -> None:
    weights = tiny_files.with_suffix(".caffemodel").rename(tmp_path / "trained.coded")
    before = weights.read_bytes()
    given = weights if named == "given" else tmp_path / "trained.caffemodel"
    if named == "symbolic link":
        given.symlink_to(weights)
    if named == "hard link":
        given.hardlink_to(weights)
    done = ionn("models", "--build", tiny_files, "--weights", given)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"ionn: {given}: its coded weights would be {weights}, the same file")
    assert weights.read_bytes() == before


@pytest.mark.parametrize("weights", ["", ".", "/", "..", "missing", "symbolic link to itself"])
def test_weights_that_are_no_file_are_refused(weights: str, tmp_path: Path) -> None:
    if weights.startswith("symbolic"):
        path = tmp_path / "loop.caffemodel"
        path.symlink_to(path)
        weights = str(path)
    done = ionn(
        "classify", "chelsea", "--model", "mobilenet", "--weights", weights, "--coding", "lossless",
        "--connect", "127.0.0.1:1",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]  # the line before it may say that there is no sidecar
    assert last.startswith(f"ionn: {Path(weights)}: ")
    assert "Traceback" not in done.stderr


def test_a_caffemodel_that_is_a_symbolic_link_to_itself_is_refused(tiny_files: Path) -> None:
    path = tiny_files.with_suffix(".caffemodel")
    path.unlink()
    path.symlink_to(path)
    path.with_suffix(".coded").touch()
    commands: list[list[str | Path]] = [
        ["plan", tiny_files], ["run", tiny_files, "--testbed", "virtual"], ["run", tiny_files],
        ["sweep", "--model", tiny_files, "--out", tiny_files.with_suffix(".csv")],
    ]  # fmt: skip
    for command in commands:
        done = ionn(*command, "--coding", "lossless")
        said = f"ionn: {path}: cannot read the caffemodel: Too many levels of symbolic links\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", said), command


@pytest.mark.parametrize("elsewhere", [False, True])
def test_plans_and_virtual_runs_count_with_a_sidecar(
    elsewhere: bool, tiny: Network, tiny_files: Path, slow_client: str
) -> None:
    """That of a network of the user's own; without one, its weights go raw."""
    weights, given = tiny_files.with_suffix(".caffemodel"), []
    if elsewhere:
        weights = weights.rename(weights.with_name("elsewhere.caffemodel"))
        given = [weights]
    options = ["--client", slow_client, "--coding", "lossless", "--mbps", "8", "--json"]

    def wire_bytes() -> tuple[int, int]:
        plan = json.loads(ionn("plan", tiny_files, *given, *options).stdout)
        (run,) = json.loads(ionn("run", tiny_files, *given, "--testbed", "virtual", *options).stdout)["runs"]
        return sum(part.get("wire_bytes", part["bytes"]) for part in plan["partitions"]), run["weight_wire_bytes"]

    raw_bytes = wire_bytes()
    update(weights, tiny)
    for before, after in zip(raw_bytes, wire_bytes(), strict=True):
        assert 0 < after < 0.9 * before
    weights.with_suffix(".coded").write_bytes(b"")
    assert wire_bytes() == raw_bytes


def test_who_asks_for_coded_weights_is_told_that_they_are_missing(tiny_files: Path) -> None:
    done = ionn("run", tiny_files, "--coding", "lossless", "--mbps", "500")
    weights = tiny_files.with_suffix(".caffemodel")
    said = f"ionn: {weights}: not coded, so it goes raw; 'ionn models --build {tiny_files}' codes it\n"
    assert (done.returncode, done.stderr) == (0, said)
