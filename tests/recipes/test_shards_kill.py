"""Writing shards and training from them, killed at any moment: the same command goes on to the same bytes.

STEC_KILLS sets how often each is killed at random moments, once by default.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import ten_classes
from killing import (
    CONTEXT,
    KINDS,
    SPEECH,
    SignalsItself,
    check_equal,
    command,
    finish,
    log_of,
    start,
    start_several,
    state,
)
from tones import make_speech

from stec.core.shards import INDEX, JOURNAL, MIXED, TABLE, ShardIndex, is_sharded

KILLS = int(os.environ.get("STEC_KILLS", "1"))
IMAGES = (
    "folder --width 4 --size 16 --batch-size 16 --epochs 2 --warmup-epochs 1 --check-every 2 --workers 0 "
    "--precision 32-true --projection-hidden 16 --projection-out 8 --manipulation-hidden 16"
)
WRITTEN = ("images", "speech")
TRAINED = ("images in shards", "speech in shards")


@pytest.fixture(scope="module", autouse=True)
def kinds() -> Iterator[None]:
    """Trainings from shards, which take their folder beside these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, TRAINED[0], ("recipes.vision.pretrain", IMAGES))
        patch.setitem(KINDS, TRAINED[1], ("recipes.audio.pretrain", SPEECH))
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What shards are written from: 180 images in ten classes, and a corpus of 24 utterances."""
    folder = tmp_path_factory.mktemp("sources")
    images = ten_classes(folder / "images", train=18, test=1, size=16) / "train"
    return {"images": images, "speech": make_speech(folder / "speech").cache}


# --- writing


def write(
    source: Path, out: Path, before: Callable[[], None] | None = None, *, megabytes: float = 0.01
) -> ForkServerProcess:
    """Begin to write shards, of three images or one utterance unless larger ones are wanted, or go on with it."""
    argv = [str(source), "--out", str(out), "--shard-mb", str(megabytes), "--workers", "2"]
    process = CONTEXT.Process(target=command, args=("recipes.shards", argv, out.with_suffix(".log"), before))
    process.start()
    return process


def write_all(source: Path, out: Path, before: Callable[[], None] | None = None, *, megabytes: float = 0.01) -> Path:
    """Write shards to the end."""
    process = write(source, out, before, megabytes=megabytes)
    process.join(120)
    assert process.exitcode == 0, log_of(out)[-2000:]
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def shards(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Written without interruption."""
    folder = tmp_path_factory.mktemp("shards")
    found = {name: write_all(sources[name], folder / name) for name in WRITTEN}
    assert all(len(ShardIndex.open(out).shards) > 20 for out in found.values())
    return found


class Syncs:
    """Counts what is put on the disk, in FOLDER.syncs, and kills the process before the nth time. Picklable."""

    def __init__(self, folder: Path, kill_at: int) -> None:
        self.log, self.left = folder.with_suffix(".syncs"), kill_at

    def __call__(self) -> None:
        self.plain, os.fsync = os.fsync, self.count  # type: ignore[assignment]

    def count(self, descriptor: int) -> None:
        with self.log.open("a") as log:
            log.write(os.readlink(f"/proc/self/fd/{descriptor}") + "\n")
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.plain(descriptor)


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_writer_is_killed_at_random_moments(
    kind: str, sources: dict[str, Path], shards: dict[str, Path], tmp_path: Path
) -> None:
    draw = random.Random(f"{kind} {KILLS}")
    kills, attempt, resumed = 0, 0, []
    longest = 0.0
    while kills < KILLS:
        out, attempt = tmp_path / f"shards{attempt}", attempt + 1
        done = False
        while not done and (kills < KILLS or not longest):
            process = write(sources[kind], out)
            while process.is_alive() and not out.is_dir():
                time.sleep(0.001)
            began = time.monotonic()
            process.join(draw.uniform(0.05, 0.95) * longest if longest else None)
            done = process.exitcode is not None
            if done:
                assert process.exitcode == 0, log_of(out)
                longest = longest or time.monotonic() - began
            else:
                process.kill()
                process.join()
                kills += process.exitcode == -signal.SIGKILL
                journal = out / JOURNAL
                resumed.append(
                    journal.read_bytes().count(b'"digest"') if journal.is_file() else len(list(out.iterdir()))
                )
        write_all(sources[kind], out)
        assert bytes_of(out) == bytes_of(shards[kind])
    print(f"{kind}: {kills} kills in {attempt} writings, shards that were there: {resumed}")


def test_a_writer_is_killed_before_anything_reaches_the_disk(sources: dict[str, Path], tmp_path: Path) -> None:
    """The first shard, its name or its line; the files that come after all shards, or their names."""
    source, size = sources["images"], 0.1
    whole = write_all(source, tmp_path / "whole", Syncs(tmp_path / "whole", 0), megabytes=size)
    synced = [Path(line).name for line in (tmp_path / "whole.syncs").read_text().splitlines()]
    count = len(ShardIndex.open(whole).shards)
    assert count > 1
    assert len(synced) == 3 * count + 6
    for at, name in {
        1: "shard-000000.tar",
        2: "killed2",
        3: JOURNAL,
        3 * count + 1: "sources.txt",
        3 * count + 3: TABLE,
        3 * count + 5: INDEX,
        3 * count + 6: f"killed{3 * count + 6}",
    }.items():
        out = tmp_path / f"killed{at}"
        process = write(source, out, Syncs(out, at), megabytes=size)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, log_of(out)
        assert Path(out.with_suffix(".syncs").read_text().split()[-1]).name.startswith(name)
        assert (at == len(synced)) == (out / INDEX).is_file()
        assert is_sharded(out)  # training says that it is unfinished, and does not take it for a folder of images
        assert bytes_of(out) != bytes_of(whole)
        write_all(source, out, megabytes=size)
        assert bytes_of(out) == bytes_of(whole)


