"""ionn outside a checkout, and where a library is missing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import metadata, requires
from pathlib import Path

import caffe
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ionn.files import locked
from ionn.libraries import CAFFE_PACKAGES, caffe_packages, missing_library

ROOT = Path(__file__).resolve().parents[2]
# What computes.
COMPUTING = [
    ["classify", "chelsea", "--model", "googlenet"],
    ["run", "googlenet"],
    ["profile", "googlenet"],
    ["calibrate", "--save", "server.json"],
    ["serve", "--bind", "tcp://127.0.0.1:0"],
    ["models", "--build", "googlenet"],
]
# What needs a connection.
CONNECTING = [["ping"], ["keygen", "phone"], ["serve", "--bind", "tcp://127.0.0.1:0"], ["run", "googlenet"]]
# What needs neither, and ends with the figures of the run before them.
PLANNING = [
    ["--help"],
    ["models"],
    ["plan", "alexnet"],
    ["plan", "alexnet", "--plot", "plans.svg"],
    ["run", "alexnet", "--testbed", "virtual", "--results", "results"],
    ["figures", "--results", "results"],
]


@dataclass(frozen=True)
class Installed:
    """An ionn that is installed somewhere, run by a user with a home and a working folder of their own."""

    python: Path
    home: Path
    path: tuple[Path, ...] = ()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "HOME": str(self.home), "PYTHONPATH": os.pathsep.join(map(str, self.path))}
        environment.pop("XDG_DATA_HOME", None)
        work = self.home / "work"
        work.mkdir(exist_ok=True)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.python, "-m", "ionn", *arguments], cwd=work, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    def ionn(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            try:
                output, errors = process.communicate(timeout=120)
            finally:
                process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    @contextlib.contextmanager
    def serving(self, *options: str) -> Iterator[str]:
        """The address of a server that runs for as long as the context."""
        with self.start("serve", "--bind", "tcp://127.0.0.1:0", *options) as server:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
            server.terminate()

    def weights(self) -> dict[str, str]:
        """What `ionn models` says of each model's."""
        told = json.loads(self.ionn("models", "--json").stdout)
        assert told["folder"] == str(self.home / ".local" / "share" / "ionn" / "models")
        return {row["model"]: row["weights"] for row in told["models"]}

    def __call__(self, *arguments: str) -> str:
        """The output of a command that succeeds."""
        done = self.ionn(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, *arguments: str) -> str:
        """The one line of a command that cannot work here."""
        done = self.ionn(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), (arguments, done)
        return done.stderr


