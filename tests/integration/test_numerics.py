"""Two kinds of machine, two sets of bits: real servers whose OpenBLAS uses the kernels of another processor."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import kernels  # bench/kernels.py
import numpy as np
import pytest

import ionn
from ionn import paper
from ionn.client.audit import Auditor
from ionn.client.sliced_stage import slice_stages
from ionn.errors import OtherNumericsError, WrongResultError
from ionn.model import engine
from ionn.model.caffemodel import serialise
from ionn.model.comparison import TOLERANCE, Numerics, OutputCheck
from ionn.model.network import Network
from ionn.model.slices import Piece, Slice
from ionn.testbed.trace import Trace
from tests.conftest import TINY
from tests.integration.test_sliced_stages import FC, NETWORK, SLICES, WEIGHTS, session_of
from tests.malicious.hostile import QUICK, Hostile
from tests.support.command import ionn as command
from tests.support.forward import random_weights
from tests.support.liar import Liar, Lie, an_ulp, honest
from tests.support.machine import weights_of
from tests.support.nets import network_of
from tests.support.other_kernels import elsewhere
from tests.support.world import SHORT, Server, World, at_server, connected, recover, wait_for

pytestmark = pytest.mark.usefixtures("evidence_folder")

# A server that is worth going to, whatever it costs here.
FAST = ("--server", "gtx1080ti")


def started() -> Server:
    return Server("--sessions", "100", "--sessions-per-client", "100")


@pytest.fixture(scope="module")
def same() -> Iterator[str]:
    """The address of a server that computes as this process does."""
    server = started()
    yield server.address
    server.end_well()


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    """The address of a server that computes as another processor does."""
    with elsewhere():
        server = started()
    yield server.address
    server.end_well()


@pytest.fixture(params=["same", "other"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(kind: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(kind))


# `ionn run` at a server, with more arguments.
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The prototxt of the tiny network without its softmax, which would hide what its input is off."""
    text = "".join(line for line in TINY.splitlines(keepends=True) if "Softmax" not in line)
    network = Network.from_text(text, "tiny")
    path = tmp_path / "tiny.prototxt"
    path.write_text(text)
    weights = random_weights(network, scale=0.1)
    path.with_suffix(".caffemodel").write_bytes(serialise("tiny", network.layers, weights).tobytes())
    (tmp_path / "slow.txt").write_text("".join(f"{layer.index} {layer.name} 3.0\n" for layer in network.layers))
    return path


