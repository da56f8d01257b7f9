"""The maps that a net makes of an image, kept in files: the net sees each image once."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import safetensors
import safetensors.torch
from cortado.layers._data.images import read_image
from cortado.layers._data.keypoint_pairs import digest
from cortado.prototxt_like import prototxt
from cortado.prototxt_like.files import replace_file
from torch import Tensor

from .branches import Branches
from .layer_scores import Maps
from .matching import Matcher


class KeptMaps:
    """The maps of a net's blocks, ``maps(image's path)``, from files of a folder, on the net's device.

    A file's name is a digest of the image, the net and its ``weights``, so that it is never another
    one's; one that is damaged is made again. ``made`` counts the images that the net has run on. Raises
    ValueError for what is no image, OSError where a file cannot be written.
    """

    def __init__(self, matcher: Matcher, weights: str | Path, folder: str | Path) -> None:
        self.matcher, self.folder = matcher, Path(folder)
        self.branches = Branches(matcher.net, matcher.params.image, matcher.params.block)
        text = prototxt.dump(matcher.net.graph.message)
        self.net = sha256(text, digest(weights))
        self.made = 0

    def __call__(self, image: str | Path) -> Maps:
        file = self.file(image)
        return _read(file, self.matcher) or self._make(image, file)

    def file(self, image: str | Path) -> Path:
        """Where those of an image are."""
        return self.folder / f"{sha256(self.net, digest(image))}.safetensors"

    def _make(self, image: str | Path, file: Path) -> Maps:
        matcher = self.matcher
        given, ratio = matcher.given(read_image(image, what=f'image "{image}"'))
        values, size = self.branches.describe(given), (given.shape[2], given.shape[3])
        maps = [values[self.branches.wanted[name]].contiguous() for name in matcher.params.block]
        self.made += 1
        tensors = {str(i): x.cpu() for i, x in enumerate(maps)}
        about = json.dumps({"size": size, "ratio": ratio})
        metadata = {"about": about, "checksum": _checksum(about, tensors)}
        replace_file(file, lambda beside: safetensors.torch.save_file(tensors, beside, metadata))
        return Maps(size, ratio, maps)


def sha256(*texts: str) -> str:
    """A digest of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _read(file: Path, matcher: Matcher) -> Maps | None:
    """What a file holds; None for one that is missing or damaged."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            metadata = opened.metadata()
            tensors = {str(i): opened.get_tensor(str(i)) for i in range(len(matcher.params.block))}
        if metadata["checksum"] != _checksum(metadata["about"], tensors):
            return None
    except (OSError, safetensors.SafetensorError, TypeError, KeyError):
        return None
    about = json.loads(metadata["about"])
    height, width = about["size"]
    device = matcher.net.device
    return Maps((height, width), about["ratio"], [x.to(device) for x in tensors.values()])


def _checksum(about: str, tensors: dict[str, Tensor]) -> str:
    """Of what a file says and its values: safetensors has none of its own."""
    found = zlib.crc32(about.encode())
    for x in tensors.values():
        found = zlib.crc32(x.numpy().data, found)
    return str(found)
