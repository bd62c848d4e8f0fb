"""Runs that end early: asked by a signal, or without their disk. SLURM: test_slurm.py, processes: test_ranks.py."""

import contextlib
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from killing import IMAGES, SignalsItself, await_rows, check_equal, finish, log_of, start, state

from recipes.metrics import MetricsFile
from recipes.run import check_writable
from stec.core.files import whole


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
