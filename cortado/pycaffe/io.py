"""Images and arrays in and out of nets: reading, resizing, cropping, Caffe's order of preprocessing,
and its BlobProto and Datum messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cortado.layers._data.images import read_samples

from .proto import caffe_pb2

Array = npt.NDArray[Any]


def blobproto_to_array(blob: Any, return_diff: bool = False) -> Array:
    """The values of a BlobProto, or its diff, in its shape (four axes if it is an old one)."""
    values = np.array(blob.diff if return_diff else blob.data)
    old = ("num", "channels", "height", "width")
    if any(blob.HasField(name) for name in old):
        return values.reshape([getattr(blob, name) for name in old])
    return values.reshape(blob.shape.dim)


def array_to_blobproto(arr: Array, diff: Array | None = None) -> Any:
    """A BlobProto of an array of any number of axes, and of a diff of the same shape."""
    blob = caffe_pb2.BlobProto()
    blob.shape.dim.extend(arr.shape)
    blob.data.extend(arr.astype(float).flat)
    if diff is not None:
        blob.diff.extend(diff.astype(float).flat)
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[Array]) -> bytes:
    """Arrays as the bytes of a BlobProtoVector."""
    vector = caffe_pb2.BlobProtoVector()
    vector.blobs.extend([array_to_blobproto(array) for array in arraylist])
    return bytes(vector.SerializeToString())


def blobprotovector_str_to_arraylist(str: bytes) -> list[Array]:
    """The arrays of a BlobProtoVector's bytes."""
    vector = caffe_pb2.BlobProtoVector()
    vector.ParseFromString(str)
    return [blobproto_to_array(blob) for blob in vector.blobs]


def array_to_datum(arr: Array, label: int | None = None) -> Any:
    """A Datum of an array [C, H, W]: of bytes if it is uint8, else of floats."""
    if arr.ndim != 3:
        raise ValueError(f"a Datum holds an array [C, H, W], got {list(arr.shape)}")
    datum = caffe_pb2.Datum()
    datum.channels, datum.height, datum.width = arr.shape
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.astype(float).flat)
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: Any) -> Array:
    """The array [C, H, W] of a Datum: uint8, or float64."""
    data, floats = datum.data, datum.float_data
    values = np.frombuffer(data, np.uint8).copy() if data else np.array(floats, np.float64)
    return values.reshape(datum.channels, datum.height, datum.width)


class Transformer:
    """Brings images into the form of a net's inputs.

    ``inputs`` gives the shapes of the input blobs by name:
    ``Transformer({"data": net.blobs["data"].data.shape})``. What is not set is not done.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, Array] = {}
        self.input_scale: dict[str, float] = {}

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            raise ValueError(f'"{in_}" is not one of the inputs: {", ".join(self.inputs)}')
        return tuple(self.inputs[in_])

    def preprocess(self, in_: str, data: Array) -> Array:
        """An image [H, W, K] as an input [K, H, W] in float32.

        In this order, each if set: resize to the input's size, transpose, channel swap, times raw
        scale, minus mean, times input scale. As in Caffe a float32 array that is neither resized nor
        channel-swapped is changed in place.
        """
        size = self._shape(in_)[2:]
        x = data.astype(np.float32, copy=False)
        if x.shape[:2] != size:
            x = resize_image(x, size)
        if in_ in self.transpose:
            x = x.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            x = x[np.asarray(self.channel_swap[in_])]
        if self.raw_scale.get(in_) is not None:
            x *= self.raw_scale[in_]
        if self.mean.get(in_) is not None:
            x -= self.mean[in_]
        if self.input_scale.get(in_) is not None:
            x *= self.input_scale[in_]
        return x

    def deprocess(self, in_: str, data: Array) -> Array:
        """The image of an input: :meth:`preprocess` backward, but for its resizing."""
        self._shape(in_)
        x = data.copy().squeeze()
        if self.input_scale.get(in_) is not None:
            x /= self.input_scale[in_]
        if self.mean.get(in_) is not None:
            x += self.mean[in_]
        if self.raw_scale.get(in_) is not None:
            x /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            x = x[np.argsort(self.channel_swap[in_])]
        if in_ in self.transpose:
            x = x.transpose(np.argsort(self.transpose[in_]))
        return x

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """The order of axes, (2, 0, 1) for [H, W, K] to [K, H, W]."""
        axes = len(self._shape(in_)) - 1
        if len(order) != axes:
            raise ValueError(f"an order of {len(order)} axes for an input of {axes}")
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """The order of channels after the transpose, (2, 1, 0) for RGB to BGR."""
        channels = self._shape(in_)[1]
        if len(order) != channels:
            raise ValueError(f"an order of {len(order)} channels for an input of {channels}")
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """The factor before the mean is subtracted, 255 where images in 0..1 meet a net for 0..255."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: Array) -> None:
        """The mean to subtract: one value a channel, or an image [K, H, W], resized if need be (a
        constant, of which Caffe's resizing makes NaN, to itself)."""
        shape = self._shape(in_)[1:]
        if mean.ndim == 1:
            if len(mean) != shape[0]:
                raise ValueError(f"a mean of {len(mean)} channels for an input of {shape[0]}")
            mean = mean[:, None, None]
        else:
            if mean.ndim != 3 and (1, *mean.shape) != shape:
                hint = "np.stack([mean] * K) is the same for each of K channels"
                text = f"expected a mean [K] or [K, H, W], got {list(mean.shape)}"
                raise ValueError(f"{text}; {hint}" if mean.ndim == 2 else text)
            if mean.ndim == 3 and mean.shape != shape:
                mean = _resized_mean(mean, shape[1:])
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """The factor after the mean is subtracted."""
        self._shape(in_)
        self.input_scale[in_] = scale


