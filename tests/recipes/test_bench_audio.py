"""The speed of CPC on speech: that every part runs and is recorded, and that the peer's loss is what it says."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from recipes import records
from recipes.bench import speech_step
from recipes.bench.audio import main, show
from recipes.bench.speech_files import write_noise
from recipes.bench.speech_peers import PermutedInfoNCE, draw_orders, permuted_infonce, probe_epoch, read_windows
from stec.audio.encoders import CPCEncoder

TINY = [
    *("--rounds", "1", "--utterances", "3", "--utterance-seconds", "1.5", "--window", "3200", "--windows", "4"),
    *("--window-batches", "2", "--batch", "2", "--channels", "64", "--memory-batch", "8", "--probe-utterances", "2"),
    *("--workers", "1", "--no-compiled"),
]


def measured(out: Path, *arguments: str) -> records.Record:
    """The record of a tiny run of the command."""
    main([*TINY, *arguments, "--out", str(out)])
    (record,) = records.read(out)
    return record


def test_every_part_ends_in_one_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = measured(tmp_path / "speed.json")
    assert record.stage == "bench"
    assert [r.metric for r in record.results] == [
        "step: CPC over bare encoder, both float32",
        "step: CPC in float32 over default settings",
        "step: plain Greedy InfoMax over CPC, both float32",
        "step: plain Greedy InfoMax over default settings",
        "memory: added by CPC, MB",
        "memory: added by 128 gathered vectors a frame, MB",
        "windows, batch 2: cached over read",
        "probe: Greedy InfoMax's protocol over ours",
        "prepare: over bare decoding",
    ]
    assert all(r.value > 0 for r in record.results)
    by_name = {r.metric.split(":")[0].split(",")[0]: r for r in reversed(record.results)}  # the first of each part
    for part in ("step", "windows", "probe", "prepare"):
        assert float(str(by_name[part].details["other programs, cores"])) >= 0
    assert by_name["probe"].details["theirs"] == "1 epoch measured, times 20; one head, on the context"
    assert by_name["windows"].details["speech"] == record.data
    assert record.data.startswith("3 files of noise, 1.5 s each")
    times = by_name["step"].details
    ratio = float(str(times["float32, s"])) / float(str(times["bare, s"]))
    assert by_name["step"].value == pytest.approx(ratio, rel=0.05)  # the seconds are rounded
    ours, gathered = (r.value for r in record.results if r.metric.startswith("memory"))
    assert gathered > 8 * 128 * 128 * 64 * 4 / 1e6 > ours  # the vectors alone
    assert "other programs used up to" in capsys.readouterr().out


def test_a_folder_is_measured_in_place_of_noise(tmp_path: Path) -> None:
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", np.full(16_000, 7, dtype=np.int16), 16_000)
    record = measured(tmp_path / "out" / "speed.json", "--parts", "prepare", "--folder", str(tmp_path))
    assert record.data == f"2 files of {tmp_path.name}, 0.00 h"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.wav", "1.wav", "out"]


def test_files_that_a_plain_read_would_misread_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "slow.wav", np.full(8_000, 7, dtype=np.int16), 8_000)
    with pytest.raises(ValueError, match=r"slow\.wav has 8000 Hz and 1 channels.*name a folder"):
        main([*TINY, "--parts", "windows", "--folder", str(tmp_path)])
    with pytest.raises(ValueError, match="rounds is 0; need at least 1"):
        main([*TINY, "--rounds", "0"])


def test_what_does_not_fit_into_memory_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speech_step, "fresh_peak", lambda form, batch, channels: 1.0)
    record = measured(tmp_path / "speed.json", "--parts", "memory", "--memory-batch", str(2**20))
    assert [r.metric for r in record.results] == ["memory: added by CPC, MB"]
    assert str(record.results[0].details["gathered form"]).startswith("left out: needs some 21990.2 GB")
    said = capsys.readouterr().out
    assert "left out: needs some" in said
    assert "other programs" not in said  # nothing was timed


def test_a_busy_machine_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    show([], 0.1)
    assert "not to be believed" not in capsys.readouterr().out
    show([], 0.5)
    assert "not to be believed" in capsys.readouterr().out


def loop_infonce(predictions: Tensor, latents: Tensor, orders: Tensor) -> float:
    """One anchor, one negative after the other, float64."""
    b, t, steps, _ = predictions.shape
    means = []
    for k in range(1, steps + 1):
        surprises = []
        for frame, i in itertools.product(range(t - k), range(b)):
            prediction = predictions[i, frame, k - 1].double()
            target = frame + k
            rows = [int(order[target * b + i]) for order in orders]
            scores = [float(prediction @ latents[row % b, row // b].double()) for row in rows]
            positive = float(prediction @ latents[i, target].double())
            surprises.append(math.log(sum(math.exp(s) for s in (positive, *scores))) - positive)
        means.append(sum(surprises) / len(surprises))
    return sum(means) / steps


def test_the_peers_loss_equals_a_loop() -> None:
    predictions, latents, orders = torch.randn(2, 7, 3, 4), torch.randn(2, 7, 4), draw_orders(14, 5)
    assert all(order.sort().values.equal(torch.arange(14)) for order in orders)
    assert float(permuted_infonce(predictions, latents, orders)) == pytest.approx(
        loop_infonce(predictions, latents, orders), rel=1e-5
    )


def test_the_peers_loss_of_a_blank_context_is_chance() -> None:
    loss = PermutedInfoNCE(6, 4, steps=3, negatives=10)
    assert loss.predictor.bias is None
    assert loss(torch.zeros(2, 8, 6), torch.randn(2, 8, 4)).item() == pytest.approx(math.log(11))


def test_the_peers_probe_takes_a_step_an_utterance(tmp_path: Path) -> None:
    write_noise(tmp_path, utterances=3, seconds=0.5)
    paths = sorted(tmp_path.rglob("*.flac"))
    encoder = CPCEncoder(channels=8, context_dim=4)
    linear = torch.nn.Linear(4, 5)
    adam = torch.optim.Adam(linear.parameters(), lr=1e-4)
    probe_epoch(encoder, paths, [torch.zeros(50, dtype=torch.long)] * 3, linear, adam)
    assert {int(state["step"]) for state in adam.state.values()} == {3}
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_windows_are_read_where_they_start_and_noise_is_compressed_as_speech_is(tmp_path: Path) -> None:
    write_noise(tmp_path, utterances=2, seconds=4)
    paths = sorted(tmp_path.rglob("*.flac"))
    whole = [soundfile.read(path, dtype="float32")[0] for path in paths]
    read = read_windows(paths, [5, 40_000], 100)
    assert read.numpy().tolist() == [whole[0][5:105].tolist(), whole[1][40_000:40_100].tolist()]
    assert 0.4 < paths[0].stat().st_size / (4 * 16_000 * 2) < 0.65  # LibriSpeech: 0.54
    assert float(np.std(whole[0])) == pytest.approx(0.05, rel=0.01)
