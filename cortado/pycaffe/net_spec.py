"""Nets written in Python: ``n = NetSpec(); n.conv1 = layers.Convolution(n.data, kernel_size=5, ...)``.

A layer function takes the tops that it reads and its parameters as keywords: those of its own block
(``kernel_size``) directly, other blocks and fields of a layer by name (``transform_param=dict(...)``,
``param=[dict(lr_mult=1), ...]``, ``include=dict(phase=caffe.TEST)``). Dictionaries become messages, a
single value of a repeated field a list. ``ntop`` says how many tops it gives, ``in_place`` that its
tops are its bottoms.

Blobs and layers are called by the attribute that a top was assigned to, others by the layer's type and
a number.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from cortado.prototxt_like import schema


class Top:
    """One top of a layer: its ``n``-th."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn, self.n = fn, n

    def to_proto(self) -> Any:
        """A NetParameter of the layers that this top needs."""
        return to_proto(self)


class Function:
    """A layer: its type, the tops that it reads, its parameters, and its own ``tops``."""

    def __init__(self, type_name: str, inputs: Iterable[Top], params: dict[str, Any]) -> None:
        self.type_name, self.inputs, self.params = type_name, tuple(inputs), dict(params)
        for index, given in enumerate(self.inputs):
            if not isinstance(given, Top):
                raise TypeError(f"{type_name} input {index} is not a Top (type is {type(given)})")
        self.ntop: int = self.params.pop("ntop", 1)
        self.in_place: bool = self.params.pop("in_place", False)
        self.tops = tuple(Top(self, n) for n in range(self.ntop))


class NetSpec:
    """Tops by name, in the order of assignment: attributes or items."""

    tops: OrderedDict[str, Any]

    def __init__(self) -> None:
        super().__setattr__("tops", OrderedDict())

    def __setattr__(self, name: str, value: Any) -> None:
        self.tops[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return self.tops[name]
        except KeyError:
            raise AttributeError(f"the net has no top {name!r}") from None

    def __delattr__(self, name: str) -> None:
        del self.tops[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.tops[name] = value

    def __getitem__(self, name: str) -> Any:
        return self.tops[name]

    def to_proto(self) -> Any:
        """A NetParameter of all layers that the tops need."""
        return _Writer({top: name for name, top in self.tops.items()}).net(self.tops.values())


def to_proto(*tops: Any) -> Any:
    """A NetParameter of the layers that the tops need, with names made of types and numbers."""
    return _Writer({}).net(tops)


class _Writer:
    """Writes layers, each after those that it reads, and finds names for what has none."""

    def __init__(self, names: dict[Any, str]) -> None:
        self.names, self.counts = names, Counter[str]()
        self.layers: dict[Function, Any] = {}

    def net(self, tops: Iterable[Any]) -> Any:
        for top in tops:
            self.add(top.fn if isinstance(top, Top) else top)
        net = schema.message("NetParameter")()
        net.layer.extend(self.layers.values())
        return net

    def add(self, fn: Function) -> None:
        if fn in self.layers:
            return
        bottoms = []
        for top in fn.inputs:
            self.add(top.fn)
            bottoms.append(self.layers[top.fn].top[top.n])
        tops = bottoms if fn.in_place else [self.name(top, fn) for top in fn.tops]
        layer = schema.message("LayerParameter")(type=fn.type_name, bottom=bottoms, top=tops)
        layer.name = self.name(fn.tops[0] if fn.tops else fn, fn)
        for key, value in fn.params.items():
            assign_proto(_holder(layer, fn.type_name, key), key, value)
        self.layers[fn] = layer

    def name(self, top: Any, fn: Function) -> str:
        if top not in self.names:
            self.counts[fn.type_name] += 1
            self.names[top] = f"{fn.type_name}{self.counts[fn.type_name]}"
        return self.names[top]


def _holder(layer: Any, type_name: str, key: str) -> Any:
    """The message that a keyword belongs to: the type's own block, or the layer."""
    block = _blocks().get(type_name, "")
    if not block or key.endswith("param"):
        return layer
    fields = layer.DESCRIPTOR.fields_by_name[block].message_type.fields_by_name
    return getattr(layer, block) if key in fields else layer


@cache
def _blocks() -> dict[str, str]:
    """The name of each layer type's block of parameters, found by its message's name."""
    fields = schema.message("LayerParameter").DESCRIPTOR.fields
    return {
        field.message_type.name.removesuffix("Parameter"): field.name
        for field in fields
        if field.name.endswith("_param")
    }


def assign_proto(message: Any, name: str, value: Any) -> None:
    """Set a message's field: a dictionary for a message, a list or one value for a repeated field."""
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        raise AttributeError(f"Caffe's {message.DESCRIPTOR.name} has no field {name!r}")
    target = getattr(message, name)
    if not hasattr(target, "extend"):
        if not isinstance(value, dict):
            setattr(message, name, value)
            return
        target.SetInParent()
        for key, inner in value.items():
            assign_proto(target, key, inner)
        return
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(item, dict):
            target.append(item)
            continue
        element = target.add()
        for key, inner in item.items():
            assign_proto(element, key, inner)


class Layers:
    """``layers.Convolution(bottom, ...)``: any layer type is a function.

    It gives the layer's top; a tuple of them if ``ntop`` is above 1, the :class:`Function` if it is 0.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def make(*inputs: Top, **params: Any) -> Any:
            fn = Function(name, inputs, params)
            return (fn, *fn.tops)[fn.ntop] if fn.ntop < 2 else fn.tops

        return make


class Parameters:
    """``params.Pooling.MAX``: the constants of a layer type's parameters."""

    def __getattr__(self, name: str) -> Any:
        try:
            return schema.message(f"{name}Parameter")
        except KeyError:
            raise AttributeError(f"Caffe has no {name}Parameter") from None


layers = Layers()
params = Parameters()
