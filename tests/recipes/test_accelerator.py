"""On a simulated accelerator (tests/accelerator.py) no training step waits for the device, and it trains the same.

The device is registered with torch for as long as a process lives, so a program of its own takes the steps.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = {
    "one half": ("accelerator_steps.py", "1/2"),
    "other half": ("accelerator_steps.py", "2/2"),
    "rules": ("accelerator_steps.py", "rules"),
    "run": ("accelerator_run.py",),
    "run that waits": ("accelerator_run.py", "waits"),
    "probes": ("accelerator_probes.py", "images"),  # those of speech take a minute: by hand
}
Done = dict[str, subprocess.CompletedProcess[str]]


def start(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, Path(__file__).with_name(program), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


@pytest.fixture(scope="module")
def done() -> Done:
    """All programs, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PROGRAMS, pool.map(lambda words: start(*words), PROGRAMS.values())))


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_simulation_knows_what_waits(done: Done) -> None:
    (said,) = lines(done["rules"])
    forbidden, waits = {"mixed", "tolist"}, {name for name, answer in said.items() if answer == "HostWaits"}
    assert {name for name, answer in said.items() if answer == "RuntimeError"} == forbidden
    assert waits == {
        "item", "bool", "nonzero", "mask", "host index", "read", "copy", "tensor", "new_tensor", "copy_",
        "repeat", "unique",
    }  # fmt: skip
    assert all(answer == "DeviceTensor" for name, answer in said.items() if name not in waits | forbidden)


def test_no_step_waits_and_each_trains_as_on_the_host(done: Done) -> None:
    cases = lines(done["one half"]) + lines(done["other half"])
    assert len(cases) > 30
    assert not [case for case in cases if "error" in case]
    assert not [case for case in cases if not case["difference"] < 1e-5]
    # AdamW's first steps take the sign of gradients that are mere rounding: a missing step would be 0.5 and more.
    assert not [case for case in cases if not case["moved apart"] < 0.1]
    # Two views in a few hundred launches, whatever changes they meet; 420 before these were taken together.
    assert {case["case"]: case["of views"] for case in cases}["tiny-stec"] < 260


def test_probes_give_the_hosts_numbers(done: Done) -> None:
    cases = lines(done["probes"])
    protocols = {case["case"].split(", ")[2] for case in cases}
    assert protocols == {"linear", "logistic", "knn", "online", "held-out"}
    assert all(case["launches"] > 100 for case in cases)
    assert not [case for case in cases if not abs(case["device"] - case["host"]) < 1e-3]


def test_a_whole_run_waits_only_where_it_reads_or_saves(done: Done) -> None:
    """Under lightning's own loop, its loggers, and our callbacks."""
    run, waiting = done["run"], done["run that waits"]
    assert run.returncode == 0, run.stderr[-3000:]
    assert float(run.stdout) < 1e-4
    assert waiting.returncode != 0
    assert "HostWaits: _local_scalar_dense reads the device's values" in waiting.stderr
