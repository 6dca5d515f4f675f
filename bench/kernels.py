"""How far the results of two machines are apart: the five models with every OpenBLAS kernel that this CPU can run.

    python bench/kernels.py                                   all pairs of kernels here, a minute
    python bench/kernels.py --save here.npz                   keep what this machine computes by itself
    python bench/kernels.py --save nehalem.npz --kernels Nehalem
    python bench/kernels.py --compare here.npz there.npz      the same between two machines

Each kernel computes in a process of its own, which is told by OPENBLAS_CORETYPE which one to use. The table has, for
each model, the largest `ionn.model.comparison.difference` of its output, and of any blob between two stages, over
INPUTS photographs. A softmax at the end turns the absolute error of its input into a relative error of its output.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import support

from ionn import paper
from ionn.model import engine, inputs
from ionn.model.caffemodel import Floats, weights_path
from ionn.model.comparison import TOLERANCE, difference
from ionn.model.network import Network

INPUTS = 4
# What OpenBLAS may be told to use, and the CPU flags that it needs. Zen's are Haswell's.
KERNELS: dict[str, dict[str, set[str]]] = {
    "x86_64": {
        "Prescott": {"pni"},
        "Nehalem": {"sse4_2"},
        "Sandybridge": {"avx"},
        "Bulldozer": {"avx", "fma4"},
        "Haswell": {"avx2", "fma"},
        "SkylakeX": {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"},
        "Cooperlake": {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl", "avx512_bf16"},
    },
    "aarch64": {
        "ARMV8": set(),
        "CORTEXA53": set(),
        "CORTEXA57": set(),
        "CORTEXA72": set(),
        "CORTEXA73": set(),
        "THUNDERX": set(),
        "THUNDERX2T99": set(),
        "NEOVERSEN1": set(),
        "ARMV8SVE": {"sve"},
        "NEOVERSEV1": {"sve"},
    },
}
NUMERICS = "numerics"


class Apart(NamedTuple):
    """How far two results are apart: at the output, and at the boundary between two stages where they are furthest
    apart, which follows the stage named `behind`."""

    output: float
    boundary: float
    behind: str


def cpu_flags() -> set[str]:
    """The features of the CPU by /proc/cpuinfo: its "flags" on x86-64, its "Features" on arm64."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(values.split())
    return set()


def supported() -> list[str]:
    """The kernels that this CPU can run."""
    known, flags = KERNELS.get(platform.machine(), {}), cpu_flags()
    return [name for name, needed in known.items() if needed <= flags]


def worker(out: Path) -> None:
    """Compute the models, and write the output blobs of every stage to a file. The names of its arrays are
    MODEL/STAGE/INPUT/BLOB, where STAGE and INPUT are numbers."""
    arrays: dict[str, np.ndarray] = {NUMERICS: np.array(str(engine.numerics()))}
    for model in paper.MODELS:
        network = Network.load(model)
        net = engine.read_network(network, weights_path(model, None))
        for number, data in enumerate(inputs.query_inputs(network, seed=0, count=INPUTS)):
            net.put(0, data)
            for stage in network.stages:
                net.run(stage.index, stage.index)
                for name, blob in zip(stage.outputs, net.outputs(stage.index), strict=True):
                    arrays[f"{model}/{stage.index}/{number}/{name}"] = blob.copy()
    np.savez(out, **arrays)  # type: ignore[arg-type]  # numpy takes another argument for one


def compute(out: Path, kernels: str | None) -> str:
    """Have a process compute with these kernels, by default those that OpenBLAS chooses. Returns its numerics."""
    environment = {**os.environ, **({} if kernels is None else {"OPENBLAS_CORETYPE": kernels})}
    subprocess.run([sys.executable, __file__, "--worker", out], env=environment, check=True)
    with np.load(out) as results:
        return str(results[NUMERICS])


def apart(results: Mapping[str, Floats], others: Mapping[str, Floats]) -> dict[str, Apart]:
    """How far two files of results are apart, by model."""
    found: dict[str, Apart] = {}
    for model in paper.MODELS:
        stages = Network.load(model).stages
        by_stage = dict.fromkeys(range(len(stages)), 0.0)
        for name in results:
            if name.startswith(f"{model}/"):
                stage = int(name.split("/")[1])
                by_stage[stage] = max(by_stage[stage], difference(results[name], others[name]))
        output = by_stage.pop(len(stages) - 1)
        worst = max(by_stage, key=lambda stage: by_stage[stage])
        found[model] = Apart(output, by_stage[worst], stages[worst].name)
    return found


@contextmanager
def computed(names: list[str]) -> Iterator[dict[str, Path]]:
    """The files with the results of the kernels, by the numerics of their processes; those that are equal come once."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for name in names:
            path = Path(folder) / f"{name}.npz"
            numerics = compute(path, name)
            if numerics in files:  # OpenBLAS was built without these, and took others
                path.unlink()
            else:
                files[numerics] = path
        yield files


def table(pairs: Mapping[tuple[str, str], dict[str, Apart]]) -> Iterator[str]:
    """Lines that name, for each model, the pair that is furthest apart at the output, and the one at a boundary."""
    yield f"{'model':<10} {'output':>8}  {'boundary':>8}  which two at the output; behind which stage, which two there"
    for model in paper.MODELS:
        first = max(pairs, key=lambda pair: pairs[pair][model].output)
        second = max(pairs, key=lambda pair: pairs[pair][model].boundary)
        output, boundary = pairs[first][model], pairs[second][model]
        yield (
            f"{model:<10} {output.output:>8.1e}  {boundary.boundary:>8.1e}  {' and '.join(first)}; behind "
            f"{boundary.behind}, {' and '.join(second)}"
        )


def short(numerics: str) -> str:
    """The kernels' name in the numerics of a process."""
    return numerics.partition(" (")[0].rpartition(" ")[2]


def measure(names: list[str]) -> dict[tuple[str, str], dict[str, Apart]]:
    """How far all pairs of kernels are apart, by their short names."""
    found = {}
    with computed(names) as files:
        for one, other in itertools.combinations(files, 2):
            with np.load(files[one]) as results, np.load(files[other]) as others:
                found[short(one), short(other)] = apart(results, others)
    return found


def rows() -> list[support.Row]:
    pairs = measure(supported())
    for (one, other), found in pairs.items():
        support.keep("difference", kernels=[one, other], models={name: each._asdict() for name, each in found.items()})
    print("\n".join(table(pairs)))
    worst = {model: max(found[model].output for found in pairs.values()) for model in paper.MODELS}
    return [
        (f"{model}: outputs with other kernels, largest difference", TOLERANCE, off, "") for model, off in worst.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, metavar="FILE", help="compute once, and keep the results")
    parser.add_argument("--kernels", metavar="NAME", help="with --save: compute with these")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="compare what was kept")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
    elif given.save:
        print(compute(given.save, given.kernels))
    elif given.compare:
        with np.load(given.compare[0]) as results, np.load(given.compare[1]) as others:
            pair = str(results[NUMERICS]), str(others[NUMERICS])
            print("\n".join(table({pair: apart(results, others)})))
    else:
        pairs = measure(supported())
        print("kernels" + " " * 20 + "".join(f"{model:>10}" for model in paper.MODELS))
        for pair, found in pairs.items():
            print(f"{' and '.join(pair):<27}" + "".join(f"{found[model].output:>10.1e}" for model in paper.MODELS))
        print("\n".join(["", *table(pairs)]))


if __name__ == "__main__":
    main()
