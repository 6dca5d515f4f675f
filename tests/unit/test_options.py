"""Every number that a command takes has a range, and what is out of it is refused before anything else happens."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest

from ionn.cli import cli
from ionn.errors import InputError
from ionn.server.limits import Limits, option

NUMBERS = ["0", "-1", "nan", "-nan", "inf", "-inf", "1e300", "1e14", "1e-300", "100000000000000", "9" * 23]
# Those whose ranges `Settings` has.
OF_A_RUN = ("seed", "dilation", "noise")
OPTIONS = {
    f"{command.name} --{parameter.name}": (command, parameter)
    for command in cli.commands.values()
    for parameter in command.params
    if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType)
    and not (command.name in ("run", "link") and parameter.name in OF_A_RUN)
}


def test_all_options_are_here() -> None:
    assert {f"serve --{limit.name}" for limit in fields(Limits)} < OPTIONS.keys()
    assert {f"{command} --mbps" for command in ("plan", "run", "classify", "link")} < OPTIONS.keys()
    assert {"ping --timeout_s", "classify --wait_s", "classify --top", "run --runs", "profile --runs"} < OPTIONS.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_number_out_of_its_range_is_refused(name: str) -> None:
    command, parameter = OPTIONS[name]
    kind: Any = parameter.type
    assert isinstance(kind.min, int | float)
    assert isinstance(kind.max, int | float)
    taken = {}
    for text in (*NUMBERS, str(kind.min), str(kind.max)):
        with contextlib.suppress(click.BadParameter):
            value = parameter.type_cast_value(click.Context(command), [text] if parameter.multiple else text)
            taken[text] = value[0] if parameter.multiple else value
    assert taken.keys() >= {str(kind.min), str(kind.max)}
    assert all(kind.min <= number <= kind.max for number in taken.values())


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: command.name)
def test_the_help_of_a_command_names_its_own_options(command: click.Command) -> None:
    """Or says whose they are, as in 'ionn run --link'."""
    texts = [command.help, *(parameter.help for parameter in command.params if isinstance(parameter, click.Option))]
    text = " ".join(" ".join(filter(None, texts)).split())
    for of, name in re.findall(r"(?:ionn (\w+) (?:[^\s-]\S* )?)?(--[a-z-]+)", text):
        known = cli.commands[of] if of else command
        assert name in {each for parameter in known.params for each in (*parameter.opts, *parameter.secondary_opts)}


CHOICES = [
    (command, parameter)
    for command in cli.commands.values()
    for parameter in command.params
    if isinstance(parameter.type, click.Choice)
]


@pytest.mark.parametrize(("command", "parameter"), CHOICES, ids=lambda each: each.name)
def test_a_word_that_is_nearly_one_of_a_choice_is_told_which(
    command: click.Command, parameter: click.Parameter
) -> None:
    words: Any = parameter.type.choices  # type: ignore[attr-defined]
    for word in words:
        assert parameter.type_cast_value(click.Context(command), word) == word
        with pytest.raises(click.BadParameter, match=f"'{word}x' is not one of '.*'; did you mean {word}\\?$"):
            parameter.type_cast_value(click.Context(command), f"{word}x")
    with pytest.raises(click.BadParameter, match=r"'zzz' is not one of '[^;]*'$"):
        parameter.type_cast_value(click.Context(command), "zzz")


def test_all_choices_are_here() -> None:
    assert {f"{command.name} {parameter.name}" for command, parameter in CHOICES} >= {
        "run testbed", "run upload", "run busy", "bandwidth mobility",
    }  # fmt: skip


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_run_is_refused_or_runs(name: str, tiny_files: Path) -> None:
    testbed = "live" if name == "dilation" else "virtual"
    taken = set()
    for text in NUMBERS:
        with contextlib.suppress(InputError, click.BadParameter):
            cli.main(["run", str(tiny_files), "--testbed", testbed, f"--{name}", text], standalone_mode=False)
            taken.add(text)
    assert taken == {"seed": {"0", "100000000000000"}, "noise": {"0", "1e-300"}, "dilation": set()}[name]


def limited(name: str, value: Any) -> Limits:
    return replace(Limits(), **{name: value})


@pytest.mark.parametrize("limit", fields(Limits), ids=lambda limit: limit.name)
def test_limits_have_the_same_ranges(limit: Any) -> None:
    least, most = limit.metadata["least"], limit.metadata["most"]
    for value in (least, limit.default, most):
        assert getattr(limited(limit.name, value), limit.name) == value
    for value in (least / 2, most * 2, 0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match=f"^{option(limit.name)} .*: give a number from .* to "):
            limited(limit.name, value)
