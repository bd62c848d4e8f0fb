"""This package beside the public libraries, in one run: python -m recipes.bench.peers.

  pip install -e ".[peers]"
  python -m recipes.bench.peers --folder-32 CIFAR-10/test/cat --folder-96 STL-10/examples --out speed-peers.json

Views: pairs per second of one core, of 32 pixels, and of 96 with blur and solarise. Step: a whole training step of
SimCLR with the making of its views, float32 and bfloat16, and S-TEC's beside it. Loss: NT-Xent. Speech: CPC beside a
plain loop of Greedy InfoMax. Each arm has a process of its own, and tells what it does before it is timed; arms that do
not do the same work are refused. Samples of all arms go in turn. Steps and losses run on a GPU where there is one.

Samples during which other programs used more than --others cores are thrown away and taken again. Where that, and
waiting for quiet moments, has taken --patience seconds, nothing is reported but who disturbed. What is compared, and
what is not the same work: docs/speed.md.
"""

import dataclasses
import importlib.metadata
import statistics
import time
from collections.abc import Sequence

import tyro
from rich.progress import Progress

from recipes import records
from recipes.bench.peers_alike import agreement, check_alike
from recipes.bench.peers_parts import REFERENCE, Arguments, Part, check_installed, parts_of
from recipes.bench.peers_process import Measured, in_turn
from recipes.bench.quiet import Quiet, counters
from recipes.run_folder import check_writable
from recipes.terminal import CONSOLE, command, say, table

LEVEL = 1.1  # ratios below this, and those of samples that overlap, tell of no difference
LEAST = 8.0  # MiB: below this an allocator's habits decide