@pytest.fixture
def copied(tmp_path: Path) -> Installed:
    """The package as a wheel has it, in a folder of its own."""
    package = tmp_path / "site" / "ionn"
    shutil.copytree(ROOT / "ionn", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "prototxt", package / "prototxt", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return Installed(Path(sys.executable), tmp_path, (package.parent,))


def test_weights_are_built_where_they_are_used_first(copied: Installed) -> None:
    assert copied.weights() == dict.fromkeys(("alexnet", "googlenet", "inception", "mobilenet", "resnet"), "missing")
    weights = copied.home / ".local" / "share" / "ionn" / "models" / "mobilenet.caffemodel"
    first = copied.ionn("profile", "mobilenet", "--runs", "1")
    assert first.returncode == 0
    assert first.stderr == f"ionn: building {weights}, which takes some seconds, once\n"
    again = copied.ionn("profile", "mobilenet", "--runs", "1")
    assert (again.returncode, again.stderr) == (0, "")
    assert copied.weights()["mobilenet"] == "verified"
    assert weights.read_bytes() == (ROOT / "models" / "mobilenet.caffemodel").read_bytes()

    weights.write_bytes(weights.read_bytes()[:-1])
    done = copied.ionn("models", "mobilenet")
    assert done.returncode == 1
    assert done.stderr == "ionn: damaged weights: 'ionn models --build mobilenet' builds them again\n"
    assert copied("models", "--build", "mobilenet").splitlines()[2:] == [
        "   17.02  built              built, 0.82         mobilenet"
    ]
    assert weights.with_suffix(".coded").exists()
    assert copied.weights()["mobilenet"] == "verified"
    assert "no such caffemodel" in copied.refusal("profile", "alexnet", "mine.caffemodel")  # which is not built

    other = replace(copied, home=copied.home / "other")
    other.home.mkdir()
    (other.home / ".local").write_text("not a folder")
    assert "models: cannot make this folder" in other.refusal("profile", "alexnet")


def without(library: str, installed: Installed) -> Installed:
    """The same where the library is not installed."""
    folder = installed.home / f"no-{library}"
    folder.mkdir()
    (folder / f"{library}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{library}'\", name='{library}')\n"
    )
    return replace(installed, path=(folder, *installed.path))


def test_without_pyzmq_what_needs_no_connection_works(copied: Installed) -> None:
    lonely = without("zmq", copied)
    for arguments in PLANNING:
        lonely(*arguments)
    for arguments in CONNECTING:
        line = lonely.refusal(*arguments)
        assert line == "ionn: pyzmq cannot be loaded: No module named 'zmq'; install it: pip install pyzmq\n"


def test_a_library_is_installed_by_the_name_of_its_project() -> None:
    for module, project in {"backports": "backports.zstd", "nacl.bindings": "pynacl", "numpy": "numpy"}.items():
        assert str(missing_library(ImportError(name=module))).endswith(f"install it: pip install {project}")


def test_what_ionn_requires_is_there_for_python_3_14() -> None:
    marked = {"python_version": "3.14", "python_full_version": "3.14.0"}
    found = []
    for requirement in map(Requirement, requires("ionn") or ()):
        wanted = [requirement.marker is None or requirement.marker.evaluate({**marked, "extra": extra})
                  for extra in ("", "cluster", "metrics", "report")]  # fmt: skip
        if any(wanted):
            assert "3.14" in SpecifierSet(metadata(requirement.name)["Requires-Python"] or ""), requirement
            found.append(requirement.name)
    assert {"numpy", "distributed", "prometheus-client", "plotly"} <= set(found)


def check_without_caffe(installed: Installed) -> None:
    for arguments in PLANNING:
        installed(*arguments)
    assert (installed.home / "work" / "results" / "report.md").is_file()
    for arguments in COMPUTING:
        assert installed.refusal(*arguments) == (
            "ionn: Caffe is missing, and this computes with it; install its wheel, which 'make wheels' builds beside "
            "ionn's\n"
        )


def test_without_caffe_what_does_not_compute_works(copied: Installed) -> None:
    bare = without("caffe", copied)
    check_without_caffe(bare)
    lonely = without("zmq", bare)
    for arguments in PLANNING:
        lonely(*arguments)


def test_a_library_that_caffe_is_linked_to_is_missing(copied: Installed) -> None:
    folder = copied.home / "broken"
    shutil.copytree(Path(caffe.__file__).parent, folder / "caffe")
    (binding,) = (folder / "caffe").glob("_caffe*.so")
    binding.write_bytes(binding.read_bytes().replace(b"libgflags.so.2.2\0", b"libgflags.so.9.9\0"))
    broken = replace(copied, path=(folder, *copied.path))
    for arguments in PLANNING:
        broken(*arguments)
    for arguments in COMPUTING:
        line = broken.refusal(*arguments)
        assert line.startswith("ionn: Caffe cannot be loaded: libgflags.so.9.9: cannot open shared object file"), line
        assert "libgflags2.2" in line


def test_the_listed_packages_are_those_that_caffe_is_linked_to() -> None:
    (binding,) = Path(caffe.__file__).parent.glob("_caffe*.so")
    needed = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "--dynamic", binding))
    paths = dict(re.findall(r"(\S+) => (\S+)", output("ldd", binding)))
    every_system_has = ("libc.", "libm.", "libgcc_s.", "libstdc++.")
    files = [Path(paths[name]).resolve() for name in needed if not name.startswith(every_system_has)]
    packages = {line.partition(":")[0] for line in output("dpkg-query", "--search", *files).splitlines()}
    assert packages == set(caffe_packages())