# --- training


def words(kind: str, shards: dict[str, Path]) -> list[str]:
    name = kind.split()[0]
    return [{"images": "--root", "speech": "--corpus"}[name], str(shards[name])]


@pytest.fixture(scope="module")
def unbroken(shards: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nobody stopped, without a checkpoint within an epoch."""
    folder = tmp_path_factory.mktemp("unbroken")
    for kind in TRAINED:
        finish(kind, folder / kind, *words(kind, shards))
    return {kind: folder / kind for kind in TRAINED}


@pytest.mark.parametrize(("kind", "step", "of"), [(TRAINED[0], 17, 11), (TRAINED[1], 11, 3)])
def test_a_training_is_killed_in_the_middle_of_an_epoch(
    kind: str, step: int, of: int, shards: dict[str, Path], unbroken: dict[str, Path], tmp_path: Path
) -> None:
    """In its step `step`, with a checkpoint at every read of the losses; further kills come at any step."""
    draw = random.Random(kind)
    last = state(unbroken[kind])["global_step"]
    for n, at in enumerate([step, *(draw.randrange(3, last) for _ in range(KILLS - 1))]):
        folder, more = tmp_path / f"run{n}", [*words(kind, shards), "--checkpoint-minutes", "0"]
        process = start(kind, folder, *more, before=SignalsItself(signal.SIGKILL, at))
        process.join(240)
        assert process.exitcode == -signal.SIGKILL, log_of(folder)
        reached = state(folder)["global_step"]
        assert at - 2 <= reached <= at
        assert at != step or reached % of  # within an epoch of so many steps
        finish(kind, folder, *more)
        check_equal(folder, unbroken[kind])
        print(f"{kind}: killed in step {at}, resumed from {reached} of {last}")


# --- several processes


class KeepsBatches:
    """Writes what a process trains on to FOLDER/STEP.RANK, and the shards that it opened to FOLDER/opened.RANK."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank

    def __call__(self) -> None:
        from stec.core.learner import Learner
        from stec.core.shards.files import ShardFiles

        self.folder.mkdir(exist_ok=True)
        step, opening = Learner.training_step, ShardFiles._open_file

        def training_step(learner: Learner, batch: Any, batch_idx: int) -> torch.Tensor:
            kept = [part for part in batch if isinstance(part, torch.Tensor)]
            torch.save(kept, self.folder / f"{learner.global_step}.{self.rank}")
            return step(learner, batch, batch_idx)

        def open_file(files: ShardFiles, shard: int) -> int:
            with (self.folder / f"opened.{self.rank}").open("a") as log:
                log.write(f"{shard}\n")
            return opening(files, shard)

        Learner.training_step = training_step  # type: ignore[method-assign]
        ShardFiles._open_file = open_file  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", TRAINED)
def test_two_processes_read_a_part_each(kind: str, shards: dict[str, Path], tmp_path: Path) -> None:
    """Together, in every step, bit for bit what one process reads; and hardly a shard is opened by both."""
    more = [*words(kind, shards), *("--epochs", "1", "--warmup-epochs", "0")]
    more += ["--together", "uniform"] if kind.startswith("speech") else []
    alone, together = tmp_path / "alone", tmp_path / "together"
    process = start(kind, alone, *more, before=KeepsBatches(tmp_path / "one", 0))
    process.join(240)
    assert process.exitcode == 0, log_of(alone)[-2000:]
    hooks = {rank: KeepsBatches(tmp_path / "two", rank) for rank in (0, 1)}
    for process in (processes := start_several(kind, together, *more, before=hooks)):
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0], log_of(together)[-2000:]
    steps = state(alone)["global_step"]
    assert steps > 2
    for step in range(steps):
        whole = torch.load(tmp_path / "one" / f"{step}.0", weights_only=True)
        parts = [torch.load(tmp_path / "two" / f"{step}.{rank}", weights_only=True) for rank in (0, 1)]
        assert len(whole) == len(parts[0]) == len(parts[1]) >= 5
        for both, first, second in zip(whole, *parts):
            assert len(first) == len(second) == len(both) // 2
            assert torch.equal(torch.cat((first, second)), both)
    opened = [(tmp_path / "two" / f"opened.{rank}").read_text().split() for rank in (0, 1)]
    assert all(len(set(each)) == len(each) for each in opened)
    assert len({*opened[0], *opened[1]}) == len(ShardIndex.open(more[1]).shards)
    assert len({*opened[0]} & {*opened[1]}) <= MIXED  # the block of shards in the middle of the epoch
