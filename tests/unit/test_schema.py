"""JSON and numbers from outside."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ionn.schema import NATURAL_MAX, TIME_MAX_MS, Natural, Real, Tagged, TimeMs, Word, read_json


@dataclass
class Circle:
    radius: Natural


@dataclass
class Square:
    side: Natural


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
    assert read_json(text) == read_json(text.encode()) == value


NOT_JSON: dict[str, str | bytes] = {
    "NaN": "NaN",
    "Infinity": "[Infinity]",
    "-Infinity": '{"a": -Infinity}',
    "1e999": "[1e999]",
    "-1e999": "-1e999",
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
    "deep lists": "[" * 10**6 + "]" * 10**6,
    "deep objects": '{"a":' * 10**5 + "1" + "}" * 10**5,
}


@pytest.mark.parametrize("which", NOT_JSON)
def test_what_is_not_json_is_a_value_error(which: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_json(NOT_JSON[which])


def test_the_limits_themselves_are_read() -> None:
    assert read_json("1.7976931348623157e308") == 1.7976931348623157e308
    assert read_json(r'"\ud83d\ude00"') == "\N{GRINNING FACE}"


def test_naturals() -> None:
    assert [read_json(text, Natural) for text in ("0", "1", str(NATURAL_MAX))] == [0, 1, NATURAL_MAX]
    for text in ("-1", str(NATURAL_MAX + 1), "1.0", "1e0", "true", '"1"', "null", "[]", "1" + "0" * 400, "9" * 5000):
        with pytest.raises(ValueError, match=r"Expected `int`|out of range"):
            read_json(text, Natural)


def test_times() -> None:
    for text, ms in (("0", 0.0), ("0.5", 0.5), ("3", 3.0), ("1e9", TIME_MAX_MS)):
        read = read_json(text, TimeMs)
        assert (read, type(read)) == (ms, float)
    beyond = repr(math.nextafter(TIME_MAX_MS, math.inf))
    for text in ("-1e-9", beyond, "1e308", "true", '"1"', "null", "1" + "0" * 400):
        with pytest.raises(ValueError, match=r"Expected `float`|out of range"):
            read_json(text, TimeMs)


def test_sums_of_times() -> None:
    assert read_json("1e40", Real) == 1e40
    assert read_json("0", Real) == 0
    for text in ("-1e-9", repr(math.nextafter(1e40, math.inf))):
        with pytest.raises(ValueError, match="Expected `float`"):
            read_json(text, Real)


def test_words_are_short_and_can_be_shown() -> None:
    for word in ("", "a b", "~" * 100):
        assert read_json(json.dumps(word), Word) == word
    for word in ("~" * 101, "\x1b[31m", "a\n", "\u202e", "\x7f"):
        with pytest.raises(ValueError, match="Expected `str`"):
            read_json(json.dumps(word), Word)


def test_a_tag_chooses_the_class() -> None:
    shapes = Tagged("kind", {"circle": Circle, "square": Square})
    assert shapes.read('{"kind": "circle", "radius": 2}') == Circle(2)
    assert shapes.read(b'{"side": 3, "unknown": [{}], "kind": "square"}') == Square(3)
    for text, reason in {
        '{"kind": "square", "radius": 2}': "missing required field `side`",
        '{"kind": "star"}': "unknown kind 'star'",
        '{"kind": 3}': "Expected `str`, got `int`",
        "{}": "missing required field `kind`",
        "[]": "Expected `object`, got `array`",
        '{"kind": "square", "side": 3, "deep": ' + "[" * 10**5 + "]" * 10**5 + "}": "nested too deeply",
    }.items():
        with pytest.raises(ValueError, match=reason):
            shapes.read(text)
