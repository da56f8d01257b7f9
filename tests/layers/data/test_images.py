"""The reader of images, held against OpenCV's over every kind of file, and against broken files."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cortado.layers._data import images
from cortado.layers._data.images import (
    image_size,
    planes,
    read_16_bits,
    read_image,
    read_samples,
)
from cortado.layers._data.views import read_photographs
from cortado.layers.data import data, image_data
from cortado.prototxt_like.schema import message
from cortado.tools.match import open_image
from PIL import Image

# --------------------------------------------------------------------- files


def picture(*shape: int, top: int = 255) -> np.ndarray:
    """Noise over a ramp, of integers 0..top."""
    rng = np.random.default_rng(0)
    ramp = np.arange(np.prod(shape)).reshape(shape) % 97 / 97
    made = np.rint(rng.uniform(0, 0.5, shape) * top + ramp * top / 2)
    made.flat[:2] = 0, top
    return made.astype(np.uint16 if top > 255 else np.uint8)


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(pixels)
    if mode:
        height, width = pixels.shape[:2]
        image = Image.frombytes(mode, (width, height), pixels.tobytes())
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(pixels: np.ndarray, bits: int, color: int, *before: bytes, interlaced: bool = False) -> bytes:
    """Pixels [H, W] or [H, W, C] of any depth and colour type, with chunks before them."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    lines = b""
    for y, x, dy, dx in [*passes, (1, 0, 2, 1)] if interlaced else [(0, 0, 1, 1)]:
        part = pixels[y::dy, x::dx]
        for row in part.reshape(len(part), -1) if part.size else ():
            line = row.astype(">u2").tobytes() if bits == 16 else row.astype(np.uint8).tobytes()
            if bits < 8:
                line = np.packbits(
                    np.unpackbits(row.astype(np.uint8)[:, None], 1)[:, 8 - bits :]
                ).tobytes()
            lines += b"\0" + line
    height, width = pixels.shape[:2]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced))
    end = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + end


def pngs() -> Iterator[tuple[str, bytes]]:
    palette = picture(256, 3).tobytes()
    for interlaced in (False, True):
        name = "interlaced " if interlaced else ""
        for bits in (1, 2, 4, 8, 16):
            grey = picture(11, 13, top=2**bits - 1)
            clear = chunk(b"tRNS", struct.pack(">H", int(grey[0, 1])))
            yield f"png {name}grey {bits}", png(grey, bits, 0, interlaced=interlaced)
            yield f"png {name}grey {bits} clear", png(grey, bits, 0, clear, interlaced=interlaced)
            if bits < 16:
                colors = chunk(b"PLTE", palette[: 3 << bits])
                yield f"png {name}palette {bits}", png(grey, bits, 3, colors, interlaced=interlaced)
                clear = chunk(b"tRNS", bytes(range(1 << (bits - 1))))
                made = png(grey, bits, 3, colors, clear, interlaced=interlaced)
                yield f"png {name}palette {bits} clear", made
        for bits in (8, 16):
            for channels, color in ((2, 4), (3, 2), (4, 6)):
                pixels = picture(11, 13, channels, top=2**bits - 1)
                yield f"png {name}{channels} x {bits}", png(pixels, bits, color, interlaced=interlaced)
            clear = chunk(b"tRNS", picture(11, 13, 3, top=2**bits - 1)[5, 5].astype(">u2").tobytes())
            pixels = picture(11, 13, 3, top=2**bits - 1)
            yield f"png {name}3 x {bits} clear", png(pixels, bits, 2, clear, interlaced=interlaced)


def jpegs() -> Iterator[tuple[str, bytes]]:
    colors = picture(33, 45, 3)
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            options = {"subsampling": subsampling, "progressive": progressive, "quality": 90}
            yield f"jpeg {subsampling} {progressive}", encoded(colors, "JPEG", **options)
    yield "jpeg grey", encoded(picture(33, 45), "JPEG")
    yield "jpeg rgb", encoded(colors, "JPEG", keep_rgb=True)
    cmyk = encoded(picture(33, 45, 4), "JPEG", "CMYK")
    adobe = cmyk.index(b"Adobe")
    yield "jpeg cmyk", cmyk
    yield "jpeg ycck", cmyk[: adobe + 11] + b"\2" + cmyk[adobe + 12 :]
    length = struct.unpack(">H", cmyk[adobe - 2 : adobe])[0]
    yield "jpeg cmyk not inverted", cmyk[: adobe - 4] + cmyk[adobe - 2 + length :]


