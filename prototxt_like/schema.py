"""Caffe's protobuf messages, declared here and made into real protobuf classes at first use.

The table has BVLC Caffe 1.0's messages with their numbers, types and defaults. Added are the blocks of
the forks' layers: Permute and Normalize by SSD's numbers, ROIPooling by Fast R-CNN's, and Interp by
one of its own (DeepLab's 143 is ``input_param`` in Caffe). Other fields in a file are kept by protobuf
as unknown ones and written again.

>>> message("BlobShape")(dim=[1, 3]).SerializeToString().hex()
'0a020103'
>>> enum("Phase").Value("TEST")
1
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from .bind import READERS
from .message import Message, Scalar, describe
from .source import SpecError

# A field is "number name type", then * if it repeats, + if it repeats packed, ! if it is required,
# and its default after "=" unless that is 0, false or "". An enum is named within its message.
_TABLE = """
AccuracyParameter: 1 top_k uint32=1, 2 axis int32=1, 3 ignore_label int32
ArgMaxParameter: 1 out_max_val bool, 2 top_k uint32=1, 3 axis int32
BatchNormParameter: 1 use_global_stats bool, 2 moving_average_fraction float=0.999, 3 eps float=1e-05
BiasParameter: 1 axis int32=1, 2 num_axes int32=1, 3 filler FillerParameter
BlobProto: 1 num int32, 2 channels int32, 3 height int32, 4 width int32, 5 data float+, 6 diff float+,
    7 shape BlobShape, 8 double_data double+, 9 double_diff double+
BlobProtoVector: 1 blobs BlobProto*
BlobShape: 1 dim int64+
ClipParameter: 1 min float!, 2 max float!
ConcatParameter: 1 concat_dim uint32=1, 2 axis int32=1
ContrastiveLossParameter: 1 margin float=1, 2 legacy_version bool
ConvolutionParameter: 1 num_output uint32, 2 bias_term bool=true, 3 pad uint32*,
    4 kernel_size uint32*, 5 group uint32=1, 6 stride uint32*, 7 weight_filler FillerParameter,
    8 bias_filler FillerParameter, 9 pad_h uint32, 10 pad_w uint32, 11 kernel_h uint32,
    12 kernel_w uint32, 13 stride_h uint32, 14 stride_w uint32, 15 engine Engine=DEFAULT,
    16 axis int32=1, 17 force_nd_im2col bool, 18 dilation uint32*
ConvolutionParameter.Engine: enum 0 DEFAULT, 1 CAFFE, 2 CUDNN
CropParameter: 1 axis int32=2, 2 offset uint32*
DataParameter: 1 source string, 2 scale float=1, 3 mean_file string, 4 batch_size uint32,
    5 crop_size uint32, 6 mirror bool, 7 rand_skip uint32, 8 backend DB=LEVELDB,
    9 force_encoded_color bool, 10 prefetch uint32=4
DataParameter.DB: enum 0 LEVELDB, 1 LMDB
Datum: 1 channels int32, 2 height int32, 3 width int32, 4 data bytes, 5 label int32,
    6 float_data float*, 7 encoded bool
DropoutParameter: 1 dropout_ratio float=0.5
DummyDataParameter: 1 data_filler FillerParameter*, 2 num uint32*, 3 channels uint32*,
    4 height uint32*, 5 width uint32*, 6 shape BlobShape*
ELUParameter: 1 alpha float=1
EltwiseParameter: 1 operation EltwiseOp=SUM, 2 coeff float*, 3 stable_prod_grad bool=true
EltwiseParameter.EltwiseOp: enum 0 PROD, 1 SUM, 2 MAX
EmbedParameter: 1 num_output uint32, 2 input_dim uint32, 3 bias_term bool=true,
    4 weight_filler FillerParameter, 5 bias_filler FillerParameter
