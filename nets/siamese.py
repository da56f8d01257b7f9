"""One trunk declared once: its expansion to twin layers that share their parameters by name.

A spec's ``siamese`` entry names the trunk's inputs and outputs in the two branches::

    - siamese:
        suffix: _p
        input:  {data: [image1, image2]}
        output: {feature: [feature1, feature2]}
        layer: [...]

The first branch keeps the trunk's names; in the second every layer and every other blob carries
the suffix, and ``twin_of`` names the layer of the first branch. Parameters without a name are
called as in UCN's own nets: ``conv1/7x7_s2_w``, ``conv1/7x7_s2_b``, then ``..._2`` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from cortado.prototxt_like.message import Field, Message, Scalar
from cortado.prototxt_like.source import Errors, closest, did_you_mean
from cortado.prototxt_like.yaml_spec import dump

_FIELDS = ("suffix", "input", "output", "layer")


def param_name(layer: str, index: int) -> str:
    """What the ``index``-th parameter blob of a trunk's layer is called: ``_w``, ``_b``, ``_2``..."""
    return f"{layer}_{('w', 'b')[index] if index < 2 else index}"


def expand(message: Message, errors: Errors | None = None) -> Message:
    """The net with every ``siamese`` entry replaced by its two branches, first one, then the other.

    Spans stay those of the trunk's declaration. Raises :class:`SpecError` for a mistake in an
    entry, or adds it to ``errors`` and leaves the entry out.
    """
    found = errors or Errors()
    outside = [f.value for f in message.all("layer") if isinstance(f.value, Message)]
    expanded = Message(message.span)
    for field in message:
        if field.name == "layer" and isinstance(field.value, Message) and "siamese" in field.value:
            branches = _expand_entry(field.value, outside, found)
            expanded.fields.extend(Field("layer", layer, field.span) for layer in branches)
        else:
            expanded.fields.append(field)
    if errors is None:
        found.check()
    return expanded


def expanded_text(message: Message) -> str:
    """The expansion as a YAML spec; it loads to the same net."""
    return dump(expand(message))


def texts(message: Message, name: str) -> list[Scalar]:
    """The scalars of a repeated field."""
    return [f.value for f in message.all(name) if isinstance(f.value, Scalar)]


@dataclass
class _Trunk:
    suffix: str
    inputs: dict[str, list[Scalar]]
    outputs: dict[str, list[Scalar]]
    layers: list[Message]

    def rename(self, blob: Scalar, branch: int) -> Scalar:
        outer = self.inputs.get(blob.text) or self.outputs.get(blob.text)
        if outer:
            return outer[branch]
        return self.suffixed(blob) if branch else blob

    def suffixed(self, name: Scalar) -> Scalar:
        return Scalar(name.text + self.suffix, name.span, name.quoted)

    def branch(self, branch: int) -> Iterator[Message]:
        for layer in self.layers:
            twin = Message(layer.span)
            indices = count()
            for field in layer:
                value = field.value
                if isinstance(value, Scalar) and field.name in ("bottom", "top"):
                    value = self.rename(value, branch)
                elif isinstance(value, Scalar) and field.name == "name" and branch:
                    value = self.suffixed(value)
                elif isinstance(value, Message) and field.name == "param":
                    value = _named(value, layer, next(indices))
                twin.fields.append(Field(field.name, value, field.span))
            if branch and (names := texts(layer, "name")):
                twin.fields.append(Field("twin_of", names[-1], layer.span))
            yield twin


def _named(param: Message, layer: Message, index: int) -> Message:
    """The ``param`` block with a name to share by."""
    names = texts(layer, "name")
    if "name" in param or not names:
        return param
    name = Scalar(param_name(names[-1].text, index), param.span, names[-1].quoted)
    return Message(param.span, [Field("name", name, param.span), *param.fields])


def _expand_entry(entry: Message, outside: list[Message], errors: Errors) -> list[Message]:
    before = len(errors.found)
    for field in entry:
        if field.name != "siamese" or not isinstance(field.value, Message):
            errors.add('a "siamese" entry is one block and takes nothing beside it', field.span)
    trunk = None
    if len(errors.found) == before:
        block = entry.all("siamese")[-1].value
        assert isinstance(block, Message)
        trunk = _read(block, errors)
        _check(trunk, block, outside, errors)
    if trunk is None or len(errors.found) > before:
        return []
    return [*trunk.branch(0), *trunk.branch(1)]


