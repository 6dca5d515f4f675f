"""`ionn claims`: how often the paper's claims hold if the costs of the devices are a little off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ionn.arguments import COUNT_MAX
from ionn.cli.options import Number, json_option

if TYPE_CHECKING:
    from ionn.evaluation.uncertainty import Uncertainty


@click.command()
@click.option(
    "--draws", type=click.IntRange(1, COUNT_MAX), default=1000, show_default=True, help="How many random draws."
)
@click.option(
    "--sigma",
    type=Number(0, 1),
    default=0.05,
    show_default=True,
    help="Standard deviation of the logarithm of the random factor on each layer's cost.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the draws.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="How many processes compute; by default one per core.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="Keep the draws in this folder, for its report. Draws that it has already are not computed again.",
)
@json_option
def claims(draws: int, sigma: float, seed: int, jobs: int | None, results: Path | None, as_json: bool) -> None:
    """Check how robust the verdicts on the paper's claims are. Draws each layer's costs at each side at random, and
    prints the share of the draws in which each claim, of the paper or about slices, holds on the virtual testbed.

    Example: ionn claims --draws 200 --json
    """
    from ionn.evaluation.uncertainty import draw_claims, keep_uncertainty
    from ionn.testbed.runner import bar

    with bar(draws, "draw", "drawing costs") as progress:
        if results is None:
            uncertainty = draw_claims(draws, sigma, seed, jobs=jobs, progress=progress.update)
        else:
            uncertainty = keep_uncertainty(results, draws, sigma, seed, jobs=jobs, progress=progress.update)
    click.echo(json.dumps(_claims_json(uncertainty)) if as_json else _claims_text(uncertainty))


def _claims_json(uncertainty: Uncertainty) -> dict[str, Any]:
    return {
        "draws": uncertainty.draws,
        "sigma": uncertainty.sigma,
        "seed": uncertainty.seed,
        "claims": [
            {
                "claim": each.claim,
                "paper": each.paper,
                "tolerance": each.tolerance,
                "found": each.found,
                "holds": each.holds,
                "share": uncertainty.share_of(each),
                "robust": uncertainty.is_robust(each),
            }
            for each in uncertainty.claims
        ],
    }


def _claims_text(uncertainty: Uncertainty) -> str:
    width = max(len(each.claim) for each in uncertainty.claims)
    lines = [
        f"{uncertainty.draws} draws, sigma {uncertainty.sigma:g}, seed {uncertainty.seed}; "
        "robust: nearly all draws agree, one way or the other",
        f"{'claim':<{width}}  {'holds':<5}  {'of draws':>8}  robust",
    ]
    for each in uncertainty.claims:
        holds, robust = ("yes" if value else "no" for value in (each.holds, uncertainty.is_robust(each)))
        lines.append(f"{each.claim:<{width}}  {holds:<5}  {uncertainty.share_of(each):>8.1%}  {robust}")
    return "\n".join(lines)
