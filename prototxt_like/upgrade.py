"""Caffe's old forms of nets and solvers, rewritten as today's.

What Caffe upgrades when it reads a file is upgraded here, on the tree, with every place kept:

- V0 (``layers { layer { type: "conv" ... } }``, padding layers) and V1 (``layers`` with enum types,
  ``blobs_lr``, ``weight_decay``, ``param`` and ``blob_share_mode`` for the parameter blobs);
- ``scale``, ``mean_file``, ``crop_size`` and ``mirror`` of V0's and V1's data layers;
- ``input`` with ``input_shape`` or ``input_dim``: one layer "input" with a top for each;
- the three ``param`` blocks of a BatchNorm layer, whose statistics no solver may touch;
- a solver's ``solver_type``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .message import Field, Message, Scalar
from .source import Span, SpecError, did_you_mean

NESTED = ("net_param", "train_net_param", "test_net_param")  # a solver's nets within its own file

# V1's enum of layer types, in its order from 1 up, and today's names.
_V1 = """
    ACCURACY=Accuracy BNLL=BNLL CONCAT=Concat CONVOLUTION=Convolution DATA=Data DROPOUT=Dropout
    EUCLIDEAN_LOSS=EuclideanLoss FLATTEN=Flatten HDF5_DATA=HDF5Data HDF5_OUTPUT=HDF5Output
    IM2COL=Im2col IMAGE_DATA=ImageData INFOGAIN_LOSS=InfogainLoss INNER_PRODUCT=InnerProduct LRN=LRN
    MULTINOMIAL_LOGISTIC_LOSS=MultinomialLogisticLoss POOLING=Pooling RELU=ReLU SIGMOID=Sigmoid
    SOFTMAX=Softmax SOFTMAX_LOSS=SoftmaxWithLoss SPLIT=Split TANH=TanH WINDOW_DATA=WindowData
    ELTWISE=Eltwise POWER=Power SIGMOID_CROSS_ENTROPY_LOSS=SigmoidCrossEntropyLoss
    HINGE_LOSS=HingeLoss MEMORY_DATA=MemoryData ARGMAX=ArgMax THRESHOLD=Threshold
    DUMMY_DATA=DummyData SLICE=Slice MVN=MVN ABSVAL=AbsVal SILENCE=Silence
    CONTRASTIVE_LOSS=ContrastiveLoss EXP=Exp DECONVOLUTION=Deconvolution
"""
V1_TYPES = dict(pair.split("=") for pair in _V1.split())
_SOLVERS = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
_SOLVER_TYPES = {name.upper(): name for name in _SOLVERS}

# V0's types: the V1 type, the block of its parameters, and the flat fields that belong there.
_V0 = """
    accuracy ACCURACY -; bnll BNLL -; concat CONCAT concat_param concat_dim;
    conv CONVOLUTION convolution_param
        num_output bias_term weight_filler bias_filler pad kernel_size group stride;
    data DATA data_param source batch_size rand_skip; dropout DROPOUT dropout_param dropout_ratio;
    euclidean_loss EUCLIDEAN_LOSS -; flatten FLATTEN -;
    hdf5_data HDF5_DATA hdf5_data_param source batch_size; hdf5_output HDF5_OUTPUT hdf5_output_param;
    im2col IM2COL -;
    images IMAGE_DATA image_data_param source batch_size rand_skip shuffle new_height new_width;
    infogain_loss INFOGAIN_LOSS infogain_loss_param source;
    innerproduct INNER_PRODUCT inner_product_param num_output bias_term weight_filler bias_filler;
    lrn LRN lrn_param local_size alpha beta k;
    multinomial_logistic_loss MULTINOMIAL_LOGISTIC_LOSS -;
    padding PADDING padding pad; pool POOLING pooling_param pool pad kernel_size stride;
    relu RELU -; sigmoid SIGMOID -; softmax SOFTMAX -; softmax_loss SOFTMAX_LOSS -; split SPLIT -;
    tanh TANH -;
    window_data WINDOW_DATA window_data_param
        source batch_size fg_threshold bg_threshold fg_fraction context_pad crop_mode
