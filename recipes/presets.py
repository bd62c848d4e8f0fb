"""Finding a preset by its name, whatever the modality."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


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
