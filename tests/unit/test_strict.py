"""JSON and numbers from outside."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.strict import DEPTH_MAX, NATURAL_MAX, TIME_MAX_MS, natural, parse_json, time_ms

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-NATURAL_MAX, NATURAL_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON, st.booleans())
def test_what_json_is_is_read(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == parse_json(text.encode()) == value


NOT_JSON: dict[str, str | bytes] = {
    "NaN": "NaN",
    "Infinity": "[Infinity]",
    "-Infinity": '{"a": -Infinity}',
    "1e999": "[1e999]",
    "-1e999": "-1e999",
    "2^63": str(2**63),
    "-2^63": str(-(2**63)),
    "5000 digits": "9" * 5000,
    "UTF-16": '"a"'.encode("utf-16"),
    "UTF-16 without a mark": '"a"'.encode("utf-16-le"),
    "UTF-32": '"a"'.encode("utf-32"),
    "a mark": '"a"'.encode("utf-8-sig"),
    "Latin-1": b'"\xe9"',
    "half a pair": r'"\ud800"',
    "the other half": r'"\uDFFF"',
    "half a pair as a key": r'{"\ud800": 1}',
    "half a pair deep down": r'[[{"a": ["\ud800"]}]]',
    "encoded half a pair": b'"\xed\xa0\x80"',
    "nothing": "",
    "two": "1 2",
    "a trailing comma": "[1,]",
    "single quotes": "'a'",
    "a line in a string": '"\n"',
    "deep lists": "[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1),
    "very deep": "[" * 10**6,
    "deep objects": '{"a":' * (DEPTH_MAX + 1) + "1" + "}" * (DEPTH_MAX + 1),
}


@pytest.mark.parametrize("which", NOT_JSON)
def test_what_is_not_json_is_a_value_error(which: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(NOT_JSON[which])


def test_the_limits_themselves_are_read() -> None:
    assert parse_json(str(NATURAL_MAX)) == NATURAL_MAX
    assert parse_json("1.7976931348623157e308") == 1.7976931348623157e308
    deep = parse_json("[" * DEPTH_MAX + "]" * DEPTH_MAX)
    for _ in range(DEPTH_MAX - 1):
        (deep,) = deep
    assert deep == []
    assert parse_json('{"a":' * DEPTH_MAX + "1" + "}" * DEPTH_MAX)
    assert parse_json(r'"\ud83d\ude00"') == "\N{GRINNING FACE}"


def test_naturals() -> None:
    assert [natural(value) for value in (0, 1, NATURAL_MAX)] == [0, 1, NATURAL_MAX]
    wrong: list[object] = [-1, NATURAL_MAX + 1, 1.0, True, "1", None, [], 10**400]
    for value in wrong:
        with pytest.raises(ValueError, match="is not a natural number"):
            natural(value)


def test_times() -> None:
    assert [time_ms(value) for value in (0, 0.5, 3, TIME_MAX_MS)] == [0.0, 0.5, 3.0, TIME_MAX_MS]
    beyond = math.nextafter(TIME_MAX_MS, math.inf)
    for value in (-1e-9, beyond, 1e308, math.inf, -math.inf, math.nan, True, "1", None, 10**400):
        with pytest.raises(ValueError, match="is not a time"):
            time_ms(value)