"""
_V0_TYPES = {
    type: (v1_type, block, set(fields))
    for type, v1_type, block, *fields in map(str.split, _V0.split(";"))
}
_V0_RENAMED = {
    "biasterm": "bias_term",
    "kernelsize": "kernel_size",
    "batchsize": "batch_size",
    "meanfile": "mean_file",
    "cropsize": "crop_size",
    "shuffle_images": "shuffle",
    "det_fg_threshold": "fg_threshold",
    "det_bg_threshold": "bg_threshold",
    "det_fg_fraction": "fg_fraction",
    "det_context_pad": "context_pad",
    "det_crop_mode": "crop_mode",
}
_TRANSFORM = ("scale", "mean_file", "crop_size", "mirror")
_TRANSFORMED = {
    "DATA": "data_param",
    "IMAGE_DATA": "image_data_param",
    "WINDOW_DATA": "window_data_param",
}

# V1's repeated fields for the parameter blobs, and their names in today's ``param`` blocks.
_OF_PARAM = {
    "param": "name",
    "blob_share_mode": "share_mode",
    "blobs_lr": "lr_mult",
    "weight_decay": "decay_mult",
}
_FIRST = ("name", "type", "bottom", "top")


@dataclass(frozen=True)
class Note:
    """What was rewritten, and where the old form stands."""

    message: str
    span: Span

    def __str__(self) -> str:
        return f"{self.span}: note: {self.message}"


def upgrade(message: Message) -> list[Note]:
    """Rewrite a net's or a solver's old forms in place; gives a note for each kind of them.

    Raises :class:`SpecError` where an old form contradicts itself.
    """
    notes: list[Note] = []
    for field in message:
        if field.name in NESTED and isinstance(field.value, Message):
            notes += upgrade(field.value)
    for step in (_solver_type, _old_layers, _inputs, _batch_norms):
        notes += step(message)
    return notes


# A solver.


def _solver_type(message: Message) -> Iterator[Note]:
    for i, field in enumerate(message.fields):
        if field.name == "solver_type" and isinstance(field.value, Scalar):
            if "type" in message:
                raise SpecError('"solver_type" is the old form of "type": give one of them', field.span)
            written = field.value.text
            name = _SOLVER_TYPES.get(written, "")
            if not name:
                hint = did_you_mean(written, _SOLVER_TYPES)
                raise SpecError(f'solver_type has no value "{written}"', field.value.span, hint)
            message.fields[i] = Field("type", Scalar(name, field.value.span, quoted=True), field.span)
            yield Note(f'solver_type: {written} is an old form, read as type: "{name}"', field.span)


# Layers.


def _old_layers(message: Message) -> Iterator[Note]:
    old = message.all("layers")
    if not old:
        return
    if new := message.get("layer"):
        hint = f'the first "layers" stands at {old[0].span}'
        raise SpecError('a net has either "layer" or the old "layers" entries', new.span, hint)
    layers = [(_block(field), field.span) for field in old]
    form = "V0" if any("layer" in layer for layer, _ in layers) else "V1"
    first = next(i for i, field in enumerate(message) if field.name == "layers")
    message.fields = [field for field in message if field.name != "layers"]
    yield Note(f'"layers" are an old form ({form}) of "layer", and read as such', old[0].span)
    made, notes = [], list[Note]()
    for layer, span in _without_padding([(_unboxed(layer, notes), span) for layer, span in layers]):
        yield from _transform(layer)
        made.append(Field("layer", _from_v1(layer), span))
    message.fields[first:first] = made
    yield from notes


def _block(field: Field) -> Message:
    if not isinstance(field.value, Message):
        raise SpecError(f'"{field.name}" is a block of fields', field.value.span)
    return field.value


def _unboxed(entry: Message, notes: list[Note]) -> Message:
    """A V0 entry as a V1 one: the fields of its inner ``layer``, each in the block of its type."""
    inner = entry.get("layer")
    if inner is None:
        return entry
    box = _block(inner)
    written = box.get("type")
    type = box.text("type")
    if written is None or type not in _V0_TYPES:
        hint = did_you_mean(type, _V0_TYPES)
        place = written.value.span if written else box.span
        raise SpecError(f'"{type}" is no layer type of the form V0', place, hint)
    v1_type, block, flat = _V0_TYPES[type]
    made = Message(entry.span, [field for field in entry if field.name != "layer"])
    own, transform = Message(box.span), Message(box.span)
    for field in box:
        name = _V0_RENAMED.get(field.name, field.name)
        renamed = Field(name, field.value, field.span)
        if field.name == "type":
            made.fields.append(Field("type", Scalar(v1_type, field.value.span), field.span))
        elif name in flat:
            own.fields.append(renamed)
        elif name in _TRANSFORM:
            transform.fields.append(renamed)
        elif name in (block, "name", "blobs_lr", "weight_decay"):
            made.fields.append(field)
        elif any(name in fields for _, _, fields in _V0_TYPES.values()):
            notes.append(Note(f'"{field.name}" is nothing to a V0 layer of type "{type}"', field.span))
        else:
            hint = did_you_mean(field.name, flat)
            raise SpecError(f'a V0 layer has no field "{field.name}"', field.span, hint)
    for name, part in ((block, own), ("transform_param", transform)):
        if part.fields:
            made.add(name, part, part.fields[0].span)
    return made


def _without_padding(layers: list[tuple[Message, Span]]) -> Iterator[tuple[Message, Span]]:
    """V0's padding layers become the ``pad`` of the convolution or pooling that reads them."""
    padding: dict[str, Message] = {}
    for layer, span in layers:
        if layer.text("type") == "PADDING":
            padding[layer.text("top")] = layer
            continue
        for i, field in enumerate(layer.fields):
            source = padding.get(field.value.text) if isinstance(field.value, Scalar) else None
            if field.name == "bottom" and source:
                layer.fields[i] = Field("bottom", _bottom(source), field.span)
                _pad(layer, source)
        for top in layer.all("top"):
            padding.pop(getattr(top.value, "text", ""), None)
        yield layer, span


