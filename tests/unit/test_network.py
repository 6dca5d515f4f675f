"""Networks and their chains of stages: layers against Caffe, cut points against brute force."""

from __future__ import annotations

import csv
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings

from ionn.client.connection import FRAMES_MAX
from ionn.errors import InputError
from ionn.model.network import OUTPUTS_MAX, Layer, Network
from ionn.paper import MODELS
from tests.support.machine import PROFILES, needs_reference
from tests.support.nets import DATA, ONE, conv, layer, random_nets, relu

caffe = pytest.importorskip("caffe")


ALEXNET_LIKE = (
    DATA
    + conv("conv1", "data", 6, "kernel_size: 3 stride: 2")
    + relu("conv1")
    + layer("LRN", "norm1", "conv1")
    + layer("Pooling", "pool1", "norm1", None, "pooling_param { kernel_size: 2 stride: 2 }")
    + conv("conv2", "pool1", 8, "kernel_size: 3 pad: 1 group: 2")
    + relu("conv2")
    + layer("InnerProduct", "fc", "conv2", None, "inner_product_param { num_output: 10 }")
    + relu("fc")
    + layer("Dropout", "drop", "fc", "fc")
    + layer("InnerProduct", "score", "fc", None, "inner_product_param { num_output: 5 }")
    + layer("Softmax", "prob", "score")
)
INCEPTION_LIKE = (
    DATA
    + conv("a", "data", 4, ONE)
    + relu("a")
    + conv("left", "a", 2, ONE)
    + relu("left")
    + conv("reduce", "a", 2, ONE)
    + conv("right", "reduce", 3, "kernel_size: 3 pad: 1")
    + layer("Pooling", "pool", "a", None, "pooling_param { kernel_size: 3 stride: 1 pad: 1 }")
    + layer("Concat", "output", "left right pool")
    + layer("Pooling", "global", "output", None, "pooling_param { pool: AVE global_pooling: true }")
)
RESIDUAL = (
    DATA
    + conv("a", "data", 4, ONE)
    + conv("b", "a", 4, ONE)
    + layer("BatchNorm", "bn_b", "b", "b")
    + layer("Scale", "scale_b", "b", "b", "scale_param { bias_term: true }")
    + relu("b")
    + layer("Eltwise", "sum", "a b")
    + layer("ReLU", "relu_sum", "sum", "sum")
    + conv("c", "sum", 2, ONE)
)
IN_PLACE_CHAIN = (
    DATA
    + layer("Power", "mean", "data", "data", "power_param { shift: -1 }")
    + conv("a", "data", 4, ONE)
    + layer("BatchNorm", "bn", "a", "a")
    + layer("Scale", "scale", "a", "a")
    + relu("a")
    + layer("ReLU", "b", "a")
    + layer("Dropout", "drop", "b", "b")
)
TWO_OUTPUTS = (
    DATA
    + conv("a", "data", 4, ONE)
    + conv("b", "a", 4, ONE)
    + conv("z", "b", 4, ONE)
    + conv("c", "b", 3, ONE)
    + layer("Softmax", "y", "c")
)
DEAD_ENDS = (
    DATA
    + conv("a", "data", 4, ONE)
    + layer("Pooling", "pool", "a", "pool mask", "pooling_param { kernel_size: 2 stride: 2 }")
    + layer("Slice", "slice", "pool", "s1 s2")
    + layer("Silence", "quiet", "s2 mask", "")
    + conv("b", "s1", 4, ONE)
)
UNCUTTABLE = (
    DATA
    + conv("left", "data", 4, ONE)
    + conv("right", "data", 4, ONE)
    + layer("Eltwise", "first", "left right")
    + layer("Eltwise", "sum", "data first")
)
TWICE_THE_SAME = DATA + conv("a", "data", 4, ONE) + layer("Eltwise", "twice", "a a") + layer("Softmax", "prob", "twice")
LEGACY_DIM = 'input: "x" input_dim: 1 input_dim: 4 input_dim: 8 input_dim: 8\n' + conv("a", "x", 4, ONE)
LEGACY_SHAPE = 'input: "x" input_shape { dim: 1 dim: 4 dim: 8 dim: 8 }\n' + conv("a", "x", 4, ONE)
PHASES = (
    'state { stage: "small" level: 7 }'
    + layer("Input", "train", "", "data", "include { phase: TRAIN } input_param { shape { dim: 9 dim: 4 } }")
    + DATA
    + conv("a", "data", 4, ONE, "exclude { phase: TRAIN }")
    + conv("b", "a", 4, ONE, "exclude { phase: TEST }")
    + conv("c", "a", 4, ONE, 'include { phase: TRAIN } include { phase: TEST stage: "small" not_stage: "large" }')
    + conv("d", "c", 4, ONE, 'include { stage: "large" }')
    + conv("e", "c", 4, ONE, "include { min_level: 1 }")
    + conv("f", "c", 4, ONE, "include { max_level: 0 }")
    + conv("g", "c", 4, ONE, 'include { not_stage: "small" }')
    + conv("h", "c", 4, ONE, "include { max_level: -1 }")
)
TRAINING_FIELDS = (
    DATA
    + conv("a", "data", 4, ONE + ' weight_filler { type: "xavier" }', 'param { name: "w" lr_mult: 0 }')
    + layer("BatchNorm", "bn", "a", "a", "param { lr_mult: 0 } param { lr_mult: 0 } param { lr_mult: 0 }")
    + conv("b", "a", 4, ONE, 'param { name: "w2" lr_mult: 0 } param {} propagate_down: false')
)

