"""Weights in and out of a net, matched by layer name and blob index as Caffe does.

===================== ============ ==================================================================
``.caffemodel``       read, write  Caffe's binary nets, old ones too; layers that share have a copy each
``.h5``               read, write  Caffe's HDF5; known by its content, whatever the suffix
``.safetensors``      read, write  the net's ``state_dict``, each shared parameter once
``.pth``, ``.pt``     read, write  the same, pickled; read as data alone (``weights_only``)
torchvision's         read         VGG16, GoogLeNet and ResNets in one of these two, by their keys
``.mat``              read         MatConvNet's simplenn and DagNN
``.npz``              read         NumPy's, arrays ``<layer>|<blob index>``
===================== ============ ==================================================================

A file with another suffix, or none, is read as Caffe's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cortado.layers._engine.checks import Shape
from cortado.layers._engine.declared import Trait
from cortado.layers._engine.layer import Layer
from cortado.prototxt_like.files import open_file, replace_file
from cortado.prototxt_like.schema import encode, enum, message
from cortado.prototxt_like.source import Errors, SpecError
from cortado.prototxt_like.wire import Array, read_net, write_net
from safetensors import SafetensorError

from . import convert_matconvnet, convert_torchvision, hdf5, npz
from .build import BuiltLayer, tie
from .net import Net
from .stored import Shapes, Stored


@dataclass(frozen=True)
class Report:
    """Which layers a file filled: ``filled`` and ``missing`` are the net's layers with parameters
    (``missing``: at least one blob kept its value), ``unused`` the file's layers the net lacks."""

    path: str
    filled: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.path}: filled {len(self.filled)} layers"
        if self.missing:
            text += f"; not in the file: {listed(self.missing)}"
        if self.unused:
            text += f"; not in the net: {listed(self.unused)}"
        return text


def listed(names: Sequence[str], most: int = 8) -> str:
    """The names, or the first of them where there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load(net: Net, path: str | Path) -> Report:
    """Fill a net's parameters from a file, all or nothing; extra layers on either side are fine.

    Shapes are equal, or the file's has the four axes of Caffe's old formats, 1 in front. Where a
    shared parameter is given more than once the last wins, as in Caffe. The file's blobs are copied
    one after the other; it is not held in memory as a whole where it can be mapped.

    Raises :class:`SpecError` at the layers' lines where the number of blobs or a shape differs, or
    for a ``.caffemodel`` that is missing or broken; OSError for another file that cannot be opened,
    ValueError for one that is broken or of another kind.
    """
    path = Path(path)
    keys = (key for key, _ in net.layers.named_children())
    targets = {_unescape(key): made for key, made in zip(keys, net.built.layers, strict=True)}
    errors = Errors()
    fills: list[tuple[int, Any]] = []
    unused = []
    for stored in _read(path, {name: _shapes(made.layer) for name, made in targets.items()}):
        made = targets.get(stored.layer)
        if made is not None:
            fills.extend(errors.attempt(_match, net, made, stored, path.name) or ())
        elif stored.blobs:
            unused.append(stored.layer)
    errors.check()
    with torch.no_grad():
        for index, values in fills:
            parameter = net.learnable[index].parameter
            parameter.copy_(_tensor(values).reshape(parameter.shape))
    given = {index for index, _ in fills}
    names = {made.node.name: given.issuperset(made.blobs) for made in net.built.layers if made.blobs}
    filled = tuple(name for name, whole in names.items() if whole)
    missing = tuple(name for name, whole in names.items() if not whole)
    return Report(str(path), filled, missing, tuple(unused))


def save(net: Net, path: str | Path) -> None:
    """Write a net's parameters to a ``.caffemodel``, ``.h5``, ``.safetensors`` or ``.pth``.

    The two of Caffe's hold float32; a ``.caffemodel`` holds what Caffe knows of the layers, too. The
    file is written beside and renamed, so that a broken write leaves no broken file.
    """
    path = Path(path)
    if path.suffix == ".caffemodel":
        save_caffemodel(net, path)
    elif path.suffix == ".h5":
        save_hdf5(net, path)
    elif path.suffix == ".safetensors":
        from safetensors.torch import save_file

        replace_file(path, lambda beside: _write(save_file, _state(net), beside))
    elif path.suffix in (".pth", ".pt"):
        replace_file(path, lambda beside: _write(torch.save, _state(net), beside))
    else:
        raise ValueError(f"{path}: weights are saved as .caffemodel, .h5, .safetensors or .pth")


def save_caffemodel(net: Net, path: Path) -> None:
    """Write a ``.caffemodel``, whatever the path's suffix."""
    layers = net.built.layers
    blobs = ((_head(net, made), [_array(blob) for blob in made.layer.blobs]) for made in layers)
    write_net(path, net.graph.name, blobs)


