"""Freed memory stays, so that pages are not asked of the kernel anew, or goes back; each in a process of its own."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from stec.core.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory() and keep_freed_memory()
def work():
    for _ in range(10):
        torch.ones(16 << 20)  # 64 MiB
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_what_was_freed_is_not_cleared_again() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    fresh, kept = faults("plain"), faults("keep")
    assert fresh >= 10 * 32  # a fault for each page, of 4 kB or of 2 MB
    assert kept < 10


HELD = """
import sys, torch
from pathlib import Path
from stec.core.memory import keep_freed_memory, return_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "return":
    assert keep_freed_memory() and return_freed_memory()  # the last one counts
def held():
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmRSS"))) // 1024
torch.ones(5 << 20)  # 20 MiB: from now on glibc takes smaller ones from the heap
before = held()
blocks = [torch.ones(2 << 20) for _ in range(20)]  # 8 MiB each
del blocks[:-1]
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_what_was_freed_goes_back_though_a_later_block_is_kept() -> None:
    def held(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert held("plain") > 100
    assert held("return") < 20