ExpParameter: 1 base float=-1, 2 scale float=1, 3 shift float
FillerParameter: 1 type string=constant, 2 value float, 3 min float, 4 max float=1, 5 mean float,
    6 std float=1, 7 sparse int32=-1, 8 variance_norm VarianceNorm=FAN_IN
FillerParameter.VarianceNorm: enum 0 FAN_IN, 1 FAN_OUT, 2 AVERAGE
FlattenParameter: 1 axis int32=1, 2 end_axis int32=-1
HDF5DataParameter: 1 source string, 2 batch_size uint32, 3 shuffle bool
HDF5OutputParameter: 1 file_name string
HingeLossParameter: 1 norm Norm=L1
HingeLossParameter.Norm: enum 1 L1, 2 L2
ImageDataParameter: 1 source string, 2 scale float=1, 3 mean_file string, 4 batch_size uint32=1,
    5 crop_size uint32, 6 mirror bool, 7 rand_skip uint32, 8 shuffle bool, 9 new_height uint32,
    10 new_width uint32, 11 is_color bool=true, 12 root_folder string
InfogainLossParameter: 1 source string, 2 axis int32=1
InnerProductParameter: 1 num_output uint32, 2 bias_term bool=true, 3 weight_filler FillerParameter,
    4 bias_filler FillerParameter, 5 axis int32=1, 6 transpose bool
InputParameter: 1 shape BlobShape*
InterpParameter: 1 height int32, 2 width int32, 3 zoom_factor int32=1, 4 shrink_factor int32=1,
    5 pad_beg int32, 6 pad_end int32
LRNParameter: 1 local_size uint32=5, 2 alpha float=1, 3 beta float=0.75,
    4 norm_region NormRegion=ACROSS_CHANNELS, 5 k float=1, 6 engine Engine=DEFAULT
LRNParameter.Engine: enum 0 DEFAULT, 1 CAFFE, 2 CUDNN
LRNParameter.NormRegion: enum 0 ACROSS_CHANNELS, 1 WITHIN_CHANNEL
LayerParameter: 1 name string, 2 type string, 3 bottom string*, 4 top string*, 5 loss_weight float*,
    6 param ParamSpec*, 7 blobs BlobProto*, 8 include NetStateRule*, 9 exclude NetStateRule*,
    10 phase Phase, 11 propagate_down bool*, 100 transform_param TransformationParameter,
    101 loss_param LossParameter, 102 accuracy_param AccuracyParameter,
    103 argmax_param ArgMaxParameter, 104 concat_param ConcatParameter,
    105 contrastive_loss_param ContrastiveLossParameter, 106 convolution_param ConvolutionParameter,
    107 data_param DataParameter, 108 dropout_param DropoutParameter,
    109 dummy_data_param DummyDataParameter, 110 eltwise_param EltwiseParameter,
    111 exp_param ExpParameter, 112 hdf5_data_param HDF5DataParameter,
    113 hdf5_output_param HDF5OutputParameter, 114 hinge_loss_param HingeLossParameter,
    115 image_data_param ImageDataParameter, 116 infogain_loss_param InfogainLossParameter,
    117 inner_product_param InnerProductParameter, 118 lrn_param LRNParameter,
    119 memory_data_param MemoryDataParameter, 120 mvn_param MVNParameter,
    121 pooling_param PoolingParameter, 122 power_param PowerParameter, 123 relu_param ReLUParameter,
    124 sigmoid_param SigmoidParameter, 125 softmax_param SoftmaxParameter,
    126 slice_param SliceParameter, 127 tanh_param TanHParameter,
    128 threshold_param ThresholdParameter, 129 window_data_param WindowDataParameter,
    130 python_param PythonParameter, 131 prelu_param PReLUParameter, 132 spp_param SPPParameter,
    133 reshape_param ReshapeParameter, 134 log_param LogParameter,
    135 flatten_param FlattenParameter, 136 reduction_param ReductionParameter,
    137 embed_param EmbedParameter, 138 tile_param TileParameter,
    139 batch_norm_param BatchNormParameter, 140 elu_param ELUParameter, 141 bias_param BiasParameter,
    142 scale_param ScaleParameter, 143 input_param InputParameter, 144 crop_param CropParameter,
    145 parameter_param ParameterParameter, 146 recurrent_param RecurrentParameter,
    147 swish_param SwishParameter, 148 clip_param ClipParameter, 202 permute_param PermuteParameter,
    206 norm_param NormalizeParameter, 2143 interp_param InterpParameter,
    8266711 roi_pooling_param ROIPoolingParameter
