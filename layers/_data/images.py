"""Image files, read to the pixels that Caffe's reader, OpenCV, gives: the one reader of cortado.

PNG, JPEG, TIFF, WebP, GIF, BMP and PNM (.pbm, .pgm, .ppm) are decoded by Pillow, and as samples grey
PFM too (the factor in its head, of which only the sign counts, is not applied); of several frames or
pages the first is read. A file that is broken, truncated (OpenCV gives what there is of it), of another
kind or not a regular file, or an image of more than ``MOST_PIXELS`` (a TIFF: half as many) is a
ValueError that gives its name and the reason.

Against ``cv::imread`` of OpenCV 4.14 the pixels are equal, but for the grey of an animated PNG and of a
BMP with transparency, off by 1 at most, and a BMP of 16 bits, off by 7. As stored, the transparency
that OpenCV adds to an animated GIF and to a TIFF of CMYK, or of RGB and something else, is not there.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .files import open_file

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Array = npt.NDArray[Any]

BITS, PHOTOMETRIC, PLANES, EXTRA_SAMPLES = 258, 262, 284, 338  # tags of TIFF
MOST_PIXELS = 2**29 // 3  # half a GiB of RGB; Pillow's own limit
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".webp", ".gif", ".bmp"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
)


def read_image(file: str | Path | bytes, color: bool | None = True, what: str = "") -> Array:
    """An image file, or its bytes, in uint8 as ``cv::imread`` reads it, but RGB.

    ``color``: True RGB [H, W, 3], False grey [H, W], both turned as EXIF says; None as stored, not
    turned: grey [H, W], RGB [H, W, 3] or, with transparency, [H, W, 4]. Of 16 bits a channel the upper
    8 are kept (rounded in a TIFF's colours), a transparency that is not asked for is dropped (a TIFF's
    colours are multiplied by it), and the grey of a JPEG is its luma.

    Raises ValueError for what cannot be read, which it calls ``what`` (the file), and for 16 bits a
    channel as stored, which Caffe's Datums do not hold.
    """
    with _stream(file, what) as stream:
        image = _opened(stream)
        kind = image.format
        if color is False and kind == "JPEG":
            image.draft("L", None)
        pixels = _samples(image, stream)
        if pixels.dtype.kind == "f":
            raise ValueError("expected 8 or 16 bits a channel, found floats")
        if color is None:
            if pixels.dtype == np.uint16:
                raise ValueError("16 bits a channel: force_color or force_gray reads them as 8")
            return _in_8_bits(pixels, image)
        if not color and kind == "PNG":
            pixels = _grey(pixels, kind)  # of all 16 bits
        pixels = _in_8_bits(pixels, image)
        pixels = _rgb(pixels) if color else _grey(pixels, kind)
        return np.ascontiguousarray(_turned(pixels, image.info.get("exif", b"")))


def read_samples(file: str | Path | bytes, what: str = "") -> Array:
    """An image file, or its bytes, as its samples are stored, in uint8, uint16 or (TIFF, PFM) float32.

    Grey [H, W], RGB [H, W, 3] or, with transparency, [H, W, 4]; palettes and CMYK become RGB; an EXIF
    orientation is not applied. Raises ValueError as :func:`read_image` does.
    """
    with _stream(file, what) as stream:
        return _samples(_opened(stream), stream)


def read_16_bits(file: str | Path) -> Array:
    """Ground truth of 16 bits as it is stored, such as KITTI's disparity and flow.

    uint16 [H, W], or [H, W, 3] in the order of the file; PNG, TIFF or PNM. Raises ValueError as
    :func:`read_image` does, for 8 bits a channel and for transparency.
    """
    samples = read_samples(file)
    if samples.dtype != np.uint16 or samples.shape[2:] not in ((), (3,)):
        found = f"{samples.dtype.itemsize * 8} bits of {'x'.join(map(str, samples.shape[2:])) or 1}"
        raise ValueError(f"{file}: expected 16 bits of 1 or 3 channels, found {found}")
    return samples


def image_size(file: str | Path | bytes, what: str = "") -> tuple[int, int]:
    """(height, width) of the image that :func:`read_image` gives, turned as EXIF says; of a JPEG
    without decoding it. Raises ValueError as :func:`read_image` does."""
    with _stream(file, what) as stream:
        image = _opened(stream)
        if image.format != "JPEG":  # whose EXIF may stand behind the pixels
            image.load()
        turned = _orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0")) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def planes(image: Array) -> Array:
    """An image of :func:`read_image` as Caffe's [C, H, W]: grey, BGR, or BGR and transparency."""
    if image.ndim == 2:
        return image[None]
    return np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]].transpose(2, 0, 1))


