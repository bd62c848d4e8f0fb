"""Jobs of SLURM: a signal, a checkpoint, back in the queue, on to the same end. SLURM is a few scripts on the path."""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from killing import (
    IMAGES,
    Prepared,
    SignalsItself,
    await_rows,
    check_equal,
    finish,
    finish_several,
    log_of,
    slurm,
    start,
    state,
)
from lightning.pytorch.strategies import SingleDeviceStrategy

SLOW = pytest.mark.skipif("STEC_SLOW" not in os.environ, reason="half a minute: set STEC_SLOW")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    finish("images", folder)
    return folder


def calls(folder: Path) -> str:
    """How scontrol was called."""
    return (folder / "calls").read_text() if (folder / "calls").exists() else ""


@pytest.mark.parametrize(("received", "code"), [("SIGUSR1", 0), ("SIGUSR1", 1), ("SIGTERM", 0)])
def test_a_job_saves_and_is_queued_again(received: str, code: int, unbroken: Path, tmp_path: Path) -> None:
    """As `sbatch --signal=SIGUSR1@90` asks for it. SIGTERM is `scancel`, or pre-emption, which queues by itself."""
    folder = tmp_path / "run"
    kind = signal.Signals[received]
    process = start("images", folder, before=Prepared(slurm(tmp_path, code=code), SignalsItself(kind, 5)))
    process.join(240)
    assert process.exitcode == 128 + kind, log_of(folder)
    assert calls(tmp_path) == ("requeue 1234\n" if received == "SIGUSR1" else "")
    told = {0: "job 1234 is back in the queue", 1: "job 1234 could not be put back into the queue (no such job)"}
    assert (told[code] in log_of(folder)) == (received == "SIGUSR1")
    finish("images", folder)
    check_equal(folder, unbroken)