LogParameter: 1 base float=-1, 2 scale float=1, 3 shift float
LossParameter: 1 ignore_label int32, 2 normalize bool, 3 normalization NormalizationMode=VALID
LossParameter.NormalizationMode: enum 0 FULL, 1 VALID, 2 BATCH_SIZE, 3 NONE
MVNParameter: 1 normalize_variance bool=true, 2 across_channels bool, 3 eps float=1e-09
MemoryDataParameter: 1 batch_size uint32, 2 channels uint32, 3 height uint32, 4 width uint32
NetParameter: 1 name string, 2 layers V1LayerParameter*, 3 input string*, 4 input_dim int32*,
    5 force_backward bool, 6 state NetState, 7 debug_info bool, 8 input_shape BlobShape*,
    100 layer LayerParameter*
NetState: 1 phase Phase=TEST, 2 level int32, 3 stage string*
NetStateRule: 1 phase Phase, 2 min_level int32, 3 max_level int32, 4 stage string*,
    5 not_stage string*
NormalizeParameter: 1 across_spatial bool=true, 2 scale_filler FillerParameter,
    3 channel_shared bool=true, 4 eps float=1e-10
PReLUParameter: 1 filler FillerParameter, 2 channel_shared bool
ParamSpec: 1 name string, 2 share_mode DimCheckMode, 3 lr_mult float=1, 4 decay_mult float=1
ParamSpec.DimCheckMode: enum 0 STRICT, 1 PERMISSIVE
ParameterParameter: 1 shape BlobShape
PermuteParameter: 1 order uint32*
Phase: enum 0 TRAIN, 1 TEST
PoolingParameter: 1 pool PoolMethod=MAX, 2 kernel_size uint32, 3 stride uint32=1, 4 pad uint32,
    5 kernel_h uint32, 6 kernel_w uint32, 7 stride_h uint32, 8 stride_w uint32, 9 pad_h uint32,
    10 pad_w uint32, 11 engine Engine=DEFAULT, 12 global_pooling bool, 13 round_mode RoundMode=CEIL
PoolingParameter.Engine: enum 0 DEFAULT, 1 CAFFE, 2 CUDNN
PoolingParameter.PoolMethod: enum 0 MAX, 1 AVE, 2 STOCHASTIC
PoolingParameter.RoundMode: enum 0 CEIL, 1 FLOOR
PowerParameter: 1 power float=1, 2 scale float=1, 3 shift float
PythonParameter: 1 module string, 2 layer string, 3 param_str string, 4 share_in_parallel bool
ROIPoolingParameter: 1 pooled_h uint32, 2 pooled_w uint32, 3 spatial_scale float=1
ReLUParameter: 1 negative_slope float, 2 engine Engine=DEFAULT
ReLUParameter.Engine: enum 0 DEFAULT, 1 CAFFE, 2 CUDNN
RecurrentParameter: 1 num_output uint32, 2 weight_filler FillerParameter,
    3 bias_filler FillerParameter, 4 debug_info bool, 5 expose_hidden bool
