"""What a layer says of itself: its bottoms and tops, one record each, and its traits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a bottom holds."""

    MAP = "map"
    """Features or scores: floating, all maps of one type on one device. A map has a gradient."""
    TABLE = "table"
    """Coordinates, which half precision would spoil: any type, on the maps' device."""
    LABEL = "label"
    """Classes or the like: any type, on the maps' device. force_backward asks for no gradient of it."""
    COUNT = "count"
    """How many rows of each image are valid: any type, on any device."""
    SIZE = "size"
    """An image, of which only the shape is read, or two values (height, width), on any device."""
    SEED = "seed"
    """What random numbers are drawn by, int64 ``[1]`` on the CPU: the layer's own, no net gives it."""
    BLOB = "blob"
    """A parameter blob of the layer, which learns as maps do."""


OWN = (Role.SEED, Role.BLOB)
"""The roles of what no net gives a layer."""


@dataclass(frozen=True)
class Bottom:
    """A bottom. ``shape`` is for people to read."""

    name: str
    shape: str = ""
    role: Role = Role.MAP
    optional: bool = False
    shared: bool = False
    """Every item of a batch reads it whole: its first axis is not the batch's."""
    partly: bool = False
    """It is read at some of its cells alone."""
    many: bool = False
    """Any number of tensors; only the first bottom can be."""
    why_no_gradient: str = ""
    """Why a map gets none; what is no map gets none anyway."""
    refused: bool = False
    """To ask for its gradient is an error, as in Caffe."""
    numbers: str = ""
    """"floating", "integer" or "any" where it is not what the role says."""

    @property
    def coordinates(self) -> bool:
        """Whether it holds what half precision would spoil."""
        return self.role in (Role.TABLE, Role.SIZE)

    @property
    def features(self) -> bool:
        """Whether it holds neither coordinates nor labels."""
        return not self.coordinates and self.role is not Role.LABEL

    @property
    def differentiable(self) -> bool:
        """Whether it gets a gradient."""
        return self.role in (Role.MAP, Role.BLOB) and not (self.why_no_gradient or self.refused)


@dataclass(frozen=True)
class Top:
    """A top. One without a gradient says why; ``mean_of`` names the top or kept tensor that counts
    what it is a mean over, by which several processes that share a batch balance it."""

    name: str
    why_no_gradient: str = ""
    mean_of: str = ""


class Trait(Enum):
    """What else nets and tools must know of a layer."""

    INPUT = "its tops are the net's inputs"
    LOSS = "its first top is a term of the loss"
    METRIC = "it measures the net's results"
    WEIGHTS_GIVEN = "a loss of several tops that must be given a loss_weight for each"
    NO_BACKWARD = "it has no backward: to ask for it is an error, as in Caffe"
    STATISTICS = "it keeps its parameter blobs itself: their lr_mult is 0"
    NOT_IN_PLACE = "it does not take its bottom for its top"
    REREADS = "its backward reads its blob again, as layers that wrote it in place later left it"
    SHARES_MEMORY = "its tops may lie in the memory of its bottom or its parameter, as in Caffe"
    NO_CELLS = "its tops are not maps over its bottoms, whatever their lengths"
    FOREIGN = "it runs Python code of the user's own"