def turned() -> Iterator[tuple[str, bytes]]:
    for turn in range(10):
        exif = Image.Exif()
        exif[0x0112] = turn
        for kind in ("JPEG", "PNG", "WEBP"):
            lossless = {"lossless": True} if kind == "WEBP" else {}
            made = encoded(picture(11, 13, 3), kind, exif=exif.tobytes(), **lossless)
            yield f"{kind} turned {turn}", made
        yield f"TIFF turned {turn}", encoded(picture(11, 13, 3), "TIFF", tiffinfo={0x0112: turn})
        made = encoded(picture(11, 13, top=65535), "PNG", exif=exif.tobytes())
        yield f"PNG of 16 bits turned {turn}", made
    motorola = b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, 8, 0)
    yield "JPEG turned in the other order", encoded(picture(11, 13), "JPEG", exif=motorola + bytes(4))
    past = b"Exif\0\0II*\0\xff\xff\0\0"
    yield "JPEG of broken EXIF", encoded(picture(11, 13), "JPEG", exif=past, dpi=(72, 72))


def others() -> Iterator[tuple[str, bytes]]:
    grey, colors, clear = picture(11, 13), picture(11, 13, 3), picture(11, 13, 4)
    paletted = Image.fromarray(colors).quantize(16)
    for kind in ("BMP", "GIF", "PPM", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        for name, image in (("grey", Image.fromarray(grey)), ("colours", Image.fromarray(colors))):
            file = io.BytesIO()
            image.save(file, kind, **options)
            yield f"{kind} {name}", file.getvalue()
    for kind in ("BMP", "PPM", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(grey > 128).save(file, kind)
        yield f"{kind} 1 bit", file.getvalue()
    for kind, options in (
        ("BMP", {}),
        ("GIF", {"interlace": 1}),
        ("GIF", {"transparency": 3}),
        ("TIFF", {}),
    ):
        file = io.BytesIO()
        paletted.save(file, kind, **options)
        yield f"{kind} palette {options}", file.getvalue()
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
        for name, pixels, mode in (
            ("16 bits", picture(11, 13, top=65535), "I;16"),
            ("transparency", clear, "RGBA"),
            ("grey and transparency", picture(11, 13, 2), "LA"),
        ):
            yield f"TIFF {compression} {name}", encoded(pixels, "TIFF", mode, compression=compression)
    for name, pixels, mode, before, after in (
        ("16 bits, white is 0", picture(11, 13, top=65535), "I;16", (262, 1), (262, 0)),
        ("transparency multiplied in", clear, "RGBA", (338, 2), (338, 1)),
    ):
        old, new = (struct.pack("<HHIH", tag, 3, 1, value) for tag, value in (before, after))
        made = encoded(pixels, "TIFF", mode)
        assert old in made
        yield f"TIFF {name}", made.replace(old, new)
    for quality in (30, 90):
        yield f"WEBP {quality}", encoded(picture(33, 45, 3), "WEBP", quality=quality)
    yield "WEBP of many colours", encoded(picture(97, 101, 3), "WEBP", lossless=True)
    yield "WEBP transparency", encoded(clear, "WEBP", lossless=True)
    for head, pixels in (
        (b"P5 13 11 65535\n", picture(11, 13, top=65535)),
        (b"P6 13 11 65535\n", picture(11, 13, 3, top=65535)),
        (b"P5 13 11 1000\n", picture(11, 13, top=1000)),
        (b"P6\n# a comment\n13 11 1000\n", picture(11, 13, 3, top=1000)),
        (b"P5 13 11 100\n", picture(11, 13, top=100)),
    ):
        stored = pixels.astype(">u2") if pixels.dtype == np.uint16 else pixels
        yield f"PNM {head.decode()}", head + stored.tobytes()
    for kind, pixels in (("P1", grey > 128), ("P2", grey), ("P3", colors)):
        head = f"{kind} 13 11 255\n" if kind != "P1" else "P1 13 11\n"
        yield f"PNM {kind}", (head + " ".join(map(str, pixels.astype(int).ravel())) + "\n").encode()


FILES = dict([*pngs(), *jpegs(), *turned(), *others()])

# --------------------------------------------------------------------- pixels


def as_opencv(file: bytes, flag: int) -> np.ndarray:
    """OpenCV's image, its channels RGB; the test is skipped where it reads none."""
    cv2 = pytest.importorskip("cv2")
    wanted = cv2.imdecode(np.frombuffer(file, np.uint8), flag)
    if wanted is None:
        pytest.skip("this OpenCV does not read this file")
    return wanted if wanted.ndim == 2 else wanted[..., [2, 1, 0, 3][: wanted.shape[2]]]


@pytest.mark.parametrize("name", FILES)
def test_every_pixel_is_opencvs(name: str) -> None:
    file = FILES[name]
    for color, flag in ((True, 1), (False, 0)):
        found = read_image(file, color)
        assert found.flags.c_contiguous
        assert found.flags.writeable
        np.testing.assert_array_equal(found, as_opencv(file, flag))
    stored = as_opencv(file, -1)
    if stored.dtype == np.uint8:
        np.testing.assert_array_equal(read_image(file, None), stored)
    else:
        with pytest.raises(
            ValueError, match=r"^cannot read it: 16 bits a channel: force_color or force_gray"
        ):
            read_image(file, None, "it")


def test_the_size_is_that_of_the_image_read() -> None:
    for name, file in FILES.items():
        assert image_size(file) == read_image(file).shape[:2], name
    late = png(picture(11, 13), 8, 0)  # EXIF behind the pixels
    exif = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHHI", 0x0112, 3, 1, 6, 0, 0))
    late = late[:-12] + exif + late[-12:]
    assert image_size(late) == read_image(late).shape[:2] == (13, 11)
    with pytest.raises(ValueError, match=r"^cannot read it: it is no PNG"):
        image_size(b"nothing", "it")


@pytest.mark.parametrize("end", [".png", ".tif", ".ppm"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_that_opencv_wrote(end: str, channels: int) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = picture(17, 19, channels, top=65535)
    if end == ".ppm" and channels != 3:
        end, pixels = ".pgm", pixels[..., :1]
    file = cv2.imencode(end, pixels)[1].tobytes()
    for color, flag in ((True, 1), (False, 0)):
        np.testing.assert_array_equal(read_image(file, color), as_opencv(file, flag))
    np.testing.assert_array_equal(read_samples(file), as_opencv(file, -1))


def test_the_differences_that_are_left() -> None:
    """As the module's text says."""
    rgb, more = picture(11, 13, 3), picture(11, 13, 3)[::-1].copy()
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG", save_all=True, append_images=[Image.fromarray(more)])
    np.testing.assert_array_equal(read_image(file.getvalue()), rgb)
    grey = read_image(file.getvalue(), False).astype(int)
    assert np.abs(grey - as_opencv(file.getvalue(), 0)).max() <= 1
    ink = encoded(picture(11, 13, 4), "TIFF", "CMYK")
    for color, flag in ((True, 1), (False, 0)):
        np.testing.assert_array_equal(read_image(ink, color), as_opencv(ink, flag))
    np.testing.assert_array_equal(read_image(ink, None), as_opencv(ink, -1)[..., :3])
    cv2 = pytest.importorskip("cv2")
    file = cv2.imencode(".bmp", picture(11, 13, 4))[1].tobytes()
    np.testing.assert_array_equal(read_image(file), as_opencv(file, 1))
    assert np.abs(read_image(file, False).astype(int) - as_opencv(file, 0)).max() <= 1
    rows = picture(11, 28).tobytes()
    head = struct.pack(
        "<IHHIIiiHHIIiiII", 54 + len(rows), 0, 0, 54, 40, 13, 11, 1, 16, 0, 0, 0, 0, 0, 0
    )
    file = b"BM" + head + rows
    assert 0 < np.abs(read_image(file).astype(int) - as_opencv(file, 1)).max() <= 7


def test_of_several_pages_the_first() -> None:
    first, second = picture(11, 13, 3), picture(11, 13, 3)[::-1].copy()
    for kind in ("TIFF", "WEBP"):
        file = io.BytesIO()
        lossless = {"lossless": True} if kind == "WEBP" else {}
        pages = [Image.fromarray(second)]
        Image.fromarray(first).save(file, kind, save_all=True, append_images=pages, **lossless)
        np.testing.assert_array_equal(read_image(file.getvalue()), first)


def test_planes() -> None:
    image = picture(4, 5, 4)
    np.testing.assert_array_equal(planes(image[..., 0]), image[None, ..., 0])
    np.testing.assert_array_equal(planes(image[..., :3]), image[..., 2::-1].transpose(2, 0, 1))
    np.testing.assert_array_equal(planes(image), image[..., [2, 1, 0, 3]].transpose(2, 0, 1))


# --------------------------------------------------------------------- ground truth of 16 bits


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("shape", [(11, 13), (11, 13, 3)])
def test_16_bits_as_they_are(tmp_path: Path, shape: tuple[int, ...], interlaced: bool) -> None:
    pixels = picture(*shape, top=65535)
    path = tmp_path / "flow.png"
    path.write_bytes(png(pixels, 16, 2 if len(shape) == 3 else 0, interlaced=interlaced))
    found = read_16_bits(path)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    before = chunk(b"eXIf", turned.tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(png(pixels, 16, 2 if len(shape) == 3 else 0, before))
    np.testing.assert_array_equal(read_16_bits(path), pixels)


@pytest.mark.parametrize("head", [b"P5 13 11 65535\n", b"P6 13 11 900\n"])
def test_16_bits_of_pnm_are_not_stretched(tmp_path: Path, head: bytes) -> None:
    pixels = (
        picture(11, 13, 3, top=int(head.split()[-1]))
        if head[1] == ord("6")
        else picture(11, 13, top=65535)
    )
    (tmp_path / "truth").write_bytes(head + pixels.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_16_bits(tmp_path / "truth"), pixels)


@pytest.mark.parametrize(
    ("file", "found"),
    [
        (encoded(picture(4, 5), "PNG"), "8 bits of 1"),
        (encoded(picture(4, 5, 3), "JPEG"), "8 bits of 3"),
        (png(picture(4, 5, 4, top=65535), 16, 6), "16 bits of 4"),
        (png(picture(4, 5, 2, top=65535), 16, 4), "16 bits of 4"),
    ],
)
def test_not_ground_truth_of_16_bits(tmp_path: Path, file: bytes, found: str) -> None:
    (tmp_path / "truth").write_bytes(file)
    with pytest.raises(ValueError) as caught:
        read_16_bits(tmp_path / "truth")
    assert str(caught.value) == f"{tmp_path}/truth: expected 16 bits of 1 or 3 channels, found {found}"


# --------------------------------------------------------------------- what is no image

GREY = encoded(picture(40, 48), "PNG")
TIFF = encoded(picture(11, 13, 3), "TIFF")
GIF = FILES["GIF grey"]
FRAME = GIF.index(struct.pack("<BHHHH", 0x2C, 0, 0, 13, 11))


def large(file: bytes, *sizes: tuple[int, str]) -> bytes:
    """A file whose head claims 50000 at offsets, in struct's formats."""
    made = bytearray(file)
    for offset, form in sizes:
        struct.pack_into(form, made, offset, 50000)
    return bytes(made)


def tag(number: int) -> int:
    """Where the value of a tag lies in ``TIFF``."""
    return TIFF.index(struct.pack("<HHI", number, 4, 1)) + 8


def planar() -> Iterator[bytes]:
    """A TIFF of 2 x 1 pixels in planes of 16 bits."""
    tags = [(256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 3, 146), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 3, 152), (277, 3, 1, 3), (278, 4, 1, 1), (279, 4, 3, 164), (284, 3, 1, 2)]
    yield struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for entry in tags:
        yield struct.pack("<HHII", *entry)
    yield struct.pack("<I12x", 0)
    yield struct.pack("<3H3I3I", 16, 16, 16, 176, 180, 184, 4, 4, 4)
    yield picture(6, top=65535).tobytes()


JPEG = encoded(picture(11, 13), "JPEG")
BOMBS = {
    "PNG": png(np.zeros((0, 0)), 1, 0)[:8]
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 1, 0, 0, 0, 0))
    + chunk(b"IDAT", b""),
    "JPEG": large(JPEG, (JPEG.index(b"\xff\xc0") + 5, ">H"), (JPEG.index(b"\xff\xc0") + 7, ">H")),
    "GIF": large(GIF, (6, "<H"), (8, "<H")),
    "BMP": large(FILES["BMP colours"], (18, "<i"), (22, "<i")),
    "PPM": b"P6 50000 50000 255\n",
    "TIFF": large(TIFF, (tag(256), "<I"), (tag(257), "<I")),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_decompression_bomb_is_refused_by_its_head(kind: str) -> None:
    most = 89_478_485 if kind == "TIFF" else 178_956_970
    for read in (read_image, read_samples):
        with pytest.raises(ValueError) as caught:
            read(BOMBS[kind], what="the bomb")
        assert str(caught.value) == f"cannot read the bomb: 50000 x 50000 pixels are more than {most:,}"


def test_pillows_own_limit_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # it warns above, fails above twice that
    assert read_image(FILES["jpeg grey"]).shape == (33, 45, 3)
    assert read_image(GREY, False).shape == (40, 48)
    monkeypatch.setattr(images, "MOST_PIXELS", 40 * 48)
    assert read_image(GREY, False).shape == (40, 48)
    monkeypatch.setattr(images, "MOST_PIXELS", 40 * 48 - 1)
    with pytest.raises(ValueError, match=r"48 x 40 pixels are more than 1,919$"):
        read_image(GREY)


UNKNOWN = "it is no PNG, JPEG, TIFF, WebP, GIF, BMP or PNM image"
BROKEN = {
    "chunk": (
        GREY[:33] + b"\0\0\0\0\xaeB`\x82" + GREY[33:],
        "broken PNG file",
    ),  # to Pillow a SyntaxError
    "length": (GREY[:33] + GREY[34:], "."),
    "cut PNG": (GREY[:500], "."),
    "cut JPEG": (encoded(picture(33, 45, 3), "JPEG")[:900], "image file is truncated"),
    "cut TIFF": (TIFF[:-20], "."),
    "cut BMP": (FILES["BMP colours"][:-30], "image file is truncated"),
    "cut GIF": (GIF[:60], "."),
    "frame": (large(GIF, (FRAME + 5, "<H"), (FRAME + 7, "<H")), "it is broken"),
    "cut PNM": (b"P6 13 11 1000\n" + bytes(99), "."),
    "cut WebP": (FILES["WEBP colours"][:60], "."),
    "empty": (b"", UNKNOWN),
    "text": (b"name: net\n", UNKNOWN),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN),
    "integers": (encoded(picture(11, 13).astype(np.int32), "TIFF"), "found Pillow's mode I"),
    "floats": (encoded(picture(11, 13).astype(np.float32), "TIFF"), "found floats"),
    "planes": (b"".join(planar()), "planes of 16 bits are not read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_images(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    path = tmp_path / "image.png"
    path.write_bytes(content)
    for color in (True, False, None):
        with pytest.raises(ValueError, match=rf"^cannot read {path}: .*{reason}"):
            read_image(path, color)


def test_what_is_no_file(tmp_path: Path) -> None:
    for name, reason in (("", "Is a directory"), ("gone.png", "No such file or directory")):
        with pytest.raises(ValueError) as caught:
            read_image(tmp_path / name)
        assert str(caught.value) == f"cannot read {tmp_path / name}: {reason}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for path in (tmp_path / "fifo.png", Path(os.devnull)):
        with pytest.raises(ValueError, match=r"not a file, but a pipe or a device$"):
            read_image(path)


SEEDS = (
    *("png 3 x 16", "png interlaced palette 4 clear", "PNG turned 6", "jpeg 2 True", "jpeg cmyk"),
    *("TIFF raw 16 bits", "TIFF tiff_lzw transparency", "WEBP 90", "BMP palette {}", "GIF grey"),
    *("JPEG turned 6", "PNM P6\n# a comment\n13 11 1000\n"),
)


@pytest.mark.parametrize("name", SEEDS)
def test_a_mutated_file_is_an_image_or_a_value_error(name: str) -> None:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    refused = []
    for _ in range(40):
        file = bytearray(FILES[name])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(rng.choice([64, len(file)]))) % len(file)
            put = [bytes([rng.integers(256)]), b"", bytes(rng.integers(0, 256, 5, dtype=np.uint8))]
            file[at : at + 1] = put[rng.integers(3)]
        for color in (True, False, None):
            try:
                with warnings.catch_warnings(action="ignore"):  # Pillow's, of broken EXIF and TIFF tags
                    assert read_image(bytes(file), color).dtype == np.uint8
            except ValueError as error:
                refused.append(str(error))
    assert refused
    assert all(reason.startswith("cannot read an image: ") for reason in refused)


# --------------------------------------------------------------------- entrances


@pytest.mark.parametrize(
    ("name", "shape"),
    [("png grey 16", (11, 13, 3)), ("png 3 x 16", (11, 13, 3)), ("JPEG turned 6", (13, 11, 3))],
)
def test_every_entrance_gives_the_same_pixels(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    path = tmp_path / "image.img"
    path.write_bytes(FILES[name])
    wanted = read_image(path)
    assert wanted.shape == shape
    assert 30 < wanted.mean() < 225
    np.testing.assert_array_equal(open_image(str(path)), wanted)
    np.testing.assert_array_equal(read_photographs(str(path))[0], wanted)
    (tmp_path / "list.txt").write_text(f"{path} 3\n")
    layer: Any = image_data.ImageData(
        image_data.Params(str(tmp_path / "list.txt")), (), torch.Generator()
    )
    np.testing.assert_array_equal(layer()[0][0].numpy(), planes(wanted))
    with (
        lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as database,
        database.begin(write=True) as put,
    ):
        put.put(b"0", message("Datum")(data=FILES[name], encoded=True).SerializeToString())
    params = data.Params(str(tmp_path / "db"), 1, backend=data.Backend.LMDB, force_encoded_color=True)
    layer = data.Data(params, (), torch.Generator())
    np.testing.assert_array_equal(layer()[0][0].numpy(), planes(wanted))
