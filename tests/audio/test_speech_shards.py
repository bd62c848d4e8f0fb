"""Speech from shards is that of the prepared corpus: samples, names, windows; the order reads shard after shard."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stec.audio.corpus import Corpus
from stec.audio.preparing import prepare
from stec.audio.shards import SpeechShards, open_speech, speech_sources
from stec.audio.sources import find_audio
from stec.audio.windows import WindowBatches, WindowIndex, WindowLoader
from stec.core import distributed
from stec.core.shards.writing import write_shards

WINDOW = 1_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`corpus`, prepared from 40 utterances of noise by four speakers, and `shards` of it."""
    root = tmp_path_factory.mktemp("speech")
    random = np.random.default_rng(0)
    for i in range(40):
        path = root / "files" / f"speaker{i % 4}" / f"{i:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, random.uniform(-0.5, 0.5, int(random.integers(900, 6_000))), 16_000, subtype="PCM_16")
    prepare(find_audio(root / "files", speaker="folder"), root / "corpus", workers=1)
    corpus = Corpus.open(root / "corpus", verify=True)
    write_shards(speech_sources(corpus), root / "shards", shard_bytes=40_000)
    return root


def test_utterances_are_those_of_the_corpus(folder: Path) -> None:
    corpus, shards = open_speech(folder / "corpus"), open_speech(folder / "shards", verify=True)
    assert isinstance(shards, SpeechShards)
    assert not isinstance(corpus, SpeechShards)
    assert len(shards.source.index.shards) > 5
    assert (shards.utterances, shards.speakers, shards.chapters) == (
        corpus.utterances,
        corpus.speakers,
        corpus.chapters,
    )
    for name in ("lengths", "speaker", "chapter"):
        assert torch.equal(getattr(shards, name), getattr(corpus, name))
    for i in range(len(corpus)):
        assert torch.equal(shards.waveform(i), corpus.waveform(i))
    assert shards.hours == corpus.hours
    chosen = [corpus.utterances[i] for i in (7, 3, 30)]
    part = shards.subset(chosen)
    assert isinstance(part, SpeechShards)
    assert part.utterances == tuple(chosen)
    assert torch.equal(part.waveform(2), corpus.waveform(30))
    assert torch.equal(part.subset([1]).waveform(0), corpus.waveform(3))
    for wrong, words in (([], "no utterance"), ([40], "utterance 40 of 40"), ([1, 1], "chosen twice")):
        with pytest.raises(ValueError, match=words):
            shards.subset(wrong)


def test_members_are_wav_files_that_others_read(folder: Path) -> None:
    corpus, found = Corpus.open(folder / "corpus"), 0
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if not member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    samples, rate = soundfile.read(io.BytesIO(file.read()), dtype="int16")
                    names = tar.extractfile(member.name.replace(".wav", ".json"))
                    assert names is not None
                    i = corpus.index(json.loads(names.read())["utterance"])
                    assert rate == 16_000
                    assert np.array_equal(samples / np.float32(32768), corpus.waveform(i).numpy())
                    found += 1
    assert found == 40


@pytest.mark.parametrize("device", [None, "cpu"])
def test_windows_are_those_of_the_corpus(folder: Path, device: str | None) -> None:
    corpus, shards = open_speech(folder / "corpus"), open_speech(folder / "shards")
    batches = WindowBatches(shards, batch_size=8, seed=0, window=WINDOW, sampling="all", together="uniform", pairs=True)
    ours, theirs = (list(WindowLoader(each, batches, device=device)) for each in (shards, corpus))
    assert len(ours) == len(theirs) == len(batches)
    for batch, other in zip(ours, theirs):
        for a, b in zip(batch, other):
            assert torch.equal(a, b)  # type: ignore[arg-type]


def epoch_of(corpus: Corpus, rank: int = 0, world: int = 1, done: int = 0, **options: Any) -> list[WindowIndex]:
    batches = WindowBatches(corpus, **options)
    batches.steps_done = lambda: 2 * len(batches) + done
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: rank)
        patch.setattr(distributed, "world_size", lambda: world)
        return list(batches)


@settings(max_examples=30)
@given(
    sampling=st.sampled_from(["random", "all"]),
    together=st.sampled_from(["uniform", "speaker", "utterance"]),
    group=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_what_holds_for_every_order(folder: Path, sampling: str, together: str, group: int, seed: int) -> None:
    shards = open_speech(folder / "shards")
    options = {
        "batch_size": 8,
        "seed": seed,
        "window": WINDOW,
        "sampling": sampling,
        "together": together,
        "group": group,
    }
    whole = epoch_of(shards, **options)
    windows = [pair for batch in whole for pair in zip(batch.utterance.tolist(), batch.start.tolist())]
    wanted = Counter({i: n // WINDOW for i, n in enumerate(shards.lengths.tolist())})
    if sampling == "random":
        each = group if together == "utterance" else 1
        wanted = Counter({i: each * (n > 0) for i, n in wanted.items()})
    taken = Counter(i for i, _ in windows)
    assert all(taken[i] <= wanted[i] for i in taken)
    assert sampling == "random" or len(set(windows)) == len(windows)
    assert all(0 <= start <= int(shards.lengths[i]) - WINDOW for i, start in windows)
    if together != "uniform":
        key = shards.speaker.tolist() if together == "speaker" else list(range(len(shards)))
        groups = [windows[k : k + group] for k in range(0, len(windows), group)]
        assert all(len({key[i] for i, _ in rows}) == 1 for rows in groups)
    for world in (2, 4):
        parts = [epoch_of(shards, rank, world, **options) for rank in range(world)]
        for batch, *shares in zip(whole, *parts):
            assert torch.equal(batch.utterance, torch.cat([share.utterance for share in shares]))
            assert torch.equal(batch.start, torch.cat([share.start for share in shares]))
    for done in range(len(whole)):
        rest = epoch_of(shards, done=done, **options)
        assert len(rest) == len(whole) - done
        for batch, other in zip(rest, whole[done:]):
            assert torch.equal(batch.utterance, other.utterance)
            assert torch.equal(batch.start, other.start)


@pytest.mark.parametrize("together", ["uniform", "utterance"])
def test_each_lane_uses_a_stretch_of_few_shards(folder: Path, together: str) -> None:
    shards = open_speech(folder / "shards")
    assert isinstance(shards, SpeechShards)
    options = {"batch_size": 16, "seed": 0, "window": WINDOW, "sampling": "all", "together": together, "group": 2}
    lanes: list[set[int]] = [set() for _ in range(8)]
    for batch in epoch_of(shards, **options):
        for lane, part in zip(lanes, shards.shard[batch.utterance].chunk(8)):
            lane.update(part.tolist())
    # All shards in blocks of four, cut into eight stretches: each end but the last splits one block at most.
    assert sum(map(len, lanes)) <= len(shards.source.index.shards) + 7 * 4
    assert sum(map(len, lanes)) >= len(shards.source.index.shards) - 1


def test_a_checkpoint_of_other_shards_is_refused(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 8, "seed": 0, "window": WINDOW, "sampling": "all", "together": "uniform"}
    corpus = Corpus.open(folder / "corpus")
    write_shards(speech_sources(corpus), tmp_path, shard_bytes=70_000)
    state = WindowBatches(open_speech(folder / "shards"), **options).state_dict()
    WindowBatches(open_speech(folder / "shards"), **options).load_state_dict(state)
    for other in (corpus, open_speech(tmp_path)):
        with pytest.raises(ValueError, match="the checkpoint was made with other data"):
            WindowBatches(other, **options).load_state_dict(state)
