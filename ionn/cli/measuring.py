"""`ionn profile` and `ionn calibrate`: measure the costs of layers on this machine."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ionn.arguments import COUNT_MAX
from ionn.cli.options import json_option, model_argument, weights_argument

if TYPE_CHECKING:
    from ionn.costs.models import CostModel, Profile


@click.command()
@model_argument
@weights_argument
@click.option(
    "--runs", type=click.IntRange(1, COUNT_MAX), default=20, show_default=True, help="Forward passes to average."
)
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="Save the profile in this file, which other commands take as COSTS.",
)
@json_option
def profile(model: str, weights: str | None, runs: int, save: Path | None, as_json: bool) -> None:
    """Measure the latency of every layer of MODEL on this machine.

    Example: ionn profile alexnet --save alexnet-here.json
    """
    from ionn.costs import profiling
    from ionn.files import check_writable
    from ionn.model.network import Network
    from ionn.model.synthetic import load_net

    network = Network.load(model)
    if save is not None:
        check_writable(save)
    measured = profiling.profile_network(network, load_net(model, weights, network), runs)
    if save is not None:
        measured.save(save)
    layer_ms = measured.layer_ms(network)
    if as_json:
        alike = Counter(layer.name for layer in network.layers)
        keys = [f"{la.index} {la.name}" if alike[la.name] > 1 else la.name for la in network.layers]
        ratios = [layer.output_ratio for layer in measured.layers]
        click.echo(
            json.dumps(
                {
                    "model": network.name,
                    "layers": dict(zip(keys, layer_ms, strict=True)),
                    "output_ratios": {key: ratio for key, ratio in zip(keys, ratios, strict=True) if ratio is not None},
                    **_coding_json(measured),
                }
            )
        )
        return
    for layer, ms in zip(network.layers, layer_ms, strict=True):
        click.echo(f"{layer.index:>4} {layer.name} {ms:.4f}")


def _coding_json(costs: CostModel | Profile) -> dict[str, float | None]:
    return {"encode_ms_per_mb": costs.encode_ms_per_mb, "decode_ms_per_mb": costs.decode_ms_per_mb}


@click.command()
@click.option(
    "--save", default="server.json", show_default=True, type=click.Path(path_type=Path), help="The file to write."
)
@json_option
def calibrate(save: Path, as_json: bool) -> None:
    """Fit the cost model of this machine, for use as a server. Prints how well it predicts the latencies of the five
    models. This takes less than a minute, in which nothing else should run, and builds the models' weights, 0.5 GB, if
    they are missing ('ionn models' says where). 'ionn serve --costs' sends the cost model to clients.

    Example: ionn calibrate --save server.json
    """
    from ionn.costs import calibration
    from ionn.files import check_writable
    from ionn.testbed import runner

    check_writable(save)
    with runner.bar(calibration.PASSES + 1, "pass", "calibrating") as progress:
        fitted = calibration.calibrate(progress=progress.update)
    fitted.model.save(save)
    if as_json:
        click.echo(json.dumps({"saved": str(save), **dataclasses.asdict(fitted.quality), **_coding_json(fitted.model)}))
        return
    click.echo(fitted.quality.table())
    click.echo(
        f"codes a MB in {fitted.model.encode_ms_per_mb:.1f} ms and decodes it in {fitted.model.decode_ms_per_mb:.1f} ms"
    )
    click.echo(f"saved {save}; 'ionn serve --costs {save}' sends it to clients")
