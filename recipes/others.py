"""What other programs take of the machine: it tells a slow machine from a slow program."""

import os
import time
from pathlib import Path


def processor_seconds() -> tuple[float, float]:
    """Busy processor seconds of the whole machine, and of this process and its children; Linux only, else zeros."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0, 0.0
    fields = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    busy = sum(fields) - fields[3] - fields[4]
    mine = os.times()
    return busy / os.sysconf("SC_CLK_TCK"), sum(mine[:4])


class Others:
    """Measures from when it is made; processes that this one has started count as others until they end."""

    def __init__(self) -> None:
        self._start, self._before = time.perf_counter(), processor_seconds()

    def cores(self) -> float:
        """Cores that other programs have used since, on average; 0 where the system does not tell."""
        elapsed, after = time.perf_counter() - self._start, processor_seconds()
        busy, mine = (now - then for now, then in zip(after, self._before))
        return max(0.0, (busy - mine) / elapsed)
