"""A guard for timings: samples count only while nobody else uses the processors, and a busy machine is refused.

Two threads that share their cores with another program are slower by more than that program takes: here a step of 5.9 s
became one of 15 s. So what others take is read off the kernel's counters around each sample, and a sample that was
disturbed is thrown away and taken again.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
PROC = Path("/proc")


class Busy(RuntimeError):
    """Others used the machine for so long that nothing can be reported."""


class Reading(NamedTuple):
    """Processor seconds since the machine started."""

    wall: float  # seconds of the clock at which it was read
    busy: float  # of the whole machine, what its host took from it included
    mine: float  # of this process and all that it started
    others: dict[tuple[int, str], float] = {}  # noqa: RUF012  each other process by id and name


def reading(proc: Path = PROC, root: int | None = None) -> Reading:
    """What the kernel has counted until now; `root` is the process that counts as one's own, with what it started.

    A child's time is the parent's only once it was waited for: living ones are found by their parents' ids.
    """
    tick = os.sysconf("SC_CLK_TCK")
    root = os.getpid() if root is None else root
    parent: dict[int, int] = {}
    name: dict[int, str] = {}
    own: dict[int, int] = {}  # its own time
    waited: dict[int, int] = {}  # and that of children that ended
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:  # it ended meanwhile
            continue
        head, _, rest = text.rpartition(")")
        fields = rest.split()  # from the third on: state, parent, ...
        pid = int(entry.name)
        parent[pid], name[pid] = int(fields[1]), head.partition("(")[2]
        own[pid], waited[pid] = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])

    def is_mine(pid: int) -> bool:
        while pid in parent and pid != root:
            pid = parent[pid]
        return pid == root

    mine = {pid for pid in parent if is_mine(pid)}
    # user, nice, system, idle, iowait, irq, softirq, steal
    fields_of_all = [int(word) for word in (proc / "stat").read_text().splitlines()[0].split()[1:9]]
    return Reading(
        wall=time.perf_counter(),
        busy=(sum(fields_of_all) - fields_of_all[3] - fields_of_all[4]) / tick,
        mine=sum(own[pid] + waited[pid] for pid in mine) / tick,
        others={(pid, name[pid]): own[pid] / tick for pid in parent if pid not in mine},
    )


def others(before: Reading, after: Reading) -> float:
    """Cores that others used between two readings, on average.

    >>> others(Reading(0.0, 100.0, 7.0), Reading(2.0, 105.0, 11.0))
    0.5
    """
    return max(0.0, ((after.busy - before.busy) - (after.mine - before.mine)) / (after.wall - before.wall))


def culprits(before: Reading, after: Reading, most: int = 3) -> str:
    """The names of those that used most between two readings, with their cores.

    >>> first = Reading(0.0, 0.0, 0.0, {(5, "make"): 1.0, (6, "idle"): 3.0})
    >>> culprits(first, Reading(2.0, 3.0, 0.0, {(5, "make"): 3.0, (6, "idle"): 3.0, (7, "cc"): 1.0}))
    'make 1.00, cc 0.50'
    """
    spent: Counter[str] = Counter()
    for key, seconds in after.others.items():
        spent[key[1]] += (seconds - before.others.get(key, 0.0)) / (after.wall - before.wall)  # type: ignore[assignment]
    return ", ".join(f"{name} {cores:.2f}" for name, cores in spent.most_common(most) if cores >= 0.01)


class Quiet:
    """Lets samples count that were taken while others used at most `most` cores.

    `patience` are the seconds that waiting for quiet moments and samples thrown away may take in all; then `Busy` says
    who disturbed. `read` reads the counters (None: there are none on this system, and every sample counts), `sleep`
    waits, `tell` is told of a wait.
    """

    def __init__(
        self,
        *,
        most: float,
        patience: float,
        read: Callable[[], Reading] | None,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.most, self.patience, self.read, self.sleep, self.tell = most, patience, read, sleep, tell
        self.lost = 0.0  # seconds of patience that are used up
        self.thrown_away = 0
        self.kept: list[float] = []  # cores that others used during each sample that counts
        self._warned = False

    def wait(self) -> None:
        """Returns after a second during which others were quiet. Busy where there is none."""
        while self.read is not None:
            before = self.read()
            self.sleep(1.0)
            after = self.read()
            if others(before, after) <= self.most:
                return
            if not self._warned:
                self.tell(f"waiting for others to be quiet: they use {_describe(before, after)}")
                self._warned = True
            self._lose(before, after)

    def watch(self, sample: Callable[[], T]) -> T:
        """What `sample` returns, taken anew until others were quiet meanwhile. Busy where they never are."""
        if self.read is None:
            return sample()
        while True:
            before = self.read()
            value = sample()
            after = self.read()
            took = others(before, after)
            if took <= self.most:
                self.kept.append(took)
                return value
            self.thrown_away += 1
            self._lose(before, after)
            self.wait()

    def settle(self) -> None:
        """Returns once our own processes rest, such as loaders that read ahead; RuntimeError where they never do."""
        if self.read is None:
            return
        before = self.read()
        for _ in range(100):
            self.sleep(0.05)
            after = self.read()
            if after.mine - before.mine <= 0.01 + 0.1 * (after.wall - before.wall):
                return
            before = after
        raise RuntimeError("processes that this run started do not come to rest between samples")

    def _lose(self, before: Reading, after: Reading) -> None:
        self.lost += after.wall - before.wall
        if self.lost >= self.patience:
            raise Busy(
                f"others used {_describe(before, after)}, more than the {self.most:g} that timings bear; "
                f"{self.thrown_away} samples were thrown away, and {self.lost:.0f} s of waiting are over. "
                "Nothing is reported: measure again when nothing else runs, or wait longer (--patience)"
            )


def _describe(before: Reading, after: Reading) -> str:
    names = culprits(before, after)
    return f"{others(before, after):.2f} of a core" + (f" ({names})" if names else "")


def counters(proc: Path = PROC) -> Callable[[], Reading] | None:
    """How to read the counters here; None where the system has none (no Linux)."""
    return reading if (proc / "stat").is_file() else None
