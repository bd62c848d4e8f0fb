"""The command that prepares a corpus: what it says, and how it ends."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.audio import prepare as recipe
from stec.audio.corpus import Corpus


def speech(root: Path) -> Path:
    for name, length in (("ann/1", 32_000), ("ann/2", 16_000), ("bob/3", 48_000)):
        path = root / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(length, 7, dtype=np.int16), 16_000)
    return root


def test_a_summary_with_what_matters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = speech(tmp_path / "speech"), tmp_path / "cache"
    (root / "bob" / "torn.flac").write_bytes(b"fLaC")
    arguments = [str(root), "--out", str(out)]
    with pytest.raises(ValueError, match=r"bob/torn\.flac is truncated.*--skip-broken"):
        recipe.main(arguments)
    capsys.readouterr()
    recipe.main([*arguments, "--skip-broken", "--workers", "1"])
    said = capsys.readouterr().out
    assert f"{out}: 3 utterances, 0.00 hours, 2 speakers, 0.2 MB" in said
    assert "0 decoded" in said
    assert "3 were there from an earlier run" in said
    assert "1 are shorter than a window of 20480 samples (1.28 s)" in said
    assert "1 broken files left out, such as bob/torn.flac is truncated" in said
    recipe.main([*arguments, "--skip-broken"])
    assert "nothing was to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--replace"):
        recipe.main([*arguments, "--skip-broken", "--speaker", "none"])
    recipe.main([*arguments, "--skip-broken", "--speaker", "none", "--replace"])
    assert "no speakers known" in capsys.readouterr().out
    assert Corpus.open(out).utterances == ("1", "2", "3")


def test_subsets_are_those_named(tmp_path: Path) -> None:
    for subset, stem in (("dev-clean", "1-2-0000"), ("test-clean", "3-4-0000")):
        path = tmp_path / subset / stem.split("-")[0] / stem.split("-")[1] / f"{stem}.flac"
        path.parent.mkdir(parents=True)
        soundfile.write(path, np.full(500, 7, dtype=np.int16), 16_000)
    recipe.main([str(tmp_path), "--out", str(tmp_path / "cache"), "--subsets", "test-clean"])
    assert Corpus.open(tmp_path / "cache").utterances == ("3-4-0000",)


def test_what_is_downloaded_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(root: Path, subset: str) -> Path:
        path = root / "LibriSpeech" / subset / "1" / "2" / "1-2-0000.flac"
        path.parent.mkdir(parents=True)
        soundfile.write(path, np.full(500, 7, dtype=np.int16), 16_000)
        return path

    monkeypatch.setattr(recipe, "download_librispeech", fetched)
    recipe.main([str(tmp_path / "data"), "--out", str(tmp_path / "cache"), "--download", "dev-clean"])
    assert Corpus.open(tmp_path / "cache").utterances == ("1-2-0000",)


def test_an_incomplete_subset_is_not_prepared(tmp_path: Path) -> None:
    path = tmp_path / "LibriSpeech" / "dev-clean" / "1" / "2" / "1-2-0000.flac"
    path.parent.mkdir(parents=True)
    soundfile.write(path, np.full(500, 7, dtype=np.int16), 16_000)
    with pytest.raises(ValueError, match="holds 1 of the 2703 utterances"):
        recipe.main([str(tmp_path), "--out", str(tmp_path / "cache"), "--download", "dev-clean"])
    assert not (tmp_path / "cache").exists()


def test_an_interruption_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on where it stopped"):
        recipe.main([str(speech(tmp_path / "speech")), "--out", str(tmp_path / "cache")])


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.audio.prepare", str(tmp_path / "speach"), "--out", str(tmp_path / "c")]
    (tmp_path / "speech").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/speach does not exist; in {tmp_path}, the nearest to 'speach': speech\n"
