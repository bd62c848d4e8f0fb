"""Timing side by side on a machine that others may use: samples in turn, and how much of the machine others took."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

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


def processor_seconds() -> tuple[float, float]:
    """Busy processor seconds of the whole machine, and of this process and its children; Linux only, else zeros."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0, 0.0
    fields = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    busy = sum(fields) - fields[3] - fields[4]
    mine = os.times()
    return busy / os.sysconf("SC_CLK_TCK"), sum(mine[:4])


def measured(work: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, object]]:
    """Median seconds of each in turn; and as details, with what other programs took of the processor meanwhile."""
    start, before = time.perf_counter(), processor_seconds()
    seconds = in_turn(work, rounds)
    elapsed, after = time.perf_counter() - start, processor_seconds()
    others = ((after[0] - before[0]) - (after[1] - before[1])) / elapsed
    details: dict[str, object] = {f"{name}, s": round(value, 4) for name, value in seconds.items()}
    return seconds, details | {OTHERS: round(max(0.0, others), 2)}