def _bottom(padding: Message) -> Scalar:
    bottoms = padding.all("bottom")
    if len(bottoms) != 1 or not isinstance(bottoms[0].value, Scalar):
        raise SpecError("a V0 padding layer has one bottom", padding.span)
    return bottoms[0].value


def _pad(layer: Message, padding: Message) -> None:
    block = layer.get("convolution_param") or layer.get("pooling_param")
    if layer.text("type") not in ("CONVOLUTION", "POOLING") or block is None:
        hint = f"it stands at {padding.span}"
        raise SpecError("a V0 padding layer is read by a convolution or a pooling", layer.span, hint)
    own, pads = _block(block), padding.get("padding")
    own.fields = [field for field in own if field.name != "pad"]
    own.fields += _block(pads).all("pad") if pads else []


def _transform(layer: Message) -> Iterator[Note]:
    """A V1 data layer's fields that today stand in ``transform_param``."""
    name = _TRANSFORMED.get(layer.text("type"), "")
    for field in layer.all(name):
        block = _block(field)
        moved = [part for part in block if part.name in _TRANSFORM]
        if moved:
            block.fields = [part for part in block if part.name not in _TRANSFORM]
            present = layer.get("transform_param")
            if present is None:
                layer.add("transform_param", Message(moved[0].span, moved), moved[0].span)
            else:
                _block(present).fields += moved
            names = ", ".join(part.name for part in moved)
            yield Note(
                f"{names} of {name} stand in transform_param today, and are read there", field.span
            )


def _from_v1(entry: Message) -> Message:
    """A V1 entry as a layer: its fields in today's order, its parameter blobs as ``param`` blocks."""
    columns = {name: entry.all(name) for name in _OF_PARAM}
    made = Message(entry.span)
    for name in _FIRST:
        made.fields += [_today(field) if name == "type" else field for field in entry.all(name)]
    for i in range(max(map(len, columns.values()))):
        given = [
            Field(_OF_PARAM[name], _scalar(column[i]), column[i].span)
            for name, column in columns.items()
            if i < len(column)
        ]
        made.add("param", Message(given[0].span, given), given[0].span)
    made.fields += [field for field in entry if field.name not in (*_FIRST, *_OF_PARAM)]
    return made