ReductionParameter: 1 operation ReductionOp=SUM, 2 axis int32, 3 coeff float=1
ReductionParameter.ReductionOp: enum 1 SUM, 2 ASUM, 3 SUMSQ, 4 MEAN
ReshapeParameter: 1 shape BlobShape, 2 axis int32, 3 num_axes int32=-1
SPPParameter: 1 pyramid_height uint32, 2 pool PoolMethod=MAX, 6 engine Engine=DEFAULT
SPPParameter.Engine: enum 0 DEFAULT, 1 CAFFE, 2 CUDNN
SPPParameter.PoolMethod: enum 0 MAX, 1 AVE, 2 STOCHASTIC
ScaleParameter: 1 axis int32=1, 2 num_axes int32=1, 3 filler FillerParameter, 4 bias_term bool,
    5 bias_filler FillerParameter
SigmoidParameter: 1 engine Engine=DEFAULT
SigmoidParameter.Engine: enum 0 DEFAULT, 1 CAFFE, 2 CUDNN
SliceParameter: 1 slice_dim uint32=1, 2 slice_point uint32*, 3 axis int32=1
SoftmaxParameter: 1 engine Engine=DEFAULT, 2 axis int32=1
SoftmaxParameter.Engine: enum 0 DEFAULT, 1 CAFFE, 2 CUDNN
SolverParameter: 1 train_net string, 2 test_net string*, 3 test_iter int32*, 4 test_interval int32,
    5 base_lr float, 6 display int32, 7 max_iter int32, 8 lr_policy string, 9 gamma float,
    10 power float, 11 momentum float, 12 weight_decay float, 13 stepsize int32, 14 snapshot int32,
    15 snapshot_prefix string, 16 snapshot_diff bool, 17 solver_mode SolverMode=GPU,
    18 device_id int32, 19 test_compute_loss bool, 20 random_seed int64=-1,
    21 train_net_param NetParameter, 22 test_net_param NetParameter*, 23 debug_info bool,
    24 net string, 25 net_param NetParameter, 26 train_state NetState, 27 test_state NetState*,
    28 snapshot_after_train bool=true, 29 regularization_type string=L2,
    30 solver_type SolverType=SGD, 31 delta float=1e-08, 32 test_initialization bool=true,
    33 average_loss int32=1, 34 stepvalue int32*, 35 clip_gradients float=-1, 36 iter_size int32=1,
    37 snapshot_format SnapshotFormat=BINARYPROTO, 38 rms_decay float=0.99, 39 momentum2 float=0.999,
    40 type string=SGD, 41 layer_wise_reduce bool=true, 42 weights string*
SolverParameter.SnapshotFormat: enum 0 HDF5, 1 BINARYPROTO
SolverParameter.SolverMode: enum 0 CPU, 1 GPU
SolverParameter.SolverType: enum 0 SGD, 1 NESTEROV, 2 ADAGRAD, 3 RMSPROP, 4 ADADELTA, 5 ADAM
SolverState: 1 iter int32, 2 learned_net string, 3 history BlobProto*, 4 current_step int32
SwishParameter: 1 beta float=1
TanHParameter: 1 engine Engine=DEFAULT
TanHParameter.Engine: enum 0 DEFAULT, 1 CAFFE, 2 CUDNN
ThresholdParameter: 1 threshold float
TileParameter: 1 axis int32=1, 2 tiles int32
TransformationParameter: 1 scale float=1, 2 mirror bool, 3 crop_size uint32, 4 mean_file string,
    5 mean_value float*, 6 force_color bool, 7 force_gray bool
V0LayerParameter: 1 name string, 2 type string, 3 num_output uint32, 4 biasterm bool=true,
    5 weight_filler FillerParameter, 6 bias_filler FillerParameter, 7 pad uint32, 8 kernelsize uint32,
    9 group uint32=1, 10 stride uint32=1, 11 pool PoolMethod=MAX, 12 dropout_ratio float=0.5,
    13 local_size uint32=5, 14 alpha float=1, 15 beta float=0.75, 16 source string, 17 scale float=1,
    18 meanfile string, 19 batchsize uint32, 20 cropsize uint32, 21 mirror bool, 22 k float=1,
    50 blobs BlobProto*, 51 blobs_lr float*, 52 weight_decay float*, 53 rand_skip uint32,
    54 det_fg_threshold float=0.5, 55 det_bg_threshold float=0.5, 56 det_fg_fraction float=0.25,
    58 det_context_pad uint32, 59 det_crop_mode string=warp, 60 new_num int32, 61 new_channels int32,
    62 new_height int32, 63 new_width int32, 64 shuffle_images bool, 65 concat_dim uint32=1,
    1001 hdf5_output_param HDF5OutputParameter
