"""`ionn models`: the models that come along, and their weights."""

from __future__ import annotations

import json
from typing import Any

import click

from ionn.cli.options import complete_model, json_option
from ionn.errors import InputError, IonnError, did_you_mean


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_model)
@click.option("--build", is_flag=True, help="Build those whose weights are missing, damaged or outdated.")
@json_option
def models(names: tuple[str, ...], build: bool, as_json: bool) -> None:
    """List the models that come along, and check their weights: the size, and whether the file is as it was built.

    The weights are synthetic. They are built here, or by the first command that needs them. A file of your own in their
    folder, without a record (NAME.json) beside it, is used and left as it is.

    Example: ionn models --build alexnet
    """
    from ionn.model import synthetic, zoo
    from ionn.model.network import Network

    known = zoo.definitions()
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f"{name}: no model that comes along; those are {', '.join(known)}{hint}")
    folder = zoo.weights_folder()
    rows: list[dict[str, Any]] = []
    damaged = []
    for name in names or known:
        path = folder / f"{name}.caffemodel"
        found = synthetic.update(known[name], path) if build else synthetic.check(known[name], path)
        if build and found not in (synthetic.VERIFIED, synthetic.FOREIGN):
            found = "built"
        if found == synthetic.DAMAGED:
            damaged.append(name)
        weight_bytes = sum(stage.weight_bytes for stage in Network.load(name).stages)
        rows.append({"model": name, "bytes": weight_bytes, "weights": found})
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "models": rows}))
    else:
        click.echo(f"weights in {folder}\n{'MB':>8}  {'weights':<17}  model")
        for row in rows:
            click.echo(f"{row['bytes'] / 1e6:>8.2f}  {row['weights']:<17}  {row['model']}")
    if damaged:
        raise IonnError(f"damaged weights: 'ionn models --build {' '.join(damaged)}' builds them again")
