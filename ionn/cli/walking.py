"""`ionn walk`: compute the latencies of a client that moves from server to server."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ionn.cli.options import json_option

if TYPE_CHECKING:
    from ionn.testbed.walking import Gain, Stay, Walked
    from ionn.testbed.walks import Walk


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out", metavar="FOLDER", type=click.Path(path_type=Path), help="Draw figures of the walk into this folder."
)
@json_option
def walk(file: Path, out: Path | None, as_json: bool) -> None:
    """Compute the walk of a client from server to server. FILE describes it, in TOML. The walk is computed without
    stores at the servers, with stores, with weights also sent ahead to the next server, and with the whole model stored
    at every server.

    Example: ionn walk examples/walk.toml --out figures
    """
    from ionn.testbed.walking import compare, gains
    from ionn.testbed.walks import Walk

    read = Walk.load(file)
    variants, found = compare(read), gains(read)
    if out is not None:
        from ionn.evaluation.walk_figures import fig_gains, fig_walk

        for path in (*fig_walk(read, variants, file.stem, out), *fig_gains(read, found, file.stem, out)):
            click.echo(f"drawn: {path}", err=True)
    click.echo(json.dumps(_walk_json(read, variants, found)) if as_json else _walk_text(read, variants, found))


def _walk_json(walk: Walk, variants: Sequence[Walked], gains: Sequence[Gain]) -> dict[str, Any]:
    return {
        "model": walk.network.name,
        "algorithm": walk.algorithm,
        "seconds": walk.seconds,
        "every_s": walk.every_s,
        "ahead": walk.ahead,
        "local_ms": variants[0].local_ms,
        "variants": [_variant_json(walk, walked) for walked in variants],
        "gains": [
            {
                "ahead": each.share,
                "weight_bytes_ahead": each.ahead_bytes,
                "mean_ms": each.mean_ms,
                "gain": None if math.isnan(each.gain) else each.gain,
            }
            for each in gains
        ],
    }


def _variant_json(walk: Walk, walked: Walked) -> dict[str, Any]:
    return {
        "name": walked.name,
        "queries": len(walked.queries),
        "completed_at_client": walked.fallbacks,
        "mean_ms": walked.mean_ms,
        "longest_ms": walked.longest_ms,
        "weight_bytes_sent": walked.sent_bytes,
        "weight_bytes_held": walked.held_bytes,
        "weight_bytes_ahead": walked.ahead_bytes,
        "stays": [_stay_json(walk, stay) for stay in walked.stays],
    }


def _stay_json(walk: Walk, stay: Stay) -> dict[str, Any]:
    return {
        "server": walk.servers[stay.server].name,
        "from_s": stay.begin_s,
        "until_s": stay.end_s,
        "weight_bytes_sent": stay.sent_bytes,
        "weight_bytes_held": stay.held_bytes,
        "weight_bytes_ahead": stay.ahead_bytes,
        "uploaded_s": stay.uploaded_s,
    }


def _walk_text(walk: Walk, variants: Sequence[Walked], gains: Sequence[Gain]) -> str:
    lines = [
        f"{walk.network.name}, {walk.algorithm}: {walk.seconds:g} s over {len(walk.servers)} servers; "
        f"{variants[0].local_ms:.1f} ms at the client alone",
        f"{'':<21} {'queries':>7} {'mean ms':>8} {'longest':>8} {'completed at client':>19} "
        f"{'sent MB':>8} {'ahead MB':>8} {'stored MB':>9}",
    ]
    for walked in variants:
        lines.append(
            f"{walked.name:<21} {len(walked.queries):>7} {walked.mean_ms:>8.1f} {walked.longest_ms:>8.1f} "
            f"{walked.fallbacks:>19} {walked.sent_bytes / 1e6:>8.1f} {walked.ahead_bytes / 1e6:>8.1f} "
            f"{walked.held_bytes / 1e6:>9.1f}"
        )
    if gains:
        lines += ["", "share of the model sent ahead at most: share of the gain from store to everything everywhere"]
        lines += [f"{each.share:>5.0%} {each.gain:>7.1%} ({each.ahead_bytes / 1e6:.1f} MB in all)" for each in gains]
    return "\n".join(lines)
