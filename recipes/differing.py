"""How the settings of a run that is there differ from those asked for: one form for every message that says so."""

from typing import Any


def differing(there: Any, here: Any, name: str = "") -> list[str]:
    """Where plain settings differ, part by part. What `there` holds beside those of `here` is passed over, but not in
    a part: that is the same or another.

    >>> differing({"lr": 0.1, "more": 1, "augmentation": {"size": 32}}, {"lr": 0.1, "augmentation": {"size": 48}})
    ['augmentation.size 32 there, 48 here']
    >>> differing({"encoder": {"width": 4, "sha256": "1dc6"}}, {"encoder": {"width": 4}})
    ['encoder.sha256 1dc6 there, None here']
    """
    if isinstance(there, dict) and isinstance(here, dict):
        keys = {**here, **there} if name else here
        parts = [differing(there.get(key), here.get(key), f"{name}.{key}".strip(".")) for key in keys]
        return [line for part in parts for line in part]
    return [] if there == here else [f"{name} {there} there, {here} here"]