def test_a_task_of_an_array_is_queued_by_its_number(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    array = {**slurm(tmp_path), "SLURM_ARRAY_JOB_ID": "1200", "SLURM_ARRAY_TASK_ID": "7"}
    start("images", folder, before=Prepared(array, SignalsItself(signal.SIGUSR1, 2))).join(240)
    assert calls(tmp_path) == "requeue 1200_7\n"
    assert "job 1200_7 is back in the queue" in log_of(folder)


@pytest.mark.parametrize("received", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_before_the_first_step_waits_for_it(received: signal.Signals, unbroken: Path, tmp_path: Path) -> None:
    """When lightning has set the training up; nothing is left in another place."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    early = functools.partial(signalled_when_set_up, received, elsewhere)
    process = start("images", folder, before=Prepared(slurm(tmp_path), early))
    process.join(240)
    assert process.exitcode == 128 + received, log_of(folder)
    assert f"{received.name}: step 1 is saved" in log_of(folder)
    assert state(folder)["global_step"] == 1
    assert calls(tmp_path) == ("requeue 1234\n" if received == signal.SIGUSR1 else "")
    assert not list(elsewhere.iterdir())
    finish("images", folder)
    check_equal(folder, unbroken)


def signalled_when_set_up(received: signal.Signals, elsewhere: Path) -> None:
    """Prepares a process, which works in another folder."""
    os.chdir(elsewhere)

    def barrier(strategy: SingleDeviceStrategy, name: str | None = None) -> None:
        if name == "run-stage":
            os.kill(os.getpid(), received)

    SingleDeviceStrategy.barrier = barrier  # type: ignore[method-assign]


def test_what_another_program_left_in_the_folder_is_not_taken_up(unbroken: Path, tmp_path: Path) -> None:
    """lightning's own checkpoints of a job, which it would prefer to a fresh start."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "hpc_ckpt_1.ckpt").write_bytes(b"of another program")
    process = start("images", folder, before=Prepared(slurm(tmp_path), functools.partial(os.chdir, elsewhere)))
    process.join(240)
    assert process.exitcode == 0, log_of(folder)
    check_equal(folder, unbroken)


# --- several tasks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nobody stopped, started as torchrun does."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    finish_several("images", folder, "--epochs", "20")
    return folder


def submit(folder: Path, place: Path, step: int | None, receivers: tuple[int, ...]) -> list[int | None]:
    """What srun starts for a job, until it ends: the exit codes. Some tasks are sent SIGUSR1 within a step."""
    tasks: list[ForkServerProcess] = []
    for rank in range(2):
        asks = SignalsItself(signal.SIGUSR1, step) if step is not None and rank in receivers else None
        before = Prepared(slurm(place, rank=rank, world=2), asks)
        tasks.append(start("images", folder, "--epochs", "20", "--devices", "2", before=before))
    for task in tasks:
        task.join(240)
    return [task.exitcode for task in tasks]


def test_a_job_of_two_tasks_is_queued_until_it_is_done(unbroken_pair: Path, tmp_path: Path) -> None:
    """The signal reaches both, or one before the other; the job is put into the queue once for each."""
    folder = tmp_path / "run"
    for times, (step, receivers) in enumerate(((5, (0, 1)), (29, (1,)), (50, (0,))), start=1):
        assert submit(folder, tmp_path, step, receivers) == [138, 0], log_of(folder)
        assert state(folder)["global_step"] == step + 1
        assert calls(tmp_path) == times * "requeue 1234\n"
    assert submit(folder, tmp_path, None, ()) == [0, 0], log_of(folder)
    assert calls(tmp_path) == 3 * "requeue 1234\n"
    check_equal(folder, unbroken_pair)


SBATCH = """#!/bin/sh
# Runs a job again for as long as it is put back into the queue.
export SLURM_JOB_ID=1234 SLURM_JOB_NAME=stec SLURM_NNODES=1 SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2
again=true
while $again; do
    rm -f queue
    sh "$1"
    if [ -e queue ]; then again=true; else again=false; fi
done
"""
SRUN = """#!/bin/sh
# Starts two tasks, and writes down their numbers for who sends signals.
export SLURM_NODEID=0
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    echo $! >> tasks
done
wait
"""
SCONTROL = """#!/bin/sh
echo "$@" >> calls
echo "$@" > queue
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Path]:
    """A folder in which jobs run, with SLURM's commands in bin/; no task outlives the test."""
    (tmp_path / "bin").mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    yield tmp_path
    for pid in tasks(tmp_path):
        if Path(f"/proc/{pid}").exists() and str(tmp_path) in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)


def tasks(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "tasks").read_text().split()] if (folder / "tasks").exists() else []


@SLOW
def test_the_commands_themselves(unbroken_pair: Path, cluster: Path) -> None:
    """The job script of the docs, twice interrupted."""
    folder = cluster / "run"
    train = f"{sys.executable} -m recipes.vision.pretrain {IMAGES} --epochs 20 --devices 2 --out {folder} --go-on"
    (cluster / "job").write_text(f"#!/bin/sh\nsrun {train}\n")
    path = f"{cluster / 'bin'}:{os.environ['PATH']}"
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": root}
    with folder.with_suffix(".log").open("w") as log:
        job = subprocess.Popen(["sbatch", "job"], cwd=cluster, env=environment, stdout=log, stderr=log)
        for times, rows in ((1, 3), (2, 15)):
            await_rows(folder, rows, lambda: job.poll() is None)
            for pid in tasks(cluster)[-2:]:
                os.kill(pid, signal.SIGUSR1)
            while len(calls(cluster).splitlines()) < times:
                assert job.poll() is None, log_of(folder)
        assert job.wait(240) == 0, log_of(folder)
    assert calls(cluster) == 2 * "requeue 1234\n"
    assert len(tasks(cluster)) == 6
    assert log_of(folder).count("SIGUSR1: step") == 2
    check_equal(folder, unbroken_pair)