QUICK = {"rounds": 1, "seconds": 0.05, "batch": 4, "pairs": (16,), "workers": 0}


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured of a part."""

    part: Part
    arms: dict[str, Measured]

    def times(self, arm: str) -> list[float]:
        """Seconds of a piece of work in each sample: of the clock, or of one processor for the views."""
        field = "cpu_seconds" if self.part.one_core else "seconds"
        return [getattr(sample, field) for sample in self.arms[arm].samples]

    def seconds(self, arm: str) -> float:
        """The median."""
        return statistics.median(self.times(arm))

    def memory(self, arm: str) -> float:
        """MiB at the peak, above what the process held before its first piece of work."""
        samples = self.arms[arm].samples
        return max(sample.peak for sample in samples) - samples[0].before

    def verdict(self, arm: str) -> str:
        """Which side is faster, for a person."""
        ours, theirs = self.times(REFERENCE), self.times(arm)
        ratio = self.seconds(arm) / self.seconds(REFERENCE)
        if max(ratio, 1 / ratio) < LEVEL or (max(ours) >= min(theirs) and max(theirs) >= min(ours)):
            return f"level, {ratio:.2f}"
        return f"{REFERENCE}, {ratio:.2f}x" if ratio > 1 else f"{arm}, {1 / ratio:.2f}x"


def measure(part: Part, arguments: Arguments, guard: Quiet) -> Found:
    """One part, with a bar. NotAlike where its arms do not compare."""

    def alike(facts: dict[str, dict[str, object]]) -> None:
        check_alike(part.name, facts, part.law, part.size, part.probes)
        say(f"{part.name}: {agreement(facts)}" if len(facts) > 1 else f"{part.name}:")

    with Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as progress:
        task = progress.add_task(part.name, total=(arguments.rounds + 2) * len(part.arms))
        arms = in_turn(
            part.arms,
            rounds=arguments.rounds,
            least_seconds=arguments.seconds,
            guard=guard,
            check=alike,
            advance=lambda: progress.advance(task),
        )
    return Found(part, arms)


def show(found: Found) -> None:
    """A table of the part, and what was left out of it."""
    rows = []
    for arm, measured in found.arms.items():
        units = measured.facts["units"]
        rates = [units / seconds for seconds in found.times(arm)]
        peak = max(sample.peak for sample in measured.samples)
        digits = 0 if max(rates) >= 100 else 1
        row = [arm, f"{units / found.seconds(arm):,.{digits}f}", f"{min(rates):,.{digits}f}-{max(rates):,.{digits}f}"]
        row += [f"{found.seconds(arm):.4f}"]
        if found.part.memory:
            row += [f"{peak:,.0f}", f"{found.memory(arm):,.0f}"]
        rows.append([*row, "" if arm == REFERENCE else found.verdict(arm)])
    memory = ["peak MiB", "above start"] if found.part.memory else []
    header = ["", f"{found.part.unit}/s", "min-max", "s", *memory, "faster"]
    where = "one core" if found.part.one_core else f"{found.arms[REFERENCE].facts['device']}"
    table(header, rows, title=f"{found.part.name}, on {where}")
    for line in found.part.left_out:
        say(line)


def results(found: Found) -> list[records.Result]:
    """Ratios over ours of time, and of memory where that is compared: above 1 the other one takes more."""
    rows = []
    ours = found.arms[REFERENCE]
    device = str(ours.facts["device"])

    def details(arm: str) -> dict[str, object]:
        facts = found.arms[arm].facts
        times = found.times(arm)
        told: dict[str, object] = {
            f"{arm}, {found.part.unit}/s": round(facts["units"] / found.seconds(arm), 1),
            f"{arm}, s": f"{found.seconds(arm):.4g} ({min(times):.4g}-{max(times):.4g})",
        }
        habits = [str(facts[key]) for key in ("memory format", "precision", "freed memory") if key in facts]
        return told | ({f"{arm}, as": ", ".join(habits)} if habits else {})

    for arm in found.arms:
        if arm == REFERENCE:
            continue
        metric = f"{found.part.name}: {arm} over {REFERENCE}"
        time_of = {"threads": found.part.arms[0].threads, **details(REFERENCE), **details(arm)}
        ratio = found.seconds(arm) / found.seconds(REFERENCE)
        rows.append(records.Result(f"{metric}, time", round(ratio, 3), device, time_of))
        if found.part.memory and min(found.memory(name) for name in (REFERENCE, arm)) >= LEAST:
            peaks: dict[str, object] = {
                f"{name}, MiB above start": round(found.memory(name), 1) for name in (REFERENCE, arm)
            }
            peaks |= {f"{name}, peak MiB": round(found.arms[name].samples[-1].peak) for name in (REFERENCE, arm)}
            value = round(found.memory(arm) / found.memory(REFERENCE), 3)
            rows.append(records.Result(f"{metric}, peak memory", value, device, peaks))
    return rows


def versions(parts: Sequence[Part]) -> dict[str, str]:
    """Of the libraries that were measured."""
    names = dict.fromkeys([*(module for part in parts for arm in part.arms for module in arm.needs)])
    distributions = ["torchvision", "pillow", *(name.replace("_", "-") for name in names)]
    return {name: importlib.metadata.version(name) for name in distributions}


def main(argv: list[str] | None = None) -> None:
    """The command line; ValueError for a user's mistake, Busy and NotAlike where there is nothing to report."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.bench.peers", description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)  # type: ignore[arg-type]
    parts = parts_of(arguments)
    check_installed([arm for part in parts for arm in part.arms])
    if arguments.out:
        check_writable(arguments.out.parent)
    read = counters()
    if read is None:
        say("this system has no /proc: the guard against other programs is off")
    start = time.perf_counter()
    guard = Quiet(most=arguments.others, patience=arguments.patience, read=read, tell=say)
    guard.wait()
    found = [measure(part, arguments, guard) for part in parts]
    for one in found:
        show(one)
    most = max(guard.kept, default=0.0)
    if read is not None:
        say(f"others used up to {most:.2f} of a core meanwhile; {guard.thrown_away} samples were thrown away")
    if arguments.out:
        record = records.record(
            method="speed",
            preset="cifar10-resnet18-stec",
            data=f"{arguments.folder_32.name if arguments.folder_32 else 'rendered'} (32 px), "
            f"{arguments.folder_96.name if arguments.folder_96 else 'rendered'} (96 px)",
            seed=0,
            seconds=time.perf_counter() - start,
            results=[result for one in found for result in results(one)],
            settings={
                "other programs, cores": round(most, 2) if read else "unknown",
                "allowed": arguments.others,
                "thrown away": guard.thrown_away,
                "rounds": arguments.rounds,
                "batch": arguments.batch,
                "quick": arguments.quick,
                "all keep freed memory": arguments.keep,
                "left out": "; ".join(line for part in parts for line in part.left_out),
                **versions(parts),
            },
            stage="bench",
        )
        records.write([record], arguments.out)


if __name__ == "__main__":
    command(main, RuntimeError)  # Busy and NotAlike among them