EXPLICIT_SPLITS = (
    DATA
    + layer("Split", "s", "data", "a b")
    + layer("Split", "data_data_0_split", "a", "c")
    + conv("d", "b", 4, ONE)
    + layer("Eltwise", "sum", "c c d")
)
NAMES = (
    DATA
    + layer("ReLU", "", "data", "a")
    + layer("TanH", "", "a", "b", "loss_weight: 0")
    + conv("data/boundary", "b", 4, ONE)
    + layer("ReLU", "data", "data/boundary", "c")
)

NETS = {
    "alexnet-like": ALEXNET_LIKE,
    "inception-like": INCEPTION_LIKE,
    "residual": RESIDUAL,
    "in-place chain": IN_PLACE_CHAIN,
    "two outputs": TWO_OUTPUTS,
    "dead ends": DEAD_ENDS,
    "uncuttable": UNCUTTABLE,
    "twice the same": TWICE_THE_SAME,
    "legacy input_dim": LEGACY_DIM,
    "legacy input_shape": LEGACY_SHAPE,
    "phases": PHASES,
    "training fields": TRAINING_FIELDS,
    "explicit splits": EXPLICIT_SPLITS,
    "names": NAMES,
    "input alone": DATA,
    "in place alone": DATA + relu("data"),
}


def assert_as_caffe(network: Network, text: str, folder: Path) -> None:
    path = folder / "net.prototxt"
    path.write_text(text)
    net = caffe.Net(str(path), caffe.TEST)
    assert [layer.name for layer in network.layers] == list(net._layer_names)
    assert [layer.type for layer in network.layers] == [layer.type for layer in net.layers]
    blobs = list(net._blob_names)
    for ours, theirs in zip(network.layers, net.layers, strict=True):
        assert list(ours.bottoms) == [blobs[index] for index in net._bottom_ids(ours.index)]
        assert list(ours.tops) == [blobs[index] for index in net._top_ids(ours.index)]
        assert ours.bottom_shapes == tuple(tuple(net.blobs[blob].data.shape) for blob in ours.bottoms)
        assert ours.top_shapes == tuple(tuple(net.blobs[blob].data.shape) for blob in ours.tops)
        assert ours.weight_shapes == tuple(tuple(blob.data.shape) for blob in theirs.blobs)
    assert list(network.outputs) == net.outputs
    assert [network.input] == net.inputs


