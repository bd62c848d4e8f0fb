"""Images that need no download: ten kinds of patterned emblem, drawn as signed distances; the quickstart's data.

A class is an outline with a pattern on it. All else is chance: place, size, proportions, tilt, the pattern's scale and
phase, which of the two inks is the dark one, colours, light, noise. So the mean image of every class is nearly the
same and a linear model of pixels has little to go by. The pattern tells the class within a small crop, the outline
within a large one; outline, pattern scale, tilt, and a light that falls from the upper left tell a view's place, scale
and mirroring, which is what the manipulation-related inverse model is to read.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from stec.core.actions import step_seed

# A plane function: coordinates x, y to a signed distance, positive inside. Outlines have a radius of about 1; patterns
# have a period of about 1 and are positive on the ink.
Plane = Callable[[Tensor, Tensor], Tensor]


class RenderedImages(NamedTuple):
    """Pictures, their classes and the names of these: what `ImageSet(*...)` takes."""

    images: UInt8[Tensor, "n 3 size size"]
    labels: Int[Tensor, " n"]
    classes: tuple[str, ...]


def rendered_images(n: int, *, size: int = 32, seed: int) -> RenderedImages:
    """`n` pictures in random order, classes as equal as they can be: a function of (n, size, seed) alone.

    Sets of different seeds are disjoint draws from one population: one to train, one to test. `size` changes the
    pixels and not the scenes. 10,000 of 32 pixels take a second or two. Raises ValueError where `n` or `size` is too
    small.

    >>> images, labels, classes = rendered_images(20, size=32, seed=0)
    >>> images.shape, labels.bincount().tolist(), classes[3]
    (torch.Size([20, 3, 32, 32]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 'ringed disc')
    """
    if n < 1:
        raise ValueError(f"n is {n}; ask for at least 1 image")
    if size < 16:
        raise ValueError(f"size is {size}; patterns need at least 16 pixels")
    generator = torch.Generator().manual_seed(step_seed(seed, 0))
    grain = torch.Generator().manual_seed(step_seed(seed, 1))  # apart, for the scenes are to be those of every size
    # Classes in turn from a random first one, then shuffled: balanced for every n.
    first = int(torch.randint(len(_EMBLEMS), (), generator=generator))
    labels = (torch.arange(n) + first)[torch.randperm(n, generator=generator)] % len(_EMBLEMS)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    for k, (outline, pattern) in enumerate(_EMBLEMS.values()):
        for rows in (labels == k).nonzero()[:, 0].split(500):  # 500 at a time stay within the caches of a small machine
            images[rows] = _draw(outline, pattern, len(rows), size, generator, grain)
    return RenderedImages(images, labels, tuple(_EMBLEMS))


def _draw(
    outline: Plane, pattern: Plane, m: int, size: int, generator: torch.Generator, grain: torch.Generator
) -> UInt8[Tensor, "m 3 size size"]:
    """`m` pictures of one class. Coordinates are those of affine maps: [-1, 1] over the picture, y down."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(m, 1, 1).uniform_(low, high, generator=generator)

    grid = (torch.arange(size) + 0.5) * (2 / size) - 1
    pixel = 2 / size
    picture_x, picture_y = grid[None, None, :], grid[None, :, None]

    # The emblem's own frame: place, size, proportions, tilt.
    radius = uniform(math.log(0.65), math.log(1.1)).exp()
    stretch = uniform(-0.2, 0.2).exp()
    x, y = _turn(
        (picture_x - uniform(-0.3, 0.3)) / radius, (picture_y - uniform(-0.3, 0.3)) / radius, uniform(-0.6, 0.6)
    )
    x, y = x * stretch, y / stretch
    inside = _ink(outline(x, y) * radius, pixel)

    # The pattern's frame: bent, as on cloth, then scaled to cells of about a quarter of the picture.
    cells = uniform(math.log(1.9), math.log(3.2)).exp() * radius
    u, v = x + uniform(-0.12, 0.12) * y * y, y + uniform(-0.12, 0.12) * x * x
    if pattern not in _CENTRED:
        u, v = u + uniform(0, 1) / cells, v + uniform(0, 1) / cells
    ink = _ink(pattern(u * cells, v * cells) / cells * radius, pixel)

    # Light from the upper left, give or take: it shades the emblem and the ground, and throws a shadow.
    light = uniform(-0.6, 0.6) + math.pi / 4
    towards_x, towards_y = light.cos(), light.sin()
    away = picture_x * towards_x + picture_y * towards_y
    shade = 1.05 - 0.25 * (x * towards_x + y * towards_y) - 0.1 * (x * x + y * y)
    shadow = 0.45 * _ink(outline(x - 0.16 * towards_x, y - 0.16 * towards_y) * radius, 0.16)

    pale, deep = _colour(m, (0.8, 1.0), (0.1, 0.45), generator), _colour(m, (0.15, 0.45), (0.3, 0.8), generator)
    swap = torch.rand(m, 1, 1, 1, generator=generator) < 0.5
    on, off = torch.where(swap, deep, pale), torch.where(swap, pale, deep)
    ground = _colour(m, (0.45, 0.85), (0.1, 0.45), generator) * (1 - 0.2 * away * uniform(0.5, 1.0))[:, None]
    ground = ground * (1 - shadow)[:, None]
    emblem = torch.lerp(off, on, ink[:, None]) * shade[:, None]
    picture = torch.lerp(ground, emblem, inside[:, None])
    picture = picture + torch.empty(picture.shape).normal_(0, 0.012, generator=grain)
    return (picture * 255).round_().clamp_(0, 255).to(torch.uint8)


def _colour(m: int, value: tuple[float, float], saturation: tuple[float, float], generator: torch.Generator) -> Tensor:
    """(m, 3, 1, 1): six hues, so that pictures cannot be told apart by colour alone, which would teach no structure."""
    hue = torch.randint(6, (m, 1), generator=generator) / 6 + torch.empty(m, 1).normal_(0, 0.015, generator=generator)
    v = torch.empty(m, 1).uniform_(*value, generator=generator)
    s = torch.empty(m, 1).uniform_(*saturation, generator=generator)
    wheel = 0.5 - 0.5 * torch.cos(2 * math.pi * (hue - torch.arange(3) / 3))
    return (v * (1 - s * wheel))[:, :, None, None]


def _ink(distance: Tensor, pixel: Tensor | float) -> Tensor:
    """The share of a pixel that is covered, given the signed distance of its centre to the edge in picture units."""
    return (distance / pixel + 0.5).clamp_(0, 1)


def _turn(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    c, s = angle.cos(), angle.sin()
    return c * x + s * y, c * y - s * x


def _cell(t: Tensor) -> Tensor:
    """Distance from the middle of the unit cell: 0 there, 0.5 at its borders."""
    return (t - t.floor() - 0.5).abs()


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.minimum(width - x.abs(), height - y.abs())


def _polygon(x: Tensor, y: Tensor, sides: int, inradius: float) -> Tensor:
    """A regular polygon with a side below (y down)."""
    angles = [2 * math.pi * i / sides + math.pi / 2 for i in range(sides)]
    return torch.stack([inradius - x * math.cos(a) - y * math.sin(a) for a in angles]).amin(0)


def _star(x: Tensor, y: Tensor) -> Tensor:
    return 0.75 - 0.22 * torch.cos(5 * torch.atan2(y, x) - math.pi / 2) - torch.hypot(x, y)


def _egg(x: Tensor, y: Tensor) -> Tensor:
    return 0.8 - torch.hypot(x * (1.15 - 0.25 * y), y * 0.85)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(1 - torch.hypot(x, y), torch.hypot(x - 0.6, y) - 0.5)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(_box(x, y, 0.98, 0.42), _box(x, y, 0.42, 0.98))


def _checks(u: Tensor, v: Tensor) -> Tensor:
    a, b = 0.25 - _cell(u), 0.25 - _cell(v)
    return torch.minimum(a.abs(), b.abs()) * torch.sign(a * b)


def _dots(u: Tensor, v: Tensor) -> Tensor:
    return 0.33 - torch.hypot(_cell(u + 0.5 * (v.floor() % 2)), _cell(v))


def _bricks(u: Tensor, v: Tensor) -> Tensor:
    row = 1.5 * v
    along = 0.75 * u + 0.5 * (row.floor() % 2)
    return torch.minimum((0.5 - _cell(along)) / 0.75, (0.5 - _cell(row)) / 1.5) - 0.09


def _honeycomb(u: Tensor, v: Tensor) -> Tensor:
    height = math.sqrt(3)

    def hexagon(x: Tensor, y: Tensor) -> Tensor:
        a, b = _cell(x), _cell(y) * height
        return 0.5 - torch.maximum(a, 0.5 * a + 0.5 * height * b)

    return torch.maximum(hexagon(u, v / height), hexagon(u + 0.5, v / height + 0.5)) - 0.1


def _windows(u: Tensor, v: Tensor) -> Tensor:
    return 0.25 - torch.maximum(_cell(u), _cell(v))


def _pinwheel(u: Tensor, v: Tensor) -> Tensor:
    r = torch.hypot(u, v)
    turns = 5 * torch.atan2(v, u) / (2 * math.pi) + 0.45 * r
    return (0.25 - _cell(turns)) * (2 * math.pi / 5) * r.clamp_min(0.1)


def _stripes(u: Tensor, v: Tensor) -> Tensor:
    return 0.25 - _cell(0.9 * u + 0.4 * v)


def _rings(u: Tensor, v: Tensor) -> Tensor:
    return 0.25 - _cell(torch.hypot(u, v))


def _zigzag(u: Tensor, v: Tensor) -> Tensor:
    return (0.25 - _cell(v + 1.6 * _cell(0.7 * u))) * 0.66


def _waves(u: Tensor, v: Tensor) -> Tensor:
    return 0.25 - _cell(0.8 * v + 0.2 * torch.sin(2 * math.pi * 0.4 * u))


_EMBLEMS: dict[str, tuple[Plane, Plane]] = {
    "striped octagon": (lambda x, y: _polygon(x, y, 8, 0.88), _stripes),
    "checked square": (lambda x, y: _box(x, y, 0.82, 0.82), _checks),
    "dotted egg": (_egg, _dots),
    "ringed disc": (lambda x, y: 0.95 - torch.hypot(x, y), _rings),
    "brick wall": (lambda x, y: _box(x, y, 0.98, 0.64), _bricks),
    "zigzag pennant": (lambda x, y: _polygon(x, -y - 0.15, 3, 0.6), _zigzag),
    "wavy crescent": (_crescent, _waves),
    "honeycomb hexagon": (lambda x, y: _polygon(x, y, 6, 0.86), _honeycomb),
    "windowed cross": (_cross, _windows),
    "pinwheel star": (_star, _pinwheel),
}
_CENTRED = (_rings, _pinwheel)  # patterns about a middle, which stays that of the outline
