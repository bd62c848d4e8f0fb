"""The command that makes labels of alignments: which ids each frame gets, and what it says of what is missing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.audio import labels as recipe
from stec.audio.cpc_labels import read_cpc_labels
from stec.audio.phones import Inventory
from stec.audio.preparing import prepare
from stec.audio.sources import audio_folder

Phones = list[tuple[float, float, str]]
FIRST: Phones = [(0.0, 0.0325, "sil"), (0.0325, 0.05, "AE1"), (0.05, 0.075, "T")]  # of 0.1 s, the rest is bare
SECOND: Phones = [(0.0, 0.03, "AE0"), (0.03, 0.05, "spn")]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Utterances a (0.1 s), b (0.05 s) and c, which is too short for a label."""
    for name, length in (("a", 1600), ("b", 800), ("c", 399)):
        path = tmp_path / "speech" / f"{name}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.full(length, 7, dtype=np.int16), 16_000)
    prepare(audio_folder(tmp_path / "speech", speaker="none"), tmp_path / "cache", workers=1)
    return tmp_path / "cache"


def textgrid(path: Path, phones: Phones, tier: str = "phones") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f'{start}\n{end}\n"{name}"' for start, end, name in phones)
    end = phones[-1][1]
    path.write_text(
        f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n{end}\n<exists>\n1\n'
        f'"IntervalTier"\n"{tier}"\n0\n{end}\n{len(phones)}\n{rows}\n'
    )
    return path


def ctm(path: Path, **utterances: Phones) -> Path:
    lines = [f"{u} 1 {s} {e - s} {name}\n" for u, phones in utterances.items() for s, e, name in phones]
    path.write_text("".join(lines))
    return path


def run(source: Path, cache: Path, out: Path, *options: str) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    recipe.main([str(source), "--corpus", str(cache), "--out", str(out), *options])
    labels = {name: ids.tolist() for name, ids in read_cpc_labels(out).items()}
    return labels, Inventory.read(out.with_name("phones.txt")).names


def test_textgrids_become_labels(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    textgrid(tmp_path / "aligned" / "x" / "a.TextGrid", FIRST)
    textgrid(tmp_path / "aligned" / "b.textgrid", SECOND)
    textgrid(tmp_path / "aligned" / "z.TextGrid", [(0.0, 1.0, "ZH")])  # of other audio: its phones do not count
    labels, names = run(tmp_path / "aligned", cache, tmp_path / "new" / "labels.txt")
    assert names == ("sil", "AE0", "AE1", "T")
    # Label i is centred on 0.0125 + 0.01 i seconds, and there are (1600 - 400) // 160 + 1 = 8 of a, 3 of b.
    assert labels == {"a": [0, 0, 2, 2, 3, 3, 3, 0], "b": [1, 1, 0]}
    said = capsys.readouterr().out
    assert "2 utterances, 11 labels of 4 phones" in said
    assert "1 labels (9.1 %) lie in no interval: silence" in said
    assert "1 utterances of the corpus have no labels, such as c" in said
    assert "1 alignments are of no utterance of the corpus, such as z" in said


def test_a_ctm_and_collapsed_stress(tmp_path: Path, cache: Path) -> None:
    source = ctm(tmp_path / "phones.ctm", b=SECOND, a=FIRST[1:])
    labels, names = run(source, cache, tmp_path / "labels.txt", "--collapse")
    assert names == ("sil", "AE", "T")
    assert labels == {"a": [0, 0, 1, 1, 2, 2, 2, 0], "b": [1, 1, 0]}


def test_textgrids_in_folders_of_speakers_are_of_the_audio_there(tmp_path: Path) -> None:
    """Base names repeat, so `prepare` names utterances with their folders, and aligners write the same folders."""
    for name, length in (("spk0/u0", 1600), ("spk1/u0", 800), ("spk1/u1", 800)):
        path = tmp_path / "wavs" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(length, 7, dtype=np.int16), 16_000)
    prepare(audio_folder(tmp_path / "wavs", speaker="folder"), tmp_path / "cache", workers=1)
    textgrid(tmp_path / "tg" / "spk0" / "u0.TextGrid", FIRST)
    textgrid(tmp_path / "tg" / "spk1" / "u0.TextGrid", SECOND)
    textgrid(tmp_path / "tg" / "u1.TextGrid", SECOND)  # whose bare name one utterance has
    textgrid(tmp_path / "tg" / "spk2" / "u1.TextGrid", FIRST)  # of another speaker: not of spk1/u1
    textgrid(tmp_path / "tg" / "u0.TextGrid", [(0.0, 0.05, "ZH")])  # each u0 has its own: of none
    labels, names = run(tmp_path / "tg", tmp_path / "cache", tmp_path / "labels.txt")
    assert names == ("sil", "AE0", "AE1", "T")
    assert labels == {"spk0/u0": [0, 0, 2, 2, 3, 3, 3, 0], "spk1/u0": [1, 1, 0], "spk1/u1": [1, 1, 0]}

    # A bare name that two utterances have tells neither.
    (tmp_path / "tg" / "spk1" / "u0.TextGrid").unlink()
    with pytest.raises(ValueError, match=r"tg/u0\.TextGrid may be of spk0/u0 or of spk1/u0; lay TextGrids in the fold"):
        run(tmp_path / "tg", tmp_path / "cache", tmp_path / "labels.txt")


