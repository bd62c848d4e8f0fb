"""The command that synthesises a corpus: what it writes, what it tells, and how it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from recipes.audio.synthesise import main

pytest.importorskip("espeakng_loader", reason='no espeak-ng: pip install -e ".[synthesis]"')


def test_command_writes_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "corpus"
    corpus = main(["--speakers", "3", "--minutes", "0.3", "--seed", "1", "--workers", "1", "--out", str(out)])
    told = capsys.readouterr().out
    files = list((out / "LibriSpeech").rglob("*.flac"))
    assert corpus.utterances == len(files) >= 3
    assert "3 (2 for testing)" in told
    assert f"{corpus.minutes:.1f}" in told
    assert "times as fast as speech" in told
    assert "recipes.audio.prepare" in told


def test_mistakes_end_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.audio.synthesise", "--speakers", "2", "--out", str(tmp_path / "corpus")]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert done.stderr.startswith("error: of 2 speakers 2 would be for testing")
    assert len(done.stderr.splitlines()) == 1