def test_the_packages_of_every_debian_are_in_the_readme() -> None:
    blocks = re.findall(r"^# apt-get (.*?)^[$`]", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert [set(re.findall(r"\blib\S+", block)) for block in blocks] == list(map(set, CAFFE_PACKAGES.values()))


def test_the_packages_are_those_of_this_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    for release in ({"VERSION_ID": "12"}, {"VERSION_ID": "13"}, {"VERSION_ID": "24.04"}, {}):
        monkeypatch.setattr("platform.freedesktop_os_release", lambda release=release: release)
        assert caffe_packages() == CAFFE_PACKAGES["13" if release.get("VERSION_ID") == "13" else "12"]

    def none() -> dict[str, str]:
        raise OSError("no such file")

    monkeypatch.setattr("platform.freedesktop_os_release", none)
    assert caffe_packages() == CAFFE_PACKAGES["12"]


def test_a_processor_that_caffe_is_not_built_for_is_refused() -> None:
    command = [sys.executable, "caffe-build/build_cross.py", "mips"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert "'mips'" in done.stderr


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --- The wheels -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> list[Path]:
    """What `make wheels` makes, once for all processes that run these tests."""
    shared = tmp_path_factory.getbasetemp().parent / f"wheels-{testrun_uid}"
    with locked(shared):
        if not any(shared.iterdir()):
            subprocess.run(["make", "wheels"], cwd=ROOT, check=True)
            for wheel in (ROOT / "dist").iterdir():
                shutil.copy(wheel, shared)
    return sorted(shared.iterdir())


def install(folder: Path, *wheels: Path) -> Installed:
    """Wheels in an empty environment; what they require comes from where pip has it."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wheels], check=True)
    return Installed(python, folder)


@pytest.mark.long
def test_both_wheels_in_an_empty_environment(wheels: list[Path], tmp_path: Path) -> None:
    assert [wheel.name.partition("-")[0] for wheel in wheels] == ["caffe", "ionn"]
    with zipfile.ZipFile(wheels[1]) as packed:
        assert {f"ionn/evaluation/web/{name}" for name in ("page.css", "page.js", "replay.js")} <= set(
            packed.namelist()
        )
    installed = install(tmp_path, *wheels)
    assert set(installed.weights().values()) == {"missing"}
    for arguments in PLANNING:
        installed(*arguments)
    assert (tmp_path / "work" / "results" / "report.md").is_file()
    installed("calibrate", "--save", "server.json")
    assert set(installed.weights().values()) == {"verified"}
    installed("profile", "mobilenet", "--runs", "2", "--save", "mobilenet.json")
    installed("keygen", "phone")
    (run,) = json.loads(installed("run", "mobilenet", "--mbps", "1000", "--json"))["runs"]
    assert run["connected"]
    assert run["bit_equal"]
    classified = json.loads(installed("classify", "chelsea", "--model", "mobilenet", "--json"))
    with installed.serving("--costs", "server.json") as address:
        installed("ping", address)
        offloaded = installed(
            "classify", "chelsea", "--model", "mobilenet", "--client", "odroid-xu4", "--connect", address,
            "--mbps", "80", "--json",
        )  # fmt: skip
    assert json.loads(offloaded)["classes"] == classified["classes"]
    assert "server" in {segment["where"] for segment in json.loads(offloaded)["segments"]}


@pytest.mark.long
def test_ionn_alone_in_an_empty_environment(wheels: list[Path], tmp_path: Path) -> None:
    installed = install(tmp_path, *(wheel for wheel in wheels if wheel.name.startswith("ionn")))
    check_without_caffe(installed)
    subprocess.run([installed.python, "-m", "pip", "uninstall", "--quiet", "--yes", "pyzmq"], check=True)
    for arguments in PLANNING:
        installed(*arguments)