@pytest.mark.parametrize("name", NETS)
def test_layers_are_those_of_caffe(name: str, tmp_path: Path) -> None:
    network = Network.from_text(NETS[name], name)
    assert_as_caffe(network, NETS[name], tmp_path)
    assert_as_caffe(network, text_format.MessageToString(network.param), tmp_path)


@needs_reference
@pytest.mark.parametrize("model", MODELS)
def test_paper_models_are_those_of_the_published_profiles(model: str) -> None:
    with (PROFILES / f"{model}.csv").open(newline="") as file:
        published = [
            (row["layer"], row["type"], row["output_shape"], row["weight_bytes"]) for row in csv.DictReader(file)
        ]
    layers = Network.load(model).layers
    ours = [(la.name, la.type, "x".join(map(str, la.top_shapes[0])), str(la.weight_bytes)) for la in layers]
    assert ours == published


def stages(text: str) -> list[str]:
    """The stages as "name: layers", pinned ones in brackets."""
    network = Network.from_text(text, "net")
    lines = [f"{stage.name}: {' '.join(stage.layers)}" for stage in network.stages]
    return [f"[{line}]" if stage.pinned else line for line, stage in zip(lines, network.stages, strict=True)]


def test_in_place_layers_belong_to_the_layer_they_overwrite() -> None:
    assert stages(ALEXNET_LIKE) == [
        "[data: data]",
        "conv1: conv1 relu_conv1",
        "norm1: norm1",
        "pool1: pool1",
        "conv2: conv2 relu_conv2",
        "fc: fc relu_fc drop",
        "score: score",
        "[prob: prob]",
    ]


def test_an_inception_module_is_one_stage() -> None:
    assert stages(INCEPTION_LIKE) == [
        "[data: data]",
        "a: a relu_a",
        "output: a_relu_a_0_split left relu_left reduce right pool output",
        "[global: global]",
    ]


def test_a_residual_block_is_one_stage() -> None:
    assert stages(RESIDUAL) == [
        "[data: data]",
        "a: a",
        "sum: a_a_0_split b bn_b scale_b relu_b sum relu_sum",
        "c: c",
    ]


def test_layers_in_place_on_the_input_stay_with_it() -> None:
    assert stages(IN_PLACE_CHAIN) == ["[data: data mean]", "a: a bn scale relu_a", "[b: b drop]"]


def test_the_last_stage_holds_all_outputs() -> None:
    network = Network.from_text(TWO_OUTPUTS, "net")
    assert stages(TWO_OUTPUTS) == ["[data: data]", "a: a", "b: b", "y: b_b_0_split z c y"]
    last = network.stages[-1]
    assert network.outputs == last.outputs == ("y", "z")
    assert last.output_shapes == ((1, 3, 8, 8), (1, 4, 8, 8))


def test_dead_ends_are_not_cut_off() -> None:
    assert stages(DEAD_ENDS) == ["[data: data]", "a: a", "b: pool slice quiet b"]


def test_a_net_that_cannot_be_cut_is_one_stage_after_its_input() -> None:
    assert stages(UNCUTTABLE) == ["[data: data]", "sum: data_data_0_split left right first sum"]


def test_nothing_to_offload_is_a_stage_that_stays() -> None:
    assert stages(DATA) == ["[data: data]"]
    assert stages(DATA + relu("data")) == ["[data: data relu_data]"]


def test_explicit_splits_are_layers_like_others() -> None:
    assert stages(EXPLICIT_SPLITS) == ["[data: data]", "sum: s data_data_0_split c_data_data_0_split_0_split d sum"]
    inserted = [layer.name for layer in Network.from_text(EXPLICIT_SPLITS, "net").layers if layer.inserted]
    assert inserted == ["c_data_data_0_split_0_split"]


