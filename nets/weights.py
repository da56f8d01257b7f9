"""Weights in and out of a net: ``.caffemodel`` (read), ``.safetensors`` and ``.pth`` (both ways).

Blobs are matched by layer name and index, as Caffe does. ``.safetensors`` and ``.pth`` hold the
net's ``state_dict``, each shared parameter once.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from cortado.layers._runtime.checks import Shape
from cortado.layers._runtime.layer import Layer
from cortado.prototxt_like.source import Errors, SpecError
from cortado.prototxt_like.wire import read_net
from safetensors import SafetensorError
from torch import nn

from .build import BuiltLayer
from .net import Net, escape


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
            text += f"; not in the file: {', '.join(self.missing)}"
        if self.unused:
            text += f"; not in the net: {', '.join(self.unused)}"
        return text


@dataclass(frozen=True)
class _Stored:
    """One layer's blobs in a file, by index or by attribute name."""

    layer: str
    blobs: dict[int | str, torch.Tensor]


def load(net: Net, path: str | Path) -> Report:
    """Fill a net's parameters from a file, all or nothing; extra layers on either side are fine.

    Where the file gives a shared parameter more than once, the last wins, as in Caffe. Raises
    :class:`SpecError` at the layers' lines where the number of blobs or a shape differs, ValueError
    for a file of another kind.
    """
    errors = Errors()
    by_name = {escape(made.node.name): made for made in reversed(net.built.layers)}
    pairs: list[tuple[nn.Parameter, torch.Tensor]] = []
    unused = []
    for stored in _read(Path(path)):
        made = by_name.get(stored.layer)
        if made is None:
            if stored.blobs:
                unused.append(_unescape(stored.layer))
        else:
            pairs.extend(errors.attempt(_match, made, stored, Path(path).name) or ())
    errors.check()
    with torch.no_grad():
        for parameter, values in pairs:
            parameter.copy_(values.reshape(parameter.shape))
    given = {id(parameter) for parameter, _ in pairs}
    params = net.params
    filled = tuple(name for name in params if all(id(blob) in given for blob in params[name]))
    missing = tuple(name for name in params if name not in filled)
    return Report(str(path), filled, missing, tuple(unused))


def save(net: Net, path: str | Path) -> None:
    """Write a net's parameters, each shared one once; ``.safetensors`` or ``.pth``.

    The file is written beside and renamed, so that a broken write leaves no broken file.
    """
    path = Path(path)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in _owned(net)}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        replace_file(path, lambda beside: save_file(state, beside))
    elif path.suffix in (".pth", ".pt"):
        replace_file(path, lambda beside: torch.save(state, beside))
    else:
        raise ValueError(f"{path}: weights are saved as .safetensors or .pth")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, then rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def share(net: Net, owner: Net) -> None:
    """Make the parameters of the owner's layers those of ``net``'s layers of the same names."""
    tied: dict[int, nn.Parameter] = {}
    for made in net.built.layers:
        source = owner.layer_by_name.get(made.node.name)
        if source is None or not made.layer.blob_names:
            continue
        theirs, mine = _shapes(source), _shapes(made.layer)
        if theirs != mine:
            raise SpecError(
                f"{made.node} has blobs {_shown(mine)}, in the net it shares with {_shown(theirs)}",
                made.node.span,
            )
        for attribute, parameter in zip(made.layer.blob_names, source.blobs, strict=True):
            tied[id(getattr(made.layer, attribute))] = parameter
            setattr(made.layer, attribute, parameter)
    for i, blob in enumerate(net.learnable):
        parameter = tied.get(id(blob.parameter), blob.parameter)
        net.learnable[i] = dataclasses.replace(blob, parameter=parameter)


def _owned(net: Net) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[int] = set()
    for key, tensor in net.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and not key.endswith("_extra_state"):
            if id(tensor) not in seen:
                yield key, tensor
            seen.add(id(tensor))


def _read(path: Path) -> list[_Stored]:
    try:
        return _parse(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a file of weights: {error}") from None


def _parse(path: Path) -> list[_Stored]:
    if path.suffix == ".caffemodel":
        return [
            _Stored(escape(layer.name), dict(enumerate(map(torch.from_numpy, layer.blobs))))
            for layer in read_net(path)
        ]
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _layers_of(load_file(path))
    if path.suffix in (".pth", ".pt"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
            raise ValueError(f"{path}: not a state_dict of tensors")
        return _layers_of(state)
    raise ValueError(f"{path}: weights are read from .caffemodel, .safetensors or .pth")


def _layers_of(state: dict[str, torch.Tensor]) -> list[_Stored]:
    """A state_dict's tensors by layer: "layers.conv1/7x7_s2.weight"."""
    layers: dict[str, _Stored] = {}
    for key, tensor in state.items():
        name, _, attribute = key.removeprefix("layers.").rpartition(".")
        if attribute != "_extra_state":
            layers.setdefault(name, _Stored(name, {})).blobs[attribute] = tensor
    return list(layers.values())


def _match(made: BuiltLayer, stored: _Stored, file: str) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """The layer's parameters with their values; raises SpecError where they don't fit."""
    names = made.layer.blob_names
    unknown = [key for key in stored.blobs if key not in names and key not in range(len(names))]
    indexed = all(isinstance(key, int) for key in stored.blobs)
    if unknown or (indexed and len(stored.blobs) != len(names)):
        theirs = [tuple(blob.shape) for blob in stored.blobs.values()]
        raise SpecError(
            f"{made.node} has {len(names)} blobs {_shown(_shapes(made.layer))}, "
            f"{file} has {len(theirs)} {_shown(theirs)}",
            made.node.span,
        )
    errors = Errors()
    pairs = []
    for key, values in stored.blobs.items():
        name = names[key] if isinstance(key, int) else key
        parameter = getattr(made.layer, name)
        if _fits(tuple(values.shape), tuple(parameter.shape)):
            pairs.append((parameter, values))
        else:
            shapes = f"{list(parameter.shape)}, in {file} {list(values.shape)}"
            errors.add(f"{made.node}: {name} is {shapes}", made.node.span)
    errors.check()
    return pairs


def _fits(stored: Shape, wanted: Shape) -> bool:
    """Equal, or Caffe's old four axes with leading ones."""
    extra = len(stored) - len(wanted)
    return stored == wanted or (
        len(stored) == 4 and extra > 0 and stored[extra:] == wanted and set(stored[:extra]) == {1}
    )


def _shapes(layer: Layer) -> list[Shape]:
    return [tuple(blob.shape) for blob in layer.blobs]


def _shown(shapes: list[Shape]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"


def _unescape(key: str) -> str:
    return key.replace("%2E", ".").replace("%25", "%")