@contextmanager
def _stream(file: str | Path | bytes, what: str) -> Iterator[BinaryIO]:
    """The file opened, with whatever Pillow's decoders raise on the way as one ValueError."""
    name = what or ("an image" if isinstance(file, bytes) else str(file))
    try:
        if isinstance(file, bytes):
            yield io.BytesIO(file)
        else:
            with open_file(file) as stream:
                yield stream
    except (OSError, SyntaxError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or "it is broken"
        raise ValueError(f"cannot read {name}: {why}") from None
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # a decoder that a broken file led astray
        raise ValueError(f"cannot read {name}: it is broken ({error!r})") from None


def _opened(stream: BinaryIO) -> ImageFile:
    """The image of a file, its pixels not yet decoded."""
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.GifImagePlugin import GifImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.PpmImagePlugin import PpmImageFile
    from PIL.TiffImagePlugin import TiffImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    # not by Image.open: it warns of large images, and some of its other formats run programs
    readers: dict[bytes, type[ImageFile]] = {b"\x89PNG": PngImageFile, b"\xff\xd8\xff": JpegImageFile}
    readers |= dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile)
    readers |= {b"RIFF": WebPImageFile, b"GIF8": GifImageFile, b"BM": BmpImageFile}
    readers |= dict.fromkeys((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf"), PpmImageFile)
    stream.seek(0)
    head = stream.read(4)
    stream.seek(0)
    for magic, reader in readers.items():
        if head.startswith(magic):
            image = reader(stream)
            most = MOST_PIXELS // 2 if reader is TiffImageFile else MOST_PIXELS  # Pillow warns above
            if image.width * image.height > most:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {most:,}")
            return image
    if head.startswith(b"PF"):
        raise ValueError("expected a PFM of 1 channel (Pf), found one of 3 (PF)")
    raise ValueError("it is no PNG, JPEG, TIFF, WebP, GIF, BMP or PNM image")


def _samples(image: ImageFile, stream: BinaryIO) -> Array:
    """See :func:`read_samples`."""
    kind, mode, raw = image.format, image.mode, _raw_mode(image)
    if _tiff_tag(image, PLANES) == 2 and 16 in _tiff_tag(image, BITS):
        raise ValueError("planes of 16 bits are not read")  # Pillow gets them wrong
    if kind == "PPM" and image.tile[0][0] == "ppm":
        return _from_pnm(image, stream)
    if (";16" in raw and kind != "BMP") or (kind == "PPM" and mode == "I"):
        return _16_bits(image, stream)
    if mode == "CMYK":
        return _from_cmyk(image)
    if kind == "GIF":
        return _from_gif(image)
    if raw == "RGBa":
        _set_raw_mode(image, "RGBA")  # as stored: Pillow would divide by the transparency
    rgb = "RGBA" if "transparency" in image.info else "RGB"
    alike = {"1": "L", "LA": "RGBA" if kind == "PNG" else "L", "RGBX": "RGB", "YCbCr": "RGB"}
    wanted = (alike | {"P": rgb, "RGB": rgb}).get(mode, mode)
    if wanted not in ("L", "RGB", "RGBA", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, found Pillow's mode {mode}")
    return np.array(image if wanted == mode else image.convert(wanted))


def _tiff_tag(image: ImageFile, tag: int) -> Any:
    return getattr(image, "tag_v2", {}).get(tag, ())


def _raw_mode(image: ImageFile) -> str:
    """How Pillow calls the samples in the file."""
    arguments = image.tile[0][3] if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _set_raw_mode(image: Any, raw: str) -> None:
    tiles = []
    for tile in image.tile:
        arguments = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
        tiles.append(getattr(tile, "_make", tuple)((*tile[:3], arguments)))  # a tuple in Pillow 10
    image.tile = tiles


def _16_bits(image: ImageFile, stream: BinaryIO) -> Array:
    raw = _raw_mode(image)
    if raw.endswith("S") or image.mode == "CMYK":
        raise ValueError(f"samples of the kind {raw}, which are not read")
    high = np.asarray(image)
    if image.mode.startswith("I"):
        return high.astype(np.uint16)
    if raw == "LA;16B":  # for the lower bits Pillow has no name; nothing needs them
        return high.astype(np.uint16) << 8
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[raw[-1]]
    image = _opened(stream)
    _set_raw_mode(image, raw[:-1] + swapped)
    return high.astype(np.uint16) << 8 | np.asarray(image)


def _from_pnm(image: Any, stream: BinaryIO) -> Array:
    """Binary PNM of another maximum than 255, which Pillow would stretch, as it is."""
    _, _, offset, arguments = image.tile[0]
    shape = (image.height, image.width, 3)[: 3 if image.mode == "RGB" else 2]
    stored = np.dtype(">u2" if arguments[-1] > 255 else np.uint8)
    stream.seek(offset)
    size = stored.itemsize * int(np.prod(shape))
    data = stream.read(size)
    if len(data) < size:
        raise ValueError("it is cut off")
    return np.frombuffer(data, stored).reshape(shape).astype(stored.newbyteorder("="))


def _from_cmyk(image: ImageFile) -> Array:
    _set_raw_mode(image, "CMYK")  # as stored: Pillow turns Adobe's round
    stored = np.asarray(image).astype(np.int32)
    ink, black = stored[..., :3], stored[..., 3:]
    if image.format == "JPEG":  # OpenCV's formula
        return (black - ((255 - ink) * black >> 8)).astype(np.uint8)
    return ((255 - ink) * (255 - black) // 255).astype(np.uint8)  # libtiff's


def _from_gif(image: Any) -> Array:
    rgba = np.array(image.convert("RGBA"))
    if "transparency" not in image.info:
        return rgba[..., :3]
    index, palette = image.info.get("background", 0), image.global_palette
    background = palette.palette[3 * index :][:3] if palette else bytes([index] * 3)
    rgba[rgba[..., 3] == 0, :3] = list(background)  # which OpenCV draws on
    return rgba


def _in_8_bits(samples: Array, image: ImageFile) -> Array:
    """As OpenCV does; a TIFF it reads through libtiff, as RGBA of 8 bits."""
    deep = samples.dtype == np.uint16
    if image.format != "TIFF" or samples.ndim == 2:
        samples = (samples >> 8).astype(np.uint8) if deep else samples
        return ~samples if deep and _tiff_tag(image, PHOTOMETRIC) == 0 else samples
    if deep:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if _tiff_tag(image, EXTRA_SAMPLES) == (2,) and samples.shape[2] == 4:  # not multiplied by it
        alpha = samples[..., 3:].astype(np.uint16)
        samples[..., :3] = (samples[..., :3] * alpha + 127) // 255
    return samples


def _grey(samples: Array, kind: str | None) -> Array:
    """The grey of colours by the fixed-point weights of OpenCV's reader of that kind of file."""
    if samples.ndim == 2:
        return samples
    half = 1 << 14
    if kind == "PNG":  # libpng's, which rounds 16 bits only
        weights, bits, half = (9797, 19234, 3737), 15, half if samples.dtype == np.uint16 else 0
    elif kind in ("GIF", "WEBP"):
        weights, bits = (9798, 19235, 3735), 15
    else:
        weights, bits, half = (4899, 9617, 1868), 14, half >> 1
    red, green, blue = (w * samples[..., i].astype(np.uint32) for i, w in enumerate(weights))
    return ((red + green + blue + half) >> bits).astype(samples.dtype)


def _rgb(samples: Array) -> Array:
    if samples.ndim == 2:
        return np.repeat(samples[..., None], 3, 2)
    return samples[..., :3]


def _turned(image: Array, exif: bytes) -> Array:
    """An image turned upright."""
    turn = _orientation(exif.removeprefix(b"Exif\0\0"))
    if turn >= 5:
        image = image.swapaxes(0, 1)
    return image[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, 1..8; 1 where there is none, or where it is broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, value = struct.unpack_from(f"{order}H6xH", exif, entry)
            if tag == 0x0112:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
