"""`ionn models`: the models that come along, and their weights."""

from __future__ import annotations

import json
from typing import Any

import click

from ionn.cli.options import complete_model, json_option
from ionn.errors import InputError, IonnError, did_you_mean


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_model)
@click.option("--build", is_flag=True, help="Build weights, and code them, where that is missing, damaged or outdated.")
@click.option("--weights", metavar="FILE", help="Of one NAME: this caffemodel, in place of the one beside it.")
@json_option
def models(names: tuple[str, ...], build: bool, weights: str | None, as_json: bool) -> None:
    """List the models that come along, or the .prototxt files given, and check their weights: the size, whether the
    file is as it was built, and whether the weights are there in coded form too, as --coding lossless sends them.

    The weights are synthetic. They are built here, or by the first command that needs them. A file of your own in their
    folder, without a record (NAME.json) beside it, is used and left as it is; and so is that beside a .prototxt of your
    own. The coded weights are NAME.coded, in the same folder if that can be written to, else with your data.

    Example: ionn models --build alexnet
    """
    from ionn.model import coded_weights, synthetic, zoo

    known = zoo.definitions()
    for name in names:
        if name not in known and not name.endswith(".prototxt"):
            hint = did_you_mean(name, known)
            raise InputError(f"{name}: no model that comes along; those are {', '.join(known)}{hint}")
    if weights is not None and len(names) != 1:
        raise InputError("--weights are those of one model; give its name, and no other")
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
    """What there is of a model, now that it was built, if it was to be."""
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
