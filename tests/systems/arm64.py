"""ionn on arm64: `python -m tests.systems arm64`, as root, after `make wheels ARCH=arm64`.

A fresh Debian 12 for arm64 gets the packages of the README's "Installing it elsewhere"; everything else there is an
ordinary user's: the wheels of dist/, `ionn plan` and `ionn profile`, the tests of planning, partitions and slices, and
a client that offloads to a server of this machine's processor, over loopback. Both compute the five models, too, and
the outputs are compared. Where this machine is none for arm64, qemu's user mode runs all that: what it takes says
nothing about a board.

Prints each step and what it took, and exits 1 at the first that fails. The summary, the client's trace and the log of a
server in there are in results/arm64/.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ionn.libraries import CAFFE_PACKAGES
from ionn.model.comparison import TOLERANCE, difference
from ionn.paper import MODELS
from ionn.testbed.trace import Trace
from tests.support.command import ionn, serving
from tests.systems.root import MACHINES, Root, cache_folder, check_machine, debian
from tests.systems.script import SetupError, StepError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "arm64"
USER = "phone"
HOME = f"/home/{USER}"
CHECKOUT = f"{HOME}/checkout"
WEIGHTS = f"{HOME}/.local/share/ionn/models"
# A server in an emulator says where it listens, and ends, within this time.
SERVER_S = 300.0
# Built in the root; the others are copied there, which is quicker.
MODEL = "mobilenet"
# What the tests below import, of the test dependencies.
TEST_PACKAGES = ("hypothesis>=6.100,<7", "psutil>=5.9,<8", "pytest>=8,<10", "pytest-timeout>=2.3.1,<3")
# Planning and partitions: what decides, and what is cut out of a caffemodel.
TESTS = (
    "test_plan", "test_graph", "test_baselines", "test_holding", "test_custom", "test_planners", "test_coding_costs",
    "test_partial_net", "test_caffemodel", "test_slices",
)  # fmt: skip
# It draws figures, for minutes in an emulator.
NO_TEST = "tests/unit/test_baselines.py::test_figures_have_baselines_on_request"


class Phone:
    """The arm64 Debian, and what its user runs."""

    def __init__(self, root: Root) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """A file of the root, as this machine sees it."""
        return self.root.folder / name.lstrip("/")

    def argv(self, *command: str, cwd: str = HOME) -> list[str]:
        return self.root.argv(*command, user=USER, cwd=cwd, env={"PATH": f"{HOME}/venv/bin:/usr/bin:/bin"})

    def run(self, *command: str, cwd: str = HOME) -> str:
        """The standard output of a command, which must succeed; the errors go where this program's go."""
        done = subprocess.run(
            self.argv(*command, cwd=cwd), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            sys.stderr.write(done.stdout)
            raise StepError(f"'{' '.join(command)}' failed with exit code {done.returncode}")
        return done.stdout


def wheels() -> list[Path]:
    found = [*(ROOT / "dist").glob("ionn-*-py3-none-any.whl"), *(ROOT / "dist").glob("caffe-*-linux_aarch64.whl")]
    if len(found) != 2:
        raise SetupError("the wheels are not in dist/: run 'make wheels ARCH=arm64'")
    return found


def install_packages(phone: Phone) -> str:
    phone.root.install("ca-certificates", "libseccomp2", "python3-venv", *CAFFE_PACKAGES["12"])
    phone.root.run("useradd", "--create-home", USER)
    phone.root.run("chown", "--recursive", f"{USER}:", HOME)
    return ""


def install_wheels(phone: Phone) -> str:
    names = []
    for wheel in wheels():
        shutil.copy(wheel, phone.path(HOME))
        names.append(wheel.name)
    phone.run("python3", "-m", "venv", "venv")
    phone.run("pip", "install", "--quiet", *(f"./{name}" for name in names), *TEST_PACKAGES)
    return phone.run("python", "-c", "import caffe, platform; print(platform.machine())").strip()


def build_weights(phone: Phone) -> str:
    """Weights are seeded, and the same file on every processor."""
    phone.run("ionn", "models", "--build", MODEL)
    for model in MODELS:
        for file in (f"{model}.caffemodel", f"{model}.json"):
            if model != MODEL:
                shutil.copy(ROOT / "models" / file, phone.path(WEIGHTS))
    phone.root.run("chown", "--recursive", f"{USER}:", WEIGHTS)
    digests = {
        hashlib.sha256((folder / f"{MODEL}.caffemodel").read_bytes()).hexdigest()
        for folder in (ROOT / "models", phone.path(WEIGHTS))
    }
    if len(digests) != 1:
        raise StepError(f"{MODEL}.caffemodel is another file than on this machine")
    return f"{MODEL}.caffemodel is the same file"


def here(*arguments: str | Path) -> str:
    """The standard output of this machine's ionn, which must succeed."""
    done = ionn(*arguments)
    if done.returncode:
        raise StepError(f"here, 'ionn {arguments[0]}' failed: {done.stderr.strip()}")
    return done.stdout.strip()


def plan(phone: Phone) -> str:
    told: dict[str, Any] = json.loads(phone.run("ionn", "plan", "alexnet", "--json"))
    if told["partitions"] != json.loads(here("plan", "alexnet", "--json"))["partitions"]:
        raise StepError("the plan for alexnet is another one than on this machine")
    return f"{len(told['partitions'])} partitions, the plan of this machine"


def profile(phone: Phone) -> str:
    phone.run("ionn", "profile", MODEL, "--runs", "3", "--save", f"{MODEL}.json")
    return phone.run("python", "-c", "from ionn.model import engine; print(engine.blas())").strip()


def unit_tests(phone: Phone) -> str:
    """The tests of a checkout without its package: what they import is what is installed."""
    phone.path(CHECKOUT).mkdir()
    with subprocess.Popen(
        ["git", "archive", "HEAD", "bench", "docs", "plots", "prototxt", "tests", "pyproject.toml", "README.md"],
        cwd=ROOT, stdout=subprocess.PIPE,
    ) as archive:  # fmt: skip
        subprocess.run(["tar", "--extract", "--directory", phone.path(CHECKOUT)], stdin=archive.stdout, check=True)
    phone.root.run("chown", "--recursive", f"{USER}:", CHECKOUT)
    files = [f"tests/unit/{name}.py" for name in TESTS]
    return pytest(phone, "--deselect", NO_TEST, *files)


def slices_with_every_kernel(phone: Phone) -> str:
    return pytest(phone, "-m", "long or not long", "-k", "with_other_kernels", "tests/unit/test_slices.py")


def pytest(phone: Phone, *arguments: str) -> str:
    told = phone.run("python", "-m", "pytest", "--timeout", "0", "-rs", *arguments, cwd=CHECKOUT)
    print(told, flush=True)
    return told.strip().splitlines()[-1].strip("= ")


def offload(phone: Phone) -> str:
    """A client in the root, as fast as it is, and a server of this machine's processor."""
    costs = RESULTS / "server.json"
    here("profile", MODEL, "--save", costs)
    with serving("--costs", str(costs)) as server:
        told = phone.run(
            *("ionn", "run", MODEL, "--connect", server.address, "--client", f"{MODEL}.json", "--unpaced"),
            *("--window", "30", "--results", "results", "--json"),
        )
    (run,) = json.loads(told)["runs"]
    (file,) = phone.path(f"{HOME}/results").rglob("*.jsonl")
    shutil.copy(file, RESULTS / "trace.jsonl")
    where = Counter("+".join(segment.where for segment in query.segments) for query in Trace.load(file).queries)
    print(f"queries by where their stages ran: {dict(where)}", flush=True)
    if not run["connected"] or not run["partitions"] or not any("server" in each for each in where):
        raise StepError(f"nothing was offloaded: {told.strip()}")
    if run["difference"] > TOLERANCE:
        raise StepError(f"outputs differ by {run['difference']:.1e} of their largest value")
    return (
        f"{run['partitions']} partitions in {run['upload_s']:.1f} s, {run['queries']} queries, the first "
        f"{run['first_ms']:.0f} ms, the last {run['last_ms']:.0f} ms, outputs differ by {run['difference']:.1e}"
    )


def compare_outputs(phone: Phone) -> str:
    phone.run("python", "-m", "tests.systems.outputs", f"{HOME}/outputs.npz", *MODELS, cwd=CHECKOUT)
    file = RESULTS / "outputs.npz"
    subprocess.run([sys.executable, "-m", "tests.systems.outputs", file, *MODELS], cwd=ROOT, check=True)
    with np.load(file) as own, np.load(phone.path(f"{HOME}/outputs.npz")) as other:
        print(f"here: {own['blas']}\nthere: {other['blas']}", flush=True)
        apart = {model: difference(other[model], own[model]) for model in MODELS}
    file.unlink()
    if worst := [model for model, off in apart.items() if off > TOLERANCE]:
        raise StepError(f"outputs of {', '.join(worst)} differ: {apart}")
    return ", ".join(f"{model} {off:.1e}" for model, off in apart.items())


@contextlib.contextmanager
def serving_there(phone: Phone, log: Path) -> Iterator[str]:
    """The address of a server in the root, whose log goes to a file. When the context ends it must end well."""
    command = phone.argv("ionn", "serve", "--bind", "tcp://127.0.0.1:0", "--stop-at-eof")
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True) as server,
    ):
        try:
            assert server.stdin is not None
            assert server.stdout is not None
            if not select.select([server.stdout], [], [], SERVER_S)[0]:
                raise StepError(f"no server there within {SERVER_S:.0f} s")
            yield server.stdout.readline().strip()
            server.stdin.close()
            if code := server.wait(SERVER_S):
                raise StepError(f"the server there ended with exit code {code}")
        finally:
            server.kill()  # and what it runs: its namespace of processes ends with it