V0LayerParameter.PoolMethod: enum 0 MAX, 1 AVE, 2 STOCHASTIC
V1LayerParameter: 1 layer V0LayerParameter, 2 bottom string*, 3 top string*, 4 name string,
    5 type LayerType, 6 blobs BlobProto*, 7 blobs_lr float*, 8 weight_decay float*,
    9 concat_param ConcatParameter, 10 convolution_param ConvolutionParameter,
    11 data_param DataParameter, 12 dropout_param DropoutParameter,
    13 hdf5_data_param HDF5DataParameter, 14 hdf5_output_param HDF5OutputParameter,
    15 image_data_param ImageDataParameter, 16 infogain_loss_param InfogainLossParameter,
    17 inner_product_param InnerProductParameter, 18 lrn_param LRNParameter,
    19 pooling_param PoolingParameter, 20 window_data_param WindowDataParameter,
    21 power_param PowerParameter, 22 memory_data_param MemoryDataParameter,
    23 argmax_param ArgMaxParameter, 24 eltwise_param EltwiseParameter,
    25 threshold_param ThresholdParameter, 26 dummy_data_param DummyDataParameter,
    27 accuracy_param AccuracyParameter, 29 hinge_loss_param HingeLossParameter,
    30 relu_param ReLUParameter, 31 slice_param SliceParameter, 32 include NetStateRule*,
    33 exclude NetStateRule*, 34 mvn_param MVNParameter, 35 loss_weight float*,
    36 transform_param TransformationParameter, 37 tanh_param TanHParameter,
    38 sigmoid_param SigmoidParameter, 39 softmax_param SoftmaxParameter,
    40 contrastive_loss_param ContrastiveLossParameter, 41 exp_param ExpParameter,
    42 loss_param LossParameter, 1001 param string*, 1002 blob_share_mode DimCheckMode*
V1LayerParameter.DimCheckMode: enum 0 STRICT, 1 PERMISSIVE
V1LayerParameter.LayerType: enum 0 NONE, 1 ACCURACY, 2 BNLL, 3 CONCAT, 4 CONVOLUTION, 5 DATA,
    6 DROPOUT, 7 EUCLIDEAN_LOSS, 8 FLATTEN, 9 HDF5_DATA, 10 HDF5_OUTPUT, 11 IM2COL, 12 IMAGE_DATA,
    13 INFOGAIN_LOSS, 14 INNER_PRODUCT, 15 LRN, 16 MULTINOMIAL_LOGISTIC_LOSS, 17 POOLING, 18 RELU,
    19 SIGMOID, 20 SOFTMAX, 21 SOFTMAX_LOSS, 22 SPLIT, 23 TANH, 24 WINDOW_DATA, 25 ELTWISE, 26 POWER,
    27 SIGMOID_CROSS_ENTROPY_LOSS, 28 HINGE_LOSS, 29 MEMORY_DATA, 30 ARGMAX, 31 THRESHOLD,
    32 DUMMY_DATA, 33 SLICE, 34 MVN, 35 ABSVAL, 36 SILENCE, 37 CONTRASTIVE_LOSS, 38 EXP,
    39 DECONVOLUTION
WindowDataParameter: 1 source string, 2 scale float=1, 3 mean_file string, 4 batch_size uint32,
    5 crop_size uint32, 6 mirror bool, 7 fg_threshold float=0.5, 8 bg_threshold float=0.5,
    9 fg_fraction float=0.25, 10 context_pad uint32, 11 crop_mode string=warp, 12 cache_images bool,
    13 root_folder string
