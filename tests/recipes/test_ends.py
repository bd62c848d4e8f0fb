"""Runs that end early: asked by a signal, put back into SLURM's queue, without their disk, without one of their own."""

import functools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from killing import IMAGES, SignalsItself, check_equal, finish, log_of, start, state

from recipes.metrics import MetricsFile
from recipes.ranks import machines
from recipes.run import check_writable
from stec.core.checkpoints import whole

SLOW = pytest.mark.skipif("STEC_SLOW" not in os.environ, reason="half a minute: set STEC_SLOW")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    finish("images", folder)
    return folder


def await_rows(folder: Path, n: int, alive: Callable[[], bool]) -> None:
    """Wait until the log of the losses has n rows."""
    log = folder / "logs" / "metrics.csv"
    while not log.is_file() or len(log.read_text().splitlines()) <= n:
        assert alive(), log_of(folder)
        time.sleep(0.002)


def await_state(process: ForkServerProcess, folder: Path, rows: int) -> None:
    await_rows(folder, rows, process.is_alive)


# --- signals ---------------------------------------------------------------------------------------------------------


def test_sigterm_finishes_the_step_saves_and_tells(unbroken: Path, tmp_path: Path) -> None:
    """Also between two reads of the losses, which come at every third step and at the ends of epochs of four."""
    folder = tmp_path / "run"
    for step in (1, 6, 7, 19):
        process = start("images", folder, before=SignalsItself(signal.SIGTERM, step))
        process.join(240)
        assert process.exitcode == (143 if step < 19 else 0), log_of(folder)  # the last step is the end
        assert state(folder)["global_step"] == step + 1
        told = f"SIGTERM: step {step + 1} is saved; go on with --resume {folder}"
        assert (told in log_of(folder)) == (step < 19)
    check_equal(folder, unbroken)