def save_hdf5(net: Net, path: Path) -> None:
    """Write Caffe's HDF5, whatever the path's suffix."""
    replace_file(path, lambda beside: hdf5.write(beside, _owned_arrays(net)))


def share(net: Net, owner: Net) -> None:
    """Make the parameters of the owner's layers those of ``net``'s layers of the same names."""
    theirs = {made.node.name: made for made in reversed(owner.built.layers)}
    for made in net.built.layers:
        source = theirs.get(made.node.name)
        if source is None or not made.blobs:
            continue
        if _shapes(source.layer) != _shapes(made.layer):
            raise SpecError(
                f"{made.node} has blobs {_shown(_shapes(made.layer))}, "
                f"in the net it shares with {_shown(_shapes(source.layer))}",
                made.node.span,
            )
        for attribute, mine, other in zip(made.layer.blob_names, made.blobs, source.blobs, strict=True):
            parameter = owner.learnable[other].parameter
            tie(made.layer, attribute, parameter)
            net.learnable[mine] = dataclasses.replace(net.learnable[mine], parameter=parameter)


# Writing


def _write(save: Callable[[Any, Path], object], state: dict[str, torch.Tensor], path: Path) -> None:
    """Save by a library; raises OSError where it cannot write, whatever the library's own error."""
    try:
        save(state, path)
    except (RuntimeError, SafetensorError) as error:
        raise OSError(str(error).splitlines()[0]) from error


def _head(net: Net, made: BuiltLayer) -> Any:
    """The layer as a LayerParameter, its blobs aside; blocks that Caffe lacks are left out."""
    node = made.node
    head = encode("LayerParameter", node.message)
    head.name, head.type = node.name, node.type
    head.bottom[:], head.top[:] = node.bottoms, node.tops
    if not head.HasField("phase"):
        head.phase = enum("Phase").Value(net.graph.state.phase)
    # Caffe writes down what it takes for granted: a loss's weight, statistics that don't learn.
    if Trait.LOSS in made.layer.TRAITS and not head.loss_weight:
        head.loss_weight.append(1)
    if Trait.STATISTICS in made.layer.TRAITS:
        missing = len(made.blobs) - len(head.param)
        head.param.extend([message("ParamSpec")(lr_mult=0)] * missing)
    return head


def _array(blob: torch.Tensor) -> Array:
    return blob.detach().cpu().float().numpy()


def _owned_arrays(net: Net) -> Iterator[tuple[str, dict[int, Array]]]:
    for made in net.built.layers:
        owners = [net.learnable[index].layer for index in made.blobs]
        own = [i for i, owner in enumerate(owners) if owner == made.node.name]
        yield made.node.name, {i: _array(made.layer.blobs[i]) for i in own}


def _state(net: Net) -> dict[str, torch.Tensor]:
    """The net's ``state_dict``, each parameter once, under its owner."""
    state = {}
    seen: set[int] = set()
    for key, made in zip(net.layers.named_children(), net.built.layers, strict=True):
        for name, index in zip(made.layer.blob_names, made.blobs, strict=True):
            if index not in seen:
                parameter = net.learnable[index].parameter
                state[f"layers.{key[0]}.{name}"] = parameter.detach().cpu().contiguous()
            seen.add(index)
    return state


# Reading


def _read(path: Path, shapes: Shapes) -> list[Stored]:
    if path.suffix == ".mat":
        return convert_matconvnet.read(path, shapes)
    if path.suffix == ".npz":
        return npz.read(path, shapes)
    if path.suffix in (".safetensors", ".pth", ".pt"):
        state = _read_state(path)
        return convert_torchvision.convert(state, shapes) or _layers_of(state)
    if path.suffix == ".h5" or hdf5.is_hdf5(path):
        return hdf5.read(path)
    return [Stored(layer.name, dict(enumerate(layer.blobs))) for layer in read_net(path)]


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    open_file(path).close()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below, or has no effect
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # torch.load documents none: zip, pickle and key errors among others
        if "allocate memory" in str(error):
            raise
        why = str(error).split("\n")[0]
        why = why if " " in why else f"{type(error).__name__} {why}".rstrip()
        if "weights_only" in why:  # torch goes on to advise what would run the file's code
            why = "it holds more than names and tensors, of which nothing is run"
        raise ValueError(f"{path}: not a file of weights: {why}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a state_dict, got {type(state).__name__}")
    for key, value in state.items():
        _expect_plain(path, key, value)
    return state