"""

_FIELD = re.compile(r"(\d+) (\w+) (\w+)([*+!]?)(?:=(.+))?")
_KINDS: dict[int, type] = {
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_STRING: str,
    FieldDescriptor.CPPTYPE_FLOAT: float,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
}


def message(name: str) -> Any:
    """The class of a message ("NetParameter"). Raises KeyError for a name that Caffe does not have."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"caffe.{name}"))


def enum(name: str) -> EnumTypeWrapper:
    """An enum ("Phase", "PoolingParameter.PoolMethod"). Raises KeyError as :func:`message` does."""
    return EnumTypeWrapper(_pool().FindEnumTypeByName(f"caffe.{name}"))


def names() -> list[str]:
    """The names of all messages."""
    return [name for name, entries in _table().items() if not _is_enum(entries)]


def encode(name: str, tree: Message) -> Any:
    """The protobuf message that a tree says, without the fields that Caffe's message does not have.

    Raises :class:`SpecError` at a value that is not of its field's type.
    """
    made = message(name)()
    _fill(made, tree)
    return made


def _fill(made: Any, tree: Message) -> None:
    for field in tree:
        declared = made.DESCRIPTOR.fields_by_name.get(field.name)
        if declared is None:
            continue
        value, target = field.value, getattr(made, field.name)
        repeated = hasattr(target, "extend")
        try:
            if isinstance(value, Message):
                block = target.add() if repeated else target
                block.SetInParent()
                _fill(block, value)
            elif repeated:
                target.append(_read(declared, value))
            else:
                setattr(made, field.name, _read(declared, value))
        except (AttributeError, TypeError, ValueError):
            message = f"Caffe's {made.DESCRIPTOR.name} cannot have {describe(value)} as {field.name}"
            raise SpecError(message, value.span) from None


def _read(declared: FieldDescriptor, scalar: Scalar) -> Any:
    if declared.enum_type and scalar.text in declared.enum_type.values_by_name:
        return declared.enum_type.values_by_name[scalar.text].number
    return READERS[_KINDS.get(declared.cpp_type, int)](scalar)


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    """All of the table, in a pool of its own: another ``caffe.proto`` may be in protobuf's."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    table = _table()
    made = {name: file.message_type.add(name=name) for name in names()}
    for name, entries in table.items():
        if not _is_enum(entries):
            for entry in entries:
                _declare(made[name], entry, table)
            continue
        outer, _, own = name.rpartition(".")
        values = (made[outer] if outer else file).enum_type.add(name=own).value
        for entry in entries:
            number, value = entry.removeprefix("enum ").split()
            values.add(name=value, number=int(number))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _table() -> dict[str, list[str]]:
    lines = _TABLE.replace("\n    ", " ").strip().splitlines()
    return {name: entries.split(", ") for name, entries in (line.split(": ") for line in lines)}


def _is_enum(entries: list[str]) -> bool:
    return entries[0].startswith("enum ")


def _declare(made: descriptor_pb2.DescriptorProto, entry: str, table: dict[str, list[str]]) -> None:
    found = _FIELD.fullmatch(entry)
    assert found, entry
    number, name, type, mark, default = found.groups()
    field = made.field.add(name=name, number=int(number), default_value=default)
    repeated, required = mark in ("*", "+"), mark == "!"
    field.label = (
        field.LABEL_REPEATED if repeated else field.LABEL_REQUIRED if required else field.LABEL_OPTIONAL
    )
    if mark == "+":
        field.options.packed = True
    nested = f"{made.name}.{type}"
    full = nested if nested in table else type
    if full not in table:
        field.type = field.Type.Value(f"TYPE_{type.upper()}")
        return
    field.type = field.TYPE_ENUM if _is_enum(table[full]) else field.TYPE_MESSAGE
    field.type_name = f".caffe.{full}"