def fake_slurm(folder: Path, code: int = 0) -> dict[str, str]:
    """The environment of a SLURM job whose `scontrol` writes down how it is called."""
    tool = folder / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\necho no such job >&2\nexit {code}\n')
    tool.chmod(0o755)
    job = {"SLURM_JOB_ID": "1234", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"}
    place = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "stec"}
    return {**job, **place, "PATH": f"{tool.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("received", "code"), [("SIGUSR1", 0), ("SIGUSR1", 1), ("SIGTERM", 0)])
def test_a_slurm_job_saves_and_is_queued_again(received: str, code: int, unbroken: Path, tmp_path: Path) -> None:
    """As `sbatch --signal=SIGUSR1@90` asks for it. SIGTERM is `scancel`, or pre-emption, which queues by itself."""
    folder = tmp_path / "run"
    asked = SignalsItself(signal.Signals[received], 5, fake_slurm(tmp_path, code))
    process = start("images", folder, before=asked)
    process.join(240)
    assert process.exitcode == 128 + signal.Signals[received], log_of(folder)
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    assert calls == ("requeue 1234\n" if received == "SIGUSR1" else "")
    told = {0: "job 1234 is back in the queue", 1: "job 1234 could not be put back into the queue (no such job)"}
    assert (told[code] in log_of(folder)) == (received == "SIGUSR1")
    finish("images", folder)
    check_equal(folder, unbroken)


def test_the_program_itself_ends_with_the_custom_code(unbroken: Path, tmp_path: Path) -> None:
    """A real process, from the shell's point of view."""
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "recipes.vision.pretrain", *IMAGES.split(), "--out", str(folder), "--go-on"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        await_rows(folder, 2, lambda: process.poll() is None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 143, log_of(folder)
    finish("images", folder)
    check_equal(folder, unbroken)


# --- disks -----------------------------------------------------------------------------------------------------------


def at_most(size: int) -> None:
    """Files of this process end at `size` bytes, as they would on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_stops_the_run_and_spares_what_is_there(unbroken: Path, tmp_path: Path) -> None:
    """A checkpoint does not fit; the error names it, the one before is kept and taken up."""
    folder = tmp_path / "run"
    process = start("images", folder, "--checkpoint-minutes", "0")
    await_state(process, folder, 2)
    process.kill()
    process.join()
    there = state(folder)["global_step"]
    size = min(path.stat().st_size for path in folder.glob("checkpoints/*.ckpt"))
    process = start("images", folder, "--checkpoint-minutes", "0", before=functools.partial(at_most, size // 2))
    process.join(240)
    assert process.exitcode == 1
    told = log_of(folder)
    assert f".ckpt: File too large. The run stopped. step={there}.ckpt is kept" in told
    assert f"go on with --resume {folder}" in told
    assert state(folder)["global_step"] == there
    finish("images", folder, resume=True)
    check_equal(folder, unbroken)


def test_a_folder_that_vanishes_stops_the_run(unbroken: Path, tmp_path: Path) -> None:
    """As an unmounted disk does; nothing is written to its empty place."""
    folder = tmp_path / "mount" / "run"
    process = start("images", folder, "--checkpoint-minutes", "0") if folder.parent.mkdir() is None else None
    assert process
    await_state(process, folder, 2)
    shutil.move(folder, tmp_path / "elsewhere")
    process.join(240)
    assert process.exitcode == 1
    assert "No such file or directory. The run stopped. There is no checkpoint in" in log_of(folder)
    assert not folder.exists()
    shutil.move(tmp_path / "elsewhere", folder)
    finish("images", folder, resume=True)
    check_equal(folder, unbroken)


def test_a_file_is_whole_or_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(TypeError), whole(path) as file:
        file.writelines([b"aft", "er"])  # type: ignore[list-item]
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]
    with whole(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    with pytest.raises(FileNotFoundError) as missing, whole(tmp_path / "gone" / "b"):
        pass
    assert missing.value.filename == str(tmp_path / "gone" / "b")


def test_two_commands_may_try_a_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one looks whether it can write, another does and is done."""
    opened = open
    other: list[Path] = [tmp_path / "run"]

    def meets(*words: Any, **more: Any) -> Any:
        file = opened(*words, **more)
        if other:
            check_writable(other.pop())
        return file

    monkeypatch.setattr("io.open", meets)
    check_writable(tmp_path / "run")
    assert not other
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("torn", ["", "1", "12,0.5", "12,0.5,0.1\r"])
def test_rows_after_the_checkpoint_and_torn_ones_are_taken_back(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "logs" / "metrics.csv"
    first = MetricsFile(path, step=0)
    for step in (3, 6, 9):
        first.log_metrics({"loss": step / 7, "lr": 0.1}, step=step)
    before = path.read_bytes()
    with path.open("a", newline="") as file:
        file.write(torn)
    MetricsFile(path, step=9)
    assert path.read_bytes() == before
    second = MetricsFile(path, step=6)
    assert path.read_bytes() == before[: before.index(b"9,")]
    second.log_metrics({"loss": 9 / 7, "lr": 0.1}, step=9)
    assert path.read_bytes() == before


# --- processes -------------------------------------------------------------------------------------------------------


def elastic(rank: int, port: int) -> dict[str, str]:
    """What torchrun --nproc-per-node 2 tells each process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 1}
    place = {"GROUP_RANK": 0, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
    return {name: str(value) for name, value in {**numbers, **place}.items()}


def two_processes(folder: Path, *more: str, sigterm: int | None = None) -> list[ForkServerProcess]:
    """A run of two processes, as torchrun starts them; the second is sent SIGTERM after some steps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    steps = (-1, -1 if sigterm is None else sigterm)
    before = [SignalsItself(signal.SIGTERM, steps[rank], elastic(rank, port)) for rank in range(2)]
    return [start("images", folder, "--devices", "2", *more, before=each) for each in before]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Path, list[ForkServerProcess]]]:
    folder = tmp_path / "run"
    processes = two_processes(folder, "--epochs", "500")
    yield folder, processes
    for process in processes:
        process.kill()
        process.join()


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_others_with_an_error(
    dies: int, pair: tuple[Path, list[ForkServerProcess]]
) -> None:
    folder, processes = pair
    await_rows(folder, 3, lambda: all(process.is_alive() for process in processes))
    processes[dies].kill()
    began = time.monotonic()
    processes[1 - dies].join(60)
    assert processes[1 - dies].exitcode == 1, log_of(folder)
    assert time.monotonic() - began < 60
    assert f"another process of this run died or fell silent (seen by process {1 - dies}:" in log_of(folder)
    assert "step=4.ckpt is kept" in log_of(folder) or "go on with --resume" in log_of(folder)


def test_sigterm_to_one_process_stops_both_after_the_same_step(tmp_path: Path) -> None:
    """And resumed, the two repeat what two that nobody stopped do."""
    folder, whole_run = tmp_path / "run", tmp_path / "whole"
    processes = two_processes(folder, sigterm=6)
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [143, 0], log_of(folder)
    assert state(folder)["global_step"] == 7
    for place in (folder, whole_run):
        for process in (processes := two_processes(place)):
            process.join(240)
        assert [process.exitcode for process in processes] == [0, 0], log_of(place)
    check_equal(folder, whole_run)


def test_machines_and_processes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machines(2) == 1
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert machines(4) == 3
    with pytest.raises(ValueError, match="torchrun started 4 processes on this machine, and the run has 1: give --dev"):
        machines(1)


@SLOW
@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "two machines"])
def test_launchers(launcher: str, tmp_path: Path) -> None:
    """Real commands: one process is killed, the job ends within a minute, names the death and leaves none behind."""
    folder = tmp_path / "run"
    train = ["-m", "recipes.vision.pretrain", *IMAGES.split(), "--epochs", "100", "--out", str(folder), "--go-on"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [sys.executable, "-m", "torch.distributed.run"]
    meet = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "stec"]
    commands = {
        "lightning": [[sys.executable, *train, "--devices", "2"]],
        "torchrun": [[*run, "--nproc-per-node", "2", *train, "--devices", "2"]],
        "two machines": 2 * [[*run, *meet, "--nproc-per-node", "1", *train, "--devices", "1"]],
    }[launcher]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with folder.with_suffix(".log").open("w") as log:
        started = [subprocess.Popen(words, stdout=log, stderr=log, env=environment) for words in commands]
        await_rows(folder, 12, lambda: all(process.poll() is None for process in started))
        workers = [pid for pid, words in processes_of(folder) if "torch.distributed.run" not in words]
        assert len(workers) == 2
        os.kill(max(workers), signal.SIGKILL)
        began = time.monotonic()
        for process in started:
            assert process.wait(60) != 0
        print(f"{launcher}: ended after {time.monotonic() - began:.1f} s")
    while processes_of(folder):
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    assert "SIGKILL" in log_of(folder) or "terminated with code -9" in log_of(folder)


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
            if str(folder) in words and not dead:
                found.append((int(entry.name), words))
    return found


def test_checkpoint_minutes_are_kept_beside_the_settings(unbroken: Path) -> None:
    assert json.loads((unbroken / "config.json").read_text())["checkpoint_minutes"] == 15.0