def test_stage_boundaries() -> None:
    network = Network.from_text(INCEPTION_LIKE, "net")
    first, a, module, last = network.stages
    assert (first.first_layer, first.last_layer, first.input, first.weight_bytes) == (0, 0, "data", 0)
    assert (a.input, a.input_shape, a.outputs, a.output_shapes) == ("data", (1, 4, 8, 8), ("a",), ((1, 4, 8, 8),))
    assert (module.first_layer, module.last_layer, module.input) == (3, 9, "a")
    assert module.weight_bytes == 4 * (4 * 2 + 2 + 4 * 2 + 2 + 2 * 3 * 9 + 3)
    assert (last.input, last.input_shape, last.output_shapes) == ("output", (1, 9, 8, 8), ((1, 9, 1, 1),))
    assert [stage.index for stage in network.stages] == [0, 1, 2, 3]


def test_bytes_of_a_layer() -> None:
    a = Network.from_text(INCEPTION_LIKE, "net").layers[1]
    assert (a.input_bytes, a.output_bytes, a.weight_bytes) == (4 * 256, 4 * 256, 4 * (16 + 4))
    assert a.operations == 256 * 4


def test_a_thousand_stages() -> None:
    text = DATA + conv("c0", "data", 4, ONE)
    for i in range(1, 700):
        text += conv(f"c{i}", f"c{i - 1}", 4, ONE) + relu(f"c{i}")
    network = Network.from_text(text, "deep")
    assert len(network.layers) == 1400
    assert [stage.name for stage in network.stages] == ["data", *(f"c{i}" for i in range(700))]