def _expect_plain(path: Path, key: object, value: object) -> None:
    """Raises ValueError unless it is a name with a tensor of plain numbers."""
    if not isinstance(key, str):
        raise ValueError(f"{path}: not a state_dict: its key {key!r} is no name")
    if not isinstance(value, torch.Tensor):
        inner = isinstance(value, dict) and value and all(map(torch.is_tensor, value.values()))
        hint = ", which seems to be one: save that alone" if inner else ""
        got = f'"{key}" is {type(value).__name__}{hint}'
        raise ValueError(f"{path}: not a state_dict of tensors: {got}")
    kinds = {
        "sparse": value.layout is not torch.strided,
        "quantized": value.is_quantized,
        "meta": value.is_meta,
        "complex": value.is_complex(),
    }
    if kind := next((name for name, true in kinds.items() if true), ""):
        raise ValueError(f'{path}: "{key}" is a {kind} tensor: expected plain numbers')


def _layers_of(state: dict[str, torch.Tensor]) -> list[Stored]:
    """A state_dict's tensors by layer: "layers.conv1/7x7_s2.weight"."""
    layers: dict[str, Stored] = {}
    for key, tensor in state.items():
        # a shared parameter of two shapes is parametrized
        plain = re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", key)
        name, _, attribute = plain.removeprefix("layers.").rpartition(".")
        if attribute != "_extra_state":
            layers.setdefault(name, Stored(_unescape(name), {})).blobs[attribute] = tensor
    return list(layers.values())


def _match(net: Net, made: BuiltLayer, stored: Stored, file: str) -> list[tuple[int, Any]]:
    """Indices of the net's parameters with their values; raises SpecError where they don't fit."""
    names, shapes = made.layer.blob_names, _shapes(made.layer)
    places: dict[int | str, int] = {name: i for i, name in enumerate(names)}
    places |= {i: i for i in range(len(names))}
    given = {places[key]: values for key, values in stored.blobs.items() if key in places}
    if len(given) < len(stored.blobs) or not _enough(net, made, stored, given):
        theirs = [tuple(blob.shape) for blob in stored.blobs.values()]
        raise SpecError(
            f"{made.node} has {len(names)} blobs {_shown(shapes)}, "
            f"{file} has {len(theirs)} {_shown(theirs)}",
            made.node.span,
            "to learn the layer from scratch, rename it" if names else "is the file another net's?",
        )
    errors = Errors()
    for i, values in given.items():
        shape, owner = tuple(values.shape), net.learnable[made.blobs[i]].parameter
        if not _fits(shape, shapes[i]) and shape != tuple(owner.shape):
            text = f"{made.node}: {names[i]} is {list(shapes[i])}, in {file} {list(shape)}"
            errors.add(text, made.node.span, _ways_out(made, i, shape, shapes[i]))
    errors.check()
    return [(made.blobs[i], values) for i, values in given.items()]


def _ways_out(made: BuiltLayer, i: int, stored: Shape, wanted: Shape) -> str:
    hint = "to learn the layer from scratch, rename it"
    if math.prod(stored) == math.prod(wanted):
        name = json.dumps(made.node.name)
        hint += f"; to keep its values as they lie, copy them yourself into net.params[{name}][{i}]"
    return hint


def _enough(net: Net, made: BuiltLayer, stored: Stored, given: Collection[int]) -> bool:
    """Whether all blobs are given, where the kind of file asks for all."""
    owners = [net.learnable[index].layer for index in made.blobs]
    missing = [owner for i, owner in enumerate(owners) if i not in given]
    if stored.owners_only:
        return made.node.name not in missing
    by_attribute = any(isinstance(key, str) for key in stored.blobs)
    return by_attribute or not missing


def _fits(stored: Shape, wanted: Shape) -> bool:
    """Equal, or Caffe's old four axes with leading ones."""
    extra = len(stored) - len(wanted)
    return stored == wanted or (
        len(stored) == 4 and extra > 0 and stored[extra:] == wanted and set(stored[:extra]) == {1}
    )


def _tensor(values: Any) -> torch.Tensor:
    """A tensor of an array, which may lie at an odd place of a mapped file, or of what is read when
    it is used: an h5py dataset, a file's blob."""
    if isinstance(values, torch.Tensor):
        return values
    wide = values.dtype.itemsize > 8  # long double, which torch does not have
    dtype = np.dtype(np.float64) if wide else np.promote_types(values.dtype, np.float32)
    return torch.from_numpy(np.require(values[()], dtype, ["A", "W"]))


def _shapes(layer: Layer) -> list[Shape]:
    return [tuple(blob.shape) for blob in layer.blobs]


def _shown(shapes: list[Shape]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"


def _unescape(key: str) -> str:
    return key.replace("%2E", ".").replace("%25", "%")
