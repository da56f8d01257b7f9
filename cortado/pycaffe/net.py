"""``Net``: Caffe's net for Python, layer by layer over :class:`cortado.nets.net.Net`.

A forward pass runs each layer on the blobs as they are, and keeps the piece of autograd's graph that
the layer made; a backward pass runs the pieces from the last to the first, from the tops' diffs to the
bottoms' and the parameters'. So passes may start and end at any layer, blobs and diffs may be changed
between, and what Caffe leaves alone (stale blobs, diffs of bottoms that need none) is left alone.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cortado.layers._engine import registry
from cortado.layers._engine.checks import BlobError
from cortado.layers._engine.declared import Trait
from cortado.layers.data.memory_data import MemoryData
from cortado.layers.standard._blob import Array, Blob, BlobVec
from cortado.layers.standard.python import Python
from cortado.nets import weights as files
from cortado.nets.build import blob_names
from cortado.nets.in_place import Memories
from cortado.nets.net import Net as Engine
from cortado.nets.net import Step
from cortado.prototxt_like.source import did_you_mean
from torch import Tensor

from . import mode
from .alias import install_where_missing
from .blob import ParameterBlob, Parameters, Values, shares

Callback = Callable[[int], object]


@dataclass(frozen=True)
class LayerView:
    """A layer of a net: its ``type`` and its parameter ``blobs``."""

    type: str
    blobs: BlobVec


class Net:
    """A net of a prototxt (or YAML) file for a phase, ``caffe.TRAIN`` or ``caffe.TEST``.

    ``Net(file, phase, level=0, stages=None, weights=None)``, or the old ``Net(file, weights, phase)``.
    As in Caffe a ``Python`` layer of the file imports its module: open only files that you trust, or
    give ``allow_python_layers=False``.

    Raises :class:`~cortado.prototxt_like.source.SpecError` for mistakes in the file.
    """

    def __init__(
        self,
        network_file: str | Path,
        *args: Any,
        allow_python_layers: bool = True,
        **options: Any,
    ) -> None:
        given = _arguments(*args, **options)
        if allow_python_layers:
            install_where_missing()
        phase = given["phase"]
        engine = Engine(
            network_file,
            phase if isinstance(phase, str) else ("TRAIN", "TEST")[phase],
            level=given["level"],
            stages=[str(stage) for stage in given["stages"] or ()],
            weights=given["weights"],
            splits=True,
            allow_python_layers=allow_python_layers,
        )
        self._wire(engine)

    @classmethod
    def _of(cls, engine: Engine) -> Net:
        """The interface to a net that is there, built with ``splits``."""
        net = cls.__new__(cls)
        net._wire(engine)
        return net

    def _wire(self, engine: Engine) -> None:
        self._engine = engine
        self._device = engine.device
        self._parameters = Parameters(engine)
        self._blob_names: list[str] = []
        self._blobs: list[Blob] = []
        self._values: list[tuple[Values, Values]] = []
        self._blob_loss_weights: list[float] = []
        self._bottoms: list[list[int]] = []
        self._tops: list[list[int]] = []
        current: dict[str, int] = {}
        for made in engine.built.layers:
            bottoms = [current[name] for name in made.node.bottoms]
            self._bottoms.append(bottoms)
            self._tops.append([])
            for i, (name, shape) in enumerate(zip(made.tops, made.shapes, strict=True)):
                weight = made.loss_weights[i]
                if made.node.tops and made.node.in_place(i):
                    index = bottoms[i]
                    self._blob_loss_weights[index] = weight
                else:
                    index = self._add_blob(name, shape, weight)
                self._tops[-1].append(index)
                if made.node.tops:  # an "(automatic)" top cannot be read
                    current[name] = index
        self._inputs = [
            index
            for step, tops in zip(engine.steps, self._tops, strict=True)
            if step.is_input
            for index in tops
        ]
        self._outputs = [current[name] for name in engine.outputs]
        self._layer_names = [step.name for step in engine.steps]
        self.layers = [self._layer(made) for made in engine.built.layers]
        self._memories = Memories()
        self._pieces: dict[int, tuple[list[Tensor], tuple[Tensor, ...]]] = {}
        self._before_forward: list[Callback] = []
        self._after_forward: list[Callback] = []
        self._before_backward: list[Callback] = []
        self._after_backward: list[Callback] = []

    def _add_blob(self, name: str, shape: tuple[int, ...], weight: float) -> int:
        data, diff = Values(shape, self._device), Values(shape, self._device, weight)
        self._blob_names.append(name)
        self._values.append((data, diff))
        self._blobs.append(Blob(data, diff))
        self._blob_loss_weights.append(weight)
        return len(self._blobs) - 1

    def _layer(self, made: Any) -> Any:
        """What ``layers`` shows: of a Python layer its author's instance, else type and blobs."""
        blobs = BlobVec(
            self._parameters.blob(index, tuple(blob.shape))
            for index, blob in zip(made.blobs, made.layer.blobs, strict=True)
        )
        if not isinstance(made.layer, Python):
            return LayerView(made.node.type, blobs)
        user = made.layer.user
        user.blobs = blobs
        return user

    # ------------------------------------------------------------------------------ what it is made of

    @cached_property
    def blobs(self) -> OrderedDict[str, Blob]:
        """The blobs by name, from the net's bottom to its top."""
        return OrderedDict(zip(self._blob_names, self._blobs, strict=True))

    @cached_property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        return OrderedDict(zip(self._blob_names, self._blob_loss_weights, strict=True))

    @cached_property
    def layer_dict(self) -> OrderedDict[str, Any]:
        return OrderedDict(zip(self._layer_names, self.layers, strict=True))

    @cached_property
    def params(self) -> OrderedDict[str, BlobVec]:
        """The parameter blobs (weight, bias, ...) of each layer that has any."""
        return OrderedDict(
            (name, layer.blobs) for name, layer in self.layer_dict.items() if layer.blobs
        )

    @property
    def inputs(self) -> list[str]:
        return [self._blob_names[i] for i in self._inputs]

    @property
    def outputs(self) -> list[str]:
        return [self._blob_names[i] for i in self._outputs]

    @cached_property
    def top_names(self) -> OrderedDict[str, list[str]]:
        return self._names(self._tops)

    @cached_property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        return self._names(self._bottoms)

    def _names(self, indices: list[list[int]]) -> OrderedDict[str, list[str]]:
        named = ([self._blob_names[i] for i in of] for of in indices)
        return OrderedDict(zip(self._layer_names, named, strict=True))

    def _top_ids(self, layer: int) -> list[int]:
        return self._tops[layer]

    def _bottom_ids(self, layer: int) -> list[int]:
        return self._bottoms[layer]

    # ------------------------------------------------------------------------------ forward

    def forward(
        self,
        blobs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: Any,
    ) -> dict[str, Array]:
        """Run the layers from ``start`` to ``end`` (inclusive; all by default).

        Arrays given by name fill the input blobs first: all of them, with the batch that the net has.
        Gives the outputs (of layer ``end`` if given) and the blobs asked for: the blobs' own arrays,
        which the next pass changes.
        """
        first = self._index(start, 0)
        last = self._index(end, len(self.layers) - 1)
        wanted = {*(self.outputs if end is None else self.top_names[end]), *(blobs or ())}
        self._fill(inputs, self.inputs, "data")
        self._forward(first, last)
        return {name: self.blobs[name].data for name in wanted}

    def _index(self, layer: str | None, default: int) -> int:
        if layer is None:
            return default
        if layer not in self._layer_names:
            hint = did_you_mean(layer, self._layer_names, "layers")
            raise ValueError(f'the net has no layer "{layer}": {hint}')
        return self._layer_names.index(layer)

    def _fill(self, given: Mapping[str, Any], names: list[str], side: str) -> None:
        """Put arrays into the data or the diff of all the blobs named."""
        if not given:
            return
        if set(given) != set(names):
            raise ValueError(f"the net takes {sorted(names)} together, got {sorted(given)}")
        blobs = self.blobs
        for name, values in given.items():
            shape, batch = np.shape(values), blobs[name].shape[:1]
            if shape[:1] != batch:
                raise ValueError(f'"{name}" has a batch of {list(batch)}, got an array {list(shape)}')
            getattr(blobs[name], side)[...] = values

    def _forward(self, start: int, end: int) -> float:
        """Run the layers ``start`` to ``end`` by number; gives their part of the loss."""
        self._move()
        losses = []
        for i in range(start, end + 1):
            for call in self._before_forward:
                call(i)
            losses += self._run_forward(i)
            for call in self._after_forward:
                call(i)
        return float(sum(losses))

    def _run_forward(self, i: int) -> list[Tensor]:
        step = self._engine.steps[i]
        if isinstance(step.layer, Python):
            bottom, top = ([self._blobs[k] for k in of[i]] for of in (self._bottoms, self._tops))
            step.layer.user.reshape(bottom, top)
            step.layer.user.forward(bottom, top)
        elif not step.is_input:
            self._run_layer(i, step)
        losses = []
        for j, _ in step.losses:
            data, diff = self._values[self._tops[i][j]]
            losses.append((data.tensor * diff.tensor).sum())
        return losses

    def _run_layer(self, i: int, step: Step) -> None:
        self._pieces.pop(i, None)  # its memory is free for the new piece
        bottoms, tops = piece = self._piece(i, step)
        if step.backward.needed:
            self._pieces[i] = piece
        blobs = [self._values[k] for k in self._tops[i]]
        self._take(step, tops, bottoms, [data for data, _ in blobs])
        for data, diff in blobs:
            diff.reshape(data.shape)

    def _piece(self, i: int, step: Step) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The bottoms and tops of a run of the layer, between them its piece of autograd's graph."""
        self._write_back(i)
        bottoms = [self._bottom(i, j) for j in range(len(step.bottoms))]
        with torch.set_grad_enabled(step.backward.needed):
            if step.places.shared and step.backward.needed:
                return bottoms, self._memories.run(
                    step.run, bottoms, step.places, Trait.REREADS in step.layer.TRAITS
                )
            return bottoms, step.run(bottoms)

    def _bottom(self, i: int, j: int) -> Tensor:
        """A bottom for a layer to read: a leaf of autograd's graph on the blob's own memory."""
        index, step = self._bottoms[i][j], self._engine.steps[i]
        values = self._values[index][0]
        tensor = values.tensor.data  # what is written later shall not make autograd refuse
        if index in self._tops[i] and values.lent:
            tensor = tensor.clone()  # the layer writes the blob in place
        wanted = step.backward.needed and step.backward.bottoms[j] and tensor.is_floating_point()
        return tensor.requires_grad_() if wanted else tensor

    def _take(
        self, step: Step, new: Sequence[Tensor], read: Sequence[Tensor], blobs: Sequence[Values]
    ) -> None:
        """Make a layer's results the blobs' values, none of them in the memory of what it read."""
        taken: list[Tensor] = []
        sharing = Trait.SHARES_MEMORY in step.layer.TRAITS
        for result, values in zip(new, blobs, strict=False):
            top = result.data.to(self._device).contiguous()
            if values.holds(top):
                continue
            others = [other for other in (*read, *taken) if other.numel() and shares(top, other)]
            kept = not read  # a data layer may keep what it gives
            if (others or kept) and not (sharing and all(x.numel() == top.numel() for x in others)):
                top = top.clone()
            values.put(top)
            taken.append(top)

    # ------------------------------------------------------------------------------ backward

    def backward(
        self,
        diffs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **outputs: Any,
    ) -> dict[str, Array]:
        """Run backward from layer ``start`` (default: the last) down to ``end`` (inclusive).

        Arrays given by name fill the diffs of the outputs first: of all of them. Gives the diffs of the
        inputs (of the bottoms of layer ``end`` if given) and those asked for. The diffs of blobs are
        overwritten, those of parameters added to (:meth:`clear_param_diffs`).
        """
        first = self._index(start, len(self.layers) - 1)
        last = self._index(end, 0)
        wanted = {*(self.inputs if end is None else self.bottom_names[end]), *(diffs or ())}
        self._fill(outputs, self.outputs, "diff")
        self._backward(first, last)
        return {name: self.blobs[name].diff for name in wanted}

    def _backward(self, start: int, end: int) -> None:
        """Run backward from the layer of number ``start`` down to ``end``."""
        self._move()
        for i in range(start, end - 1, -1):
            for call in self._before_backward:
                call(i)
            if self._engine.steps[i].backward.needed:
                self._run_backward(i)
            for call in self._after_backward:
                call(i)

    def _run_backward(self, i: int) -> None:
        step = self._engine.steps[i]
        if step.refused:
            raise step.error(step.refused)
        if isinstance(step.layer, Python):
            bottom, top = ([self._blobs[k] for k in of[i]] for of in (self._bottoms, self._tops))
            step.layer.user.backward(top, list(step.backward.bottoms), bottom)
            return
        if step.is_input:
            return
        if i not in self._pieces:  # it has not gone forward yet: backward from the blobs as they are
            self._pieces[i] = self._piece(i, step)
        bottoms, tops = self._pieces[i]
        self._write_back(i)
        params = self._learning(i)
        read = [tensor for tensor in bottoms if tensor.requires_grad]
        given = [self._values[k][1].tensor for k in self._tops[i]]
        gradients = _gradients(tops, given, [*read, *params.values()])
        for index, gradient in zip(params, gradients[len(read) :], strict=True):
            self._parameters.gradient(index).add_(gradient)
        blobs = [
            self._values[k][1]
            for k, tensor in zip(self._bottoms[i], bottoms, strict=True)
            if tensor.requires_grad
        ]
        self._take(step, gradients[: len(read)], given, blobs)

    def _learning(self, i: int) -> dict[int, Tensor]:
        """The layer's parameters that get a gradient, by their number in the net."""
        made, backward = self._engine.built.layers[i], self._engine.steps[i].backward
        wanted = [index for index, on in zip(made.blobs, backward.params, strict=True) if on]
        return {index: self._parameters.parameter(index) for index in wanted}

    def clear_param_diffs(self) -> None:
        """Set the diffs of all parameters to 0."""
        self._parameters.clear()

    # ------------------------------------------------------------------------------ batches

    def forward_all(self, blobs: Sequence[str] | None = None, **inputs: Any) -> dict[str, Array]:
        """:meth:`forward` over arrays of any length, in batches of the net's size.

        Gives copies of the outputs and of the blobs asked for, joined; of a loss its value in each
        batch.
        """
        outs: dict[str, list[Array]] = {}
        for batch in self._batches(inputs):
            for name, values in self.forward(blobs=blobs, **batch).items():
                outs.setdefault(name, []).extend(np.atleast_1d(values.copy()))
        return _joined(outs, len(next(iter(inputs.values()))))

    def forward_backward_all(
        self, blobs: Sequence[str] | None = None, diffs: Sequence[str] | None = None, **arrays: Any
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """:meth:`forward` and :meth:`backward` over arrays of any length, in batches.

        ``arrays`` are inputs and diffs of outputs by name. Gives what :meth:`forward_all` gives, and
        the diffs of the inputs and those asked for in the same way.
        """
        outs: dict[str, list[Array]] = {}
        all_diffs: dict[str, list[Array]] = {}
        forward = self._batches({name: arrays[name] for name in self.inputs if name in arrays})
        backward = self._batches({name: arrays[name] for name in self.outputs if name in arrays})
        empty: dict[str, Any] = {}
        for inputs, given in itertools.zip_longest(forward, backward, fillvalue=empty):
            for name, values in self.forward(blobs=blobs, **inputs).items():
                outs.setdefault(name, []).extend(np.atleast_1d(values.copy()))
            for name, values in self.backward(diffs=diffs, **given).items():
                all_diffs.setdefault(name, []).extend(np.atleast_1d(values.copy()))
        length = len(next(iter(arrays.values())))
        return _joined(outs, length), _joined(all_diffs, length)

    def _batches(self, arrays: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Batches of the first blob's size; the last is filled up with zeros."""
        if not arrays:
            return
        size = self._blobs[0].shape[0]
        for i in range(0, len(next(iter(arrays.values()))), size):
            batch = {name: np.asarray(array[i : i + size]) for name, array in arrays.items()}
            yield {
                name: np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]))])
                for name, part in batch.items()
            }

    # ------------------------------------------------------------------------------ the rest

    def reshape(self) -> None:
        """Give all blobs the shapes that follow from the inputs' shapes, before the next pass."""
        for i, step in enumerate(self._engine.steps):
            if step.is_input:
                continue
            bottoms = tuple(self._blobs[k].shape for k in self._bottoms[i])
            try:
                shapes = step.layer.infer(step.layer.params, *bottoms)
                _check_parameters(step, bottoms)
            except BlobError as error:
                names = blob_names(type(step.layer), step.bottoms)
                raise step.error(error.named(names)) from None
            except ValueError as error:
                raise step.error(str(error)) from None
            for k, shape in zip(self._tops[i], shapes, strict=False):
                self._blobs[k].reshape(*shape)

    def set_input_arrays(self, data: Any, labels: Any) -> None:
        """Give the net's MemoryData layer, its first layer, its data [N, C, H, W] and labels [N]."""
        layer = self._engine.steps[0].layer
        if not isinstance(layer, MemoryData):
            raise RuntimeError("set_input_arrays: the first layer of the net is not MemoryData")
        layer.set_arrays(data, labels)

    def copy_from(self, path: str | Path) -> None:
        """Load weights (``.caffemodel``, ``.h5``, or another file of weights) by layer name."""
        files.load(self._engine, path)

    def share_with(self, other: Net) -> None:
        """Make the parameters of the other net's layers those of the layers of the same names here."""
        files.share(self._engine, other._engine)

    def save(self, path: str | Path) -> None:
        """Write the weights as a ``.caffemodel``, whatever the file is called."""
        files.save_caffemodel(self._engine, Path(path))

    def save_hdf5(self, path: str | Path) -> None:
        """Write the weights as HDF5."""
        files.save_hdf5(self._engine, Path(path))

    def load_hdf5(self, path: str | Path) -> None:
        """Load weights from HDF5."""
        files.load(self._engine, path)

    def before_forward(self, call: Callback) -> None:
        """Have a function called with a layer's number before each layer's forward pass."""
        self._before_forward.append(call)

    def after_forward(self, call: Callback) -> None:
        self._after_forward.append(call)

    def before_backward(self, call: Callback) -> None:
        self._before_backward.append(call)

    def after_backward(self, call: Callback) -> None:
        self._after_backward.append(call)

    def _move(self) -> None:
        """Go where ``set_mode_cpu`` or ``set_mode_gpu`` say."""
        device = mode.device()
        if device == self._device:
            return
        for i in range(len(self.layers)):
            self._write_back(i)
        self._pieces.clear()
        self._engine.to(device)
        for sides in self._values:
            for values in sides:
                values.to(device)
        self._device = device

    def _write_back(self, i: int) -> None:
        """Let the device have what was written into the arrays of a layer's parameters."""
        for blob in self.layers[i].blobs:
            if isinstance(blob, ParameterBlob):
                blob.write_back()


