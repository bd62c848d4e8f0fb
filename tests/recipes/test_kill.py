"""Killed at any moment and run again by the same command: losses, weights and all state are the unbroken run's.

STEC_KILLS sets how often each kind of run is killed at random moments, once by default.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from killing import KINDS, KillsItself, check_equal, differences, finish, log_of, start, state
from tones import make_speech

from recipes.run_folder import last_checkpoint
from recipes.saving import checkpoints

KILLS = int(os.environ.get("STEC_KILLS", "1"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("speech")).cache


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for unbroken runs, each made once."""
    return tmp_path_factory.mktemp("unbroken")


def words(kind: str, corpus: Path) -> list[str]:
    return ["--corpus", str(corpus)] if kind == "speech" else []


def unbroken(kind: str, runs: Path, corpus: Path) -> Path:
    """The folder of a run that nobody stopped, and which wrote no checkpoint within an epoch."""
    folder = runs / kind
    if not folder.exists():
        began = time.monotonic()
        finish(kind, folder, *words(kind, corpus))
        folder.with_suffix(".seconds").write_text(str(time.monotonic() - began))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments(kind: str, runs: Path, corpus: Path, tmp_path: Path) -> None:
    """With a checkpoint at every read of the losses; at least one kill is followed by a start within an epoch."""
    whole = unbroken(kind, runs, corpus)
    epoch = state(whole)["global_step"] // 5
    longest = float(whole.with_suffix(".seconds").read_text())
    draw = random.Random(f"{kind} {KILLS}")
    more = [*words(kind, corpus), "--checkpoint-minutes", "0"]
    kills, attempt, taken_up = 0, 0, []
    while kills < KILLS or not any(step % epoch for step in taken_up):
        folder, attempt = tmp_path / f"run{attempt}", attempt + 1
        done = False
        while not done and (kills < KILLS or not any(step % epoch for step in taken_up)):
            began, from_the_start = time.monotonic(), not folder.exists()
            process = start(kind, folder, *more)
            process.join(draw.uniform(0.1, 0.9) * longest)
            done = process.exitcode is not None
            if not done:
                process.kill()
                process.join()
                kills += process.exitcode == -signal.SIGKILL
                there = folder / "checkpoints"
                taken_up.append(state(folder)["global_step"] if there.is_dir() and any(there.glob("*.ckpt")) else 0)
            else:
                assert process.exitcode == 0, log_of(folder)[-2000:]
                if from_the_start:  # the unbroken run also started the processes' server; the rest of a run is short
                    longest = min(longest, time.monotonic() - began)
        finish(kind, folder, *more)
        check_equal(folder, whole)
    print(f"{kind}: {kills} kills in {attempt} runs, resumed from steps {taken_up}")


@pytest.mark.parametrize("kind", ["queue", "speech"])
def test_killed_while_a_checkpoint_is_written(kind: str, runs: Path, corpus: Path, tmp_path: Path) -> None:
    """The torn file lies there under another name; what was there before is taken up, and the file swept away."""
    folder, more = tmp_path / "run", [*words(kind, corpus), "--checkpoint-minutes", "0"]
    for nth in (1, 2, 3):
        process = start(kind, folder, *more, before=KillsItself(nth))
        process.join(240)
        assert process.exitcode == -signal.SIGKILL, log_of(folder)
        (torn,) = (folder / "checkpoints").glob("*.part")
        assert torn.stat().st_size == 5_000
    finish(kind, folder, *more)
    check_equal(folder, unbroken(kind, runs, corpus))


def test_a_run_without_a_checkpoint_is_resumed_from_its_settings(runs: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start("images", folder, before=KillsItself(1)).join(240)
    assert (folder / "config.json").is_file()
    assert not list((folder / "checkpoints").glob("*.ckpt"))
    finish("images", folder, resume=True)
    check_equal(folder, unbroken("images", runs, corpus))


def test_damaged_checkpoints_and_torn_rows(runs: Path, corpus: Path, tmp_path: Path) -> None:
    """One bit of the newest file is wrong: the run says so, and goes on from the one before. A torn row is dropped."""
    folder = tmp_path / "run"
    start("images", folder, before=KillsItself(4)).join(240)
    newest = last_checkpoint(folder)
    content = bytearray(newest.read_bytes())
    weights = state(folder)["state_dict"]["encoder.conv1.weight"].numpy().tobytes()
    content[content.find(weights) + 5] ^= 1
    newest.write_bytes(content)
    with (folder / "logs" / "metrics.csv").open("a") as rows:
        rows.write("1")
    finish("images", folder)
    assert f"{newest} is torn or is no checkpoint" in log_of(folder)
    assert "is damaged: its checksum differs" in log_of(folder)
    assert "going on from step=8.ckpt" in log_of(folder)
    check_equal(folder, unbroken("images", runs, corpus))


def test_the_gradient_scaler_goes_on(runs: Path, corpus: Path, tmp_path: Path) -> None:
    """In fp16, killed where the scale has left its start, and the count of good steps its 0."""
    folder, scalers = tmp_path / "run", []
    for nth in (5, 1, 2):
        start("fp16", folder, "--checkpoint-minutes", "0", before=KillsItself(nth)).join(240)
        scalers.append(state(folder)["MixedPrecision"])
    finish("fp16", folder)
    check_equal(folder, unbroken("fp16", runs, corpus))
    assert all(scaler["scale"] < 2.0**18 for scaler in scalers)  # gradients overflowed, and steps were left out
    assert any(scaler["_growth_tracker"] for scaler in scalers)
    assert len({scaler["scale"] for scaler in [*scalers, state(folder)["MixedPrecision"]]}) > 1


def test_checkpoints_that_another_process_removes_are_passed_over(tmp_path: Path) -> None:
    """The first removes old ones while others look for the last."""
    for step in (8, 12):
        (tmp_path / f"step={step}.ckpt").write_bytes(b"")
    (tmp_path / "step=4.ckpt").symlink_to(tmp_path / "gone")
    assert [path.stem for path in checkpoints(tmp_path)] == ["step=12", "step=8", "step=4"]


def test_one_command_starts_goes_on_and_leaves_a_finished_run_alone(runs: Path, corpus: Path) -> None:
    whole = unbroken("images", runs, corpus)
    before = state(whole)
    finish("images", whole)
    assert "this run was finished already" in log_of(whole)
    assert differences(before, state(whole)) == []
    process = start("images", whole, "--lr", "0.5")
    process.join(240)
    assert process.exitcode == 1
    assert "was made with other settings: lr" in log_of(whole)


def test_killed_between_its_end_and_its_results_they_are_written_by_the_same_command(
    tmp_path: Path, runs: Path, corpus: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken("images", runs, corpus), folder)
    kept = json.loads((folder / "results.json").read_text())
    (folder / "results.json").unlink()
    finish("images", folder)
    (record,) = json.loads((folder / "results.json").read_text())
    assert record["results"] == kept[0]["results"]
    assert record["seconds"] is None
