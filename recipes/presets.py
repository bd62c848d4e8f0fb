"""Presets of any modality: finding one by its name, and listing them by their purpose."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# Groups by how names begin, in the order of the list; what fits none is of the last.
PURPOSES = {
    "your own images": ("folder",),
    "small machines, minutes": ("quickstart", "small-", "tiny-"),
    "the paper's Table 1, CIFAR and STL-10 (GPU)": ("cifar", "stl10"),
    "the paper's Table 2, SimSiam and AugSelf (GPU)": ("table2",),
    "the paper's Table 3, ImageNet (several GPUs)": ("imagenet",),
    "published protocols (GPU)": ("",),
}


def find(name: str, presets: Mapping[str, T]) -> T:
    """The preset of this name. ValueError names the nearest ones where there is none.

    >>> find("smal-cpc", {"small-cpc": 1, "gim": 2})
    Traceback (most recent call last):
        ...
    ValueError: no preset 'smal-cpc'; the nearest are small-cpc
    """
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=4, cutoff=0.3) or sorted(presets)
        raise ValueError(f"no preset {name!r}; the nearest are {', '.join(near)}")
    return presets[name]


def purpose(name: str) -> str:
    """The group of the list that a preset stands in.

    >>> purpose("tiny-stec"), purpose("cpc")
    ('small machines, minutes', 'published protocols (GPU)')
    """
    return next(of for of, beginnings in PURPOSES.items() if name.startswith(beginnings))


def listing(presets: Mapping[str, Any], line: Callable[[Any], str], word: str = "") -> str:
    """Presets by purpose, a line each with the size of what the encoder sees, the batch and the epochs.

    With a `word` those alone in whose name, line or purpose it stands. ValueError where it stands in none.
    """
    texts = {name: line(config) for name, config in presets.items()}
    shown = [name for name in presets if word.lower() in f"{name} {texts[name]} {purpose(name)}".lower()]
    if not shown:
        raise ValueError(f"{word!r} stands in no preset; --list alone shows all {len(presets)}")
    rows = {
        name: (name, _size(presets[name]), f"{presets[name].batch_size}", f"{presets[name].epochs}") for name in shown
    }
    header = ("preset", "size", "batch", "epochs")
    widths = [max(len(cells[i]) for cells in (header, *rows.values())) for i in range(4)]

    def laid(cells: tuple[str, ...], text: str) -> str:
        first, *others = cells
        numbers = "  ".join(f"{cell:>{width}s}" for cell, width in zip(others, widths[1:]))
        return f"  {first:{widths[0]}s}  {numbers}  {text}".rstrip()

    images = any(hasattr(config, "augmentation") for config in presets.values())
    text = "method, network, data (size own: as the images are)" if images else "method, network (size of a window)"
    lines = [laid(header, text)]
    for of in PURPOSES:
        if group := [laid(rows[name], texts[name]) for name in shown if purpose(name) == of]:
            lines += ["", f"{of}:", *group]
    return "\n".join(lines)


def _size(config: Any) -> str:
    """What the encoder sees at a time: pixels of a view, "own" for the images' own, or seconds of speech."""
    if hasattr(config, "augmentation"):
        return f"{config.augmentation.size} px" if config.augmentation.size else "own"
    return f"{config.window / 16_000:.2f} s"
