"""Freed memory stays: pages are not asked of the kernel anew, in a process of its own."""

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
