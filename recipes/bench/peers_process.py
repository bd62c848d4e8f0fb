"""An arm of a comparison in a process of its own, which takes one sample whenever it is told to.

So a peak of memory is that arm's alone, and a library is loaded where it is measured and nowhere else. The process
stays alive, so that samples of all arms can go in turn. Lines of JSON go in and out; what libraries print goes to the
error stream, whose last line is told where an arm dies.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TextIO

from recipes.bench.quiet import Quiet


class Arm(NamedTuple):
    """One side of a comparison: how its process builds it, of plain values."""

    name: str
    build: str  # "module:function", which takes the settings and gives `Work`; imported in its process alone
    settings: Mapping[str, Any]
    threads: int
    needs: tuple[str, ...] = ()  # modules of the extra `peers`


class Work(Protocol):
    """What an arm does: `run` is one piece of work, such as a step, and `units` are the pairs in it."""

    units: int
    lead: int  # pieces before the clock starts, as many as loaders have made while others were timed
    facts: dict[str, Any]  # plain values that are compared with the other arms', and told

    def run(self) -> None: ...


class Sample(NamedTuple):
    """Pieces of work one after the other, until the least seconds were over."""

    seconds: float  # of a piece
    cpu_seconds: float  # of a piece: of all threads of the process
    peak: float  # MiB, the most so far: of the process (0 where the system does not tell), or of the GPU
    before: float  # MiB, before the first piece


class Process:
    """The living process of an arm. RuntimeError, which names the arm and its last words, where it died."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self._errors: Any = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        threads = {name: str(arm.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "recipes.bench.peers_process", arm.build, json.dumps(dict(arm.settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **threads, "TQDM_DISABLE": "1"},
        )
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> None:
        """Waits until the arm is built, and takes its facts."""
        self.facts = self._answer()

    def sample(self, least_seconds: float) -> Sample:
        """One sample."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{least_seconds}\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # it died: what it said is read below
        return Sample(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if line.endswith("\n"):
            found: dict[str, Any] = json.loads(line)
            return found
        code = self._child.wait()
        self._errors.seek(0)
        said = [line for line in self._errors.read().splitlines() if line.strip()]
        raise RuntimeError(f"the arm {self.arm.name!r} died with {code}: {said[-1] if said else 'it said nothing'}")

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        try:
            self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._errors.close()


class Measured(NamedTuple):
    """What an arm's process told."""

    facts: dict[str, Any]
    samples: list[Sample]


def in_turn(
    arms: Sequence[Arm],
    *,
    rounds: int,
    least_seconds: float,
    guard: Quiet,
    check: Callable[[dict[str, dict[str, Any]]], None],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Measured]:
    """Samples of all arms by their names, a round after the other, so that a slower minute meets all of them.

    `check` is given what the arms say of themselves before the first sample, and raises where they do not compare. The
    first round warms up and does not count; in the others a sample is taken anew where the guard throws it away.
    """
    with contextlib.ExitStack() as living:
        processes = [living.enter_context(Process(arm)) for arm in arms]
        for process in processes:
            process.ready()
            advance()
        check({process.arm.name: process.facts for process in processes})
        found = {process.arm.name: Measured(process.facts, []) for process in processes}
        for process in processes:
            process.sample(0.0)
            advance()
        guard.wait()
        for _ in range(rounds):
            for process in processes:
                guard.settle()
                sample = guard.watch(lambda process=process: process.sample(least_seconds))  # type: ignore[misc]
                found[process.arm.name].samples.append(sample)
                advance()
    return found


def memory(field: str) -> float:
    """MiB of this process: "VmHWM", the most so far, or "VmRSS", now; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(field))) / 1024


def gpu_of(work: Work) -> Any:
    """torch.cuda where the arm runs there, else None; imported here, since a process loads what its arm needs alone."""
    return importlib.import_module("torch").cuda if work.facts["device"] == "cuda" else None


def take(work: Work, least_seconds: float, before: float) -> Sample:
    """A sample in this process; a GPU is waited for after ten pieces, for in training the host runs ahead of it."""
    gpu = gpu_of(work)
    together = 1 if gpu is None else 10

    def wait() -> None:
        if gpu is not None:
            gpu.synchronize()

    for _ in range(work.lead):
        work.run()
    wait()
    start, spent, pieces = time.perf_counter(), time.process_time(), 0
    while not pieces or time.perf_counter() - start < least_seconds:
        for _ in range(together):
            work.run()
        pieces += together
        wait()
    elapsed, spent = time.perf_counter() - start, time.process_time() - spent
    peak = memory("VmHWM") if gpu is None else gpu.max_memory_allocated() / 2**20
    return Sample(elapsed / pieces, spent / pieces, peak, before)


def serve(build: str, settings: dict[str, Any], orders: TextIO, answers: TextIO) -> None:
    """Builds the arm, says its facts, and takes a sample for every line of seconds."""
    module, _, function = build.partition(":")
    work: Work = getattr(importlib.import_module(module), function)(**settings)
    gpu = gpu_of(work)
    before = memory("VmRSS") if gpu is None else gpu.memory_allocated() / 2**20
    print(json.dumps({**work.facts, "units": work.units}), file=answers, flush=True)
    for line in orders:
        print(json.dumps(take(work, float(line), before)._asdict()), file=answers, flush=True)


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, out)
