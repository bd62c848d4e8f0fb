"""Image files: whatever a folder of strangers holds under the names of images."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
from mutations import BINARY, Target, address_space, check, mutated, refusing
from PIL import Image

from stec.vision.decoding import check as check_image
from stec.vision.decoding import decode
from stec.vision.voc_masks import read_mask

FORMATS = ("JPEG", "JPEG", "PNG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MODES = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "L", "LA", "I;16"), "GIF": ("P", "L"),
         "BMP": ("RGB", "L", "P"), "TIFF": ("RGB", "L", "I;16", "F", "CMYK"), "WEBP": ("RGB", "RGBA"),
         "PPM": ("RGB", "L")}  # fmt: skip
STRANGERS = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
             b"/* XPM */\nstatic char *a[] = {\n\"1 1 1 1\",\n\"a c #000000\",\n\"a\"\n};",
             b"GRIB\0\0\0\2", b"\x89HDF\r\n\x1a\n")  # fmt: skip


def picture(random: Random) -> bytes:
    """A few pixels in one of the formats, some with EXIF or text beside them."""
    if random.random() < 0.05:
        return mutated(random.choice(STRANGERS), random, BINARY)
    kind = random.choice(FORMATS)
    mode = random.choice(MODES[kind])
    side = random.choice((1, 3, 8))
    values = np.arange(side * side * 4, dtype=np.uint8).reshape(side, side, 4)
    image = Image.fromarray(values, "RGBA").convert("L" if mode in ("I;16", "F") else mode)
    if mode in ("I;16", "F"):
        image = Image.fromarray(np.asarray(image).astype(np.uint16 if mode == "I;16" else np.float32))
    options = {}
    if kind in ("JPEG", "PNG", "WEBP", "TIFF") and random.random() < 0.4:
        exif = Image.Exif()
        exif[0x0112] = random.choice((1, 3, 6, 8, 9))
        options["exif"] = exif
    file = BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return mutated(file.getvalue(), random, BINARY)


def read_picture(data: bytes, folder: Path) -> None:
    path = folder / "a.jpg"
    path.write_bytes(data)
    with refusing(path):
        check_image(path, pixels=True)
    with refusing(path):
        image = decode(path)
        assert image.ndim == 3
        assert image.shape[0] == 3


TARGETS = [Target("images", picture, read_picture)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_broken_images_are_decoded_or_refused_with_their_name(target: Target, tmp_path: Path) -> None:
    check(target, tmp_path, examples=150)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises that many grey pixels, and a start of their data, all zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min((width + 1) * height, 8 << 20)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 60_000])  # Pillow warns of the first and refuses the second
@pytest.mark.parametrize("read", [decode, read_mask, lambda path: check_image(path, pixels=True)])
def test_a_decompression_bomb_is_refused_before_it_takes_memory(side: int, read: object, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(side, side))
    assert path.stat().st_size < 1 << 20
    with address_space(64 << 20), pytest.raises(ValueError, match=r"bomb\.png has more than [\d,]+ pixels"):
        read(path)  # type: ignore[operator]
