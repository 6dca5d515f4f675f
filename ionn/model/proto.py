"""Caffe's protobuf messages, declared here so that planning needs no Caffe.

`_SCHEMA` declares them field for field as ionn's Caffe does; a test compares the two. Their classes come from a pool of
descriptors of their own, so that a process may load Caffe's messages as well. Caffe gets these messages as text only,
and of Caffe's binary files only blobs are read. So fields that ionn's Caffe lacks, or has otherwise, can have numbers
of our own:

- PoolingParameter has both `round_mode`, which BVLC's Caffe knows, and `ceil_mode`, which the one that ionn runs has
  in its place (docs/caffe.md).
- The parameters of layer types that ionn does not run are of type `Unread`, which has no fields. `blank_unread` takes
  their content out of a text.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_PACKAGE = "caffe"  # as error messages name it

# A field is: label type name = number (default). Without a label it is optional; what is packed is repeated. A default
# that is the type's own zero, or an enumeration's first value, is left out.
_SCHEMA = """
enum Phase TRAIN=0 TEST=1

message NetParameter
  string name = 1; repeated LayerParameter layer = 100; repeated V1LayerParameter layers = 2
  repeated string input = 3; repeated BlobShape input_shape = 8; repeated int32 input_dim = 4
  NetState state = 6; bool force_backward = 5; bool debug_info = 7
message NetState
  Phase phase = 1 (TEST); int32 level = 2; repeated string stage = 3
message NetStateRule
  Phase phase = 1; int32 min_level = 2; int32 max_level = 3; repeated string stage = 4; repeated string not_stage = 5
message ParamSpec
  enum DimCheckMode STRICT=0 PERMISSIVE=1
  string name = 1; DimCheckMode share_mode = 2; float lr_mult = 3 (1); float decay_mult = 4 (1)
message FillerParameter
  enum VarianceNorm FAN_IN=0 FAN_OUT=1 AVERAGE=2
  string type = 1 (constant); float value = 2; float min = 3; float max = 4 (1); float mean = 5; float std = 6 (1)
  int32 sparse = 7 (-1); VarianceNorm variance_norm = 8
message BlobShape
  packed int64 dim = 1
message BlobProto
  BlobShape shape = 7; packed float data = 5; packed float diff = 6
  packed double double_data = 8; packed double double_diff = 9
  int32 num = 1; int32 channels = 2; int32 height = 3; int32 width = 4
message V1LayerParameter
  string name = 4; repeated BlobProto blobs = 6

message LayerParameter
  string name = 1; string type = 2; repeated string bottom = 3; repeated string top = 4; Phase phase = 10
  repeated float loss_weight = 5; repeated ParamSpec param = 6; repeated BlobProto blobs = 7
  repeated NetStateRule include = 8; repeated NetStateRule exclude = 9; repeated bool propagate_down = 11
  ArgMaxParameter argmax_param = 103
  BatchNormParameter batch_norm_param = 139
  BiasParameter bias_param = 141
  ConcatParameter concat_param = 104
  ConvolutionParameter convolution_param = 106
  CropParameter crop_param = 144
  DropoutParameter dropout_param = 108
  ELUParameter elu_param = 140
  EltwiseParameter eltwise_param = 110
  ExpParameter exp_param = 111
  FlattenParameter flatten_param = 135
  HardSigmoidParameter hardsigmoid_param = 501
  InnerProductParameter inner_product_param = 117
  InputParameter input_param = 143
  LRNParameter lrn_param = 118
  LogParameter log_param = 134
  MVNParameter mvn_param = 120
  NormalizeParameter norm_param = 206
  PReLUParameter prelu_param = 131
  PadParameter pad_param = 504
  PermuteParameter permute_param = 202
  PixelShuffleParameter pixelshuffle_param = 507
  PoolingParameter pooling_param = 121
  PowerParameter power_param = 122
  ReLU6Parameter relu6_param = 503
  ReLUParameter relu_param = 123
  ReductionParameter reduction_param = 136
  ReshapeParameter reshape_param = 133
  ResizeParameter resize_param = 251
  SPPParameter spp_param = 132
  ScaleParameter scale_param = 142
  SigmoidParameter sigmoid_param = 124
  SliceParameter slice_param = 126
  SoftmaxParameter softmax_param = 125
  TanHParameter tanh_param = 127
  ThresholdParameter threshold_param = 128
  TileParameter tile_param = 138
  UnsqueezeParameter unsqueeze_param = 502
  UpsampleParameter upsample_param = 500

message ArgMaxParameter
  bool out_max_val = 1; uint32 top_k = 2 (1); int32 axis = 3
message BatchNormParameter
  bool use_global_stats = 1; float moving_average_fraction = 2 (0.999); float eps = 3 (1e-5)
  FillerParameter weight_filler = 7; FillerParameter bias_filler = 8
  bool use_alpha_beta = 9; bool do_all_reduce = 10
message BiasParameter
  int32 axis = 1 (1); int32 num_axes = 2 (1); FillerParameter filler = 3
