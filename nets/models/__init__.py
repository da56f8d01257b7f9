"""The trained nets that come with cortado: ``pretrained()``. README.md beside the files is their card.

A file ``<name>.safetensors`` holds the weights, in float16, of the spec of the same name; some specs
read those of another.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cortado.nets import specs
from cortado.prototxt_like.source import did_you_mean

if TYPE_CHECKING:
    import torch
    from cortado.nets.matching import Matcher

FOLDER = Path(__file__).parent
BEST = "ucn_hn"
OTHERS = {"ucn_fast": "ucn_hn"}  # whose weights a net has


def names() -> list[str]:
    """The names of all of them."""
    return sorted([*(found.stem for found in FOLDER.glob("*.safetensors")), *OTHERS])


def weights(name: str = BEST) -> Path:
    """The file of a net's weights. Raises FileNotFoundError that lists the names, with the closest."""
    if name not in names():
        hint = did_you_mean(name, names(), "there are")
        raise FileNotFoundError(f'no weights of "{name}" come with cortado; {hint}')
    return FOLDER / f"{OTHERS.get(name, name)}.safetensors"


def weights_of(spec: str | Path) -> Path | None:
    """The weights that come with a spec, given by its name, its file or a link to that; None for a spec
    without any, and for one of the user's own, whatever its name."""
    found = specs.find(spec)
    same = (name for name in names() if found.exists() and found.samefile(specs.path(name)))
    return next(map(weights, same), None)


def pretrained(
    name: str = BEST,
    device: str | torch.device = "cpu",
    feature: str | None = None,
    step: float = 0,
) -> Matcher:
    """A trained net that comes with cortado, the best one if none is named, as a
    :class:`~cortado.nets.matching.Matcher`: what ``cortado.match`` takes as its ``net``.

    device: where it runs. feature: another of its maps, to match by. step: the candidates are every so
    many pixels, with features interpolated; 0: the cells of its map, every 4th pixel.

    Raises FileNotFoundError for a name that is none of :func:`names`, and what Matcher raises.
    """
    from cortado.nets.matching import Matcher

    found = weights(name)
    return Matcher(specs.path(name), found, device=device, feature=feature, step=step)
