"""`ionn models`: the bundled models and their weights."""

from __future__ import annotations

import json
from typing import Any

import click

from ionn.cli.options import complete_model, json_option
from ionn.errors import InputError, IonnError, did_you_mean


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_model)
@click.option("--build", is_flag=True, help="Build and code weights that are missing, damaged or outdated.")
@click.option("--weights", metavar="FILE", help="With one NAME: check this caffemodel in place of the model's own.")
@json_option
def models(names: tuple[str, ...], build: bool, weights: str | None, as_json: bool) -> None:
    """List the bundled models, and check or build their weights. NAME is a bundled model or the path of a .prototxt; by
    default all bundled models are listed.

    For each model this prints the size of the weights, whether their file is as it was built, and whether the weights
    exist in coded form too, which 'ionn run --coding lossless' sends.

    The weights of bundled models are synthetic. They are built here, or by the first command that needs them. A
    caffemodel of your own is used and never changed, whether it is beside your .prototxt, or in the folder of weights
    without a record (NAME.json). The coded weights are NAME.coded in the same folder, or if that is not writable, in
    your user data folder.

    Example: ionn models --build alexnet
    """
    from ionn.model import coded_weights, synthetic, zoo

    known = zoo.definitions()
    for name in names:
        if name not in known and not name.endswith(".prototxt"):
            hint = did_you_mean(name, known)
            raise InputError(f"{name}: neither a bundled model nor a .prototxt; bundled are {', '.join(known)}{hint}")
    if weights is not None and len(names) != 1:
        raise InputError("--weights is for one model; give one NAME")
    rows = [_row(name, weights, build) for name in names or known]
    if as_json:
        click.echo(json.dumps({"folder": str(zoo.weights_folder()), "models": rows}))
    else:
        click.echo(f"weights in {zoo.weights_folder()}\n{'MB':>8}  {'weights':<17}  {'coded':<18}  model")
        for row in rows:
            ratio = f", {row['coded_bytes'] / row['bytes']:.2f}" if row["coded_bytes"] else ""
            click.echo(f"{row['bytes'] / 1e6:>8.2f}  {row['weights']:<17}  {row['coded'] + ratio:<18}  {row['model']}")
    given = "" if weights is None else f" --weights {weights}"
    for what, column, damaged in (
        ("weights", "weights", synthetic.DAMAGED), ("coded weights", "coded", coded_weights.DAMAGED),
    ):  # fmt: skip
        if of := [row["model"] for row in rows if row[column] == damaged]:
            raise IonnError(f"damaged {what}: 'ionn models --build {' '.join(of)}{given}' builds them again")


def _row(name: str, given: str | None, build: bool) -> dict[str, Any]:
    """The row of a model, whose weights are built first if `build` says so."""
    from ionn.model import coded_weights, synthetic, zoo
    from ionn.model.caffemodel import weights_path
    from ionn.model.network import Network

    network, path = Network.load(name), weights_path(name, given)
    prototxt = None if given is not None else zoo.definitions().get(name)
    if prototxt is None:
        weights = synthetic.FOREIGN
    else:
        weights = synthetic.update(prototxt, path) if build else synthetic.check(prototxt, path)
        if build and weights not in (synthetic.VERIFIED, synthetic.FOREIGN):
            weights = coded_weights.BUILT
    coded = coded_weights.Found(coded_weights.MISSING)
    if build:
        coded = coded_weights.update(path, network)
    elif weights not in (synthetic.MISSING, synthetic.DAMAGED):
        coded = coded_weights.check(path, network)
    return {
        "model": name,
        "bytes": sum(stage.weight_bytes for stage in network.stages),
        "weights": weights,
        "coded": coded.state,
        "coded_bytes": coded.wire_bytes,
    }
