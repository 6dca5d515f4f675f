"""Arguments and options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ionn.limits import Limits, option
from ionn.paper import CLIENT, MBPS, RECURSIVE

COSTS_HELP = "a device name, a saved cost model or profile, a text file of 'index name ms' lines, or FILE.csv:COLUMN"


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click decorators as one, so that commands share theirs."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


model_argument = click.argument("model")
weights_argument = click.argument("weights", required=False)
mbps_option = click.option(
    "--mbps", default=MBPS, show_default=True, help="Bandwidth of the link, 10^6 bit/s each way."
)
algorithm_option = click.option("--algorithm", default=RECURSIVE, show_default=True, help="The planner.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
client_option = click.option(
    "--client", default=CLIENT, show_default=True, metavar="COSTS", help=f"The client: {COSTS_HELP}."
)
results_option = click.option(
    "--results",
    default="results",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of traces and figures.",
)


key_option = click.option(
    "--key", type=click.Path(path_type=Path), help="Our secret key, a file of ionn keygen: encrypt the connection."
)
server_key_option = click.option(
    "--server-key", type=click.Path(path_type=Path), help="The public key of the server; with --key."
)
limit_options = options(
    *(
        click.option(
            option(limit.name), type=type(limit.default), default=limit.default, show_default=True,
            help=limit.metadata["reason"],
        )
        for limit in fields(Limits)
    )
)  # fmt: skip