def _read(block: Message, errors: Errors) -> _Trunk:
    for field in block:
        if field.name not in _FIELDS:
            hint = did_you_mean(field.name, _FIELDS)
            errors.add(f'siamese has no field "{field.name}"', field.span, hint)
    for name in _FIELDS[1:]:
        if name not in block:
            errors.add(f'siamese needs "{name}"', block.span)
    layers = []
    for field in block.all("layer"):
        if not isinstance(field.value, Message) or "siamese" in field.value:
            errors.add("a trunk's layer is a block of fields, and no trunk itself", field.value.span)
        else:
            layers.append(field.value)
    suffix = block.text("suffix", "_p")
    if not suffix:
        place = texts(block, "suffix")[-1].span
        errors.add("siamese suffix is empty: the twins would have one name", place)
    return _Trunk(suffix, _pairs(block, "input", errors), _pairs(block, "output", errors), layers)


def _pairs(block: Message, name: str, errors: Errors) -> dict[str, list[Scalar]]:
    """``{data: [image1, image2]}``: for each trunk blob its names in the two branches."""
    pairs: dict[str, list[Scalar]] = {}
    for field in block.all(name):
        if not isinstance(field.value, Message):
            hint = f"such as {name}: {{data: [image1, image2]}}"
            errors.add(f'siamese {name} is a block of "trunk blob: [first, second]"', field.span, hint)
            continue
        given: dict[str, list[Scalar]] = {}
        for inner in field.value:
            names = given.setdefault(inner.name, [])
            names += [inner.value] if isinstance(inner.value, Scalar) else []
        places = {inner.name: inner.span for inner in reversed(field.value.fields)}
        for blob, names in given.items():
            if len(names) != 2:
                text = f'siamese {name} "{blob}" needs two names, one for each branch, got {len(names)}'
                errors.add(text, places[blob])
        pairs |= given
    return pairs


def _check(trunk: _Trunk, block: Message, outside: list[Message], errors: Errors) -> None:
    read = {bottom.text for layer in trunk.layers for bottom in texts(layer, "bottom")}
    produced = {top.text for layer in trunk.layers for top in texts(layer, "top")}
    if "input" in block:
        _check_bottoms(trunk, errors)
    for name, field in _entries(block, "input"):
        if trunk.layers and name not in read:
            errors.add(f'siamese input "{name}" is read by no layer of the trunk', field.span)
    for name, field in _entries(block, "output"):
        if trunk.layers and name not in produced:
            hint = did_you_mean(name, produced, "the trunk's blobs")
            errors.add(f'siamese output "{name}" is no blob of the trunk', field.span, hint)
    _check_suffix(trunk, outside, errors)


def _check_bottoms(trunk: _Trunk, errors: Errors) -> None:
    made = set(trunk.inputs)
    for layer in trunk.layers:
        for bottom in texts(layer, "bottom"):
            if bottom.text not in made:
                near = closest(bottom.text, made)
                hint = f'did you mean "{near}"? ' if near else ""
                errors.add(
                    f'trunk layer "{layer.text("name")}" reads "{bottom.text}", which neither the '
                    "trunk's inputs nor its layers above produce",
                    bottom.span,
                    hint + "a blob from outside of the trunk is listed in input",
                )
        made.update(top.text for top in texts(layer, "top"))


def _entries(block: Message, name: str) -> Iterator[tuple[str, Field]]:
    for field in block.all(name):
        if isinstance(field.value, Message):
            seen = {inner.name: inner for inner in reversed(field.value.fields)}
            yield from seen.items()


def _check_suffix(trunk: _Trunk, outside: list[Message], errors: Errors) -> None:
    """No name of the second branch may be one that the spec gives to something else."""
    everything = [*trunk.layers, *outside]
    for kind, field in (("layer", "name"), ("blob", "top")):
        given = {name.text: name.span for layer in everything for name in texts(layer, field)}
        checked = set()
        for layer in trunk.layers:
            for name in texts(layer, field):
                twin = name.text + trunk.suffix
                inner = kind == "layer" or name.text not in {*trunk.inputs, *trunk.outputs}
                if trunk.suffix and inner and twin in given and twin not in checked:
                    errors.add(
                        f'siamese suffix "{trunk.suffix}" makes of "{name.text}" the {kind} "{twin}", '
                        f"which line {given[twin].line} declares already",
                        name.span,
                        "choose another suffix",
                    )
                checked.add(twin)
