"""The blocks of a net of Hyperpixel Flow, and the same net with others chosen.

A block is called by its place in ``block`` of the spec's ``match_param``, from 0 on. The chosen ones
are read in order of depth; the first, the base, gives the cells: their jump and receptive field are
those that ``block_jump`` and ``block_receptive_field`` have for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cortado.prototxt_like.bind import bind
from cortado.prototxt_like.message import Field, Message, Scalar
from cortado.prototxt_like.source import Span, SpecError

from .graph import MatchParams
from .siamese import expand, texts

_PARAMS = {
    "HyperpixelCorrelation": "hyperpixel_correlation_param",
    "RegularizedHoughMatching": "regularized_hough_matching_param",
    "KeypointTransfer": "keypoint_transfer_param",
    "HyperpixelFlow": "hyperpixel_flow_param",
}
"""The layers that know the cells, with their blocks of parameters."""


def blocks(message: Message) -> tuple[str, ...]:
    """The blobs, in the first branch, that hyperpixels can be made of; their places are their ids.

    Raises :class:`SpecError` for a spec that lists none.
    """
    return _match(message)[1].block


def bases(message: Message) -> range:
    """The ids of those that may come first, as :func:`blocks` raises."""
    match = _match(message)[1]
    return range(min(len(match.block), *map(len, (match.block_jump, match.block_receptive_field))))


def choose(message: Message, ids: Sequence[int]) -> Message:
    """The spec with hyperpixels of the blocks with these ids, in whatever order they are given.

    A margin, where the spec has one, becomes the jump. Raises ValueError for ids that are no block's,
    are given twice or have no cells to begin with, :class:`SpecError` for a spec that lists no blocks.
    """
    field, match = _match(message)
    chosen = sorted(ids)
    _expect_blocks(match, chosen)
    twins = _twins(message)
    if missing := [match.block[i] for i in chosen if match.block[i] not in twins]:
        raise SpecError(f'the block "{missing[0]}" is no blob of a siamese trunk', field.span)
    names = [match.block[i] for i in chosen]
    pair = [*names, *(twins[name] for name in names)]
    cells = match.block_jump[chosen[0]], match.block_receptive_field[chosen[0]]
    maps = {*match.block, *(twins[name] for name in match.block if name in twins)}
    made = Message(message.span)
    for each in message:
        value = each.value
        if isinstance(value, Message) and each.name == "layer" and value.text("type") in _PARAMS:
            value = _chosen(value, pair, maps, cells)
        elif each is field and isinstance(value, Message):
            value = _with_cells(value, cells, "downsampling_factor")
        made.add(each.name, value, each.span)
    return made


def _match(message: Message) -> tuple[Field, MatchParams]:
    field = message.get("match_param")
    if field is None or not isinstance(field.value, Message) or "block" not in field.value:
        place = field.span if field else message.span
        hint = (
            "match_param: {confidence: ..., block: [pool1, res2a, ...], block_jump: [4, 4, ...], ...}"
        )
        raise SpecError("the net has no blocks to choose from: its match_param lists none", place, hint)
    return field, bind(MatchParams, field.value, what="match_param")


def _expect_blocks(match: MatchParams, ids: Sequence[int]) -> None:
    def listed(count: int) -> str:
        return ", ".join(f"{i} {name}" for i, name in enumerate(match.block[:count]))

    if not ids:
        raise ValueError(f"expected at least one block of {listed(len(match.block))}")
    for i in ids:
        if not 0 <= i < len(match.block):
            raise ValueError(f"there is no block {i}: expected some of {listed(len(match.block))}")
        if ids.count(i) > 1:
            raise ValueError(f"block {i} ({match.block[i]}) is given twice")
    bases = min(len(match.block_jump), len(match.block_receptive_field))
    if ids[0] >= bases:
        text = f"block {ids[0]} ({match.block[ids[0]]}) cannot be the first, whose cells are matched"
        raise ValueError(f"{text}: expected one of {listed(bases) or 'none'}")


def _twins(message: Message) -> dict[str, str]:
    """For each blob of a trunk's first branch its name in the second."""
    layers = [field.value for field in expand(message).all("layer")]
    named = {layer.text("name"): layer for layer in layers if isinstance(layer, Message)}
    return {
        first.text: second.text
        for layer in named.values()
        if (twin_of := layer.text("twin_of")) in named
        for first, second in zip(texts(named[twin_of], "top"), texts(layer, "top"), strict=True)
    }


def _chosen(layer: Message, pair: list[str], maps: set[str], cells: tuple[float, int]) -> Message:
    type = layer.text("type")
    made = Message(layer.span, [field for field in layer if field.name != _PARAMS[type]])
    if type == "HyperpixelCorrelation":
        old = layer.all("bottom")
        place = old[0].span if old else layer.span
        rest = [field for field in old if getattr(field.value, "text", "") not in maps]
        made.fields = [field for field in made if field.name != "bottom"]
        made.fields += [Field("bottom", Scalar(name, place), place) for name in pair]
        made.fields += rest
    given = layer.get(_PARAMS[type])
    block = given.value if given and isinstance(given.value, Message) else Message(layer.span)
    made.add(_PARAMS[type], _with_cells(block, cells, "jump"), given.span if given else layer.span)
    return made


def _with_cells(block: Message, cells: tuple[float, int], jump: str) -> Message:
    """A block of parameters with other cells; ``jump`` is what it calls their distance."""
    others = ("jump", "downsampling_factor", "down_sampling_factor", "receptive_field", "margin")
    place: Span = block.span
    made = Message(place, [field for field in block if field.name not in others])
    made.add(jump, Scalar(f"{cells[0]:g}", place))
    made.add("receptive_field", Scalar(str(cells[1]), place))
    if "margin" in block:
        made.add("margin", Scalar(f"{cells[0]:g}", place))
    return made
