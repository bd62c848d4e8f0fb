"""Checkpoints: whole or refused, with the file and the cure named, and never executed."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stec.core.checkpoints import FORMAT, export_weights, load_checkpoint, load_weights, save_checkpoint
from stec.core.torch_files import TorchFile


def write(path: Path, **changes: object) -> Path:
    content = {
        "state_dict": {
            "encoder.weight": torch.ones(2, 3),
            "encoder.bias": torch.zeros(2),
            "probe.weight": torch.ones(1),
        },
        "global_step": 12,
        "stec": {"format": FORMAT, "record": {"config": {"width": 3}}},
    }
    torch.save({**content, **changes}, path)
    return path


def test_a_part_of_the_weights(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write(tmp_path / "a.ckpt"))
    assert checkpoint.step == 12
    assert checkpoint.record == {"config": {"width": 3}}
    module = nn.Linear(3, 2)
    load_weights(module, checkpoint.part("encoder"), source="a.ckpt")
    assert torch.equal(module.weight, torch.ones(2, 3))


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "step=4.ckpt")
    with pytest.raises(ValueError, match=r"no checkpoint at .*step=5.ckpt; there are .*step=4.ckpt"):
        load_checkpoint(tmp_path / "step=5.ckpt")


@pytest.mark.parametrize("keep", [0, 10, 500, -1])
def test_a_torn_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "torn.ckpt")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"torn.ckpt is torn or is no checkpoint.*earlier one"):
        load_checkpoint(path)


def test_a_file_that_would_run_something_is_refused_and_does_not(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {}, "stec": Evil()}, tmp_path / "evil.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("evil.ckpt", "raw.ckpt"):
        with pytest.raises(ValueError, match=name):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"stec": None}, "not written by stec"), ({"stec": {"format": 99, "record": {}}}, f"format 99.*reads {FORMAT}")],
)
def test_foreign_files(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_checkpoint(write(tmp_path / "b.ckpt", **changes))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Linear(3, 4), r"2 of another shape, first bias \(2,\) in the file, \(4,\) here"),
        (nn.Linear(3, 2, bias=False), "1 not known here, first bias"),
        (nn.Sequential(nn.Linear(3, 2)), "2 missing, first 0.bias"),
    ],
)
def test_another_architecture_is_refused_whole(tmp_path: Path, module: nn.Module, words: str) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    weights = load_checkpoint(write(tmp_path / "a.ckpt")).part("encoder")
    with pytest.raises(ValueError, match=f"a.ckpt holds another architecture.*{words}"):
        load_weights(module, weights, source="a.ckpt")
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_export_leaves_the_values_alone(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    export_weights(conv.state_dict(), tmp_path / "conv.safetensors")
    found = load_file(str(tmp_path / "conv.safetensors"))
    assert set(found) == {"weight", "bias"}
    assert torch.equal(found["weight"], conv.weight)


def test_a_lack_of_memory_is_not_taken_for_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "a.ckpt", {"w": torch.ones(2)}, {}, step=1)

    def lacks(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", lacks)
    with pytest.raises(MemoryError):
        load_checkpoint(tmp_path / "a.ckpt")


def test_a_length_that_a_file_tells_takes_no_memory(tmp_path: Path) -> None:
    """A pickle of the older format that announces a text of 2^40 bytes."""
    (tmp_path / "a.ckpt").write_bytes(b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"abc.")
    with pytest.raises(ValueError, match="is torn or is no checkpoint"):
        load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="is torn or is no checkpoint"):
        TorchFile(tmp_path / "a.ckpt")