def test_doubles_of_no_utterance_are_no_mistake(tmp_path: Path, cache: Path) -> None:
    textgrid(tmp_path / "tg" / "a.TextGrid", FIRST)
    for folder in ("x", "y"):
        textgrid(tmp_path / "tg" / folder / "z.TextGrid", SECOND)
        textgrid(tmp_path / "tg" / folder / "a.TextGrid", SECOND)  # beside the one that lies where its audio lies
    labels, _ = run(tmp_path / "tg", cache, tmp_path / "labels.txt")
    assert set(labels) == {"a"}
    assert len(labels["a"]) == 8


def test_frames_in_no_interval_are_silence_where_nothing_is_named_so(tmp_path: Path, cache: Path) -> None:
    labels, names = run(ctm(tmp_path / "a.ctm", a=[(0.02, 0.1, "AE1")]), cache, tmp_path / "labels.txt")
    assert names == ("sil", "AE1")
    assert labels == {"a": [0, 1, 1, 1, 1, 1, 1, 1]}


def test_another_tier(tmp_path: Path, cache: Path) -> None:
    textgrid(tmp_path / "aligned" / "b.TextGrid", SECOND, tier="MAU")
    with pytest.raises(ValueError, match=r"b\.TextGrid has no tier of intervals 'phones'; there are: 'MAU'"):
        run(tmp_path / "aligned", cache, tmp_path / "labels.txt")
    assert run(tmp_path / "aligned", cache, tmp_path / "labels.txt", "--tier", "MAU")[0] == {"b": [1, 1, 0]}


def test_what_cannot_be_labelled_is_refused(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "labels.txt"
    with pytest.raises(ValueError, match="speach is neither a folder of TextGrids nor a CTM file"):
        run(tmp_path / "speach", cache, out)
    with pytest.raises(ValueError, match="speech holds no TextGrid"):
        run(tmp_path / "speech", cache, out)
    with pytest.raises(ValueError, match=r"no utterance of .*cache, whose names are like 'a', not 'other'"):
        run(ctm(tmp_path / "other.ctm", other=SECOND), cache, out)
    with pytest.raises(ValueError, match="less than 400 samples"):
        run(ctm(tmp_path / "c.ctm", c=[(0.0, 0.02, "T")]), cache, out)
    with pytest.raises(ValueError, match=r"b .*ends at 0\.5 s.*0\.05 s"):
        run(ctm(tmp_path / "long.ctm", b=[(0.0, 0.5, "T")]), cache, out)
    with pytest.raises(ValueError, match=r"another name than phones\.txt"):
        run(ctm(tmp_path / "b.ctm", b=SECOND), cache, tmp_path / "phones.txt")
    with pytest.raises(ValueError, match=r"'as well' cannot be the name of a phone.*--tier"):
        run(textgrid(tmp_path / "words" / "b.TextGrid", [(0.0, 0.05, "as well")]).parent, cache, out)
    textgrid(tmp_path / "twice" / "x" / "b.TextGrid", SECOND)
    textgrid(tmp_path / "twice" / "y" / "b.TextGrid", SECOND)
    with pytest.raises(ValueError, match=r"x/b\.TextGrid and .*y/b\.TextGrid are both of b; remove one"):
        run(tmp_path / "twice", cache, out)
    assert not out.exists()


def test_a_mistake_is_one_line(tmp_path: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "recipes.audio.labels", str(tmp_path / "speech"), "--corpus", str(cache)]
    done = subprocess.run([*command, "--out", str(tmp_path / "l.txt")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/speech holds no TextGrid")
    assert done.stderr.count("\n") == 1
