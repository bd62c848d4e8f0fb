"""Image files to uint8 RGB, with Pillow: whatever a folder holds becomes three channels, upright, or a clear error."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
# What folders of images hold. Pillow looks at the content, whatever a file is called, and for some starts programs,
# such as Ghostscript for PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # JPEG with MPO, which cameras write
Bomb = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode(path: str | Path) -> UInt8[Tensor, "3 h w"]:
    """The pixels of an image file as RGB, turned upright by its EXIF orientation; the first frame of several.

    Greyscale is repeated in three channels and a palette looked up; what is transparent is laid over white; 16-bit
    greyscale is divided by 257 and rounded, so that its range fills 0 to 255; CMYK goes by Pillow's plain formula,
    without a colour profile. The memory lies as (h, w, 3), in which torchvision's crops of uint8 are fastest.
    Raises ValueError naming the file where it is missing, truncated, no image, larger than Pillow's limit against
    decompression bombs, or has 32-bit pixels, whose range is not known.
    """
    return torch.from_numpy(np.array(decode_rgb(path))).permute(2, 0, 1)


def decode_rgb(path: str | Path) -> Image.Image:
    """As `decode`, as a Pillow image."""
    with _naming(path), open(path, "rb", buffering=0) as file:
        encoded = file.read()
    return decode_bytes(encoded, path)  # one read: a third faster for small files than by path


def decode_bytes(encoded: bytes, name: str | Path) -> Image.Image:
    """As `decode_rgb`, of what an image file holds; `name` is what errors call it."""
    with _naming(name), Image.open(BytesIO(encoded), formats=FORMATS) as image:
        _refuse_bomb(image)
        return _rgb(_upright(image))


def check(path: str | Path, *, pixels: bool) -> None:
    """Raises what `decode` would raise, sooner: reads the header, with `pixels` all data at the lowest resolution."""
    with _naming(path), Image.open(path, formats=FORMATS) as image:
        _refuse_bomb(image)
        if pixels:
            image.draft("RGB", (1, 1))  # JPEG alone: an eighth of the size, from all of the file
            _rgb(image)


def centre(image: Image.Image, *, resize: int, crop: int) -> Image.Image:
    """The shorter side resized (bilinear, antialiased) to `resize` pixels, then a square of side `crop` cut out."""
    if image.size == (resize, resize) and resize == crop:
        return image
    return functional.center_crop(functional.resize(image, [resize], antialias=True), [crop])


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "JPEG" and "exif" not in image.info and "xmp" not in image.info:
        return image  # most files: spares Pillow's search, a tenth of the time at 32 pixels
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # a camera's broken note, of which there are many sorts, does not make the pixels worse
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("has 32-bit pixels, whose range is not known; save it with 8 or 16 bits")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _refuse_bomb(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # Pillow itself only warns up to twice the limit
        raise Image.DecompressionBombError


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Turns whatever Pillow raises into a ValueError that names the file."""
    try:
        yield
    except Bomb as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise ValueError(
            f"{path} has more than {limit:,} pixels; shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that Pillow can read") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, IndexError and more on broken files
        raise ValueError(f"{path} cannot be decoded: {error or type(error).__name__}") from error