message ConcatParameter
  int32 axis = 2 (1); uint32 concat_dim = 1 (1)
message ConvolutionParameter
  enum Engine DEFAULT=0 CAFFE=1 CUDNN=2
  uint32 num_output = 1; uint32 group = 5 (1); bool bias_term = 2 (true); int32 axis = 16 (1)
  repeated uint32 kernel_size = 4; uint32 kernel_h = 11; uint32 kernel_w = 12; repeated uint32 dilation = 18
  repeated uint32 stride = 6; uint32 stride_h = 13 (1); uint32 stride_w = 14 (1)
  repeated uint32 pad = 3; uint32 pad_h = 9; uint32 pad_w = 10
  FillerParameter weight_filler = 7; FillerParameter bias_filler = 8
  Engine engine = 15; bool force_nd_im2col = 17; uint32 width_group = 51 (1); uint32 height_group = 52 (1)
message CropParameter
  int32 axis = 1 (2); repeated uint32 offset = 2
message DropoutParameter
  float dropout_ratio = 1 (0.5)
message ELUParameter
  float alpha = 1 (1)
message EltwiseParameter
  enum EltwiseOp PROD=0 SUM=1 MAX=2
  EltwiseOp operation = 1 (SUM); repeated float coeff = 2; bool stable_prod_grad = 3 (true)
message ExpParameter
  float base = 1 (-1); float scale = 2 (1); float shift = 3
message FlattenParameter
  int32 axis = 1 (1); int32 end_axis = 2 (-1)
message HardSigmoidParameter
  float alpha = 1 (0.2); float beta = 2 (0.5)
message InnerProductParameter
  uint32 num_output = 1; bool bias_term = 2 (true); int32 axis = 5 (1); bool transpose = 6
  FillerParameter weight_filler = 3; FillerParameter bias_filler = 4
message InputParameter
  repeated BlobShape shape = 1
message LRNParameter
  enum NormRegion ACROSS_CHANNELS=0 WITHIN_CHANNEL=1
  enum Engine DEFAULT=0 CAFFE=1 CUDNN=2
  uint32 local_size = 1 (5); float alpha = 2 (1); float beta = 3 (0.75); float k = 5 (1)
  NormRegion norm_region = 4; Engine engine = 6
message LogParameter
  float base = 1 (-1); float scale = 2 (1); float shift = 3
message MVNParameter
  bool normalize_variance = 1 (true); bool across_channels = 2; float eps = 3 (1e-9)
message NormalizeParameter
  bool across_spatial = 1 (true); bool channel_shared = 3 (true); float eps = 4 (1e-10)
  FillerParameter scale_filler = 2
message PReLUParameter
  FillerParameter filler = 1; bool channel_shared = 2
message PadParameter
  enum PadType CONSTANT=0 REPLICATE=1 REFLECT=2
  PadType pad_type = 1; int32 pad_u = 2; int32 pad_d = 3; int32 pad_l = 4; int32 pad_r = 5; float pad_value = 6
message PermuteParameter
  repeated uint32 order = 1
message PixelShuffleParameter
  required int32 upscale_factor = 1
message PoolingParameter
  enum PoolMethod MAX=0 AVE=1 STOCHASTIC=2
  enum RoundMode CEIL=0 FLOOR=1
  enum Engine DEFAULT=0 CAFFE=1 CUDNN=2
  PoolMethod pool = 1; bool global_pooling = 12
  uint32 kernel_size = 2; uint32 kernel_h = 5; uint32 kernel_w = 6
  uint32 stride = 3 (1); uint32 stride_h = 7; uint32 stride_w = 8
  uint32 pad = 4; uint32 pad_h = 9; uint32 pad_w = 10
  bool ceil_mode = 13 (true); RoundMode round_mode = 10000; Engine engine = 11
message PowerParameter
  float power = 1 (1); float scale = 2 (1); float shift = 3
message ReLU6Parameter
  float negative_slope = 1; float threshold = 2 (6)
message ReLUParameter
  enum Engine DEFAULT=0 CAFFE=1 CUDNN=2
  float negative_slope = 1; Engine engine = 2
message ReductionParameter
  enum ReductionOp SUM=1 ASUM=2 SUMSQ=3 MEAN=4
  ReductionOp operation = 1; int32 axis = 2; float coeff = 3 (1)
message ReshapeParameter
  BlobShape shape = 1; int32 axis = 2; int32 num_axes = 3 (-1)
message ResizeParameter
  uint32 height = 1; uint32 width = 2; bool is_pyramid_test = 3
  float out_height_scale = 4; float out_width_scale = 5
message SPPParameter
  enum PoolMethod MAX=0 AVE=1 STOCHASTIC=2
  enum Engine DEFAULT=0 CAFFE=1 CUDNN=2
  uint32 pyramid_height = 1; PoolMethod pool = 2; Engine engine = 6
message ScaleParameter
  int32 axis = 1 (1); int32 num_axes = 2 (1); FillerParameter filler = 3
  bool bias_term = 4; FillerParameter bias_filler = 5
