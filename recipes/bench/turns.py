"""Timing side by side on a machine that others may use: samples in turn, and how much of the machine others took."""

import statistics
import time
from collections.abc import Callable

import torch

from recipes.others import Others

OTHERS = "other programs, cores"


def in_turn(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of a call of each, sampled in turn so that a slower or faster minute meets all of them.

    A GPU is waited for after ten calls, not after each: in training, too, the host runs ahead of it.
    """
    on_gpu = torch.cuda.is_available()
    synchronise, calls = (torch.cuda.synchronize, 10) if on_gpu else (lambda: None, 1)
    samples: dict[str, list[float]] = {name: [] for name in work}
    for i in range(rounds + 1):
        for name, run in work.items():
            synchronise()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            synchronise()
            if i:  # the first round warms up
                samples[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in samples.items()}


def measured(work: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, object]]:
    """Median seconds of each in turn; and as details, with what other programs took of the processor meanwhile."""
    others = Others()
    seconds = in_turn(work, rounds)
    details: dict[str, object] = {f"{name}, s": round(value, 4) for name, value in seconds.items()}
    return seconds, details | {OTHERS: round(others.cores(), 2)}