def _arguments(
    phase: Any = None,
    level: Any = None,
    stages: Sequence[str] | None = None,
    weights: str | Path | None = None,
) -> dict[str, Any]:
    """Both orders of Net's arguments after the file."""
    if isinstance(phase, (str, Path)) and phase not in ("TRAIN", "TEST"):  # the old one
        phase, weights, level = level, phase, None
    if isinstance(phase, bool) or phase not in (0, 1, "TRAIN", "TEST"):
        forms = "Net(file, phase) or Net(file, weights, phase)"
        raise TypeError(f"{forms}: expected caffe.TRAIN or caffe.TEST, got {phase!r}")
    level = 0 if level is None else level
    return {"phase": phase, "level": level, "stages": stages, "weights": weights}


def _gradients(tops: Sequence[Tensor], given: Sequence[Tensor], read: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each tensor read; 0 for one that the tops do not depend on."""
    pairs = [(top, diff) for top, diff in zip(tops, given, strict=False) if top.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(read)
    if pairs and read:
        outputs, diffs = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, read, diffs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, read, strict=True)]


def _joined(parts: Mapping[str, list[Array]], length: int) -> dict[str, Array]:
    return {name: np.asarray(values)[:length] for name, values in parts.items()}


def _check_parameters(step: Step, bottoms: tuple[tuple[int, ...], ...]) -> None:
    """Raise BlobError where the layer's blobs would have other shapes with these bottoms."""
    entry = registry.find(step.layer.type_name)
    if entry is None or not step.layer.blob_names:
        return
    with torch.device("meta"):
        fresh = entry.layer(step.layer.params, bottoms)
    for name, mine, wanted in zip(fresh.blob_names, step.layer.blobs, fresh.blobs, strict=True):
        if mine.shape != wanted.shape:
            text = f"{{bottom}} needs a {name} {list(wanted.shape)}, the layer's is {list(mine.shape)}"
            raise BlobError(text.replace("{bottom}", "{bottom0}"), bottom0=bottoms[0])