message SigmoidParameter
  enum Engine DEFAULT=0 CAFFE=1 CUDNN=2
  Engine engine = 1
message SliceParameter
  int32 axis = 3 (1); uint32 slice_dim = 1 (1); repeated uint32 slice_point = 2
message SoftmaxParameter
  enum Engine DEFAULT=0 CAFFE=1 CUDNN=2
  int32 axis = 2 (1); Engine engine = 1
message TanHParameter
  enum Engine DEFAULT=0 CAFFE=1 CUDNN=2
  Engine engine = 1
message ThresholdParameter
  float threshold = 1
message TileParameter
  int32 axis = 1 (1); int32 tiles = 2
message UnsqueezeParameter
  required int32 dim = 1
message UpsampleParameter
  int32 scale = 1 (1); int32 dims_num = 2 (4)
message Unread
"""
_FIELD = re.compile(r"(?:(repeated|packed|required) )?(\w+) (\w+) = (\d+)(?: \((.+)\))?")
_LABELS = {None: "OPTIONAL", "required": "REQUIRED", "repeated": "REPEATED", "packed": "REPEATED"}
_SCALARS = {"bool", "double", "float", "int32", "int64", "string", "uint32"}

# Fields of a LayerParameter, of the Caffe that ionn runs or of BVLC's, that no layer type in ionn's table has.
_UNREAD = """
accuracy_param annotated_data_param bilinear_interpolate_param bn_param clip_param contrastive_loss_param data_param
detection_evaluate_param detection_output_param dummy_data_param embed_param hdf5_data_param hdf5_output_param
hinge_loss_param image_data_param inception_param infogain_loss_param loss_param max_unpool_param memory_data_param
multibox_loss_param parameter_param prior_box_param proposal_param psroi_pooling_param python_param recurrent_param
swish_param transform_param video_data_param window_data_param
"""


def _declared() -> FileDescriptorProto:
    """`_SCHEMA` as protobuf wants it."""
    file = FileDescriptorProto(name="ionn/caffe.proto", package=_PACKAGE)
    holder: FileDescriptorProto | DescriptorProto = file  # of the enumerations to come
    for line in filter(None, _SCHEMA.splitlines()):
        kind, name, *values = line.split()
        if kind == "message":
            holder = message = file.message_type.add(name=name)
        elif kind == "enum":
            enumeration = holder.enum_type.add(name=name)
            for value, _, number in (each.partition("=") for each in values):
                enumeration.value.add(name=value, number=int(number))
        else:
            message.field.extend(_field(text) for text in line.strip().split("; "))
    (layer,) = (message for message in file.message_type if message.name == "LayerParameter")
    layer.field.extend(_field(f"Unread {name} = {number}") for number, name in enumerate(_UNREAD.split(), 10000))
    return file


def _field(text: str) -> FieldDescriptorProto:
    match = _FIELD.fullmatch(text)
    assert match, text
    label, kind, name, number, default = match.groups()
    field = FieldDescriptorProto(name=name, number=int(number), default_value=default)
    field.label = FieldDescriptorProto.Label.Value(f"LABEL_{_LABELS[label]}")
    if label == "packed":
        field.options.packed = True
    if kind in _SCALARS:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type_name = kind  # whether it is a message or an enumeration, the pool finds out
    return field


_pool = DescriptorPool()
_pool.AddSerializedFile(_declared().SerializeToString())


def _class(name: str) -> Any:
    return GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


NetParameter = _class("NetParameter")
LayerParameter = _class("LayerParameter")
V1LayerParameter = _class("V1LayerParameter")
BlobProto = _class("BlobProto")
BlobShape = _class("BlobShape")
EltwiseParameter = _class("EltwiseParameter")
LRNParameter = _class("LRNParameter")
PadParameter = _class("PadParameter")
PoolingParameter = _class("PoolingParameter")
SPPParameter = _class("SPPParameter")
TEST: int = _pool.FindEnumTypeByName(f"{_PACKAGE}.Phase").values_by_name["TEST"].number

# Layers of the old format are refused, whatever is in them.
_BLANKED = {*_UNREAD.split(), "layers"}
_TOKEN = re.compile(r""" "(?:\\.|[^"\\\n])*"? | '(?:\\.|[^'\\\n])*'? | \#.* | [{}<>] | \w+ """, re.VERBOSE)


def blank_unread(text: str) -> str:
    """Replace the content of messages that ionn does not read by spaces in the text of a prototxt."""
    pieces = []
    begin = depth = 0
    name = ""
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in ("{", "<"):
            if depth:
                depth += 1
            elif name in _BLANKED:
                pieces.append(text[begin : token.end()])
                begin, depth = token.end(), 1
        elif word in ("}", ">") and depth:
            depth -= 1
            if not depth:
                pieces.append(re.sub(r"[^\n]", " ", text[begin : token.start()]))
                begin = token.start()
        if not word.startswith("#"):
            name = word
    return "".join(pieces) + text[begin:]