def serve(phone: Phone) -> str:
    """A server in the root. qemu's user mode lacks Landlock: it has to warn that its sandbox is not complete."""
    log = RESULTS / "server.log"
    with serving_there(phone, log) as address:
        answer = here("ping", address)
    if platform.machine() != MACHINES["arm64"]:
        if "not sandboxed" not in answer:
            raise StepError(f"the server there does not say that it is not sandboxed: {answer}")
        if not re.search("sessions are not sandboxed as they could be: .*Landlock", log.read_text()):
            raise StepError(f"the server there does not warn that it lacks Landlock:\n{log.read_text()}")
    return answer


STEPS: dict[str, Callable[[Phone], str]] = {
    "Debian's packages": install_packages,
    "the wheels, by pip": install_wheels,
    f"ionn models --build {MODEL}": build_weights,
    "ionn plan alexnet": plan,
    f"ionn profile {MODEL}": profile,
    "tests of planning and partitions": unit_tests,
    "slices with every kernel": slices_with_every_kernel,
    "outputs of the five models": compare_outputs,
    f"ionn run {MODEL}, server here": offload,
    "ionn serve, ping from here": serve,
}


def main() -> None:
    check_machine("arm64")
    wheels()
    rows: list[str] = []
    pip_cache = cache_folder() / "pip-arm64"
    RESULTS.mkdir(parents=True, exist_ok=True)
    pip_cache.mkdir(parents=True, exist_ok=True)
    try:
        began = time.monotonic()
        with debian("bookworm", "arm64", [(pip_cache, f"{HOME}/.cache/pip")]) as root:
            rows.append(f"{time.monotonic() - began:7.0f} s  a Debian 12 for arm64")
            for name, step in STEPS.items():
                print(f"--- {name}", flush=True)
                began = time.monotonic()
                found = step(Phone(root))
                rows.append(f"{time.monotonic() - began:7.0f} s  {name}" + (f": {found}" if found else ""))
                print(rows[-1], flush=True)
    finally:
        if rows:
            (RESULTS / "summary.txt").write_text("".join(f"{row}\n" for row in rows))
    print("\nAll steps:", *rows, sep="\n")
