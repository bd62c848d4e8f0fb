"""Runs that end early: asked by a signal, or without their disk. SLURM: test_slurm.py, processes: test_ranks.py."""

import contextlib
import dataclasses
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from killing import IMAGES, SignalsItself, await_rows, check_equal, finish, log_of, start, state
from tensorboard.backend.event_processing import event_accumulator

from recipes import run
from recipes.metrics import Events, MetricsFile
from recipes.ranks import end_others
from recipes.run_folder import check_writable
from recipes.stopping import endings
from recipes.vision.presets import preset
from recipes.vision.run import pretrain as train
from stec.core.files import whole

TINY: dict[str, Any] = {
    "width": 4, "limit": 32, "batch_size": 16, "epochs": 1, "warmup_epochs": 0, "precision": "32-true",
    "projection_hidden": 8, "projection_out": 8, "manipulation_hidden": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    finish("images", folder)
    return folder


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB; skipped where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "stec", place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"may not mount a small disk ({getattr(error, 'stderr', error)!r})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> None:
    """Write until nothing more fits."""
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def test_a_disk_that_fills_up_stops_the_run_until_there_is_room(small_disk: Path, unbroken: Path) -> None:
    """The same on a file system without a byte left."""
    folder = small_disk / "run"
    folder.with_suffix(".log").symlink_to(small_disk.parent / "log")  # the error itself finds room
    process = start("images", folder, "--checkpoint-minutes", "0")
    await_state(process, folder, 2)
    while process.is_alive():  # what the run itself removes is filled, too
        fill(small_disk)
    process.join()
    assert process.exitcode == 1, log_of(folder)
    there = state(folder)["global_step"]
    assert f": No space left on device. The run stopped. step={there}.ckpt is kept" in log_of(folder)
    assert not list(folder.rglob("*.part"))
    finish_in_vain = start("images", folder, resume=True)
    finish_in_vain.join(240)
    assert finish_in_vain.exitcode == 1
    assert state(folder)["global_step"] == there
    (small_disk / "filler").unlink()
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


def test_a_run_that_ended_while_another_waited_is_not_trained_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(preset("quickstart"), **TINY)
    first = train(config, tmp_path / "first", quiet=True).checkpoint

    @contextlib.contextmanager
    def waited(folder: Path) -> Iterator[None]:
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(first, folder / "checkpoints")
        yield

    monkeypatch.setattr(run, "only_run", waited)
    with pytest.raises(ValueError, match="holds a run already"):
        train(config, tmp_path / "second", quiet=True)


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
    with path.open("ab") as file:
        file.write(b"\0\0\0\n7,1,2,3,4,5,6,7,8\n8\n")  # of a file system that lost its last blocks, or another program
    with path.open("a", newline="") as file:
        file.write(torn)
    MetricsFile(path, step=9)
    assert path.read_bytes() == before
    second = MetricsFile(path, step=6)
    assert path.read_bytes() == before[: before.index(b"9,")]
    second.log_metrics({"loss": 9 / 7, "lr": 0.1}, step=9)
    assert path.read_bytes() == before


def test_checkpoint_minutes_are_kept_beside_the_settings(unbroken: Path) -> None:
    assert json.loads((unbroken / "config.json").read_text())["checkpoint_minutes"] == 15.0


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    """Of a run that was killed at step 6 and goes on from 4: the steps after 4 are those of the second try."""
    for values, purge in ([(step, 1.0) for step in range(1, 7)], None), ([(step, 2.0) for step in range(5, 9)], 5):
        logger = Events(tmp_path, name="", version="logs", purge_step=purge)
        for step, value in values:
            logger.log_metrics({"loss": value}, step=step)
        logger.finalize("success")
        time.sleep(1.1)  # files are named, and read in order, by the second
    seen = event_accumulator.EventAccumulator(str(tmp_path / "logs")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in seen] == [
        *((i, 1.0) for i in range(1, 5)),
        *((i, 2.0) for i in range(5, 9)),
    ]


@pytest.mark.parametrize(("micro_batch", "expected"), [(None, ["kept"]), (16, ["returned"])])
def test_training_on_a_cpu_sets_what_the_allocator_keeps(
    micro_batch: int | None, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(run, "keep_freed_memory", lambda: called.append("kept"))
    monkeypatch.setattr(run, "return_freed_memory", lambda: called.append("returned"))
    config = dataclasses.replace(preset("quickstart"), **TINY, micro_batch=micro_batch)
    train(config, tmp_path / "run", quiet=True)
    assert called == expected


def trainer_with(*programs: str) -> Any:
    """What `endings` sees of a trainer: that it is the first of several, and what it has started."""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    strategy = SimpleNamespace(launcher=SimpleNamespace(procs=processes))
    return SimpleNamespace(strategy=strategy, world_size=3, global_rank=0, is_global_zero=True)


SLEEPS, FAILS, KILLS_ITSELF = "import time; time.sleep(60)", "raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)"


def test_processes_that_a_run_started_end_with_it(tmp_path: Path) -> None:
    trainer = trainer_with(SLEEPS, FAILS, KILLS_ITSELF)
    for process in trainer.strategy.launcher.procs[1:]:
        process.wait()
    one, two, three = trainer.strategy.launcher.procs
    assert end_others(trainer, wait=0) == [
        f"process 2 (pid {two.pid}) ended with code 3",
        f"process 3 (pid {three.pid}) was killed by SIGKILL",
    ]
    assert one.returncode == -signal.SIGKILL


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("no such file"), MemoryError()])
def test_an_error_of_the_first_process_ends_the_others(error: Exception, tmp_path: Path) -> None:
    trainer = trainer_with(SLEEPS)
    with pytest.raises(type(error)) as raised, endings(tmp_path, trainer):
        raise error
    assert raised.value is error
    assert trainer.strategy.launcher.procs[0].returncode == -signal.SIGKILL


def test_a_lost_process_is_named(tmp_path: Path) -> None:
    trainer = trainer_with(KILLS_ITSELF)
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    with pytest.raises(RuntimeError) as raised, endings(tmp_path, trainer):
        raise lost
    (process,) = trainer.strategy.launcher.procs
    assert str(raised.value).startswith(
        f"process 1 (pid {process.pid}) was killed by SIGKILL (seen by process 0: [gloo"
    )
    assert f"There is no checkpoint in {tmp_path}" in str(raised.value)