def _resized_mean(mean: Array, size: tuple[int, ...]) -> Array:
    low, high = mean.min(), mean.max()
    if low == high:
        return np.full((len(mean), *size), low)
    standard = (mean - low) / (high - low)
    return resize_image(standard.transpose(1, 2, 0), size).transpose(2, 0, 1) * (high - low) + low


def load_image(filename: str | Path, color: bool = True) -> Array:
    """An image file as float32 in 0..1: RGB [H, W, 3], or grey [H, W, 1] without ``color``.

    As scikit-image reads it for Caffe: 8 bits are divided by 255, 16 by 65535; floats stay as they are;
    transparency is dropped; an EXIF orientation is not applied; grey is 0.2125 R + 0.7154 G + 0.0721 B.
    Raises ValueError as :func:`~cortado.layers._data.images.read_samples` does.
    """
    samples = read_samples(filename)
    image = samples if samples.dtype.kind == "f" else samples / np.iinfo(samples.dtype).max
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3 if color else 1, axis=2)
    elif not color:
        image = image[:, :, :3] @ np.array([[0.2125], [0.7154], [0.0721]])
    return image[:, :, :3].astype(np.float32)


def resize_image(im: Array, new_dims: Sequence[int] | Array, interp_order: int = 1) -> Array:
    """An image [H, W, K] resized to (height, width) in float32, by splines of the order given.

    As in Caffe one or three channels go through ``skimage.transform.resize``, which smooths what it
    shrinks, in the image's own range, and other numbers through ``scipy.ndimage.zoom``.
    """
    size = (int(new_dims[0]), int(new_dims[1]))
    if im.shape[-1] not in (1, 3):
        from scipy.ndimage import zoom

        factors = tuple(np.array(size, float) / np.array(im.shape[:2]))
        return np.asarray(zoom(im, (*factors, 1), order=interp_order)).astype(np.float32)
    from skimage.transform import resize

    low, high = im.min(), im.max()
    if high == low:
        return np.full((*size, im.shape[-1]), low, np.float32)
    standard = (im - low) / (high - low)
    resized = resize(standard, size, order=interp_order, mode="constant")
    return np.asarray(resized * (high - low) + low).astype(np.float32)


def oversample(images: Sequence[Array] | Array, crop_dims: Sequence[int] | Array) -> Array:
    """The corners and the centre of each image [H, W, K], and their mirror images.

    ``crop_dims`` is (height, width). Gives float32 [10 N, height, width, K]: of an image upper left,
    upper right, lower left, lower right, centre, then the same mirrored.
    """
    height, width = (int(length) for length in crop_dims)
    low_y, low_x = images[0].shape[0] - height, images[0].shape[1] - width
    corners = [(0, 0), (0, low_x), (low_y, 0), (low_y, low_x), (int(low_y / 2), int(low_x / 2))]
    crops = []
    for image in images:
        five = np.stack([image[y : y + height, x : x + width] for y, x in corners])
        crops += [five, five[:, :, ::-1]]
    return np.concatenate(crops).astype(np.float32)
