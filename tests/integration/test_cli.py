"""The command line as a user meets it: processes, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.command import ionn, told_while_it_imports
from tests.support.world import wait_for

ROOT = Path(__file__).resolve().parents[2]


def test_plan_json_is_what_people_script_against() -> None:
    done = ionn("plan", "alexnet", "--algorithm", "recursive-efficiency", "--mbps", "80", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    plan = json.loads(done.stdout)
    assert set(plan) == {
        "model",
        "algorithm",
        "mbps",
        "model_bytes",
        "local_ms",
        "best_ms",
        "partitions",
        "planning_ms",
        "mean_ms",
        "coding",
        "chain",
    }
    assert (plan["model"], plan["algorithm"], plan["mbps"]) == ("alexnet", "recursive-efficiency", 80)
    for partition in plan["partitions"]:
        assert set(partition) == {"stages", "layers", "bytes", "upload_ms", "latency_ms"}
    assert sum(partition["bytes"] for partition in plan["partitions"]) == 243_860_896
    latencies = [plan["local_ms"], *(partition["latency_ms"] for partition in plan["partitions"])]
    area = sum(part["upload_ms"] * ms for part, ms in zip(plan["partitions"], latencies, strict=False))
    assert plan["mean_ms"] == pytest.approx(area / sum(part["upload_ms"] for part in plan["partitions"]))
    assert latencies == sorted(latencies, reverse=True)
    assert latencies[-1] == plan["best_ms"]
    assert plan["partitions"][0]["layers"][:3] == ["conv1", "relu1", "norm1"]


@pytest.mark.parametrize(
    ("encoding", "name", "shown"),
    [
        ("latin-1", "\u94a5", b"\\u94a5"),
        ("utf-8", b"\xff", b"\xff"),  # a file's name may be any bytes, which are given as they are
    ],
)
def test_text_that_the_terminal_cannot_show(encoding: str, name: str | bytes, shown: bytes, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ionn", "keygen", name], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == shown + b".secret\n" + shown + b".public\n"


def test_plan_shows_the_channels_of_slices() -> None:
    done = ionn("plan", "alexnet", "--algorithm", "sliced-efficiency", "--json")
    plan = json.loads(done.stdout)
    assert sum(partition["bytes"] for partition in plan["partitions"]) == 243_860_896
    slices = [partition["slices"]["fc6"] for partition in plan["partitions"] if "fc6" in partition["stages"]]
    assert (slices[0][0], slices[-1][1]) == (0, 4096)
    assert (
        f" fc6[{slices[0][0]}:{slices[0][1]}]\n" in ionn("plan", "alexnet", "--algorithm", "sliced-efficiency").stdout
    )


def test_a_backend_of_matplotlib_that_is_not_there_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for backend in ("nonsense", "module://not_there"):
        monkeypatch.setenv("MPLBACKEND", backend)
        plot = tmp_path / f"{len(backend)}.png"
        done = ionn("plan", "alexnet", "--plot", plot)
        assert (done.returncode, done.stderr) == (0, f"drawn: {plot}\n")


def test_run_json_is_what_people_script_against() -> None:
    done = ionn("run", "alexnet", "--testbed", "virtual", "--algorithm", "original", "--runs", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"model", "algorithm", "testbed", "runs"} <= set(result)
    assert len(result["runs"]) == 2
    for run in result["runs"]:
        assert {"queries_before_upload", "upload_s", "first_ms", "last_ms", "bit_equal", "overruns"} <= set(run)
        assert run["bit_equal"] is None
        assert run["queries_before_upload"] > 0
        # Between those of the last query, if the client only waited, and of the first, if it only computed.
        assert 3.977 * run["last_ms"] < 1e3 * run["energy_j"] <= 7.239 * run["first_ms"]


def test_claims_json_is_what_people_script_against(tmp_path: Path) -> None:
    done = ionn("claims", "--draws", "3", "--seed", "2", "--jobs", "2", "--results", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert set(found) == {"draws", "sigma", "seed", "claims"}
    assert (found["draws"], found["sigma"], found["seed"]) == (3, 0.05, 2)
    for claim in found["claims"]:
        assert set(claim) == {"claim", "paper", "tolerance", "found", "holds", "share", "robust"}
        assert claim["share"] * 3 == pytest.approx(round(claim["share"] * 3))
        assert claim["robust"] == (claim["share"] in (0, 1))
    kept = json.loads((tmp_path / "uncertainty.json").read_text())
    assert [each["held"] / 3 for each in kept["claims"]] == [each["share"] for each in found["claims"]]
    # What is kept is not drawn again: what it says counts.
    kept["claims"][0]["held"] = 3 - kept["claims"][0]["held"]
    (tmp_path / "uncertainty.json").write_text(json.dumps(kept))
    told = ionn("claims", "--draws", "3", "--seed", "2", "--results", tmp_path)
    first, *_ = (line for line in told.stdout.splitlines() if line.startswith(found["claims"][0]["claim"]))
    assert f" {1 - found['claims'][0]['share']:.1%} " in first
    assert "3 draws, sigma 0.05, seed 2" in told.stdout
    assert len(told.stdout.splitlines()) == 2 + len(found["claims"])


def test_a_process_of_claims_that_is_killed_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ionn", "claims", "--draws", "100000", "--jobs", "2", "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        workers: list[psutil.Process] = []
        end_s = time.monotonic() + 120
        while len(workers) < 2 and process.poll() is None and time.monotonic() < end_s:
            time.sleep(0.05)
            with contextlib.suppress(psutil.Error):  # for those that have just ended
                children = psutil.Process(process.pid).children(recursive=True)
                workers = [child for child in children if "LokyProcess" in " ".join(child.cmdline())]
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):  # when one is killed, the others are ended
                worker.kill()
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (1, "")
    assert said == "ionn: a process of the draws was killed; draw again\n"
    assert not list(tmp_path.iterdir())


def test_figures_json_is_what_people_script_against(tmp_path: Path) -> None:
    assert ionn("run", "alexnet", "--testbed", "virtual", "--results", tmp_path).returncode == 0
    done = ionn("figures", "--results", tmp_path, "--out", tmp_path / "drawn", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    written = json.loads(done.stdout)
    assert set(written) == {"figures", "report", "page"}
    assert sorted(map(Path, written["figures"])) == sorted((tmp_path / "drawn").iterdir())
    assert Path(written["report"]) == tmp_path / "report.md"
    listed = ionn("figures", "--results", tmp_path, "--out", tmp_path / "drawn").stdout.splitlines()
    assert Path(written["page"]) == tmp_path / "report.html"
    assert listed == [*written["figures"], written["report"], written["page"]]


def test_plan_json_says_what_is_coded() -> None:
    done = ionn("plan", "alexnet", "--coding", "lossless", "--weight-ratio", "0.85", "--json")
    plan = json.loads(done.stdout)
    assert plan["coding"] == "lossless"
    assert plan["best_ms"] < 23
    image = next(row for row in plan["chain"] if row["stage"] == "conv1")
    assert image["input_bytes"] == 4 * 3 * 227 * 227
    assert image["input_wire_bytes"] < image["input_bytes"] / 4
    for partition in plan["partitions"]:
        assert partition["wire_bytes"] == pytest.approx(0.85 * partition["bytes"], rel=0.001)


def test_run_json_has_bytes_and_what_came_of_a_window() -> None:
    line = ["run", "mobilenet", "--testbed", "virtual", "--algorithm", "original", "--json"]
    (plain,) = json.loads(ionn(*line).stdout)["runs"]
    assert (plain["window_s"], plain["queries_in_window"], plain["mean_ms_in_window"]) == (None, None, None)
    assert plain["weight_wire_bytes"] == plain["weight_bytes"]
    assert plain["feature_wire_bytes"] == plain["feature_bytes"]
    done = ionn(*line, "--coding", "lossless", "--weight-ratio", "0.85", "--window", "5")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (coded,) = result["runs"]
    assert (result["coding"], result["weight_ratio"], coded["window_s"]) == ("lossless", 0.85, 5)
    assert coded["queries"] - coded["queries_in_window"] in (0, 1)
    assert coded["last_ms"] < coded["mean_ms_in_window"] < coded["first_ms"]
    assert coded["weight_bytes"] == plain["weight_bytes"]
    assert coded["weight_wire_bytes"] < 0.86 * coded["weight_bytes"]
    assert 4 * coded["feature_wire_bytes"] < coded["feature_bytes"]


def test_a_made_up_bandwidth_is_one_for_runs(tmp_path: Path) -> None:
    ride = tmp_path / "ride.csv"
    for _ in range(2):
        done = ionn("bandwidth", "walking", "--seconds", "90", "--seed", "3", "--out", str(ride))
        assert (done.returncode, done.stdout) == (0, f"{ride}\n"), done.stderr
        lines = ride.read_text().splitlines()
        assert (lines[0], len(lines)) == ("seconds,mbps", 92)
    line = ["run", "alexnet", "--testbed", "virtual", "--link", str(ride), "--delay-ms", "20", "--json"]
    done = ionn(*line, "--jitter-ms", "5", "--upload", "yield")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["link"].startswith("ride.csv (")
    assert (result["delay_ms"], result["jitter_ms"], result["upload"], result["mbps"]) == (20, 5, "yield", None)
    rates = [float(line.split(",")[1]) for line in lines[1:]]
    fastest_s = 8 * result["runs"][0]["weight_bytes"] / 1e6 / max(rates)
    assert result["runs"][0]["upload_s"] > fastest_s
    plain = json.loads(ionn("run", "alexnet", "--testbed", "virtual", "--json").stdout)
    assert (plain["link"], plain["delay_ms"], plain["jitter_ms"], plain["upload"]) == (None, 0, 0, "share")


def test_run_json_has_what_became_of_queries_that_arrive_by_themselves(tmp_path: Path) -> None:
    line = ["run", "mobilenet", "--testbed", "virtual", "--json"]
    closed = json.loads(ionn(*line).stdout)
    assert (closed["arrivals"], closed["busy"], closed["deadline_ms"]) == ("closed", "wait", None)
    assert closed["runs"][0]["responses"] is None
    done = ionn(*line, "--arrivals", "fps:20", "--busy", "drop", "--window", "90", "--deadline-ms", "65")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["arrivals"], result["busy"], result["deadline_ms"]) == ("fps:20", "drop", 65)
    (run,) = result["runs"]
    responses = run["responses"]
    # With all of it at the server a query takes 64 ms, and each second one of a camera meets a busy client.
    assert responses["raised"] == 90 * 20
    assert responses["raised"] - responses["dropped"] == run["queries"]
    assert responses["p50_ms"] == pytest.approx(run["last_ms"])
    assert responses["p90_ms"] <= responses["p99_ms"] < run["first_ms"]
    assert 0.45 < responses["within_deadline"] < 0.5
    over_time = responses["over_time"]
    assert [(span["start_s"], span["end_s"]) for span in over_time] == [(2 * n, 2 * n + 2) for n in range(45)]
    assert set(over_time[0]) == {"start_s", "end_s", *responses} - {"over_time"}
    assert sum(span["dropped"] for span in over_time) == responses["dropped"]
    assert over_time[0]["within_deadline"] < over_time[-1]["within_deadline"] == 0.5
    times = tmp_path / "times.txt"
    times.write_text("0\n0\n9.5\n")
    done = ionn(*line, "--arrivals", times)
    responses = json.loads(done.stdout)["runs"][0]["responses"]
    assert (responses["raised"], responses["dropped"], responses["within_deadline"]) == (3, 0, None)
    assert [span["raised"] for span in responses["over_time"]] == [2, *[0] * 8, 1]
    assert responses["over_time"][1]["p50_ms"] is None


def test_run_prints_response_times() -> None:
    done = ionn("run", "alexnet", "--testbed", "virtual", "--arrivals", "poisson:1000", "--deadline-ms", "9")
    assert done.returncode == 0, done.stderr
    assert "waiting at the end; response time of the others" in done.stdout
    assert done.stdout.endswith("ms, 0.0% within 9 ms\n")


def test_every_command_has_help_with_an_example() -> None:
    top = ionn("--help")
    assert top.returncode == 0
    commands = [line.split()[0] for line in top.stdout.split("Commands:\n")[1].split("\n\n")[0].splitlines()]
    assert {"plan", "run", "serve", "link", "figures", "profile", "calibrate"} <= set(commands)
    for command in commands:
        done = ionn(command, "--help")
        assert done.returncode == 0
        assert f"Example: ionn {command}" in done.stdout


@pytest.fixture
def broken(tiny_files: Path) -> Path:
    """A folder of files with one mistake each, and a sound model `tiny`."""
    folder = tiny_files.parent
    text = tiny_files.read_text()
    for name in (b".prototxt", b"\xff.prototxt"):
        (folder / os.fsdecode(name)).write_text(text)
    (folder / "malformed.prototxt").write_text(text.replace("layer {", "layer ((", 1))
    (folder / "unknown_type.prototxt").write_text(text.replace('"Softmax"', '"Sofmax"'))
    (folder / "impossible.prototxt").write_text(text.replace("kernel_size: 2", "kernel_size: 99"))
    (folder / "short.csv").write_text("layer,ms\ndata,1\n")
    (folder / "words.txt").write_text("0 data fast\n")
    (folder / "ride.csv").write_text("0,8\nfast\n")
    (folder / "unsorted.txt").write_text("1\n2.5\n2\n")
    (folder / "negative.txt").write_text("-1\n")
    (folder / "many.txt").write_text("1\n" * 1_000_001)
    (folder / "drawn").mkdir()
    (folder / "drawn" / "uncertainty.json").write_text("{}")
    return folder


# What is given, and what the one line must name.
BAD_INPUT = {
    "missing prototxt": (["plan", "no/such.prototxt"], ["no/such.prototxt"]),
    "malformed prototxt": (["plan", "{}/malformed.prototxt"], ["malformed.prototxt:3:7"]),
    "unknown layer type": (["plan", "{}/unknown_type.prototxt"], ["prob", "Sofmax"]),
    "model without a name": (["plan", "{}/.prototxt"], ["{}/.prototxt", "put a name before"]),
    "model with a name that is no text": (["plan", os.fsdecode(b"{}/\xff.prototxt")], ["?.prototxt", "UTF-8"]),
    "impossible layer": (["plan", "{}/impossible.prototxt"], ["pool"]),
    "unknown model": (["plan", "alexnut"], ["alexnut", "alexnet"]),
    "unknown algorithm": (["plan", "alexnet", "--algorithm", "orignal"], ["orignal", "original"]),
    "unknown algorithm, run": (["run", "{}/tiny.prototxt", "--algorithm", "x"], ["x", "original"]),
    "bandwidth 0": (["plan", "alexnet", "--mbps", "0"], ["0"]),
    "bandwidth negative": (["run", "{}/tiny.prototxt", "--mbps", "-1"], ["-1"]),
    "bandwidth not a number": (["plan", "alexnet", "--mbps", "nan"], ["nan"]),
    "link bandwidth": (["link", "--mbps", "0", "--listen", "127.0.0.1:0"], ["0"]),
    "metrics at no host": (["serve", "--bind", "127.0.0.1:0", "--metrics", "a..b:9000"], ["a..b:9000: unknown host"]),
    "both a rate and a bandwidth": (["link", "--mbps", "8", "--trace", "{}/ride.csv"], ["--mbps or --trace"]),
    "bandwidth of a link, malformed": (["link", "--trace", "{}/ride.csv"], ["ride.csv:2", "'fast'", "two numbers"]),
    "bandwidth of a run, malformed": (["run", "alexnet", "--link", "{}/ride.csv"], ["ride.csv:2", "'fast'"]),
    "bandwidth, virtual": (["run", "alexnet", "--testbed", "virtual", "--link", "{}/no.csv"], ["no.csv", "No such"]),
    "endless bandwidth": (["run", "alexnet", "--link", "/dev/zero"], ["/dev/zero", "not a regular file"]),
    "jitter of a link": (["link", "--delay-ms", "5", "--jitter-ms", "6"], ["jitter 6 ms", "delay", "5 ms"]),
    "jitter of a run": (["run", "alexnet", "--jitter-ms", "6"], ["jitter 6 ms", "the delay, which is 0 ms"]),
    "seed of a link": (["link", "--seed", "-1"], ["seed -1", "natural number"]),
    "dilation of a link": (["link", "--dilation", "0.5"], ["0.5", "1000"]),
    "a delay with a server elsewhere": (
        ["run", "alexnet", "--connect", "box:7675", "--delay-ms", "5"],
        ["--delay-ms", "--connect", "ionn link"],
    ),
    "unknown mobility": (["bandwidth", "flying"], ["flying", "driving"]),
    "nowhere for a bandwidth": (["bandwidth", "walking", "--out", "{}/words.txt/x.csv"], ["words.txt/x.csv"]),
    "unknown device": (["plan", "alexnet", "--client", "odroid"], ["odroid", "odroid-xu4"]),
    "missing column": (["plan", "alexnet", "--client", "{}/short.csv:nope"], ["short.csv", "nope"]),
    "profile of another net": (["plan", "alexnet", "--client", "{}/short.csv:ms"], ["short.csv", "alexnet"]),
    "unreadable profile": (["plan", "alexnet", "--server", "{}/words.txt"], ["words.txt", "fast"]),
    "missing caffemodel": (["run", "{}/tiny.prototxt", "{}/no.caffemodel"], ["no.caffemodel"]),
    "caffemodel of another net": (["run", "alexnet", "{}/tiny.caffemodel"], ["tiny.caffemodel", "conv1"]),
    "bandwidth of a link beyond any": (["link", "--mbps", "1e300", "--listen", "127.0.0.1:0"], ["--mbps", "1e+300"]),
    "caffemodel is a folder": (["plan", "alexnet", "{}"], ["Is a directory"]),
    "nowhere to save, profile": (["profile", "{}/tiny.prototxt", "--save", "{}"], ["cannot write there"]),
    "nowhere to save, calibrate": (["calibrate", "--save", "{}/words.txt/x.json"], ["words.txt/x.json"]),
    "no timeouts": (["ping", "--timeout-s", "0"], ["--timeout-s"]),
    "unknown testbed": (["run", "alexnet", "--testbed", "vrtual"], ["vrtual", "did you mean virtual?"]),
    "no draws": (["claims", "--draws", "0"], ["--draws", "0"]),
    "a sigma beyond any": (["claims", "--sigma", "1.5"], ["--sigma", "1.5"]),
    "draws that are none": (["claims", "--results", "{}/drawn"], ["uncertainty.json", "delete it and draw again"]),
    "nowhere for draws": (["claims", "--draws", "1", "--results", "{}/words.txt"], ["words.txt"]),
    "unknown kind of figure": (["plan", "alexnet", "--plot", "plan.gif"], ["plan.gif", ".png"]),
    "garbage address": (["serve", "--bind", "nowhere"], ["nowhere", "HOST:PORT"]),
    "no traces": (["figures", "--results", "{}/none"], ["none"]),
    "no such option": (["plan", "alexnet", "--mpbs", "8"], ["--mpbs"]),
    "unknown model of models": (["models", "alexnut"], ["alexnut", "alexnet"]),
    "keys for a virtual run": (["run", "alexnet", "--testbed", "virtual", "--key", "x"], ["live"]),
    "no such command": (["plna", "alexnet"], ["plna", "plan"]),
    "keys without a name": (["keygen", ""], ["a file's name"]),
    "keys named after a folder": (["keygen", "."], ["'.'"]),
    "keys named after all folders": (["keygen", "/"], ["'/'"]),
    "endless costs": (["serve", "--costs", "/dev/zero"], ["/dev/zero", "not a regular file"]),
    "endless labels": (
        ["classify", "chelsea", "--model", "{}/tiny.prototxt", "--labels", "/dev/zero"],
        ["/dev/zero", "not a regular file"],
    ),
    "a store without a name": (
        ["serve", "--store", "", "--store-gb", "1", "--store-shared"],
        ["--store: an empty name", "give a folder's name"],
    ),
    "a part larger than what is the whole by default": (
        ["serve", "--store", "{}/store", "--store-gb-per-client", "11"],
        ["--store-gb-per-client 11", "--store-gb 10"],
    ),
    "a store without keys": (
        ["serve", "--store", "{}/store", "--store-gb", "1"],
        ["--store: without keys", "--key and --allow", "--store-shared"],
    ),
    "a size without a store": (["serve", "--store-gb", "1"], ["--store-gb is for a store", "--store DIR"]),
    "sharing without a store": (["serve", "--store-shared"], ["--store-shared is for a store"]),
    "a part without a store": (["serve", "--store-gb-per-client", "1"], ["--store-gb-per-client is for a store"]),
    "a part larger than the whole": (
        ["serve", "--store", "{}/store", "--store-gb", "1", "--store-gb-per-client", "2"],
        ["--store-gb-per-client 2", "--store-gb 1"],
    ),
    "parts of what is shared": (
        ["serve", "--store", "{}/store", "--store-gb", "2", "--store-gb-per-client", "1", "--store-shared"],
        ["--store-gb-per-client", "not shared"],
    ),
    "a store for no piece": (["serve", "--store", "{}/store", "--store-gb", "0.009"], ["--store-gb", "0.01"]),
    "a store of no number": (["serve", "--store", "{}/store", "--store-gb", "nan"], ["--store-gb", "nan"]),
    "a store that is a file": (
        ["serve", "--store", "{}/words.txt", "--store-gb", "1", "--store-shared"],
        ["words.txt", "cannot be the store"],
    ),
    "more memory than there is": (["serve", "--memory-mb", "1e14"], ["--memory-mb", "1000000"]),
    "a blob beyond numbers": (["serve", "--blob-mb", "1e305"], ["--blob-mb", "1000"]),
    "unknown coding": (["plan", "alexnet", "--coding", "zip"], ["zip", "features, lossless"]),
    "ratio, live": (
        ["run", "{}/tiny.prototxt", "--coding", "lossless", "--weight-ratio", "0.8"],
        ["weight ratio", "virtual"],
    ),
    "ratio without weights": (["plan", "alexnet", "--weight-ratio", "0.8"], ["weight ratio", "lossless"]),
    "no queries a second": (["run", "alexnet", "--arrivals", "fps:0"], ["fps:0", "0.001 to 1000"]),
    "fewer than no queries": (["run", "alexnet", "--arrivals", "poisson:-1"], ["poisson:-1", "0.001 to 1000"]),
    "arrivals not a number": (["run", "alexnet", "--arrivals", "fps:nan"], ["fps:nan", "0.001 to 1000"]),
    "a burst of a billion": (["run", "alexnet", "--arrivals", "burst:1000000000,1"], ["burst:1000000000,1", "1000"]),
    "unknown arrivals": (["run", "alexnet", "--arrivals", "poison:4"], ["poison:4", "did you mean poisson?"]),
    "unsorted arrivals": (["run", "alexnet", "--arrivals", "{}/unsorted.txt"], ["unsorted.txt:3", "sort"]),
    "negative arrivals": (["run", "alexnet", "--arrivals", "{}/negative.txt"], ["negative.txt:1", "-1"]),
    "too many arrivals": (["run", "alexnet", "--arrivals", "{}/many.txt"], ["many.txt:1000001", "1000000"]),
    "endless arrivals": (["run", "alexnet", "--arrivals", "/dev/zero"], ["/dev/zero", "not a regular file"]),
    "arrivals of a week": (
        ["run", "alexnet", "--arrivals", "fps:1000", "--window", "86400"],
        ["fps:1000", "shorter window"],
    ),
    "deadline in a closed loop": (["run", "alexnet", "--deadline-ms", "100"], ["--deadline-ms", "--arrivals"]),
    "unknown way to be busy": (["run", "alexnet", "--arrivals", "fps:5", "--busy", "queue"], ["queue", "drop"]),
    "no deadline": (["run", "alexnet", "--arrivals", "fps:5", "--deadline-ms", "0"], ["--deadline-ms"]),
    "dilation": (["run", "{}/tiny.prototxt", "--dilation", "0.5"], ["0.5"]),
}


@pytest.mark.parametrize("case", BAD_INPUT, ids=list(BAD_INPUT))
def test_bad_input_is_one_clear_line_and_exit_code_2(case: str, broken: Path) -> None:
    arguments, names = BAD_INPUT[case]
    done = ionn(*(argument.replace("{}", str(broken)) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("ionn: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for name in names:
        assert name.replace("{}", str(broken)) in done.stderr


@pytest.mark.parametrize("command", [["serve", "--bind"], ["link", "--listen"]])
def test_port_in_use(command: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = ionn(*command, address)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert address.removeprefix("tcp://") in done.stderr


def test_disk_full_keeps_what_was_written(tiny_files: Path, tmp_path: Path) -> None:
    """The virtual testbed writes a trace for each run; a small limit on file size stands in for a full disk."""
    results = tmp_path / "results"
    assert ionn("run", tiny_files, "--testbed", "virtual", "--results", results).returncode == 0
    (kept,) = results.rglob("run-01.jsonl")
    before = kept.read_bytes()
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) - 10},) * 2)"
    code = (
        f"{limit}; import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from ionn.__main__ import main; main()"
    )
    command = ["run", str(tiny_files), "--testbed", "virtual", "--results", str(results), "--runs", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot write" in done.stderr
    assert kept.read_bytes() == before
    assert [path.name for path in results.rglob("*.jsonl*")] == ["run-01.jsonl"]


def test_profile_can_be_used_as_costs(tiny_files: Path, tmp_path: Path) -> None:
    saved = tmp_path / "here.json"
    assert ionn("profile", tiny_files, "--runs", "2", "--save", saved).returncode == 0
    plan = ionn("plan", tiny_files, "--client", saved, "--server", saved, "--json")
    assert plan.returncode == 0, plan.stderr
    # Nothing is gained at a server that is no faster than the client.
    assert json.loads(plan.stdout)["partitions"] == []
    text = tmp_path / "here.txt"
    text.write_text(ionn("profile", tiny_files, "--runs", "2").stdout)
    assert ionn("plan", tiny_files, "--client", text, "--server", saved).returncode == 0


def test_profile_says_how_fast_this_machine_codes_and_what_is_left(tiny_files: Path, tmp_path: Path) -> None:
    saved = tmp_path / "here.json"
    printed = json.loads(ionn("profile", tiny_files, "--runs", "1", "--save", saved, "--json").stdout)
    document = json.loads(saved.read_text())
    for name in ("encode_ms_per_mb", "decode_ms_per_mb"):
        assert printed[name] == document[name] > 0
    ratios = {layer["name"]: layer["output_ratio"] for layer in document["layers"] if "output_ratio" in layer}
    assert printed["output_ratios"] == ratios
    assert list(ratios) == ["data", "relu1", "join", "pool", "relu2", "fc2", "prob"]
    assert ratios["data"] < 0.5


def test_profile_has_every_layer_whatever_its_name(tmp_path: Path) -> None:
    """Caffe's layers may share a name or have none."""
    model = tmp_path / "names.prototxt"
    model.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }\n'
        'layer { name: "same" type: "ReLU" bottom: "data" top: "a" }\n'
        'layer { name: "same" type: "ReLU" bottom: "a" top: "b" }\n'
        'layer { type: "ReLU" bottom: "b" top: "c" }\n'
        'layer { type: "ReLU" bottom: "c" top: "d" }\n'
    )
    saved = tmp_path / "here.json"
    printed = json.loads(ionn("profile", model, "--runs", "1", "--save", saved, "--json").stdout)
    layers = json.loads(saved.read_text())["layers"]
    assert list(printed["layers"]) == ["data", "1 same", "2 same", "3 ", "4 "]
    assert list(printed["layers"].values()) == [layer["ms"] for layer in layers]
    ratios = [layer["output_ratio"] for layer in layers if "output_ratio" in layer]
    assert list(printed["output_ratios"].values()) == ratios
    assert set(printed["output_ratios"]) <= set(printed["layers"])


