"""What comes from outside is read here: JSON text, and the numbers in it.

Peers, cost files and traces are JSON. Python's own reader takes more than that: NaN and Infinity, numbers that become
infinite, integers and nesting without end, UTF-16, halves of surrogate pairs. Each of them has surprised somebody far
from where it was read, so none gets past this module.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

# Integers fit 64 bits, signed, as numpy's and the C libraries' do.
NATURAL_MAX = 2**63 - 1
# A time in ms, and a time per unit of work: eleven days. Sums and products of these stay finite.
TIME_MAX_MS = 1e9
# Objects and arrays within one another; messages and files of ours have eight.
DEPTH_MAX = 64

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text, which is UTF-8 where it is bytes.

    Raises ValueError for what is not strictly JSON, for numbers beyond 64 bits or the range of a double, for text that
    is not Unicode, and for more than DEPTH_MAX levels.
    """
    if not isinstance(text, str):
        text = str(text, "utf-8")
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_float, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_text = _HALF_PAIR.search(text) is not None
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        if check_text:
            _check_text(level)
        containers = [each for each in level if type(each) in (dict, list)]
        if not containers:
            return value
        if check_text:
            _check_text([key for each in containers if type(each) is dict for key in each])
        level = [inner for each in containers for inner in (each.values() if type(each) is dict else each)]
    raise ValueError("it is nested too deeply")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text:.40} is beyond the range of a double")
    return value


def _integer(text: str) -> int:
    # Python takes very long for very long ones.
    if len(text) > 20 or not -NATURAL_MAX <= (value := int(text)) <= NATURAL_MAX:
        raise ValueError(f"{text:.40} is beyond 64 bits")
    return value


def _check_text(values: list[Any]) -> None:
    for value in values:
        if type(value) is str:
            value.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair


def natural(value: object) -> int:
    """A natural number. Raises ValueError for anything else, true and 1.0 included, and beyond NATURAL_MAX."""
    if type(value) is not int or not 0 <= value <= NATURAL_MAX:
        raise ValueError(f"{value!r:.40} is not a natural number")
    return value


def time_ms(value: object) -> float:
    """A time in ms, from 0 to TIME_MAX_MS. Raises ValueError for anything else."""
    # The comparison is false for NaN, and exact for integers that no float can hold.
    if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value <= TIME_MAX_MS):
        raise ValueError(f"{value!r:.40} is not a time")
    return float(value)
