"""Labelled images as files, for tests that read folders."""

from pathlib import Path

import torch
from PIL import Image


def ten_classes(root: Path, *, train: int = 2, test: int = 3, size: int = 32) -> Path:
    """Images of a colour that roughly tells the class, and noise: train/classN/ and test/classN/ for N in 0 ... 9."""
    generator = torch.Generator().manual_seed(3)
    colours = torch.rand(10, 3, generator=generator) * 150
    for split, n in (("train", train), ("test", test)):
        for label in range(10):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(n):
                colour = colours[label] + torch.rand(3, generator=generator) * 60
                pixels = (colour + torch.rand(size, size, 3, generator=generator) * 45).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return root
