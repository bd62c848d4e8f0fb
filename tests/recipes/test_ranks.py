"""Several processes: killed, resumed, one of them dead or silent; started by every launcher.

STEC_SLOW adds what takes minutes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from killing import (
    IMAGES,
    KINDS,
    KillsItself,
    SignalsItself,
    await_rows,
    check_equal,
    finish_several,
    free_port,
    log_of,
    start_several,
    state,
)
from tones import make_speech

from recipes import ranks, run
from recipes.ranks import machines

SLOW = pytest.mark.skipif("STEC_SLOW" not in os.environ, reason="minutes: set STEC_SLOW")


def stop(processes: list[ForkServerProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("speech")).cache


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[tuple[Path, list[ForkServerProcess]]]:
    """A run of two processes that has taken some steps."""
    folder = tmp_path / "run"
    processes = start_several("images", folder, "--epochs", "500", before={0: waits_less, 1: waits_less})
    try:
        await_rows(folder, 3, lambda: all(process.is_alive() for process in processes))
        yield folder, processes
    finally:
        stop(processes)


def waits_less() -> None:
    """Prepares a process to wait for another no more than 8 seconds."""
    run.TIMEOUT = ranks.TIMEOUT = timedelta(seconds=8)  # type: ignore[attr-defined]


# --- gone on with ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=SLOW)])
def test_sigterm_to_one_process_stops_all_after_the_same_step(world: int, tmp_path: Path) -> None:
    """And resumed, they repeat what processes that nobody stopped do: of four, sums depend on their order."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    processes = start_several("queue", folder, world=world, before={world - 1: SignalsItself(signal.SIGTERM, 6)})
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [143, *(world - 1) * [0]], log_of(folder)
    assert state(folder)["global_step"] == 7
    for place in (folder, whole):
        finish_several("queue", place, world=world)
    check_equal(folder, whole)


@SLOW
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_all_killed_they_go_on_to_the_same_state(kind: str, world: int, corpus: Path, tmp_path: Path) -> None:
    """All at once after some steps, then the first in writing a checkpoint, then another alone within a step."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    speech = ["--corpus", str(corpus), "--batch-group", "2"] if kind == "speech" else []
    more = [*speech, "--checkpoint-minutes", "0"]
    processes = start_several(kind, folder, *more, world=world)
    await_rows(folder, 2, lambda: all(process.is_alive() for process in processes))
    stop(processes)
    assert [process.exitcode for process in processes] == world * [-signal.SIGKILL]
    steps = [state(folder)["global_step"]]
    before = {0: KillsItself(2)}, {world - 1: SignalsItself(signal.SIGKILL, steps[0] + 5)}
    for which in before:
        processes = start_several(kind, folder, *more, world=world, before=which)
        for process in processes:
            process.join(60)
        codes = [process.exitcode for process in processes]
        assert codes == [-signal.SIGKILL if rank in which else 1 for rank in range(world)], log_of(folder)[-2000:]
        steps.append(state(folder)["global_step"])
    finish_several(kind, folder, *more, world=world)
    finish_several(kind, whole, *speech, world=world)
    check_equal(folder, whole)
    print(f"{kind}, {world} processes: went on from steps {steps}")


# --- dead and silent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_others_with_an_error(
    dies: int, endless: tuple[Path, list[ForkServerProcess]]
) -> None:
    folder, processes = endless
    processes[dies].kill()
    processes[1 - dies].join(60)
    assert processes[1 - dies].exitcode == 1, log_of(folder)
    assert f"another process of this run died or fell silent (seen by process {1 - dies}:" in log_of(folder)
    assert ".ckpt is kept; once the cause is mended, go on with --resume" in log_of(folder)


@pytest.mark.parametrize("silent", [pytest.param(0, marks=SLOW), 1])
def test_a_process_that_falls_silent_does_so_too(silent: int, endless: tuple[Path, list[ForkServerProcess]]) -> None:
    """Its connections stay open, as those of a machine without power do."""
    folder, processes = endless
    pid = processes[silent].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    processes[1 - silent].join(60)
    assert processes[1 - silent].exitcode == 1, log_of(folder)
    assert f"another process of this run died or fell silent (seen by process {1 - silent}:" in log_of(folder)


def test_an_error_of_one_process_is_told_and_ends_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = start_several("images", folder, before={1: fails_in_its_fifth_step})
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [1, 1], log_of(folder)
    assert "error: the fifth step of process 1 failed" in log_of(folder)
    assert "another process of this run died or fell silent (seen by process 0:" in log_of(folder)


def fails_in_its_fifth_step() -> None:
    """Prepares a process."""
    from stec.core.learner import Learner

    plain = Learner.training_step

    def training_step(learner: Learner, batch: object, batch_idx: int) -> object:
        if learner.global_step == 4:
            raise ValueError("the fifth step of process 1 failed")
        return plain(learner, batch, batch_idx)

    Learner.training_step = training_step  # type: ignore[assignment, method-assign]


# --- launchers -------------------------------------------------------------------------------------------------------


def test_machines_and_processes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machines(2) == 1
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert machines(4) == 3
    with pytest.raises(ValueError, match="torchrun started 4 processes on this machine, and the run has 1: give --dev"):
        machines(1)


@SLOW
@pytest.mark.parametrize("dies", ["first", "last"])
@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "two machines"])
def test_launchers(launcher: str, dies: str, tmp_path: Path) -> None:
    """Real commands: one process is killed, the job ends within a minute, names the death and leaves none behind."""
    folder = tmp_path / "run"
    train = ["-m", "recipes.vision.pretrain", *IMAGES.split(), "--epochs", "500", "--out", str(folder), "--go-on"]
    run = [sys.executable, "-m", "torch.distributed.run"]
    meet = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    commands = {
        "lightning": [[sys.executable, *train, "--devices", "2"]],
        "torchrun": [[*run, "--nproc-per-node", "2", *train, "--devices", "2"]],
        "two machines": 2 * [[*run, *meet, "--rdzv-id", "stec", "--nproc-per-node", "1", *train, "--devices", "1"]],
    }[launcher]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with folder.with_suffix(".log").open("w") as log:
        started = [subprocess.Popen(words, stdout=log, stderr=log, env=environment) for words in commands]
        try:
            await_rows(folder, 12, lambda: all(process.poll() is None for process in started))
            workers = [pid for pid, words in processes_of(folder) if "torch.distributed.run" not in words]
            assert len(workers) == 2
            os.kill((min if dies == "first" else max)(workers), signal.SIGKILL)
            killed = time.monotonic()
            for process in started:
                assert process.wait(60) != 0
            ended = time.monotonic()
            while processes_of(folder):
                assert time.monotonic() - killed < 60
                time.sleep(0.1)
        finally:
            for pid, _ in processes_of(folder):
                os.kill(pid, signal.SIGKILL)
    told = ("SIGKILL", "terminated with code -9", "another process of this run died")
    assert any(words in log_of(folder) for words in told)
    print(f"{launcher}, {dies}: twelve reads after {killed - began:.1f} s, ended {ended - killed:.1f} s after the kill")


def processes_of(folder: Path) -> list[tuple[int, str]]:
    """The processes whose command names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if f"{folder} " in words and not dead:
                found.append((int(entry.name), words))
    return found