BAD = [
    ("", "no Input layer"),
    ("layer {", 'bad:1:7: Expected "}".'),
    ('name: "n"\nlayer { kind: "x" }', "bad:2:9: "),
    ('layers { name: "a" type: RELU }', "upgrade_net_proto_text"),
    (
        'layer { name: "up" type: "Interp" interp_param { a: 1 } }',
        "layer 'up' of type 'Interp': Caffe has no such",
    ),
    ('layer { type: "Data" data_param { a: 1 } top: 1 }', "bad:1:47: "),
    (
        'layer { type: "Data" data_param { a: 1 } kind: 1 }',
        'bad:1:42: Message type "caffe.LayerParameter" has no',
    ),
    ('layer { type: "ReLU" relu_param { a: 1 } }', 'bad:1:35: Message type "caffe.ReLUParameter" has no field'),
    (layer("Unsqueeze", "a", "", "b", "unsqueeze_param {}"), "layer[0].unsqueeze_param.dim is missing"),
    ('input: "x"\n' + conv("a", "x", 4, ONE), "one 'input_shape' or four 'input_dim'"),
    ('input: "x" input_dim: 1\n' + conv("a", "x", 4, ONE), "one 'input_shape' or four 'input_dim'"),
    ('input: "x" input: "y" input_shape { dim: 1 }' + relu("x"), "give one 'input'"),
    (DATA + layer("Input", "more", "", "m", "input_param { shape { dim: 1 } }") + relu("m"), "it has 2 inputs"),
    (layer("Input", "data", "", "a b", "input_param { shape { dim: 1 } }") + relu("a"), "it has 2 inputs"),
    (relu("x") + DATA, "no layer before it makes its bottom 'x'"),
    (layer("Input", "data", "", "", ""), "it has 0 inputs"),
    (DATA + layer("LRN", "n", "data", "data"), "cannot work in place on 'data', where it may read what it has"),
    (DATA + relu("lost"), "'relu_lost' of type 'ReLU': no layer before it makes its bottom 'lost'"),
    (conv("a", "data", 4, ONE) + DATA, "no layer before it makes its bottom 'data'"),
    (DATA + conv("a", "data", 4, ONE) + layer("ReLU", "b", "data", "a"), "its top 'a' was made before"),
    (DATA + conv("a", "data", 4, ONE) + layer("Slice", "s", "a", "b b"), "its top 'b' was made before"),
    # `a` is consumed twice, so Caffe puts a Split before the ReLU, which then is not in place any more.
    (DATA + conv("a", "data", 4, ONE) + conv("b", "a", 4, ONE) + relu("a"), "its top 'a' was made before"),
    (DATA + conv("a", "data", 4, ONE) + layer("ReLU", "a", "a", "b"), "another layer has its name"),
    (DATA + conv("a", "data", 4, ONE) + layer("Scale", "a", "a", "b"), "another layer has its name"),
    (DATA + layer("ReLU", "a", "data", None, "include {} exclude {}"), "include or exclude"),
    (DATA + layer("Dropout", "a", "data", None, "phase: TRAIN"), "phase TRAIN"),
    (DATA + layer("ReLU", "a", "data", None, "loss_weight: 1"), "loss_weight"),
    (DATA + conv("a", "data", 4, ONE, "blobs { data: 1 }"), "move them to the caffemodel"),
    (DATA + conv("a", "data", 4, "kernel_size: 9"), "'a' of type 'Convolution': its kernel of 9"),
    (DATA + layer("SoftmaxWithLoss", "loss", "data data"), "for training"),
    (DATA + layer("HDF5Output", "out", "data data", "", 'hdf5_output_param { file_name: "x" }'), "files"),
    (DATA + layer("Silence", "quiet", "data", ""), "it has no output"),
    (
        DATA + conv("a", "data", 4, ONE, 'param { name: "w" }') + conv("b", "a", 4, ONE, 'param { name: "w" }'),
        "layer 'a' and layer 'b' share the parameter 'w'",
    ),
    (
        DATA + layer("BatchNorm", "a", "data", None, 'param { name: "w" } param { name: "w" }'),
        "layer 'a' and layer 'a' share the parameter 'w'",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_networks_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Network.from_text(text, "bad")
    assert message in str(caught.value)
    assert str(caught.value).startswith("bad:")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [300, 330, 5000])
@pytest.mark.parametrize(("begin", "end"), [("own {", "}"), ("own <", ">"), ("own: [{", "}]"), ("layer {", "}")])
def test_text_that_is_nested_deeply_is_refused_as_other_text_is(begin: str, end: str, depth: int) -> None:
    with pytest.raises(InputError, match=r"^bad:") as caught:
        Network.from_text(begin * depth + end * depth, "bad")
    assert "\n" not in str(caught.value)


def test_layers_for_training_are_left_out_with_all_that_only_caffe_reads() -> None:
    training = """
        layer { name: "d" type: "Data" top: "data" include { phase: TRAIN } data_param { source: "x" backend: LMDB }
                transform_param { mean_value: 1 mean_value: 2 } }
        layer { name: "l" type: "SoftmaxWithLoss" bottom: "a" include { phase: TRAIN } loss_param { normalize: true } }
    """
    text = DATA + conv("a", "data", 4, ONE)
    assert Network.from_text(training + text, "net") == Network.from_text(text, "net")


def test_text_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"^bad:1:11: ") as caught:
        Network.from_text("name: '\ud800' \x00", "bad")
    assert "\n" not in str(caught.value)


def test_load_by_name_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(ALEXNET_LIKE)
    assert Network.load(str(path)) == Network.from_text(ALEXNET_LIKE, "net")
    assert Network.load("alexnet").name == "alexnet"


