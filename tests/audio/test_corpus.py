"""Preparing a corpus: broken off anywhere it ends the same, and what is wrong is never opened."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from stec.audio import preparing
from stec.audio.corpus import Corpus
from stec.audio.preparing import Prepared
from stec.audio.sources import AudioFile, audio_folder

LENGTHS = (700, 300, 1, 900, 450, 620)


def speech(root: Path, lengths: Sequence[int] = LENGTHS) -> Path:
    """A folder of FLAC files, three to a speaker, with different noise in each."""
    random = np.random.default_rng(0)
    for i, length in enumerate(lengths):
        path = root / f"speaker{i // 3}" / f"u{i}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, random.integers(-20_000, 20_000, length, dtype=np.int16), 16_000)
    return root


def files(root: Path) -> list[AudioFile]:
    return audio_folder(root, speaker="folder")


def prepare(root: Path, cache: Path, **options: Any) -> Prepared:
    return preparing.prepare(files(root), cache, **{"workers": 2, **options})


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir()}


def samples_of(cache: Path) -> dict[str, list[int]]:
    corpus = Corpus.open(cache, verify=True)
    return {name: (32768 * corpus.waveform(i)).int().tolist() for i, name in enumerate(corpus.utterances)}


def stored(root: Path) -> dict[str, list[int]]:
    return {file.utterance: soundfile.read(file.path, dtype="int16")[0].tolist() for file in files(root)}


class Crash(BaseException):
    """A process that ends here: nothing in stec catches it."""


class Broken(NamedTuple):
    """A folder of audio, its whole cache's contents, and samples and journal as they are before the end."""

    root: Path
    whole: dict[str, bytes]
    part: bytes
    journal: bytes


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    folder = tmp_path_factory.mktemp("broken_off")
    root = speech(folder / "speech")
    prepare(root, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:

        def crash(*arguments: object) -> None:
            raise Crash

        patch.setattr(preparing, "_finish", crash)
        with pytest.raises(Crash):
            prepare(root, folder / "cache")
    cache = contents(folder / "cache")
    assert set(cache) == {"samples.part", "journal.jsonl"}
    return Broken(root, contents(folder / "whole"), cache["samples.part"], cache["journal.jsonl"])


# --- a whole cache


def test_a_corpus_holds_what_the_files_hold(tmp_path: Path) -> None:
    root = speech(tmp_path / "speech")
    done = prepare(root, tmp_path / "cache")
    assert done == Prepared(tmp_path / "cache", 6, sum(LENGTHS), (), 0, False)
    assert samples_of(tmp_path / "cache") == stored(root)
    corpus = Corpus.open(tmp_path / "cache")
    assert corpus.utterances == ("u0", "u1", "u2", "u3", "u4", "u5")
    assert corpus.lengths.tolist() == list(LENGTHS)
    assert corpus.starts.tolist() == np.cumsum([0, *LENGTHS[:-1]]).tolist()
    assert corpus.speakers == corpus.chapters == ("speaker0", "speaker1")
    assert corpus.speaker.tolist() == corpus.chapter.tolist() == [0, 0, 0, 1, 1, 1]
    assert corpus.hours == pytest.approx(sum(LENGTHS) / 16_000 / 3600)
    assert {corpus.lengths.dtype, corpus.starts.dtype, corpus.speaker.dtype, corpus.chapter.dtype} == {torch.int64}
    assert not corpus.samples.flags.writeable
    assert str(tmp_path).encode() not in contents(tmp_path / "cache")["index.json"]


def test_a_second_run_does_nothing_and_a_changed_file_is_seen(tmp_path: Path) -> None:
    root, cache = speech(tmp_path / "speech"), tmp_path / "cache"
    prepare(root, cache)
    before, written = contents(cache), (cache / "index.json").stat().st_mtime_ns
    assert prepare(root, cache) == Prepared(cache, 6, sum(LENGTHS), (), 6, True)
    assert contents(cache) == before
    assert (cache / "index.json").stat().st_mtime_ns == written
    root.rename(tmp_path / "moved")  # paths are relative
    assert prepare(tmp_path / "moved", cache).fresh
    root = tmp_path / "moved"
    soundfile.write(root / "speaker0" / "u1.flac", np.full(77, 5, dtype=np.int16), 16_000)
    assert not prepare(root, cache).fresh
    assert samples_of(cache) == stored(root)
    soundfile.write(root / "speaker1" / "new.flac", np.full(88, 6, dtype=np.int16), 16_000)
    assert not prepare(root, cache).fresh
    assert samples_of(cache) == stored(root)
    assert len(list(cache.iterdir())) == 2


def test_a_cache_does_not_lose_utterances_or_change_speakers_unasked(tmp_path: Path) -> None:
    root, cache = speech(tmp_path / "speech"), tmp_path / "cache"
    prepare(root, cache)
    before = contents(cache)
    nobody = audio_folder(root, speaker="none")
    with pytest.raises(ValueError, match=r"6 of the 6 .*another speaker or chapter, such as u0, u1.*--out.*--replace"):
        preparing.prepare(nobody, cache, workers=1)
    elsewhere = [file._replace(chapter="c") if file.utterance == "u3" else file for file in files(root)]
    with pytest.raises(ValueError, match=r"1 of the 6 .*such as u3;"):
        preparing.prepare(elsewhere, cache, workers=1)
    data = (root / "speaker0" / "u1.flac").read_bytes()
    (root / "speaker0" / "u1.flac").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of the 6 .*such as u1;"):
        prepare(root, cache, skip_broken=True)
    assert samples_of(cache).keys() == {f"u{i}" for i in range(6)}
    (root / "speaker0" / "u1.flac").write_bytes(data)
    (root / "speaker0" / "u0.flac").unlink()
    with pytest.raises(ValueError, match=r"1 of the 6 utterances in .*such as u0;"):
        prepare(root, cache)
    assert contents(cache)["index.json"] == before["index.json"]
    prepare(root, cache, replace=True)
    assert samples_of(cache) == stored(root)
    preparing.prepare(nobody[1:], cache, workers=1, replace=True)
    assert Corpus.open(cache).speakers == ("",)


def test_any_number_of_workers_gives_the_same(tmp_path: Path) -> None:
    root = speech(tmp_path / "speech")
    for workers in (1, 2, 7):
        prepare(root, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "7")


def test_few_decoded_files_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = speech(tmp_path / "speech", [50] * 40)
    read = ahead = 0
    decode, write = preparing._read, preparing._write

    def counted(path: Path) -> tuple[np.ndarray, int]:
        nonlocal read
        read += 1
        return decode(path)

    def slow(file: Any, data: memoryview) -> None:
        nonlocal ahead
        time.sleep(0.001)  # so that decoding could run far ahead
        written = len((tmp_path / "cache" / "journal.jsonl").read_bytes().splitlines())
        ahead = max(ahead, read - written)
        write(file, data)

    monkeypatch.setattr(preparing, "_read", counted)
    monkeypatch.setattr(preparing, "_write", slow)
    prepare(root, tmp_path / "cache", workers=2)
    assert 1 <= ahead <= 4


def test_progress_counts_every_file(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare(speech(tmp_path / "speech"), tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(7)]


def test_real_speech(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    root = shared_data("LibriSpeech") / "dev-clean"
    prepare(root, tmp_path / "cache")
    assert samples_of(tmp_path / "cache") == stored(root)


# --- interruptions


@given(part=st.floats(0, 1), journal=st.floats(0, 1), dirt=st.binary(max_size=3))
def test_cut_anywhere_it_goes_on_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, broken_off: Broken, part: float, journal: float, dirt: bytes
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    (cache / "samples.part").write_bytes(broken_off.part[: round(part * len(broken_off.part))] + dirt)
    (cache / "journal.jsonl").write_bytes(broken_off.journal[: round(journal * len(broken_off.journal))] + dirt)
    with pytest.raises(ValueError, match="unfinished; run the command that prepares it again"):
        Corpus.open(cache)
    done = prepare(broken_off.root, cache)
    assert contents(cache) == broken_off.whole
    ends = np.cumsum(LENGTHS)
    lines = broken_off.journal[: round(journal * len(broken_off.journal))].count(b"\n")
    assert done.resumed >= min(lines, int((2 * ends <= round(part * len(broken_off.part))).sum()))


def test_samples_that_never_reached_the_disk_are_noticed(tmp_path: Path, broken_off: Broken) -> None:
    lost = bytearray(broken_off.part)  # after a power cut: the length is right, a block is zeros
    lost[1500:1600] = bytes(100)
    (tmp_path / "samples.part").write_bytes(lost)
    (tmp_path / "journal.jsonl").write_bytes(broken_off.journal)
    assert prepare(broken_off.root, tmp_path).resumed == 1
    assert contents(tmp_path) == broken_off.whole


class Crashing:
    """Counts every call that changes the disk, and crashes before or after the one at `step`."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int, *, after: bool) -> None:
        self.left = step
        self.after = after
        patch.setattr(preparing, "_write", self.wrap(preparing._write))
        patch.setattr(os, "replace", self.wrap(os.replace))
        patch.setattr(os, "fsync", self.wrap(os.fsync))
        patch.setattr(Path, "unlink", self.wrap(Path.unlink))

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1 and not self.after:
                raise Crash
            result = call(*arguments, **options)
            if self.left == -1:
                raise Crash
            return result

        return wrapped


def test_a_line_of_the_journal_without_its_end_does_not_count(tmp_path: Path, broken_off: Broken) -> None:
    (tmp_path / "samples.part").write_bytes(broken_off.part)
    (tmp_path / "journal.jsonl").write_bytes(broken_off.journal[:-1])  # the next line would be appended to it
    assert prepare(broken_off.root, tmp_path).resumed == 5


def test_a_finished_cache_with_an_old_journal_stays_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = speech(tmp_path / "speech"), tmp_path / "cache"
    before = stored(root)

    def crash(*arguments: object, **options: object) -> None:
        raise Crash

    for name in ("_remove", "_decode"):  # after the index is in place; then on the way to a new cache
        with monkeypatch.context() as patch:
            patch.setattr(preparing, name, crash)
            with pytest.raises(Crash):
                prepare(root, cache)
        assert samples_of(cache) == before
        soundfile.write(root / "speaker1" / "u5.flac", np.full(77, 5, dtype=np.int16), 16_000)
    prepare(root, cache)
    assert samples_of(cache) == stored(root)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("older", [False, True])
def test_a_crash_at_any_step_leaves_the_old_cache_or_none(
    tmp_path: Path, broken_off: Broken, monkeypatch: pytest.MonkeyPatch, older: bool, after: bool
) -> None:
    old = speech(tmp_path / "old", LENGTHS[:4])
    for step in range(100):
        cache = tmp_path / str(step)
        if older:
            prepare(old, cache)
        before = samples_of(cache) if older else None
        try:
            with monkeypatch.context() as patch:
                Crashing(patch, step, after=after)
                prepare(broken_off.root, cache)
            break  # it has fewer steps
        except Crash:
            pass
        if older or (cache / "index.json").exists():
            assert samples_of(cache) in (before, stored(broken_off.root))
        else:
            with pytest.raises(ValueError, match="unfinished"):
                Corpus.open(cache)
        again = prepare(broken_off.root, cache)
        assert again.fresh or again.resumed == min(6, (step + after) // 2)  # two writes an utterance
        assert contents(cache) == broken_off.whole
    assert step > 16


CHILD = """
import sys, time
from pathlib import Path
from stec.audio import preparing
from stec.audio.sources import audio_folder
decode = preparing._read
def slow(path):
    time.sleep(0.01)
    return decode(path)
preparing._read = slow
print("begin", flush=True)
preparing.prepare(audio_folder(Path(sys.argv[1]), speaker="folder"), Path(sys.argv[2]), workers=2)
"""


def test_killed_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    root, cache = speech(tmp_path / "speech", [400 + i for i in range(60)]), tmp_path / "cache"
    prepare(root, tmp_path / "whole")
    with subprocess.Popen([sys.executable, "-c", CHILD, root, cache], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        journal = cache / "journal.jsonl"
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            time.sleep(0.002)
            assert child.poll() is None
        with pytest.raises(ValueError, match="another run is preparing"):
            prepare(root, cache)
        child.send_signal(signal.SIGKILL)
    written = journal.read_bytes().count(b"\n")
    assert 10 <= written < 60
    assert prepare(root, cache).resumed == written
    assert contents(cache) == contents(tmp_path / "whole")


def test_a_file_that_changed_in_between_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = speech(tmp_path / "speech"), tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_finish", lambda *arguments: None)
        prepare(root, cache)
    soundfile.write(root / "speaker0" / "u2.flac", np.full(77, 5, dtype=np.int16), 16_000)
    assert prepare(root, cache).resumed == 2
    assert samples_of(cache) == stored(root)


# --- broken files and full disks


def test_broken_files_are_all_named_and_left_out_on_request(tmp_path: Path) -> None:
    root, cache = speech(tmp_path / "speech"), tmp_path / "cache"
    good = stored(root)
    torn = root / "speaker0" / "u1.flac"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:300])
    (root / "speaker1" / "u4.flac").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of the files.*u1\.flac is truncated.*u4\.flac is an empty.*--skip-broken"):
        prepare(root, cache)
    listed = (cache / "broken.txt").read_text().splitlines()
    assert [line.split()[0] for line in listed] == ["speaker0/u1.flac", "speaker1/u4.flac"]
    with pytest.raises(ValueError, match="unfinished"):
        Corpus.open(cache)

    done = prepare(root, cache, skip_broken=True)
    assert (done.resumed, done.utterances, len(done.left_out)) == (4, 4, 2)
    assert samples_of(cache) == {name: good[name] for name in ("u0", "u2", "u3", "u5")}
    assert prepare(root, cache, skip_broken=True) == done._replace(fresh=True)
    with pytest.raises(ValueError, match="2 of the files"):
        prepare(root, cache)
    assert len(Corpus.open(cache)) == 4

    torn.write_bytes(whole)  # mended: nothing else is decoded again
    done = prepare(root, cache, skip_broken=True)
    assert (done.resumed, done.utterances) == (4, 5)
    assert Corpus.open(cache).utterances == ("u0", "u1", "u2", "u3", "u5")
    assert samples_of(cache) == {name: good[name] for name in ("u0", "u1", "u2", "u3", "u5")}
    (root / "speaker1" / "u4.flac").unlink()
    assert not prepare(root, cache).left_out
    assert not (cache / "broken.txt").exists()


def test_a_name_that_is_not_utf8_is_a_broken_file(tmp_path: Path) -> None:
    root, cache = speech(tmp_path / "speech"), tmp_path / "cache"
    (root / "speaker1" / "u5.flac").rename(root / "speaker1" / os.fsdecode(b"caf\xe9.flac"))
    with pytest.raises(ValueError, match=r"1 of the files.*caf\\udce9\.flac'.*rename.*--skip-broken"):
        prepare(root, cache)
    done = prepare(root, cache, skip_broken=True)
    assert (done.utterances, len(done.left_out)) == (5, 1)
    done.left_out[0].encode()
    assert prepare(root, cache, skip_broken=True).fresh


def test_nothing_but_broken_files(tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.flac").write_bytes(b"")
    with pytest.raises(ValueError, match="every file is broken"):
        prepare(tmp_path / "speech", tmp_path / "cache", skip_broken=True)


def test_a_disk_that_is_too_small_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = speech(tmp_path / "speech")
    need = 2 * sum(LENGTHS)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need - 1))
    with pytest.raises(ValueError, match=r"needs about 0\.0 GB more"):
        prepare(root, tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need))
    prepare(root, tmp_path / "cache")


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, broken_off: Broken) -> None:
    cache = tmp_path / "cache"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 1500, limits[1]))  # the third and a half utterance
    try:
        with pytest.raises(ValueError, match=r"disk is full .* goes on where it stopped"):
            prepare(broken_off.root, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (cache / "samples.part").stat().st_size == 3000
    assert prepare(broken_off.root, cache).resumed == 3
    assert contents(cache) == broken_off.whole


@pytest.mark.unchecked  # beartype does not take it for a file
def test_a_write_that_ends_early_goes_on() -> None:
    class Reluctant(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(data[:3])

    file = Reluctant()
    preparing._write(file, memoryview(b"what is to be written"))
    assert file.getvalue() == b"what is to be written"


def test_folders_that_do_not_serve(tmp_path: Path) -> None:
    root = speech(tmp_path / "speech")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file"):
        prepare(root, tmp_path / "file")
    prepare(root, tmp_path / "cache")
    soundfile.write(tmp_path / "other.flac", np.zeros(9, dtype=np.int16), 16_000)
    with pytest.raises(ValueError, match="6 of the 6 utterances"):
        preparing.prepare([AudioFile(tmp_path / "other.flac", "other", "", "")], tmp_path / "cache", workers=1)
    with pytest.raises(ValueError, match="no audio file"):
        preparing.prepare([], tmp_path / "cache", workers=1)
    with pytest.raises(ValueError, match="workers is 0"):
        prepare(root, tmp_path / "cache", workers=0)
    with pytest.raises(ValueError, match="same utterance name"):
        preparing.prepare(files(root) * 2, tmp_path / "cache", workers=1)


# --- opening


def test_caches_that_cannot_be_opened(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"cache does not exist; make it with python -m recipes\.audio\.prepare"):
        Corpus.open(cache)
    prepare(speech(tmp_path / "speech"), cache)
    with pytest.raises(ValueError, match="no prepared corpus"):
        Corpus.open(tmp_path / "speech")
    index = json.loads((cache / "index.json").read_text())
    samples = cache / index["samples_file"]
    whole = samples.read_bytes()

    samples.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="5,940 bytes, its index says 5,942"):
        Corpus.open(cache)
    samples.write_bytes(whole[:1401] + bytes([whole[1401] ^ 1]) + whole[1402:])
    Corpus.open(cache)
    with pytest.raises(ValueError, match="damaged in utterance u1"):
        Corpus.open(cache, verify=True)
    samples.unlink()
    with pytest.raises(ValueError, match="missing"):
        Corpus.open(cache)
    (cache / "index.json").write_text(json.dumps({**index, "version": 0}))
    with pytest.raises(ValueError, match="version 0, this stec reads 1"):
        Corpus.open(cache)
    (cache / "index.json").write_text(json.dumps({**index, "rate": 8000}))
    with pytest.raises(ValueError, match="holds audio at 8000 Hz, stec works at 16000"):
        Corpus.open(cache)
    (cache / "index.json").write_text(json.dumps(index)[:50])
    with pytest.raises(ValueError, match="torn"):
        Corpus.open(cache)
    assert not prepare(tmp_path / "speech", cache).fresh  # and preparing mends it
    assert samples.read_bytes() == whole


def test_an_index_without_a_key_is_refused_and_mended(tmp_path: Path) -> None:
    root, cache = speech(tmp_path / "speech"), tmp_path / "cache"
    prepare(root, cache)
    index = json.loads((cache / "index.json").read_text())
    for key in index:
        (cache / "index.json").write_text(json.dumps({name: value for name, value in index.items() if name != key}))
        with pytest.raises(ValueError, match=rf"index\.json .*{key}.*delete .*prepare again"):
            Corpus.open(cache)
        assert not prepare(root, cache).fresh
    assert json.loads((cache / "index.json").read_text()) == index


@pytest.mark.parametrize(("key", "change"), [("samples", 1), ("start", 1), ("start", -10_000), ("samples", -10_000)])
def test_utterances_beyond_the_file_are_refused(tmp_path: Path, key: str, change: int) -> None:
    cache = tmp_path / "cache"
    prepare(speech(tmp_path / "speech"), cache)
    index = json.loads((cache / "index.json").read_text())
    index[key][5] += change
    (cache / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json.*u5 .*delete .*prepare again"):
        Corpus.open(cache)


def test_an_index_of_unequal_lists_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepare(speech(tmp_path / "speech"), cache)
    index = json.loads((cache / "index.json").read_text())
    index["speaker"].pop()
    (cache / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"5 of speaker and 6 of utterance.*delete .*prepare again"):
        Corpus.open(cache)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    prepare(speech(folder / "speech"), folder / "cache")
    return Corpus.open(folder / "cache")


def test_a_subset_shares_the_samples(corpus: Corpus) -> None:
    for chosen in (["u4", "u0"], [4, 0], torch.tensor([4, 0])):
        subset = corpus.subset(chosen)
        assert subset.samples is corpus.samples
        assert subset.utterances == ("u4", "u0")
        assert subset.speaker.tolist() == [1, 0]
        assert subset.speakers == corpus.speakers
        assert torch.equal(subset.waveform(0), corpus.waveform(4))
        assert subset.index("u0") == 1
    assert corpus.subset(["u4", "u0"]).subset(["u0"]).utterances == ("u0",)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (["u0", "u0"], "chosen twice"),
        (["u55"], "no utterance 'u55'; the nearest are u5"),
        (["other"], "no utterance 'other'; its names are like u0"),
        ([6], "choose from 0 to 5"),
        ([-1], "choose from 0 to 5"),
        ([], "at least one"),
    ],
)
def test_subsets_that_do_not_exist(corpus: Corpus, chosen: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        corpus.subset(chosen)


def test_single_utterances(corpus: Corpus) -> None:
    assert corpus.index("u3") == 3
    waveform = corpus.waveform(3)
    assert waveform.dtype == torch.float32
    assert waveform.abs().max() < 1
    with pytest.raises(ValueError, match="utterance 6 of 6"):
        corpus.waveform(6)