def _scalar(field: Field) -> Scalar:
    if isinstance(field.value, Message):
        hint = 'a block "param" belongs to today\'s "layer" entries'
        raise SpecError(f'"{field.name}" of a "layers" entry is a single value', field.value.span, hint)
    return field.value


def _today(field: Field) -> Field:
    """Today's name of a V1 type. Types that only a fork's enum has are left as they are."""
    written = _scalar(field)
    name = V1_TYPES.get(written.text, "")
    if not (name or written.text.isupper()):
        hint = 'today\'s types, as type: "Convolution", belong to "layer" entries'
        raise SpecError(
            f'"{written.text}" is no type of the old "layers" entries, such as CONVOLUTION',
            written.span,
            hint,
        )
    return Field("type", Scalar(name or written.text, written.span, quoted=True), field.span)


# Inputs.


def _inputs(message: Message) -> Iterator[Note]:
    names = [field for field in message.all("input") if isinstance(field.value, Scalar)]
    shapes, dims = message.all("input_shape"), message.all("input_dim")
    if not (names or shapes or dims):
        return
    kind = "input_shape" if shapes else "input_dim"
    old = names + shapes + dims
    if names and (shapes or dims):
        places = list(_shapes(names, shapes, dims))
        layer = Message(names[0].span)
        layer.add("name", "input")
        layer.add("type", "Input")
        layer.fields += [Field("top", field.value, field.span) for field in names]
        layer.add("input_param", Message(places[0].span, places))
        at = min(i for i, field in enumerate(message) if field.name in ("input", "layer"))
        message.fields.insert(at, Field("layer", layer, names[0].span))
        note = f'"input" and "{kind}" are an old form, read as one layer "input" of type Input'
    else:
        alone = '"input" without a shape' if names else f'"{kind}" without "input"'
        note = f"{alone} is an old form that makes no blob, and is passed over"
    passed = set(map(id, old))
    message.fields = [field for field in message if id(field) not in passed]
    yield Note(note, old[0].span)


def _shapes(names: list[Field], shapes: list[Field], dims: list[Field]) -> Iterator[Field]:
    """A ``shape`` for each input; further ones are passed over, as Caffe does."""
    for i, name in enumerate(names):
        if shapes:
            if i == len(shapes):
                count = f"expected {len(names)}, got {len(shapes)}"
                raise SpecError(f"an input has one input_shape: {count}", name.span)
            yield Field("shape", _block(shapes[i]), shapes[i].span)
        else:
            four = dims[4 * i : 4 * i + 4]
            if len(four) < 4:
                count = f"expected {4 * len(names)}, got {len(dims)}"
                raise SpecError(f"an input has four input_dim: {count}", name.span)
            shape = Message(four[0].span, [Field("dim", dim.value, dim.span) for dim in four])
            yield Field("shape", shape, four[0].span)


# BatchNorm.


def _batch_norms(message: Message) -> Iterator[Note]:
    """Three ``param`` blocks of a BatchNorm are held still, whatever they say."""
    changed = []
    for layer in _all_layers(message):
        params = [field for field in layer.all("param") if isinstance(field.value, Message)]
        if layer.text("type") == "BatchNorm" and len(params) == 3:
            moving = [field for field in params if not _is_zero(_block(field).text("lr_mult", "1"))]
            for field in moving:
                _hold(_block(field))
            changed += moving[:1]
    if changed:
        others = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        what = "the three param of a BatchNorm get lr_mult 0 and decay_mult 0: they are statistics"
        yield Note(what + others, changed[0].span)


def _all_layers(message: Message) -> Iterator[Message]:
    """The layers of a net, and of its Siamese trunks."""
    for field in message.all("layer"):
        if isinstance(field.value, Message):
            yield field.value
            for trunk in field.value.all("siamese"):
                if isinstance(trunk.value, Message):
                    yield from _all_layers(trunk.value)


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def _hold(param: Message) -> None:
    param.fields = [field for field in param if field.name not in ("lr_mult", "decay_mult")]
    for name in ("lr_mult", "decay_mult"):
        param.add(name, Scalar("0", param.span))
