"""Any map of a net as the features that it is matched by: its twin, and where its cells lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cortado.prototxt_like.source import SpecError, did_you_mean

from .cost import cells
from .graph import MatchParams
from .net import Net

Places = tuple[tuple[float, float], ...]
"""Along height and width the step between cells and the place of cell 0, in the image's pixels."""


def match_params(net: Net, feature: str) -> MatchParams:
    """The net's ``match_param`` with a map as the features: that one, and its twin in the branch of the
    second image. A net of one input or two needs none.

    The map's cells lie where ``match_param`` says if they are the cells of its own features, else where
    the net's arithmetic puts them. Raises :class:`SpecError` for what is no map, or has no twin, and
    where its cells have no one step and offset.
    """
    match, inputs = net.match, net.inputs
    if match is None and len(inputs) not in (1, 2):
        text = "matching gives the net one image or two; in the stage deploy its inputs are"
        raise SpecError(f"{text} {', '.join(inputs) or 'none'}", net.graph.message.span)
    given = match or MatchParams(image=inputs * 2 if len(inputs) == 1 else inputs)
    names = feature, _twin(net, feature, given)
    places = _places(net)
    factor, offset = given.downsampling_factor, given.coordinate_offset
    own = given.feature[0] if match and match.feature else ""
    if feature != own and (feature not in places or places[feature] != places.get(own)):
        factor, offset = _geometry(net, names, places)
    return replace(
        given,
        feature=names,
        confidence="",
        similarity="",
        downsampling_factor=factor,
        coordinate_offset=offset,
    )


def _twin(net: Net, feature: str, given: MatchParams) -> str:
    """The blob's name in the branch of the second image; in a net of one input it is the same."""
    span, shapes, nodes = net.graph.message.span, net.blob_shapes, net.graph.nodes
    if feature not in shapes:
        twins = {node.twin_of for node in nodes}
        own = [top for node in nodes if node.name in twins for top in node.tops]
        text = f'"{feature}" is no blob of the net in the stage deploy'
        raise SpecError(text, span, did_you_mean(feature, own or shapes, "blobs"))
    if len(shapes[feature]) != 4:
        text = f'features are read from a map [N, C, H, W]; "{feature}" is {[*shapes[feature]]}'
        raise SpecError(text, span)
    if len(set(given.image)) == 1:
        return feature
    makers = {node.name: node for node in nodes if feature in node.tops}
    for node in nodes:
        if node.twin_of in makers:
            return node.tops[makers[node.twin_of].tops.index(feature)]
    if f"{feature}_p" in shapes:  # twins written out, called as in UCN's own nets
        return f"{feature}_p"
    text = f'"{feature}" is not in the first of two twin branches: no blob is its twin'
    raise SpecError(text, span, "a siamese entry makes twins; a feature is named in the first")


def _places(net: Net) -> dict[str, Places]:
    """Of the maps whose receptive fields are known."""
    return {
        name: tuple((float(field.stride), float(field.point)) for field in fields[-2:])
        for layer in net.facts()
        for (name, _), fields in zip(layer.tops, layer.fields, strict=True)
        if fields and len(fields) >= 2
    }


def _geometry(net: Net, names: Sequence[str], places: Mapping[str, Places]) -> tuple[float, float]:
    """The step between the cells of both maps, and where cell 0 lies, which are one."""
    known = {place for name in names for place in places.get(name, ())}
    located = all(name in places for name in names)
    if located and len(known) == 1:
        (place,) = known
        return place
    lie = " and at ".join(cells(*place) for place in sorted(known))
    why = f"they lie at {lie}" if located else "no receptive field leads to them from the images"
    text = f'the cells of "{names[0]}" have no one step and offset in the image: {why}'
    raise SpecError(text, net.graph.message.span, "cortado check shows where cells lie")
