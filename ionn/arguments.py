"""Checks of the arguments that users of the library give. Each function returns the argument, or raises InputError that
names it."""

from __future__ import annotations

import math
import numbers
import operator
import os
from pathlib import Path
from typing import Any

from ionn.errors import InputError

# The largest number of runs, passes or classes: nobody waits for more.
COUNT_MAX = 1_000_000


def shown(given: object) -> str:
    """An argument as it is shown in a message, cut if it is long."""
    try:
        text = repr(given)
    except Exception:  # the repr of a user's own class may raise anything
        text = f"a {type(given).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def text_of(given: Any, what: str) -> str:
    if not isinstance(given, str):
        raise InputError(f"{what} {shown(given)}: give a text")
    return given


def path_of(given: Any, what: str) -> Path:
    """A path, from a text or a path. It need not exist."""
    try:
        path = Path(given)
        usable = b"\0" not in os.fsencode(path)
    except (TypeError, UnicodeEncodeError):  # half a surrogate pair cannot be encoded
        usable = False
    if not usable:
        raise InputError(f"{what} {shown(given)}: give a path, as a text without null bytes or a pathlib.Path")
    return path


def name_of(given: Any, what: str) -> str:
    """The text of an argument that may be a name or a path."""
    return given if isinstance(given, str) and "\0" not in given else str(path_of(given, what))


def number_of(given: Any, what: str) -> float:
    """A float that is not NaN; it may be infinite."""
    try:
        number = float(given) if isinstance(given, numbers.Real) and not isinstance(given, bool) else None
    except OverflowError:
        number = None
    if number is None or number != number:
        raise InputError(f"{what} {shown(given)}: give a number")
    return number


def decimal_of(text: str) -> float:
    """The number in a text, NaN if it is none. Unlike float(), this refuses 1_000 and digits of other scripts, which
    other programs cannot read."""
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def share_of(given: Any, what: str) -> float:
    """A float from 0 to 1."""
    number = number_of(given, what)
    if not 0 <= number <= 1:
        raise InputError(f"{what} {shown(given)}: give a number from 0 to 1")
    return number


def count_of(given: Any, what: str) -> int:
    """An int from 1 to COUNT_MAX."""
    try:
        count = 0 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        count = 0
    if not 1 <= count <= COUNT_MAX:
        raise InputError(f"{what} {shown(given)}: give a whole number from 1 to {COUNT_MAX}")
    return count