def test_no_command_is_the_help_and_exit_code_2() -> None:
    done = ionn()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")
    assert "Exit codes:" in done.stderr


# --- Manners --------------------------------------------------------------------------------------------------------


def test_what_is_piped_has_no_control_characters(tiny_files: Path, server: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for command in (
        ["--help"],
        ["plan", tiny_files],
        ["run", tiny_files, "--testbed", "virtual", "--results", results],
        ["run", tiny_files, "--mbps", "80"],
        ["figures", "--results", results],
        ["classify", "chelsea", "--model", tiny_files],
        ["profile", tiny_files, "--runs", "2"],
        ["models", "mobilenet"],
        ["ping", server, "--timeout-s", "60"],
    ):
        done = ionn(*command)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert done.stderr == ""
        assert done.stdout.replace("\n", "").isprintable()


ODD = os.fsdecode(b"\xff")
# What writes where the user says, and what is there then.
ODD_PATHS = {
    "plan": (["plan", "tiny.prototxt", "--plot", f"{ODD}.svg"], [f"{ODD}.svg"]),
    "run": (["run", "tiny.prototxt", "--testbed", "virtual", "--results", ODD], [f"{ODD}/traces"]),
    "figures": (
        ["figures", "--results", "results", "--out", f"{ODD}/drawn"],
        [f"{ODD}/drawn/fig7-virtual-tiny.png", f"{ODD}/drawn/fig7-virtual-tiny.pdf"],
    ),
    "figures of results": (
        ["figures", "--results", f"{ODD}-results"],
        [f"{ODD}-results/{name}" for name in ("report.md", "report.html", "figures/fig7-virtual-tiny.png")],
    ),
    "walk": (
        ["walk", f"{ODD}.toml", "--out", ODD],
        [f"{ODD}/walk-{ODD}.png", f"{ODD}/walk-{ODD}.pdf", f"{ODD}/walk-{ODD}-ahead.png"],
    ),
    "sweep": (
        ["sweep", "--model", "tiny.prototxt", "--mbps", "1:100:3", "--jobs", "1", "--out", f"{ODD}.csv",
         "--figures", ODD],
        [f"{ODD}.csv", f"{ODD}/sweep-lines.png"],
    ),
    "claims": (["claims", "--draws", "1", "--jobs", "1", "--results", ODD], [f"{ODD}/uncertainty.json"]),
    "profile": (["profile", "tiny.prototxt", "--runs", "1", "--save", f"{ODD}.json"], [f"{ODD}.json"]),
    "models": (["models", "--build", f"{ODD}-model/tiny.prototxt"], [f"{ODD}-model/tiny.coded"]),
    "keygen": (["keygen", ODD], [f"{ODD}.secret", f"{ODD}.public"]),
    "bandwidth": (["bandwidth", "walking", "--out", f"{ODD}.csv"], [f"{ODD}.csv"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_PATHS)
def test_what_is_written_may_have_a_path_that_is_not_utf_8(case: str, tiny_files: Path) -> None:
    """What is told of the path on standard output is its own bytes, even if that is to be strict."""
    folder = tiny_files.parent
    shutil.copytree(folder, folder / f"{ODD}-model")
    shutil.copy(ROOT / "examples" / "walk.toml", folder / f"{ODD}.toml")
    for results in ("results", f"{ODD}-results") if case.startswith("figures") else ():
        assert ionn("run", tiny_files, "--testbed", "virtual", "--results", folder / results).returncode == 0
    arguments, written = ODD_PATHS[case]
    done = subprocess.run(
        [sys.executable, "-m", "ionn", *arguments], cwd=folder, capture_output=True, timeout=120, check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0), done.stderr.decode()
    assert all((folder / path).exists() for path in written)
    if case in ("figures", "figures of results", "sweep", "keygen", "bandwidth"):
        told = done.stdout.splitlines()[-1]
        assert (folder / os.fsdecode(told)).exists()


def test_json_is_one_object_on_one_line(tiny_files: Path, server: str) -> None:
    for command in (
        ["plan", tiny_files],
        ["run", tiny_files, "--testbed", "virtual"],
        ["classify", "chelsea", "--model", tiny_files],
        ["profile", tiny_files, "--runs", "2"],
        ["claims", "--draws", "1", "--jobs", "1"],
        ["models", "mobilenet"],
        ["ping", server, "--timeout-s", "60"],
    ):
        done = ionn(*command, "--json")
        assert done.stdout.count("\n") == 1
        assert isinstance(json.loads(done.stdout), dict)
    assert json.loads(done.stdout) == {"address": server, "sessions": 0, "room": True, "sandboxed": True}


INTERRUPTED = {
    "profile": ["profile", "{}", "--runs", "1000000", "--save", "{}.json"],
    "calibrate": ["calibrate", "--save", "{}.json"],
    "run": ["run", "{}", "--mbps", "0.5", "--results", "{}.results"],
    "claims": ["claims", "--draws", "1000000", "--results", "{}.results"],
}


@pytest.mark.parametrize("case", INTERRUPTED)
def test_ctrl_c_leaves_nothing(case: str, tiny_files: Path) -> None:
    before = set(tiny_files.parent.iterdir())
    command = [sys.executable, "-m", "ionn", *(part.replace("{}", str(tiny_files)) for part in INTERRUPTED[case])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            busy = psutil.Process(process.pid)
            deadline = time.monotonic() + 30
            # By then it is beyond its imports, at work.
            while sum(busy.cpu_times()[:2]) < 1.0 and not busy.children() and time.monotonic() < deadline:
                time.sleep(0.05)
            children = busy.children(recursive=True)
            os.killpg(process.pid, signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert stderr.strip().endswith("ionn: interrupted")  # Python may say that it ignored one while it imported
    assert not psutil.wait_procs(children, timeout=60)[1]
    assert set(tiny_files.parent.iterdir()) == before


@pytest.mark.parametrize(
    "module", ["click", "ionn.cli.options", "ionn.testbed.experiment", "numpy", "google.protobuf", "zmq"]
)
def test_ctrl_c_while_it_starts(module: str) -> None:
    done = told_while_it_imports(module, signal.SIGINT, "ionn", "run", "alexnet")
    assert done == (130, "", "ionn: interrupted")


# What a command that runs until it is told to stop ends with, and what it says.
TOLD = {signal.SIGINT: (130, "ionn: interrupted"), signal.SIGTERM: (0, "")}
UNTIL_TOLD = {"serve": ["serve", "--bind", "tcp://127.0.0.1:0"], "link": ["link", "--listen", "tcp://127.0.0.1:0"]}


@pytest.mark.parametrize("number", TOLD)
@pytest.mark.parametrize(
    ("name", "module"),
    [
        *itertools.product(UNTIL_TOLD, ["ionn.cli", "click", "ionn.cli.options"]),
        *(("serve", module) for module in ("ionn.costs.loading", "numpy", "zmq", "ionn.server.front")),
        ("link", "ionn.testbed.link"),
    ],
)
def test_what_serves_is_told_to_stop_while_it_starts(name: str, module: str, number: signal.Signals) -> None:
    code, said = TOLD[number]
    assert told_while_it_imports(module, number, "ionn", *UNTIL_TOLD[name]) == (code, "", said)


@pytest.mark.parametrize("number", TOLD)
@pytest.mark.parametrize("over_and_over", [False, True])
@pytest.mark.parametrize("name", UNTIL_TOLD)
def test_what_serves_ends_when_it_is_told_to(name: str, over_and_over: bool, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "ionn", *UNTIL_TOLD[name]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            os.kill(process.pid, number)
            while over_and_over and process.poll() is None:
                os.kill(process.pid, number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    code, wanted = TOLD[number]
    assert process.returncode == code
    assert said.strip() == wanted or over_and_over  # Python itself may report one that a thread of OpenBLAS took
    assert said.strip().startswith(wanted)


@pytest.mark.parametrize("name", UNTIL_TOLD)
def test_what_serves_in_the_background_does_not_hear_ctrl_c(name: str) -> None:
    """A shell has its background jobs ignore it."""
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    command = [*ignoring, sys.executable, "-m", "ionn", *UNTIL_TOLD[name]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(process.pid, number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")


def test_a_server_that_is_told_to_stop_while_it_loads_says_no_address() -> None:
    command = [sys.executable, "-m", "ionn", *UNTIL_TOLD["serve"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for(psutil.Process(process.pid).children, "the fork server")
            for forks in psutil.Process(process.pid).children():
                forks.suspend()
            process.terminate()
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")


NEVER_ENDING = """
import threading, time
import ionn.__main__, ionn.cli

class Finalised:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)  # what is raised here is dropped

def drops_it():
    Finalised()
    time.sleep(60)

def waits_for_ever():
    lock = threading.Lock()
    lock.acquire()
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        lock.acquire()

ionn.__main__._END_S = 0.1
ionn.cli.main = {command}
ionn.__main__.main()
"""


@pytest.mark.parametrize(
    ("name", "command", "number", "told"),
    [
        ("serve", "drops_it", signal.SIGINT, TOLD[signal.SIGINT]),
        ("serve", "waits_for_ever", signal.SIGINT, TOLD[signal.SIGINT]),
        ("serve", "waits_for_ever", signal.SIGTERM, TOLD[signal.SIGTERM]),
        *((name, "waits_for_ever", signal.SIGTERM, TOLD[signal.SIGINT]) for name in ("run", "sweep")),
    ],
)
def test_a_command_that_cannot_be_interrupted_ends_all_the_same(
    name: str, command: str, number: signal.Signals, told: tuple[int, str]
) -> None:
    code = NEVER_ENDING.format(command=command)
    arguments = [sys.executable, "-c", code, name]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            os.kill(process.pid, number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    wanted_code, wanted = told
    assert process.returncode == wanted_code
    assert said.strip().endswith(wanted)


def complete(words: str) -> list[str]:
    """What bash would offer after `words`."""
    code = "import sys; sys.argv[0] = 'ionn'; from ionn.__main__ import main; main()"
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_IONN_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_shell_completion() -> None:
    assert complete("ionn cal") == ["calibrate"]
    assert complete("ionn plan al") == ["alexnet"]
    assert complete("ionn plan alexnet --algorithm rec") == ["recursive-efficiency"]
    assert complete("ionn run alexnet --testbed ") == ["live", "virtual"]
    for command in ("plan alexnet", "run alexnet", "classify chelsea --model alexnet"):
        for side in ("--client", "--server"):
            assert complete(f"ionn {command} {side} ") == ["gtx1080ti", "odroid-xu4"]
            assert complete(f"ionn {command} {side} od") == ["odroid-xu4"]
            assert complete(f"ionn {command} {side} my.js") == ["my.js"]
    assert complete("ionn plan my.proto") == ["my.proto"]  # a file: the shell goes on
    assert "--plot" in complete("ionn plan alexnet --")


def test_walk_json_is_what_people_script_against(tmp_path: Path) -> None:
    done = ionn("walk", ROOT / "examples" / "walk.toml", "--json", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    walk = json.loads(done.stdout)
    assert set(walk) == {
        "model",
        "algorithm",
        "seconds",
        "every_s",
        "ahead",
        "local_ms",
        "variants",
        "gains",
    }
    by_name = {variant["name"]: variant for variant in walk["variants"]}
    assert list(by_name) == ["no store", "store", "store, sent ahead", "everything everywhere"]
    means_ms = [variant["mean_ms"] for variant in walk["variants"]]
    assert means_ms == sorted(means_ms, reverse=True)
    first, second = (stay for stay in by_name["store"]["stays"] if stay["server"] == "cafe")
    assert first["weight_bytes_sent"] == second["weight_bytes_held"] == 243_860_896
    assert first["weight_bytes_held"] == second["weight_bytes_sent"] == 0
    assert by_name["everything everywhere"]["weight_bytes_sent"] == 0
    assert [point["ahead"] for point in walk["gains"]][:2] == [0, 0.01]
    assert walk["gains"][0]["gain"] == 0
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["walk-walk-ahead.pdf", "walk-walk-ahead.png", "walk-walk.pdf", "walk-walk.png"]
    assert done.stderr.count("drawn: ") == 4


def test_a_walk_that_is_none_is_said_in_one_line(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "walk.toml").read_text()
    path = tmp_path / "walk.toml"
    path.write_text(text.replace("mbps = 40", "mbps = 0"))
    done = ionn("walk", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ionn: {path}: servers[2].mbps: Expected `float` >= 0.001\n"
    done = ionn("walk", tmp_path / "nowhere.toml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
