"""Whether the arms of a comparison do the same work: their models' sizes, their losses, and the laws of their views."""

import math
from collections.abc import Mapping
from typing import Any

from stec.vision.views import Augmentation

SIGMAS = 5.0  # by so many standard errors may shares and means be off
LOSS = 1e-4  # nats, by which losses of the same projections may differ
PROJECTOR = 0.005  # share by which sizes of projectors may: libraries differ in a bias before BatchNorm

Facts = Mapping[str, Mapping[str, Any]]


class NotAlike(RuntimeError):
    """Arms that were to be compared do not do the same work."""


def check_models(facts: Facts) -> list[str]:
    """What differs in the networks and losses of arms; the first arm is the reference."""
    wrong = []
    reference, first = next(iter(facts.items()))
    for name, told in facts.items():
        for key in ("parameters of the encoder", "parameters of the projector", "parameters of the predictor"):
            ours, theirs = first.get(key), told.get(key)
            if ours is not None and theirs is not None:
                apart = abs(theirs - ours) / ours
                if apart > (PROJECTOR if key.endswith("projector") else 0.0):
                    wrong.append(f"{key} are {theirs:,} in {name} and {ours:,} in {reference}")
        if "nt_xent" in told and abs(told["nt_xent"] - first["nt_xent"]) > LOSS:
            wrong.append(
                f"NT-Xent of the same projections is {told['nt_xent']:.5f} in {name}, "
                f"{first['nt_xent']:.5f} in {reference}"
            )
    return wrong


def check_views(facts: Facts, law: Augmentation, size: int, probes: int) -> list[str]:
    """What differs in the views of arms, each of `probes` pairs: shares from the law, means from the first arm."""
    wrong = []
    n = 2 * probes
    shares = {
        "flipped": law.p_flip,
        "jittered": law.p_jitter,
        "grey": law.p_grayscale,
        "blurred": law.p_blur,
        "solarised": law.p_solarise,
    }
    reference, first = next(iter(facts.items()))[0], next(iter(facts.values()))["views"]
    spread = first["brightness spread"]
    means = {  # two samples of n views each
        "crop width": SIGMAS * 0.2 * math.sqrt(2 / n),
        "brightness": SIGMAS * spread * math.sqrt(2 / n),
        "brightness spread": SIGMAS * spread * math.sqrt(1 / n),
    }
    for name, told in facts.items():
        views = told["views"]
        for key, p in shares.items():
            if abs(views[key] - p) > SIGMAS * math.sqrt(p * (1 - p) / n) + 0.01:
                wrong.append(
                    f"{100 * views[key]:.0f} % of the views are {key} in {name} where the law says {100 * p:.0f}"
                )
        for key, most in means.items():
            if abs(views[key] - first[key]) > most:
                wrong.append(f"the {key} of views is {views[key]:.3f} in {name} and {first[key]:.3f} in {reference}")
        if views["size"] != size:
            wrong.append(f"views are {views['size']:.0f} pixels large in {name}, not {size}")
        if views["least"] < -1e-4 or views["largest"] > 1 + 1e-4 or views["largest"] < 0.5:
            wrong.append(
                f"values of views lie in [{views['least']:.3f}, {views['largest']:.3f}] in {name}, not in [0, 1]"
            )
    return wrong


def check_alike(title: str, facts: Facts, law: Augmentation | None, size: int, probes: int) -> None:
    """NotAlike tells all that keeps these arms from being compared; `law` is None where they make no views."""
    wrong = check_models(facts) + (check_views(facts, law, size, probes) if law is not None else [])
    if wrong:
        raise NotAlike(f"the arms of {title} do not do the same work: {'; '.join(wrong)}. Nothing was measured")


def agreement(facts: Facts) -> str:
    """What was found to be the same, in a line for the person at the terminal.

    >>> agreement({"stec": {"nt_xent": 4.8595, "parameters of the encoder": 11_168_832}, "torch": {"nt_xent": 4.8595}})
    'alike: NT-Xent of given projections 4.8595 nats; encoder 11,168,832 parameters'
    """
    first = next(iter(facts.values()))
    parts = []
    if "nt_xent" in first:
        parts.append(f"NT-Xent of given projections {first['nt_xent']:.4f} nats")
    if "parameters of the encoder" in first:
        parts.append(f"encoder {first['parameters of the encoder']:,} parameters")
    for key in ("flipped", "jittered", "grey", "blurred", "solarised"):
        found = [100 * told["views"][key] for told in facts.values() if "views" in told]
        if found and max(found):
            parts.append(f"{key} {min(found):.0f}-{max(found):.0f} %")
    return f"alike: {'; '.join(parts)}"