@pytest.fixture
def run(files: Path) -> Run:
    """`ionn run` at a client on which every layer takes 3 ms, so that offloading pays."""

    def run(address: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        told = ("--client", files.with_name("slow.txt"), *FAST, "--mbps", "80", "--connect", address)
        return command("run", files, *told, *arguments)

    return run


# --- What a run says --------------------------------------------------------------------------------------------------


def test_a_run_says_how_outputs_were_compared_and_why(kind: str, address: str, run: Run, tmp_path: Path) -> None:
    here = engine.numerics()
    done = run(address, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    *_, line = lines = done.stdout.splitlines()
    rows = [each for each in lines if re.match(r" +1 ", each)]
    (path,) = tmp_path.rglob("run-*.jsonl")
    trace = Trace.load(path)
    check = trace.info.output_check
    assert check is not None
    assert check.client == here
    (there,) = check.servers
    assert there is not None
    assert line == f"outputs compared {check}"
    offloaded = [query for query in trace.queries if at_server(query)]
    assert offloaded
    alone = [query for query in trace.queries if query not in offloaded]
    assert all(query.bit_equal and query.tolerance == 0 for query in alone)
    if kind == "same":
        assert there == here
        assert rows[0].endswith("  bit-equal")
        assert line == f"outputs compared bit for bit: both compute with {here}"
        assert {query.tolerance for query in offloaded} == {0.0}
    else:
        assert there.kernels != here.kernels
        assert rows[0].endswith(f"  within {trace.outputs.difference:.0e}")
        assert line == (
            "outputs compared within 0.001 of the largest value: "
            f"the server computes with {there}, this machine with {here}"
        )
        assert {query.tolerance for query in offloaded} == {TOLERANCE}
        assert 0 < trace.outputs.difference < TOLERANCE / 10
    assert trace.outputs.wrong == 0

    # The finished run is read, and says the same.
    again = json.loads(run(address, "--results", tmp_path, "--json").stdout)
    (told,) = again["runs"]
    assert told["right"] is True
    assert told["bit_equal"] is (kind == "same")
    assert told["difference"] == trace.outputs.difference
    assert told["output_check"]["tolerance"] == check.tolerance
    assert told["output_check"]["reason"] == check.reason
    assert told["output_check"]["client"]["blas"] == here.blas
    assert [each["kernels"] for each in told["output_check"]["servers"]] == [there.kernels]


def off_by(share: float) -> Lie:
    def lie(query: int, outputs: list[np.ndarray]) -> None:
        outputs[0][0] += np.float32(share) * np.abs(outputs[0]).max()

    return lie


@pytest.mark.parametrize("resumed", [False, True])
def test_a_wrong_output_is_an_error(kind: str, address: str, resumed: bool, run: Run, tmp_path: Path) -> None:
    """Of what is compared in either way. A run with one is not finished: it is made again."""
    with Liar(address, off_by(2 * TOLERANCE)) as liar:
        done = run(liar.address, "--results", tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"ionn: {liar.address}: run 1: ")
        assert " outputs are wrong, by up to " in done.stderr
        assert ("; compared bit for bit: " in done.stderr) == (kind == "same")
        assert ("; compared within 0.001 of the largest value: " in done.stderr) == (kind == "other")
        assert "  WRONG, off by " in done.stdout
        (path,) = tmp_path.rglob("run-*.jsonl")
        assert Trace.load(path).outputs.difference > TOLERANCE
        if resumed:
            liar.lie = honest
            done = run(liar.address, "--results", tmp_path)
            assert done.returncode == 0, done.stderr
            assert Trace.load(path).outputs.wrong == 0


def test_a_difference_within_the_tolerance_is_wrong_where_bits_are_compared(kind: str, address: str, run: Run) -> None:
    with Liar(address, off_by(TOLERANCE / 2)) as liar:
        done = run(liar.address, "--json")
    (row,) = json.loads(done.stdout)["runs"]
    assert 0 < row["difference"] < TOLERANCE
    assert row["right"] is (kind == "other")
    assert done.returncode == (1 if kind == "same" else 0)


def test_the_library_raises_for_a_wrong_output(
    tiny_files: Path, slow_client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ionn.run` starts its own server, which is this machine: bits are compared."""
    real = engine.forward

    def changed(net: engine.StageNet, data: np.ndarray) -> list[np.ndarray]:
        outputs = real(net, data)
        an_ulp(outputs[0])
        return outputs

    monkeypatch.setattr(engine, "forward", changed)
    with pytest.raises(WrongResultError, match=r"^run 1: \d+ of \d+ outputs are wrong.*; compared bit for bit: both"):
        ionn.run(tiny_files, testbed="live", client=slow_client, server="gtx1080ti")


# --- The measuring of two machines ------------------------------------------------------------------------------------


def test_two_machines_are_compared_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench/kernels.py --save` and `--compare`, on one model."""
    weights_of("mobilenet")
    monkeypatch.setattr(paper, "MODELS", ("mobilenet",))
    monkeypatch.setattr(kernels, "INPUTS", 1)
    kernels.worker(tmp_path / "here.npz")
    stages = Network.load("mobilenet").stages
    with np.load(tmp_path / "here.npz") as kept:
        here = dict(kept)
    assert str(here[kernels.NUMERICS]) == str(engine.numerics())
    assert len(here) == 1 + sum(len(stage.outputs) for stage in stages)
    assert kernels.apart(here, here)["mobilenet"][:2] == (0.0, 0.0)
    there = {name: values.copy() for name, values in here.items()}
    for stage, share in ((len(stages) - 1, 0.5), (7, 0.25)):
        (name,) = (each for each in there if each.startswith(f"mobilenet/{stage}/"))
        there[name] += share * np.abs(there[name]).max()
    (found,) = kernels.apart(there, here).values()
    assert found[:2] == pytest.approx((0.5, 0.25))
    assert found.behind == stages[7].name


# --- A server that is another one by and by ---------------------------------------------------------------------------


def test_a_server_starts_again_as_another(world: World) -> None:
    """From then on its answers are compared within the tolerance, and only those to which it contributed."""
    server = started()
    try:
        with world.client(server.address, SHORT) as (client, session):
            session.start_upload()
            before = recover(session)
            assert all(query.bit_equal and query.tolerance == 0 for query in before)
            server.stop()
            wait_for(lambda: client.fault is not None, "the loss to be noticed")
            with elsewhere():
                server.start()
            after = recover(session)
            check = session.offloading.output_check
    finally:
        server.end_well()
    assert all(query.is_right for query in after)
    alone = [query for query in after if {segment.where for segment in query.segments} == {"client"}]
    assert all(query.bit_equal and query.tolerance == 0 for query in alone)
    assert at_server(after[-1])
    assert after[-1].tolerance == check.tolerance == TOLERANCE
    first, second = check.servers
    assert first == check.client
    assert second is not None
    assert check.reason == f"the server computes with {first}, later with {second}, this machine with {first}"


def test_an_audit_ends_where_a_server_starts_again_as_another(world: World) -> None:
    """It is not used any more, and not accused; queries run here."""
    server = started()
    auditor = Auditor(world.network, world.net, server.address, 1.0)
    try:
        with connected(server.address, SHORT, check=auditor.check_server) as client:
            session = world.session(client)
            session.start_upload()
            recover(session)
            server.stop()
            with elsewhere():
                server.start()
            wait_for(lambda: isinstance(client.fault, OtherNumericsError), "the other server to be met")
            query = session.query()
    finally:
        server.end_well()
    assert query.bit_equal
    assert not at_server(query)
    assert session.offloading.output_check.tolerance == 0


# --- Audits -----------------------------------------------------------------------------------------------------------


def classify(tiny_files: Path, slow_client: str, address: str, *options: str) -> subprocess.CompletedProcess[str]:
    return command(
        "classify", "chelsea", "--model", tiny_files, "--client", slow_client, *FAST, "--mbps", "80",
        "--connect", address, "--audit", "1", *options,
    )  # fmt: skip


def test_an_audit_of_bits_refuses_a_server_of_another_kind(other: str, tiny_files: Path, slow_client: str) -> None:
    done = classify(tiny_files, slow_client, other)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    line = done.stderr.removeprefix(f"ionn: {other}: ")
    advice = "give an audit tolerance, such as 0.001 (--audit-tolerance)"
    assert line.startswith("an audit without a tolerance compares bits, but the server computes with OpenBLAS ")
    assert line.endswith(f", and this machine with {engine.numerics()}; {advice}\n")
    assert done.stderr.count("OpenBLAS") == 2


def test_an_audit_with_a_tolerance_takes_it(other: str, tiny_files: Path, slow_client: str) -> None:
    done = classify(tiny_files, slow_client, other, "--audit-tolerance", "0.001", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["audited"]
    assert "server" in {segment["where"] for segment in told["segments"]}


def test_an_audit_of_bits_takes_a_server_of_its_kind(same: str, tiny_files: Path, slow_client: str) -> None:
    done = classify(tiny_files, slow_client, same, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["audited"]


@pytest.mark.parametrize("said", ["nothing", "another number of threads"])
def test_what_a_server_says_decides_about_nothing_but_the_session(said: str, evidence_folder: Path) -> None:
    """A server that says nothing, or that it is of another kind, is not used: there is nothing to be gained by it."""
    here = engine.numerics()
    told = None if said == "nothing" else replace(here, threads=7)
    server = Hostile(numerics=lambda: told)
    net = network_of("InnerProduct inner_product_param { num_output: 8 }", shape="dim: 1 dim: 9")
    auditor = Auditor(net, engine.new_network(net), server.address, 1.0)
    with pytest.raises(OtherNumericsError, match="does not say with" if told is None else "7 threads"):
        auditor.check_server(told)
    try:
        with pytest.raises(OtherNumericsError), connected(server.address, SHORT, check=auditor.check_server):
            pass
        assert not evidence_folder.exists()
    finally:
        server.close()


def test_what_a_server_makes_up_is_not_kept_without_end() -> None:
    """Each connection breaks, and at the next one the server says that it is yet another."""
    told: list[Numerics] = []

    def another() -> Numerics:
        told.append(replace(engine.numerics(), threads=1 + len(told)))
        return told[-1]

    server = Hostile("pong control", lambda *answer: False, numerics=another)
    try:
        with connected(server.address, QUICK) as client:
            wait_for(lambda: len(told) > 30, "connections")
            met = client.numerics
            check = OutputCheck(engine.numerics(), met)
    finally:
        server.close()
    assert len(met) == len(set(met)) == 5
    assert check.tolerance == TOLERANCE


# --- Slices -----------------------------------------------------------------------------------------------------------

# Smaller than slices are cut: kernels for small products round otherwise.
SMALL = [Slice(FC, begin, begin + 40) for begin in range(0, 600, 40)]


@pytest.mark.parametrize("slices", [SLICES, SMALL], ids=["as they are cut", "not exact everywhere"])
def test_slices_at_a_server_of_another_kind(slices: list[Slice], other: str) -> None:
    """Each side rounds as it does, with whole stages and with slices: that is what the tolerance is for, and so the
    client need not know whether slices are exact at the server."""
    net = engine.load_network(NETWORK, WEIGHTS)
    inputs = [np.random.default_rng(seed).standard_normal(NETWORK.input_shape).astype(np.float32) for seed in (1, 2)]
    pieces: list[list[Piece]] = [[each] for each in slices[:-1]]
    sliced = slice_stages(NETWORK, pieces, net)
    with session_of(other, net, inputs, sliced, pieces) as session:
        session.start_upload()
        wait_for(session.uploaded, "the upload")
        records = [session.query() for _ in inputs]
    assert {segment.where for record in records for segment in record.segments} == {"client", "both"}
    for record in records:
        assert record.tolerance == TOLERANCE
        assert record.is_right
        assert 0 < record.difference < TOLERANCE / 10
