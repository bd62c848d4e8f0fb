"""On a simulated accelerator (tests/accelerator.py) no training step waits for the device, and it trains the same.

The device is registered with torch for as long as a process lives, so a program of its own takes the steps.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def start(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, Path(__file__).with_name(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def ask(*arguments: str) -> list[dict[str, Any]]:
    done = start("accelerator_steps.py", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_simulation_knows_what_waits() -> None:
    (said,) = ask("rules")
    forbidden, waits = {"mixed", "tolist"}, {name for name, answer in said.items() if answer == "HostWaits"}
    assert {name for name, answer in said.items() if answer == "RuntimeError"} == forbidden
    assert waits == {
        "item", "bool", "nonzero", "mask", "host index", "read", "copy", "tensor", "new_tensor", "copy_",
        "repeat", "unique",
    }  # fmt: skip
    assert all(answer == "DeviceTensor" for name, answer in said.items() if name not in waits | forbidden)


def test_no_step_waits_and_each_trains_as_on_the_host() -> None:
    cases = ask()
    assert len(cases) > 30
    assert not [case for case in cases if "error" in case]
    assert not [case for case in cases if not case["difference"] < 1e-3]
    # Two views in a few hundred launches, whatever changes they meet; 420 before these were taken together.
    assert {case["case"]: case["of views"] for case in cases}["tiny-stec"] < 260


def test_a_whole_run_waits_only_where_it_reads_or_saves() -> None:
    """Under lightning's own loop, its loggers, and our callbacks."""
    done = start("accelerator_run.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) < 1e-4
    waiting = start("accelerator_run.py", "waits")
    assert waiting.returncode != 0
    assert "HostWaits: _local_scalar_dense reads the device's values" in waiting.stderr
