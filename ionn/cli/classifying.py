"""`ionn classify`: classify one image, on this machine or with a server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ionn.arguments import COUNT_MAX
from ionn.cli.options import (
    COSTS_HELP,
    MBPS_RANGE,
    SECONDS_MAX,
    Number,
    algorithm_option,
    chosen_algorithm,
    complete_coding,
    complete_costs,
    complete_model,
    given_option,
    json_option,
    key_option,
    options,
    planner_option,
    server_key_option,
    warn_of_raw_weights,
)
from ionn.errors import InputError, ServerUnreachableError, WrongResultError

if TYPE_CHECKING:
    from ionn.api import Answer, Session
    from ionn.model.network import Network

# Options that change nothing without --connect.
_FOR_SERVERS = (
    "key", "server_key", "wait_s", "audit", "audit_tolerance", "algorithm", "planner", "mbps", "coding", "client",
    "server",
)  # fmt: skip


@click.command()
@click.argument("image")
@click.option("--model", required=True, metavar="MODEL", shell_complete=complete_model, help="The network.")
@click.option("--weights", type=click.Path(path_type=Path), help="A caffemodel in place of the model's own.")
@click.option("--labels", type=click.Path(path_type=Path), help="File with the names of the classes, one per line.")
@click.option(
    "--top", type=click.IntRange(1, COUNT_MAX), default=5, show_default=True, help="How many classes to print."
)
@click.option("--connect", metavar="ADDRESS", help="Offload to the server at tcp://HOST:PORT.")
@options(key_option, server_key_option)
@click.option(
    "--wait-s",
    type=Number(0, SECONDS_MAX),
    help="With --connect: upload for at most this time before the query; by default until everything is uploaded.",
)
@click.option(
    "--audit",
    type=Number(0, 1),
    default=0.0,
    show_default=True,
    help="With --connect: the largest share of the time that may go into checks of the server's answers, which are "
    "computed again; 1: every answer.",
)
@click.option(
    "--audit-tolerance",
    type=Number(0, 1),
    default=0.0,
    show_default=True,
    help="With --audit: how far a value may be off, as a share of the output's largest; 0: no bit may differ.",
)
@options(algorithm_option, planner_option)
@click.option(
    "--mbps",
    type=MBPS_RANGE,
    help="With --connect: bandwidth of the link, 10^6 bit/s each way; by default measured.",
)
@click.option(
    "--coding",
    metavar="none|features|lossless",
    shell_complete=complete_coding,
    help="With --connect: what is compressed without loss on the link, where that is faster: nothing, the queries' "
    "inputs and feature maps, or weights too; by default lossless, but none for a server on this machine.",
)
@click.option(
    "--client",
    metavar="COSTS",
    shell_complete=complete_costs,
    help=f"With --connect: the costs of this machine, by default measured in a few passes: {COSTS_HELP}.",
)
@click.option(
    "--server",
    metavar="COSTS",
    shell_complete=complete_costs,
    help=f"With --connect: the costs of the server, by default those that it sends: {COSTS_HELP}.",
)
@json_option
def classify(
    image: str,
    model: str,
    weights: Path | None,
    labels: Path | None,
    top: int,
    connect: str | None,
    key: Path | None,
    server_key: Path | None,
    wait_s: float | None,
    audit: float,
    audit_tolerance: float,
    algorithm: str,
    planner: str | None,
    mbps: float | None,
    coding: str | None,
    client: str | None,
    server: str | None,
    as_json: bool,
) -> None:
    """Classify IMAGE with MODEL, here or with a server's help. Prints the classes with the highest scores, and where
    each stage ran for how long.

    IMAGE is a file, or the name of a photograph that comes with scikit-image, such as astronaut, chelsea, coffee or
    rocket. With --connect, the model is uploaded to the server before the query, as far as --wait-s allows.

    Example: ionn classify chelsea --model googlenet
    """
    from ionn import api
    from ionn.coding import LOSSLESS
    from ionn.files import read_text
    from ionn.model.network import Network
    from ionn.protocol.curve import client_keys

    if connect is None and (given := given_option(_FOR_SERVERS)) is not None:
        raise InputError(f"{given} is for a server; give --connect too, or leave it out")
    if audit_tolerance and not audit:
        raise InputError("--audit-tolerance is for audits; give --audit too, or leave it out")
    algorithm = chosen_algorithm(algorithm, planner)
    keys = client_keys(key, server_key)
    network = Network.load(model)
    if coding == LOSSLESS:
        warn_of_raw_weights(model, weights)
    data = api.image_input(image, network.input_shape)
    names = _labels(read_text(labels, "the labels").splitlines(), network) if labels is not None else None
    with api.connect(
        model, connect, weights=None if weights is None else str(weights), client=client, server=server, mbps=mbps,
        algorithm=algorithm, coding=coding, keys=keys, audit=audit, audit_tolerance=audit_tolerance,
    ) as session:  # fmt: skip
        if connect is not None:
            session.wait_uploaded(wait_s)
        answer = session.query(data)
        fault = session.fault
        shown = _answer_json(session, answer, names, top)
    if as_json:
        for row in shown["classes"]:
            if not math.isfinite(row["score"]):  # JSON has no NaN and no infinity
                row["score"] = None
    click.echo(json.dumps(shown, allow_nan=False) if as_json else _answer_text(shown))
    if isinstance(fault, WrongResultError):
        raise fault
    if fault is not None:
        alone = all(segment.where == "client" for segment in answer.segments)
        raise ServerUnreachableError(f"{fault}; the query {'ran at the client' if alone else 'used what was uploaded'}")


def _labels(labels: list[str], network: Network) -> list[str]:
    """Return the labels. Raises InputError unless there is one for each class."""
    classes = math.prod(network.stages[-1].output_shapes[0][1:])
    if len(labels) != classes:
        raise InputError(f"{len(labels)} labels for the {classes} classes of {network.name}; give one a line")
    return labels


def _answer_json(session: Session, answer: Answer, labels: list[str] | None, top: int) -> dict[str, Any]:
    name, output = next(iter(answer.outputs.items()))
    scores = (output[0] if output.ndim else output).ravel()  # a batch holds the same image several times
    best = (-scores).argsort(kind="stable")[:top].tolist()
    stages = session.network.stages
    return {
        "model": session.network.name,
        "output": name,
        "classes": [
            {"class": index, "score": float(scores[index])} | ({"label": labels[index]} if labels else {})
            for index in best
        ],
        "latency_ms": answer.latency_ms,
        "audited": answer.audited,
        "feature_bytes": answer.feature_bytes,
        "feature_wire_bytes": answer.feature_wire_bytes,
        "uploaded": session.uploaded if session.plan.uploads else None,
        "segments": [
            {
                "where": segment.where,
                "stages": [stage.name for stage in stages[segment.first : segment.last + 1]],
                "compute_ms": segment.compute_ms,
                "total_ms": segment.total_ms,
                "stage_ms": list(segment.stage_ms),
            }
            for segment in answer.segments
        ],
    }


def _answer_text(shown: dict[str, Any]) -> str:
    lines = [f"{'score':>8}  class"]
    for row in shown["classes"]:
        lines.append(f"{row['score']:>8.4f}  {row.get('label', row['class'])}")
    uploaded = "" if shown["uploaded"] is None else f", {shown['uploaded']:.0%} of the plan uploaded"
    audited = ", audited" if shown["audited"] else ""
    lines.append(f"\n{shown['model']}: {shown['latency_ms']:.1f} ms{uploaded}{audited}")
    lines.append(f"{'where':<6} {'compute ms':>10}  stage")
    for segment in shown["segments"]:
        extra_ms = segment["total_ms"] - segment["compute_ms"]
        stage_ms = segment["stage_ms"] or [segment["compute_ms"]]  # a stage that ran at both sides
        for stage, ms in zip(segment["stages"], stage_ms, strict=True):
            lines.append(f"{segment['where']:<6} {ms:>10.2f}  {stage}")
        if segment["where"] != "client":
            lines.append(f"{'link':<6} {extra_ms:>10.2f}  there and back")
    return "\n".join(lines)