def test_load_errors_name_the_model_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown model 'alexnett'; use one of alexnet, .*, or a path"):
        Network.load("alexnett")
    with pytest.raises(InputError, match=r"missing\.prototxt: cannot read the model: No such file"):
        Network.load(str(tmp_path / "missing.prototxt"))
    binary = tmp_path / "binary.prototxt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.prototxt:1: cannot read the model: the byte 0xff is not UTF-8"):
        Network.load(str(binary))
    binary.write_text("layer {\n  nme: 1\n}")
    with pytest.raises(InputError, match=r"binary\.prototxt:2:3: .*nme"):
        Network.load(str(binary))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".prototxt", "put a name before .prototxt"),
        ("..prototxt", "put a name before .prototxt"),
        ("...prototxt", "put a name before .prototxt"),
        (os.fsdecode(b"\xff.prototxt"), "cannot have this name, which is not UTF-8"),
        (os.fsdecode(b"\xff/deploy.prototxt"), "cannot have this name, which is not UTF-8"),
    ],
)
def test_a_file_must_give_its_model_a_name(name: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(ALEXNET_LIKE)
    with pytest.raises(InputError, match=reason):
        Network.load(str(path))


def test_a_text_must_be_given_a_name_that_can_be_written() -> None:
    with pytest.raises(InputError, match=r"^\?: a model cannot have this name, which is not UTF-8"):
        Network.from_text(ALEXNET_LIKE, "\udcff")


def test_a_network_has_as_many_outputs_as_one_message_carries() -> None:
    def net(outputs: int) -> str:
        tops = " ".join(f"t{index}" for index in range(outputs))
        return layer("Input", "d", "", "d", f"input_param {{ shape {{ dim: {outputs} }} }}") + layer(
            "Slice", "s", "d", tops, "slice_param { axis: 0 }"
        )

    assert OUTPUTS_MAX + 1 == FRAMES_MAX  # those that a client takes of a message; the first is its header
    assert len(Network.from_text(net(OUTPUTS_MAX), "n").outputs) == OUTPUTS_MAX
    with pytest.raises(InputError, match="it has 2000 outputs; ionn runs networks of at most 1999"):
        Network.from_text(net(OUTPUTS_MAX + 1), "n")


def brute_force_ends(layers: tuple[Layer, ...]) -> list[int]:
    """The cut points by definition: without the layer, no path leads from the input to the sink."""
    sink = len(layers)
    edges: dict[int, set[int]] = {entry.index: set() for entry in layers}
    version: dict[str, int] = {}
    consumed: set[tuple[str, int]] = set()
    for entry in layers:
        for blob in entry.bottoms:
            edges[version[blob]].add(entry.index)
            consumed.add((blob, version[blob]))
        version.update(dict.fromkeys(entry.tops, entry.index))
        if not entry.tops:
            edges[entry.index].add(sink)
    for entry in layers:
        if any((top, entry.index) not in consumed for top in entry.tops):
            edges[entry.index].add(sink)

    def reaches_sink(without: int) -> bool:
        seen, todo = set(), [0] if without else []
        while todo:
            node = todo.pop()
            if node != without and node not in seen:
                seen.add(node)
                todo.extend(edges.get(node, ()))
        return sink in seen

    overwritten = {(top, entry.index) for entry in layers for top in entry.tops if version[top] != entry.index}
    ends = [
        entry.index
        for entry in layers
        if not reaches_sink(entry.index) and len(entry.tops) == 1 and (entry.tops[0], entry.index) not in overwritten
    ]
    return sorted({*ends, sink - 1})


@settings(max_examples=120)
@given(text=random_nets())
def test_random_nets(text: str, tmp_path: Path) -> None:
    network = Network.from_text(text, "random")
    assert_as_caffe(network, text, tmp_path)
    stages = network.stages
    assert [stage.last_layer for stage in stages] == brute_force_ends(network.layers)
    assert [stage.first_layer for stage in stages] == [0, *(stage.last_layer + 1 for stage in stages[:-1])]
    assert len({stage.name for stage in stages}) == len(stages)
    consumers: dict[str, Any] = {blob: layer for layer in network.layers for blob in layer.bottoms}
    for before, after in itertools.pairwise(stages):
        assert before.outputs == (after.input,)
        assert after.first_layer <= consumers[after.input].index <= after.last_layer
