"""The messages of Caffe as ionn declares them, beside those of the Caffe that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from ionn.model import proto
from ionn.model.layers import LAYER_TYPES
from ionn.model.proto import LayerParameter, NetParameter, blank_unread

# Declared, and not in the installed Caffe. BVLC's Caffe has the fields; parameters of its Clip and Swish are not read.
OURS = {("PoolingParameter", "round_mode"), ("LayerParameter", "clip_param"), ("LayerParameter", "swish_param")}
# Not declared in full: only their names and blobs are read.
PARTIAL = {"V1LayerParameter"}


def installed() -> Any:
    pytest.importorskip("caffe")
    from caffe.proto import caffe_pb2

    return caffe_pb2.DESCRIPTOR


def declared() -> Any:
    return NetParameter.DESCRIPTOR.file


def fields(message: Any) -> dict[str, FieldDescriptorProto]:
    """The fields of a message, each with its default spelt out, whether or not its declaration does that."""
    result = DescriptorProto()
    message.CopyToProto(result)
    for field in result.field:
        field.ClearField("json_name")
        field.default_value = repr(message.fields_by_name[field.name].default_value)
    return {field.name: field for field in result.field}


def is_unread(field: Any) -> bool:
    return field.message_type is not None and field.message_type.name == "Unread"


@pytest.mark.parametrize("name", sorted({*declared().message_types_by_name} - {"Unread"}))
def test_a_message_is_what_it_is_in_the_installed_caffe(name: str) -> None:
    message = declared().message_types_by_name[name]
    ours, theirs = fields(message), fields(installed().message_types_by_name[name])
    same = {field for field in ours.keys() & theirs.keys() if not is_unread(message.fields_by_name[field])}
    assert same
    assert {field: ours[field] for field in same} == {field: theirs[field] for field in same}
    assert {(name, field) for field in ours.keys() - theirs.keys()} <= OURS
    assert name in PARTIAL or ours.keys() >= theirs.keys()


def test_enumerations_have_the_values_of_the_installed_caffe() -> None:
    def values(enumerations: Any) -> dict[str, dict[str, int]]:
        return {
            enumeration.name: {value.name: value.number for value in enumeration.values} for enumeration in enumerations
        }

    theirs = installed()
    assert values(declared().enum_types_by_name.values()) == values(theirs.enum_types_by_name.values())
    for name, message in declared().message_types_by_name.items():
        if name not in {"Unread", *PARTIAL}:
            ours = values(message.enum_types)
            if name == "PoolingParameter":
                assert ours.pop("RoundMode") == {"CEIL": 0, "FLOOR": 1}
            assert ours == values(theirs.message_types_by_name[name].enum_types), name


def test_numbers_of_our_own_are_no_numbers_of_caffe() -> None:
    """They would be taken for something else in a caffemodel."""
    for name, message in declared().message_types_by_name.items():
        own = {field.number for field in message.fields if is_unread(field) or (name, field.name) in OURS}
        assert not own or own.isdisjoint(installed().message_types_by_name[name].fields_by_number), name


def test_what_an_allowed_layer_computes_from_is_read() -> None:
    for kind, rule in LAYER_TYPES.items():
        if rule.param:
            assert not is_unread(LayerParameter.DESCRIPTOR.fields_by_name[rule.param]), kind


def test_our_messages_and_caffe_live_in_one_process() -> None:
    pytest.importorskip("caffe")
    code = """if True:
        import {}, {}
        from caffe.proto import caffe_pb2
        from ionn.model import proto
        ours, theirs = (each.NetParameter(name="n") for each in (proto, caffe_pb2))
        assert type(ours) is not type(theirs)
        assert ours.SerializeToString() == theirs.SerializeToString()
    """
    for order in (("caffe", "ionn.model.network"), ("ionn.model.network", "caffe")):
        subprocess.run([sys.executable, "-c", code.format(*order)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "blanked"),
    [
        ("", ""),
        ("layer { relu_param { negative_slope: 1 } }", "layer { relu_param { negative_slope: 1 } }"),
        ("data_param { source: 'x' } name: 'n'", "data_param {             } name: 'n'"),
        ("data_param: < a { b < c: 1 > } > x", "data_param: <                  > x"),
        ("data_param # } {\n{ a: 1\n b: '}' # }\n} x", "data_param # } {\n{     \n           \n} x"),
        ('name: "data_param" { x }', 'name: "data_param" { x }'),
        (r'python_param { a: "\"}" } layers { b: 1 }', "python_param {          } layers {      }"),
        ("data_param { a: 1", "data_param { a: 1"),
        ("data_param { a: 'x\n} y", "data_param {      \n} y"),
        ("} data_param {} }", "} data_param {} }"),
    ],
)
def test_what_is_not_read_is_blank(text: str, blanked: str) -> None:
    assert blank_unread(text) == blanked


def test_a_text_without_what_is_not_read_stays_as_it_is() -> None:
    for path in (Path(__file__).resolve().parents[2] / "prototxt").glob("*.prototxt"):
        text = path.read_text(encoding="utf-8")
        assert blank_unread(text) == text


def test_quotes_and_backslashes_without_end_take_no_time() -> None:
    """A stranger's text: 100,000 of them would take hours if each looked for its end."""
    for text in ('\\"' * 100_000, '"\\', "data_param {" * 100_000, "'" * 100_001):
        assert blank_unread(text) == text


def test_an_unread_message_is_read_as_one_without_fields() -> None:
    text = 'layer { name: "a" transform_param { scale: 2 } clip_param < min: 0 max: 6 > } layers { type: RELU }'
    net = text_format.Parse(blank_unread(text), NetParameter())
    assert net == NetParameter(
        layer=[LayerParameter(name="a", transform_param={}, clip_param={})], layers=[proto.V1LayerParameter()]
    )
