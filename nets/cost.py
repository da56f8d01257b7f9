"""What a net costs and where its cells lie: sizes, multiply-adds and receptive fields, without data.

A blob's receptive field is followed from the layers without bottoms, whose cells are the image's
pixels. A layer says how its tops' cells lie over its bottoms' (:meth:`Layer.reach`); where it reads
several maps, a cell sees what it sees in any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import NamedTuple

from cortado.layers._engine.checks import Shape
from cortado.layers._engine.declared import Trait
from cortado.layers._engine.reach import Length, Reach

from .build import Built, BuiltLayer
from .graph import MatchParams

FLOAT = 4  # bytes


class Field(NamedTuple):
    """Along one axis: cell 0 sees the image's pixels ``low`` to ``high``, cell u those ``u * stride``
    further on. Pixels beyond the image's borders are padding."""

    low: Length = 0
    high: Length = 0
    stride: Length = 1

    @property
    def size(self) -> Length:
        """How many pixels a cell sees."""
        return self.high - self.low + 1

    @property
    def point(self) -> Length:
        """Where in the image cell 0 lies: the centre of what it sees."""
        return Fraction(self.low + self.high) / 2

    def through(self, reach: Reach) -> Field:
        """The field of a top's cells, which lie so over this one's."""
        centre, aside = reach.shift * self.stride, Fraction(reach.extent - 1) * self.stride / 2
        low, high = self.low + centre - aside, self.high + centre + aside
        return Field(low, high, self.stride * reach.stride)


Fields = tuple[Field, ...]


@dataclass(frozen=True)
class LayerFacts:
    """What ``cortado check`` shows of a layer.

    ``parameters`` counts the elements it owns; those of ``shared_with`` are counted there.
    ``fields`` are the receptive fields of its tops along their last axes (height and width), None
    for a top that is no map over the image. ``bytes`` are those of its tops in float32, of which a
    top written in place needs none. ``multiply_adds`` are of one forward pass; None where the
    layer's work is of another kind.
    """

    name: str
    type: str
    place: str
    bottoms: tuple[str, ...]
    tops: tuple[tuple[str, Shape], ...]
    parameters: int
    shared_with: str = ""
    fields: tuple[Fields | None, ...] = ()
    bytes: int = 0
    multiply_adds: int | None = None
    loss: bool = False
    """Whether a top of it has a weight in the loss."""
    metric: bool = False
    """Whether it measures a result, and is no part of it."""


def facts(built: Built) -> list[LayerFacts]:
    """The facts of each layer, in order."""
    seen: dict[str, Fields | None] = {}
    found = []
    for made in built.layers:
        node = made.node
        owners = {built.learnable[i].layer for i in made.blobs} - {node.name}
        fields = receptive_fields(made, built.shapes, seen)
        seen.update(zip(made.tops, fields, strict=True))
        found.append(
            LayerFacts(
                node.name,
                node.type,
                node.span.place,
                node.bottoms,
                tuple(zip(made.tops, made.shapes, strict=True)),
                made.parameters,
                ", ".join(sorted(owners)),
                fields if node.bottoms else (None,) * len(fields),
                top_bytes(made),
                multiply_adds(made, built.shapes),
                any(made.loss_weights),
                Trait.METRIC in made.layer.TRAITS,
            )
        )
    return found


def multiply_adds(made: BuiltLayer, shapes: dict[str, Shape]) -> int | None:
    """Of one forward pass of a layer; None if it does not say."""
    bottoms = tuple(shapes[blob] for blob in made.node.bottoms)
    blobs = tuple(tuple(blob.shape) for blob in made.layer.blobs)
    return made.layer.multiply_adds(made.layer.params, bottoms, made.shapes, blobs)


def top_bytes(made: BuiltLayer) -> int:
    """Bytes of a layer's tops in float32, without those that it writes in place."""
    new = (shape for i, shape in enumerate(made.shapes) if not made.node.in_place(i))
    return FLOAT * sum(map(prod, new))


def receptive_fields(
    made: BuiltLayer, shapes: dict[str, Shape], seen: dict[str, Fields | None]
) -> tuple[Fields | None, ...]:
    """The fields of a layer's tops, from those of the blobs above; a layer without bottoms has the
    image's own pixels on all axes."""
    node, layer = made.node, made.layer
    if not node.bottoms:
        return tuple((Field(),) * len(shape) for shape in made.shapes)
    maps = [
        (i, shapes[blob], seen[blob])
        for i, blob in enumerate(node.bottoms)
        if layer.record(i, len(node.bottoms)).features
    ]
    return tuple(
        _together(
            _through(fields, layer.reach(layer.params, i, bottom, j, top))
            for i, bottom, fields in maps
            if fields
        )
        for j, top in enumerate(made.shapes)
    )


def _through(fields: Fields, reach: tuple[Reach, ...] | None) -> Fields | None:
    if not reach or len(reach) > len(fields):
        return None
    pairs = zip(fields[-len(reach) :], reach, strict=True)
    return tuple(field.through(r) for field, r in pairs)


def _together(seen: Iterable[Fields | None]) -> Fields | None:
    """What a cell sees through several bottoms; None if these lie on different grids."""
    fields = [each for each in seen if each]
    if len({tuple(field.stride for field in each) for each in fields}) != 1:
        return None
    return tuple(
        Field(min(f.low for f in axis), max(f.high for f in axis), axis[0].stride)
        for axis in zip(*fields, strict=True)
    )


def mismatches(match: MatchParams | None, layers: Sequence[LayerFacts]) -> list[str]:
    """Where ``match_param`` takes cells for other image points than they lie at.

    Of a confidence it is the step between cells that counts, that of the map which its grid is: a
    hyperpixel's place is its box's by definition, wherever the padding puts it.
    """
    if match is None:
        return []
    fields = {
        name: field
        for layer in layers
        for (name, _), field in zip(layer.tops, layer.fields, strict=True)
    }
    found = []
    if match.confidence:
        name = _grid(match.confidence, layers, fields)
        steps = dict.fromkeys(f"{float(field.stride):g}" for field in fields.get(name) or ())
        if steps.keys() - {said := f"{match.downsampling_factor:g}"}:
            lie = ", ".join(steps)
            found.append(
                f'match_param puts cells {said} pixels apart; those of "{name}" are {lie} apart'
            )
    said = cells(match.downsampling_factor, match.coordinate_offset)
    for name in match.feature:
        axes = fields.get(name) or ()
        lie = ", ".join(dict.fromkeys(cells(field.stride, field.point) for field in axes))
        if axes and lie != said:
            found.append(f'match_param puts cell u of "{name}" at {said}; it lies at {lie}')
    return found


def _grid(blob: str, layers: Sequence[LayerFacts], fields: Mapping[str, Fields | None]) -> str:
    """The map over the image whose cells are a blob's: the first that is met along first bottoms."""
    for layer in reversed(layers):
        if fields.get(blob) is None and layer.bottoms and blob in dict(layer.tops):
            blob = layer.bottoms[0]
    return blob


def cells(stride: float | Length, point: float | Length) -> str:
    """Where cell u lies: ``4u + 4``."""
    stride, point = float(stride), float(point)
    offset = f" {'-' if point < 0 else '+'} {abs(point):g}" if point else ""
    return f"{'' if stride == 1 else f'{stride:g}'}u{offset}"
