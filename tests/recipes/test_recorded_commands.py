"""The command in a record: what is needed to give it again, and no folder of the machine."""

import os
import sys
from pathlib import Path

import pytest

from recipes import records


def recorded(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["x", *words])
    return records.command()


def test_folders_of_the_machine_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--root=/home/alice/data", "--checkpoint", "/home/alice/run/step=8.ckpt", "--out", "/home/alice/"]
    said = recorded(monkeypatch, *words)
    assert "alice/" not in said
    assert said.endswith("--root=data --checkpoint step=8.ckpt --out alice")


@pytest.mark.parametrize("path", ["~/pictures", "~alice/pictures", "../alice/pictures", "a/../../alice/pictures"])
def test_what_lies_above_the_folder_is_left_out(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded(monkeypatch, "--root", path, f"--out={path}").endswith("--root pictures --out=pictures")


def test_relative_paths_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--out runs/cls --checkpoint runs/bins=4,seed=0/checkpoints/step=160.ckpt --root=./data/mine --part 1/2"
    assert recorded(monkeypatch, *words.split()).endswith(words)
    assert recorded(monkeypatch, "--grid", "scale=0.2:1", "--flag=").endswith("--grid scale=0.2:1 --flag=")


def test_the_home_folder_seen_from_above_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home" / "alice"
    (home / "data").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert recorded(monkeypatch, "home/alice/data", "home/bob/cats", "srv/x").endswith(" data cats srv/x")
    monkeypatch.chdir(home)
    assert recorded(monkeypatch, "--root", "data/cats").endswith("--root data/cats")
    monkeypatch.chdir(os.sep)
    assert "alice" not in recorded(monkeypatch, "--root", str(home / "data").lstrip(os.sep))
