"""What is read off frozen speech: phones, speakers, comparisons, the quickstart; on tones, and on mistakes."""

import dataclasses
import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tones import PITCHES, Speech, make_speech, newest, tiny, write_split

from recipes import records
from recipes.audio import compare, measure, phones, presets, quickstart, speakers
from recipes.audio.measure import Frames, encoder_frames, label_frames, majority, probe_phones, surprise
from recipes.audio.run import build_learner, load_learner, record_of
from recipes.audio.run import pretrain as train
from recipes.results import table
from stec.audio.alignment import Alignment
from stec.audio.corpus import Corpus
from stec.audio.cpc_labels import write_cpc_labels
from stec.audio.encoders import CPCEncoder
from stec.audio.frame_features import FrameFeatures
from stec.audio.preparing import prepare
from stec.audio.sources import audio_folder
from stec.core.checkpoints import load_checkpoint
from stec.core.heads import PROTOCOLS

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    return make_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def checkpoint(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on the training split: 3 epochs of CPC, enough to be no random network."""
    folder = tmp_path_factory.mktemp("runs") / "cpc"
    config = tiny(speech, split=speech.train, channels=24, context_dim=16, input_std=0.3, seed=4)
    return train(config, folder, quiet=True).checkpoint


@pytest.fixture(autouse=True)
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 steps suit 2,000 frames; the tests are of what is counted, not of the protocol."""
    monkeypatch.setattr(measure, "LEAST_STEPS", 200)
    monkeypatch.setattr(speakers, "STEPS", 200)


def arguments(speech: Speech, checkpoint: Path, out: Path, /, **changes: object) -> phones.Arguments:
    task = phones.Arguments(checkpoint, speech.cache, speech.labels, speech.train, speech.test, out=out)
    return dataclasses.replace(task, **changes)  # type: ignore[arg-type]


def values(record: records.Record) -> dict[tuple[str, str, str], float]:
    """Accuracy by layer, protocol and offset."""
    return {(str(r.details["layer"]), r.protocol, str(r.details["offset"])): r.value for r in record.results}


# --- phones ----------------------------------------------------------------------------------------------------------


def test_phones_of_tones_are_read_and_written_down(
    speech: Speech, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    found = phones.evaluate(arguments(speech, checkpoint, out, baselines=True, hidden=(16,)), seconds=12.0)
    assert [record.method for record in found] == ["majority", "MFCC", "untrained", "CPC"]
    by_method = {record.method: record for record in found}
    assert [by_method[name].seconds for name in ("MFCC", "CPC")] == [None, 12.0]
    blind = by_method["majority"].results[0]
    for name, layer in (("MFCC", "mfcc"), ("CPC", "latents"), ("CPC", "context")):
        assert values(by_method[name])[layer, "linear", "+0"] > max(0.85, blind.value + 0.3), (name, layer)
    assert set(values(by_method["CPC"])) == {
        (layer, head, "+0") for layer in ("context", "latents") for head in ("linear", "hidden 16")
    }

    # The file of results holds the records, and the file beside it what each utterance adds to them.
    assert records.read(out) == found
    assert str(tmp_path) not in out.read_text()
    counts = json.loads((tmp_path / "phones.json").read_text())
    assert set(counts) == {"MFCC", "untrained", "CPC"}
    tested = speech.test.read_text().split()
    for record in found[1:]:
        for r in record.results:
            head = counts[record.method][f"{r.details['layer']} {r.protocol} +0"]
            assert head["utterances"] == tested
            (correct,) = head["correct"].values()
            assert all(0 <= c <= t for c, t in zip(correct, head["total"]))
            assert r.value == pytest.approx(sum(correct) / sum(head["total"]), abs=1e-4)
            assert r.details["frames"] == sum(head["total"])
            assert r.details["low"] <= r.value <= r.details["high"]  # type: ignore[operator]
            assert (r.details["train"], r.details["test"]) == (21, 3)
    # All labels count but the last of each utterance, whose frame is past the end, where there is such a one.
    labels = sum(len(speech.phones()[name]) for name in tested)
    assert labels - 3 <= sum(counts["CPC"]["context linear +0"]["total"]) <= labels

    # What pretraining saw is said, and stands in the record.
    said = capsys.readouterr().out
    assert "of the train split, 21 of 21 utterances and 3 of 3 speakers" in said
    assert "of the test split, 0 of 3 utterances and 3 of 3 speakers" in said
    details = by_method["CPC"].results[0].details
    assert "0 of 3 utterances" in str(details["pretraining saw of test"])
    assert details["input"] == "utterances"
    assert "pretraining saw of test" not in by_method["untrained"].results[0].details


def test_labels_without_relation_to_the_sound_give_about_the_majority(
    speech: Speech, checkpoint: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    labels = {name: random.choice(4, size=len(ids), p=(0.6, 0.2, 0.1, 0.1)) for name, ids in speech.phones().items()}
    write_cpc_labels(tmp_path / "labels.txt", labels)
    task = arguments(speech, checkpoint, tmp_path / "results.json", labels=tmp_path / "labels.txt", baselines=True)
    found = {record.method: record for record in phones.evaluate(task)}
    blind = found["majority"].results[0]
    assert blind.value == pytest.approx(0.6, abs=0.08)
    assert blind.details["class"] == 0
    for method in ("MFCC", "untrained", "CPC"):
        for value in values(found[method]).values():
            assert blind.value - 0.2 < value < blind.value + 0.05, method  # 2,000 frames are few: they are overfitted


def test_the_majority_is_that_of_the_training_split() -> None:
    labels = {"a": np.array([1, 1, 0]), "b": np.array([0, 0, 0, 1])}
    found = majority(labels, ["a"], ["b"])
    assert (found.value, found.details["class"], found.details["frames"]) == (0.25, 1, 4)


def test_offsets_are_frames_past_the_nearest() -> None:
    """Features that are the label of the frame 3 frames before: at offset +3 they are read, at 0 they are not."""
    random = np.random.default_rng(0)
    labels = {f"u{i}": random.integers(4, size=200) for i in range(6)}
    frames = []
    for ids in labels.values():
        shown = np.full(202, -1)
        shown[1 + 3 : 1 + 3 + 198] = ids[:198]  # frame = label + 1 is the nearest for a centre of 79.5
        frames.append(torch.nn.functional.one_hot(torch.tensor(shown) + 1, 5).float())
    lengths = torch.full((6,), 202)
    features = FrameFeatures(torch.cat(frames), tuple(labels), 202 * torch.arange(6), lengths)
    probe = probe_phones(
        Frames({"latents": features}, 79.5),
        labels,
        ["u0", "u1", "u2", "u3"],
        ["u4", "u5"],
        classes=4,
        offsets=(0, 3, -1),
        hidden=(8,),
        protocol="stec",
        seed=0,
    )
    accuracy = {(r.details["offset"], r.protocol): r.value for r in probe.results}
    assert set(accuracy) == {(o, h) for o in ("+0", "+3", "-1") for h in ("linear", "hidden 8")}
    assert accuracy["+3", "linear"] == accuracy["+3", "hidden 8"] == 1.0
    assert accuracy["+0", "linear"] < 0.5
    assert accuracy["-1", "linear"] < 0.5
    # A later offset pushes labels past the end: 202 frames hold labels 0 to 200 - offset.
    assert {h: int(c.total[0]) for h, c in probe.counts.items() if "linear" in h} == {
        "latents linear +0": 200,
        "latents linear +3": 198,
        "latents linear -1": 200,
    }


@given(st.integers(1, 60), st.integers(0, 3), st.sampled_from([79.5, 20.5, 232.5, 200.0]))
def test_every_frame_has_the_label_nearest_in_time(n_labels: int, more: int, centre: float) -> None:
    labels = np.arange(n_labels)
    features = FrameFeatures(
        torch.zeros(n_labels + more, 1), ("u",), torch.tensor([0]), torch.tensor([n_labels + more])
    )
    found = label_frames(features, {"u": labels}, Alignment.nearest(frame_centre=centre)).tolist()
    for frame, label in enumerate(found):
        apart = np.abs(160 * labels + 200.0 - (160 * frame + centre))
        if label >= 0:
            assert apart[label] == apart.min() <= 80
        else:
            assert apart.min() >= 80


def test_windows_have_a_context_of_their_own(speech: Speech, checkpoint: Path) -> None:
    """In an utterance of 2.2 windows the context begins anew with each, and frames stay evenly spaced."""
    encoder = load_learner(checkpoint)[0].encoder
    assert isinstance(encoder, CPCEncoder)
    corpus = Corpus.open(speech.cache)
    corpus.lengths, n = corpus.lengths.clone(), 45_056
    corpus.lengths[0] = n  # over the beginnings of the next ones: `Corpus` holds them one after the other
    corpus = corpus.subset([0])
    found = {
        context: encoder_frames(encoder, corpus, layers=("context",), context=context).any.values
        for context in ("utterances", "windows")
    }
    waveform = corpus.waveform(0)[None]
    with torch.no_grad():
        whole = encoder(waveform)[0][0]
        parts = torch.cat([encoder(waveform[:, i : i + 20_480])[0][0] for i in (0, 20_480, 40_960)])
    assert len(whole) == len(parts) == encoder.frames(n)
    torch.testing.assert_close(found["utterances"], whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["windows"], parts, rtol=1e-4, atol=1e-5)
    assert float((whole - parts)[128:140].abs().max()) > 1e-3


# extract_windows encodes a batch of no window before the tail of a short utterance, which a norm warns of.
@pytest.mark.filterwarnings("ignore:var_mean")
def test_utterances_shorter_than_a_window_are_probed_alike(speech: Speech, checkpoint: Path, tmp_path: Path) -> None:
    found = {}
    for context in ("utterances", "windows"):
        (found[context],) = phones.evaluate(
            arguments(speech, checkpoint, tmp_path / f"{context}.json", context=context)
        )
        assert found[context].results[0].details["input"] == context
    assert values(found["windows"]) == pytest.approx(values(found["utterances"]), abs=0.02)


def test_one_test_utterance_has_an_accuracy_and_no_interval(
    speech: Speech, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    split = write_split(tmp_path / "one.txt", ["1-10-0007"])
    words = f"--checkpoint {checkpoint} --corpus {speech.cache} --labels {speech.labels} --layers latents"
    words += f" --train-split {speech.train} --test-split {split} --out {tmp_path / 'results.json'}"
    monkeypatch.setattr(sys, "argv", ["phones", *words.split()])
    phones.main()
    (record,) = records.read(tmp_path / "results.json")
    (result,) = record.results
    assert result.value > 0.5
    assert "low" not in result.details
    assert f"{100 * result.value:.1f}" in capsys.readouterr().out


def test_features_in_files_give_the_same(speech: Speech, checkpoint: Path, tmp_path: Path) -> None:
    task = arguments(speech, checkpoint, tmp_path / "a.json")
    kept = dataclasses.replace(task, features=tmp_path / "features", out=tmp_path / "b.json")
    (one,), (other,) = phones.evaluate(task), phones.evaluate(kept)
    assert values(one) == values(other)
    assert {path.name for path in (tmp_path / "features").iterdir()} == {"context.bin", "latents.bin"}


def test_a_second_call_replaces_phones_and_keeps_other_stages(speech: Speech, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    task = arguments(speech, checkpoint, out, layers=("latents",))
    who = speakers.Arguments(checkpoint, speech.cache, protocols=("utterance",), layers=("latents",), out=out)
    phones.evaluate(dataclasses.replace(task, baselines=True))
    speakers.evaluate(who)
    phones.evaluate(task)
    assert sorted((record.stage, record.method) for record in records.read(out)) == [
        ("phones", "CPC"),
        ("speakers", "CPC"),
    ]


def test_few_rows_take_many_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LEAST_STEPS", 1000)
    assert [measure.head_settings("stec", rows)["epochs"] for rows in (100, 3_000, 60_000)] == [1000, 334, 20]
    assert measure.head_settings("gim-phones", 100) == PROTOCOLS["gim-phones"]
    assert PROTOCOLS["stec"]["epochs"] == 20


# --- phones: mistakes ------------------------------------------------------------------------------------------------


def test_splits_that_overlap(speech: Speech, checkpoint: Path, tmp_path: Path) -> None:
    both = write_split(tmp_path / "both.txt", [*speech.test.read_text().split(), "1-10-0000"])
    with pytest.raises(ValueError, match="1 utterances are in the training and in the test split: 1-10-0000"):
        phones.evaluate(arguments(speech, checkpoint, tmp_path / "r.json", test_split=both))


def test_some_unknown_utterances_are_counted_and_with_strict_refused(
    speech: Speech, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = speech.phones()
    del labels["2-20-0007"]
    write_cpc_labels(tmp_path / "labels.txt", {**labels, "9-9-9999": np.array([1, 2])})
    split = write_split(tmp_path / "test.txt", [*speech.test.read_text().split(), "9-9-9999"])
    task = arguments(
        speech, checkpoint, tmp_path / "r.json", labels=tmp_path / "labels.txt", test_split=split, layers=("latents",)
    )
    (record,) = phones.evaluate(task)
    assert record.results[0].details["test"] == 2
    said = capsys.readouterr().out
    words = "test.txt: 2 utterances; 1 without audio, such as 9-9-9999; 1 without labels, such as 2-20-0007, left out"
    assert words in said
    assert "train.txt" not in said
    with pytest.raises(ValueError, match=r"test.txt: 2 utterances; 1 without audio.*complete .*cache and .*labels"):
        phones.evaluate(dataclasses.replace(task, strict=True))


def test_all_utterances_unknown(speech: Speech, checkpoint: Path, tmp_path: Path) -> None:
    other = write_split(tmp_path / "other.txt", ["84-1-0000", "84-1-0001"])
    with pytest.raises(ValueError, match=r"other.txt: of 2 utterances of the split none has both audio and labels"):
        phones.evaluate(arguments(speech, checkpoint, tmp_path / "r.json", test_split=other))
    endings = write_split(tmp_path / "endings.txt", [f"{name}.flac" for name in speech.test.read_text().split()])
    with pytest.raises(ValueError, match=r"endings.txt: .*names differ in form.*write them alike"):
        phones.evaluate(arguments(speech, checkpoint, tmp_path / "r.json", test_split=endings))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids: ids[:-9], r"2-20-0003 has \d+ labels and \d+ samples, which take \d+ to \d+ labels"),
        (lambda ids: ids[::2], "labels of another rate; make them one every 160 samples"),
        (lambda ids: np.where(np.arange(len(ids)) == 5, 70_000, ids), "a label of 2-20-0003 is 70000"),
    ],
    ids=["short", "50 Hz", "large"],
)
def test_labels_that_do_not_fit(change: Any, words: str, speech: Speech, checkpoint: Path, tmp_path: Path) -> None:
    labels = speech.phones()
    write_cpc_labels(tmp_path / "labels.txt", {**labels, "2-20-0003": change(labels["2-20-0003"])})
    with pytest.raises(ValueError, match=words):
        phones.evaluate(arguments(speech, checkpoint, tmp_path / "r.json", labels=tmp_path / "labels.txt"))
    assert not (tmp_path / "r.json").exists()


def test_ids_beyond_the_inventory(speech: Speech, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "phones.txt").write_text("sil\nAA\nB\n")
    task = arguments(speech, checkpoint, tmp_path / "r.json", phones=tmp_path / "phones.txt")
    with pytest.raises(ValueError, match=r"labels.txt, line 1, 1-10-0000: label \d+ is 3, no id of 3 classes, 0 to 2"):
        phones.evaluate(task)
    (tmp_path / "phones.txt").write_text("sil\nAA\nB\nCH\nD\nEH\n")
    assert phones.read_task(task).classes == 6
    assert phones.read_task(dataclasses.replace(task, phones=None)).classes == len(PITCHES) == 4


def test_what_is_missing_is_named(speech: Speech, checkpoint: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "journal.jsonl").write_text("")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"labels": tmp_path / "nowhere.txt"}, "nowhere.txt cannot be read"),
        ({"test_split": tmp_path / "nowhere.txt"}, "nowhere.txt"),
        ({"corpus": tmp_path / "nowhere"}, "nowhere does not exist; make it with python -m recipes.audio.prepare"),
        ({"corpus": unfinished}, "unfinished is unfinished; run the command that prepares it again"),
        ({"corpus": speech.root}, "is no prepared corpus"),
        ({"checkpoint": tmp_path / "no.ckpt"}, "no checkpoint at .*no.ckpt"),
        ({"protocol": "oord"}, "no protocol 'oord'; there are stec, gim-phones"),
        ({"offsets": (5_000,)}, r"no labelled frame|no test frame has a label"),
    ]
    for change, words in changes:
        with pytest.raises(ValueError, match=words):
            phones.evaluate(arguments(speech, checkpoint, tmp_path / "r.json", **change))
    assert not (tmp_path / "r.json").exists()


# --- speakers --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=10, max_size=60), st.integers(2, 6), st.integers(0, 100))
def test_utterances_are_dealt_evenly(speaker: list[int], folds: int, seed: int) -> None:
    ids = torch.tensor(speaker)
    fold = speakers.deal(ids, folds, seed=seed)
    sizes = torch.bincount(fold, minlength=folds)
    assert fold.shape == ids.shape
    assert int(sizes.max() - sizes.min()) <= 1
    for who in set(speaker):
        mine = torch.bincount(fold[ids == who], minlength=folds)
        assert int(mine.max() - mine.min()) <= 1
    assert torch.equal(fold, speakers.deal(ids, folds, seed=seed))


def test_a_deal_depends_on_the_seed() -> None:
    ids = torch.arange(40) // 10
    assert not torch.equal(speakers.deal(ids, 5, seed=0), speakers.deal(ids, 5, seed=1))


def test_speakers_with_a_hum_of_their_own_are_recognised(
    speech: Speech, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    task = speakers.Arguments(checkpoint, speech.cache, baselines=True, folds=4, out=out)
    found = speakers.evaluate(task)
    assert [record.method for record in found] == ["MFCC", "untrained", "CPC"]
    assert records.read(out) == found
    by_protocol = {(record.method, r.details["layer"], r.protocol): r.value for record in found for r in record.results}
    for protocol in ("frame", "window", "utterance"):
        assert by_protocol["MFCC", "mfcc", protocol] > 0.75, protocol
    assert by_protocol["CPC", "latents", "frame"] > 0.4  # a third is chance, and the network is tiny
    rows = {r.protocol: r.details["rows"] for r in found[-1].results}
    assert rows["window"] == rows["utterance"] == 24  # utterances are shorter than a window
    corpus = Corpus.open(speech.cache)
    assert rows["frame"] == sum(int(n) // 160 for n in corpus.lengths)
    for r in found[-1].results:
        assert (r.details["speakers"], r.details["utterances"], r.details["folds"]) == (3, 24, 4)
        assert "21 of 24 utterances and 3 of 3 speakers" in str(r.details["pretraining saw"])
    assert "21 of 24 utterances" in capsys.readouterr().out


def test_every_utterance_is_tested_once_by_heads_that_have_not_seen_it() -> None:
    """Features that only name the utterance: nothing can be learnt of a speaker from other utterances."""
    n, frames = 30, 4
    values = torch.eye(n).repeat_interleave(frames, dim=0)
    features = FrameFeatures(values, tuple(map(str, range(n))), frames * torch.arange(n), torch.full((n,), frames))
    speaker = torch.arange(n) % 3
    fold = speakers.deal(speaker, 5, seed=0)
    (result,) = speakers.probe(Frames({"latents": features}, 0.0), speaker, fold, ("frame",), seed=0)
    assert result.value < 0.6
    assert result.details["rows"] == n * frames


def test_rows_of_every_protocol() -> None:
    lengths = torch.tensor([300, 100, 20, 0, 128])
    values = torch.arange(548.0)[:, None]
    features = FrameFeatures(values, ("a", "b", "c", "d", "e"), lengths.cumsum(0) - lengths, lengths)
    frame, owner = speakers.rows_of(features, "frame")
    assert torch.equal(frame, values)
    assert torch.bincount(owner, minlength=5).tolist() == lengths.tolist()
    window, owner = speakers.rows_of(features, "window")
    assert owner.tolist() == [0, 0, 1, 2, 4]  # 300 = 128 + 128 + 44, of which the last is too short to count
    assert window[:, 0].tolist() == [63.5, 191.5, 349.5, 409.5, 483.5]
    utterance, owner = speakers.rows_of(features, "utterance")
    assert owner.tolist() == [0, 1, 2, 4]
    assert utterance[:, 0].tolist() == [149.5, 349.5, 409.5, 483.5]


def test_speakers_that_are_not_known_or_too_few(speech: Speech, checkpoint: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(speech.root.rglob("*.flac"))[:4]:
        shutil.copy(path, flat)
    prepare(audio_folder(flat, speaker="none"), tmp_path / "nobody", workers=1)
    one = write_split(tmp_path / "one.txt", [f"1-10-000{i}" for i in range(8)])
    few = write_split(tmp_path / "few.txt", ["1-10-0000", "2-20-0000", "3-30-0000", "3-30-0001"])
    other = write_split(tmp_path / "other.txt", ["84-1-0000"])
    changes: list[tuple[dict[str, Any], str]] = [
        ({"corpus": tmp_path / "nobody"}, r"nobody knows 0 speakers of these utterances; prepare it.*--speaker folder"),
        ({"split": one}, "cache knows 1 speakers of these utterances"),
        ({"split": few}, "2 of 3 speakers of .*cache have one utterance alone, 1, 2; .* cut long files into several"),
        ({"folds": 1}, "--folds is 1; heads learn on all but one"),
        ({"split": other}, "other.txt: of 1 utterances of the split none"),
        ({"corpus": tmp_path / "nowhere"}, "nowhere does not exist"),
    ]
    task = speakers.Arguments(checkpoint, speech.cache, out=tmp_path / "r.json")
    for change, words in changes:
        with pytest.raises(ValueError, match=words):
            speakers.evaluate(dataclasses.replace(task, **change))


def test_speakers_of_one_utterance_are_left_out_and_named(
    speech: Speech, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One lone recording is no reason to read none, nor is one that lies outside the folders of speakers."""
    files = sorted(speech.root.rglob("*.flac"))
    lone = [tmp_path / "wavs" / name / "u.flac" for name in ("spk6", "spk7", "spk8", "spk9")]
    for path in (tmp_path / "wavs" / "stray.flac", *lone):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[0], path)
    for path in files:
        copy = tmp_path / "wavs" / path.name.split("-")[0] / path.name
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    prepare(audio_folder(tmp_path / "wavs", speaker="folder"), tmp_path / "cache", workers=1)
    task = speakers.Arguments(checkpoint, tmp_path / "cache", protocols=("utterance",), layers=("latents",))
    (found,) = speakers.evaluate(dataclasses.replace(task, out=tmp_path / "r.json"))
    said = capsys.readouterr().out
    assert "4 of 7 speakers have one utterance alone and are left out: spk6, spk7, spk8 and 1 more" in said
    assert "1 utterances are of no known speaker and are left out" in said
    (result,) = found.results
    assert (result.details["speakers"], result.details["utterances"]) == (3, 24)
    assert "24 utterances of 3 speakers" in found.data
    speakers.read_corpus(dataclasses.replace(task, corpus=speech.cache))
    assert "left out" not in capsys.readouterr().out


# --- surprise and comparison -----------------------------------------------------------------------------------------


def test_an_untrained_network_is_as_surprised_as_chance(speech: Speech, tmp_path: Path) -> None:
    for samples, candidates in ((None, 4 * 32), (6, 1 + 6)):
        config = tiny(speech, epochs=1, lr=0.0, samples=samples)
        outcome = train(config, tmp_path / f"run{samples}", quiet=True)
        learner, config, _ = load_learner(outcome.checkpoint)
        nats, over = surprise(learner, config, Corpus.open(speech.cache), passes=2)
        assert nats.details["chance"] == pytest.approx(math.log(candidates), abs=1e-4)
        assert nats.value == pytest.approx(math.log(candidates), abs=0.3)
        assert over.value == pytest.approx(nats.value - math.log(candidates), abs=2e-4)
        assert nats.details["windows"] == 2 * 3 * 8
        ahead = [float(str(nats.details[f"{k} ahead"])) for k in range(1, 13)]
        assert nats.value == pytest.approx(np.mean(ahead), abs=2e-4)
        again = surprise(learner, config, Corpus.open(speech.cache), passes=2)
        assert again == [nats, over]


def test_surprise_needs_a_group(speech: Speech, checkpoint: Path) -> None:
    learner, config, _ = load_learner(checkpoint)
    corpus = Corpus.open(speech.cache).subset(["1-10-0000", "1-10-0001", "2-20-0000"])
    with pytest.raises(ValueError, match=r"groups of 4 windows, and .*cache has 3 utterances of 5120 samples"):
        surprise(learner, config, corpus)


@pytest.mark.parametrize(("updates", "short"), [(10, True), (65, True), (66, False)])
def test_a_run_of_few_updates_is_said_to_be_too_short(
    updates: int, short: bool, speech: Speech, checkpoint: Path
) -> None:
    """BatchNorm's statistics of the start, which evaluation reads, weigh 0.9^n."""
    learner = build_learner(tiny(speech, normalisation="batch"), corpus=None, batches=None, classes=0)
    encoder = learner.encoder
    assert isinstance(encoder, CPCEncoder)
    encoder.train()
    random = torch.Generator().manual_seed(0)
    norm = next(module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.running_mean = torch.full_like(norm.weight, 1e6)
    with torch.no_grad():
        for _ in range(updates):
            encoder.latents(torch.randn(2, 1_600, generator=random))
    assert bool((norm.running_mean > 1e3).all()) == short  # more than a thousandth of 1e6
    found = surprise(learner, tiny(speech), Corpus.open(speech.cache), passes=1)
    record = record_of(tiny(speech, seed=7), found, seconds=None)
    captions = compare.captions([record])
    assert captions[0].startswith("c: features of the context, z: of the latents")
    assert (len(captions) == 2) == short
    if short:
        assert f"1 runs are short, such as cpc, seed 7, of {updates} updates" in captions[1]

    # Without BatchNorm there is nothing to be short of.
    learner, config, _ = load_learner(checkpoint)
    assert all("updates of BatchNorm" not in r.details for r in surprise(learner, config, Corpus.open(speech.cache)))


@pytest.fixture
def tiny_presets(monkeypatch: pytest.MonkeyPatch, speech: Speech) -> None:
    """Two small presets and the supervised one, at the size of tests."""
    of: dict[str, dict[str, Any]] = {
        "small-cpc": {},
        "small-pooled": {"time_insensitive": "pooled"},
        "small-supervised": {"supervised": True},
    }
    for name, changes in of.items():
        monkeypatch.setitem(presets.PRESETS, name, tiny(speech, preset=name, corpus=None, batch_group=2, **changes))


def call(main: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with these words, and with probes of a few steps."""
    monkeypatch.setattr(measure, "LEAST_STEPS", 20)
    monkeypatch.setattr(speakers, "STEPS", 20)
    monkeypatch.setitem(PROTOCOLS, "stec", {**PROTOCOLS["stec"], "epochs": 2})
    monkeypatch.setattr(sys, "argv", ["x", *words.split()])
    main()


@pytest.mark.usefixtures("tiny_presets")
def test_presets_are_compared_over_seeds_and_nothing_is_done_twice(
    speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # 5 held-out utterances, so that their surprise can be measured on groups of 2.
    train_names = speech.train.read_text().split()
    train_split = write_split(tmp_path / "train.txt", train_names[:-2])
    test_split = write_split(tmp_path / "test.txt", [*speech.test.read_text().split(), *train_names[-2:]])
    runs = tmp_path / "runs"
    words = f"small-cpc small-pooled --corpus {speech.cache} --seeds 0 1 --split {train_split} --epochs 1 --runs {runs}"
    words += f" --labels {speech.labels} --train-split {train_split} --test-split {test_split}"
    words += f" --speakers {speech.cache} --out {tmp_path / 'all.json'}"
    call(compare.main, words, monkeypatch)
    said = capsys.readouterr().out
    folders = [runs / f"{name}-seed{seed}" for name in ("small-cpc", "small-pooled") for seed in (0, 1)]
    assert sorted(path.name for path in runs.iterdir()) == sorted(folder.name for folder in folders)
    lines = [line for line in said.splitlines() if line.startswith("small-pooled - small-cpc, ")]
    assert {line.split(": ")[0].split(", ")[1] for line in lines} == {"context linear +0", "latents linear +0"}
    assert all("95 % interval" in line and "p " in line and "2 seeds; too narrow" in line for line in lines)
    headings = [line for line in said.splitlines() if line.startswith("run ")]
    order = [(seed, name) for seed in (0, 1) for name in ("small-cpc", "small-pooled")]
    assert headings == [f"run {i} of 4: {name}, seed {seed}" for i, (seed, name) in enumerate(order, start=1)]
    assert "\nc: features of the context, z: of the latents" in said

    # The lines are differences of what the runs' own files say.
    for line in lines:
        head = line.split(": ")[0].split(", ")[1]
        mean: dict[str, list[float]] = {}
        for folder in folders:
            (counts,) = [
                heads[head] for name, heads in json.loads((folder / "phones.json").read_text()).items() if "CPC" in name
            ]
            mean.setdefault(folder.name.split("-seed")[0], []).append(
                sum(counts["correct"][head]) / sum(counts["total"])
            )
        difference = 100 * (np.mean(mean["small-pooled"]) - np.mean(mean["small-cpc"]))
        assert float(line.split(": ")[1].split()[0]) == pytest.approx(difference, abs=0.006)

    found = records.read(tmp_path / "all.json")
    kinds = {(r.method, r.stage, r.seed) for r in found}
    pooled = "CPC + time-insensitive (pooled)"
    assert kinds >= {(m, s, k) for m in ("CPC", pooled) for s in ("phones", "speakers", "surprise") for k in (0, 1)}
    assert kinds >= {(m, "phones", k) for m in ("majority", "MFCC", "untrained") for k in (0, 1)}
    (held,) = [r for r in found if (r.method, r.stage, r.seed) == ("CPC", "surprise", 1)]
    assert "0 of 5 utterances" in str(held.results[0].details["pretraining saw"])
    assert held.results[0].details["windows"] == 4 * 4  # passes, and groups of 2 of the 5

    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    call(compare.main, words.replace("all.json", "all.md") + " --markdown", monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == before
    marked = capsys.readouterr().out
    assert [line for line in marked.splitlines() if line in lines] == lines
    assert "mean ± standard deviation over seeds" in said
    assert "| method" not in said
    assert "| method | seeds (mean ± SD) |" in marked
    written = (tmp_path / "all.md").read_text()
    assert "| method | seeds (mean ± SD) |" in written
    assert all(f"- {line}" in written for line in lines)
    assert "Oord et al." not in said + marked + written  # a few utterances are not the published task

    assert records.read(tmp_path / "all.json") == found

    with pytest.raises(ValueError, match=r"small-cpc-seed0 holds a run with other settings; give another --runs"):
        call(compare.main, words.replace("--epochs 1", "--epochs 2"), monkeypatch)

    # The same runs with another question are no answer to it.
    other = words.replace(str(test_split), str(write_split(tmp_path / "fewer.txt", test_split.read_text().split()[:4])))
    with pytest.raises(ValueError, match=r"was probed with other labels, splits or corpora; .*asked\.json"):
        call(compare.main, other, monkeypatch)


def test_differences_over_three_seeds_have_the_interval_of_students_t(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Phones gain 1, 2 and 3 points, seed by seed: 2 ± 4.3027 / sqrt(3). The seeds' own levels are no part of it."""
    found = []
    for seed, level in enumerate((0.5, 0.9, 0.1)):
        for name, gain in (("small-cpc", 0.0), ("small-pooled", 0.01 * (1 + seed))):
            details = {"layer": "context", "offset": "+0"}
            results = [records.Result("phone accuracy", level + gain, "linear", details)]
            config = dataclasses.replace(presets.preset(name), seed=seed)
            found.append(record_of(config, results, seconds=None, stage="phones"))
    monkeypatch.setattr(compare, "collect", lambda _: found)
    call(compare.main, f"small-cpc small-pooled --corpus {tmp_path} --runs {tmp_path}", monkeypatch)
    said = capsys.readouterr().out
    assert "Student's t" in said
    assert "+2.0 [-0.5,+4.5]" in said
    assert "bootstrap" not in said
    counts = {"correct": {"context linear +0": [5, 6]}, "total": [10, 10]}
    for seed in range(3):
        for name in ("small-cpc", "small-pooled"):
            file = tmp_path / f"{name}-seed{seed}" / "phones.json"
            file.parent.mkdir()
            file.write_text(json.dumps({presets.method(presets.preset(name)): {"context linear +0": counts}}))
    arguments = compare.Arguments(("small-cpc", "small-pooled"), tmp_path, runs=tmp_path)
    assert compare.differences(arguments) == []
    (line,) = compare.differences(dataclasses.replace(arguments, seeds=(0, 1)))
    assert "bootstrap over utterances and 2 seeds" in line


def test_the_supervised_baseline_learns_from_no_label_it_is_tested_on(speech: Speech, tmp_path: Path) -> None:
    arguments = compare.Arguments(
        ("small-supervised",), speech.cache, labels=speech.labels, train_split=speech.train, test_split=speech.test
    )
    assert compare.configure(arguments, "small-supervised", 0).split == speech.train
    task = phones.read_task(phones.Arguments(Path(), speech.cache, speech.labels, speech.train, speech.test))
    names = list(task.corpus.utterances)
    record = {"utterances": names, "speakers": ["1"] * len(names), "config": {"supervised": True}}
    with pytest.raises(ValueError, match=r"learnt from the labels of \d+ test utterances; train it with --split"):
        phones.seen(record, task)
    phones.seen({**record, "config": {"supervised": False}}, task)


def test_phones_and_speakers_are_read_in_one_pass_and_drawn(checkpoint: Path, speech: Speech, tmp_path: Path) -> None:
    """On splits that share speakers: the training split cut in two."""
    names = speech.train.read_text().split()
    cut = write_split(tmp_path / "a.txt", names[::2]), write_split(tmp_path / "b.txt", names[1::2])
    arguments = phones.Arguments(checkpoint, speech.cache, speech.labels, *cut, speakers=True, pictures=tmp_path / "p")
    (found,) = phones.evaluate(dataclasses.replace(arguments, out=tmp_path / "results.json"))
    frame = [r for r in found.results if r.metric == "speaker accuracy"]
    assert [(r.protocol, r.details["layer"]) for r in frame] == [("frame", "context"), ("frame", "latents")]
    assert all(1 / len(PITCHES) < r.value <= 1 for r in frame)
    assert len(list((tmp_path / "p").glob("*.png"))) == 3


@pytest.mark.parametrize("theirs", [False, True])
def test_published_numbers_end_the_probes_of_the_published_task_alone(
    theirs: bool,
    checkpoint: Path,
    speech: Speech,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the records of the real commands; those of the published task are theirs with its numbers put in."""
    made = {phones: phones.evaluate, speakers: speakers.evaluate}
    numbers = {"phones": 41, "train": 22_800, "test": 5_700, "speakers": 251, "utterances": 28_539}
    for module in (phones, speakers):

        def evaluate(arguments: Any, module: Any = module) -> list[records.Record]:
            found = made[module](arguments)
            if not theirs:
                return found
            return [
                dataclasses.replace(
                    r, results=[dataclasses.replace(x, details={**x.details, **numbers}) for x in r.results]
                )
                for r in found
            ]

        monkeypatch.setattr(module, "evaluate", evaluate)
    words = f"--checkpoint {checkpoint} --corpus {speech.cache} --out {tmp_path / 'results.json'}"
    task = f" --labels {speech.labels} --train-split {speech.train} --test-split {speech.test}"
    for module, line in ((phones, words + task), (speakers, words)):
        call(module.main, line, monkeypatch)
        assert ("Oord et al." in capsys.readouterr().out) == theirs, module.__name__


def test_the_picture_of_accuracies_is_given_the_baselines(
    checkpoint: Path, speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("recipes.audio.phones.pictures.draw_all", lambda *some, **more: given.update(more))
    arguments = phones.Arguments(
        checkpoint, speech.cache, speech.labels, speech.train, speech.test, pictures=tmp_path, baselines=True
    )
    found = phones.evaluate(dataclasses.replace(arguments, out=tmp_path / "results.json"))
    assert given["beside"] == {r.method: r.results for r in found if r.method in ("majority", "MFCC", "untrained")}
    assert len(given["beside"]) == 3


def test_rows_of_the_table_keep_apart_what_differs() -> None:
    """Two presets of one method, two stages of one protocol, and runs of one row that differ in a setting."""

    def of(preset: str, value: float, *, stage: str = "speakers", steps: int = 12) -> records.Record:
        result = records.Result("speaker accuracy", value, "frame", {"layer": "context"})
        return records.record(
            method="CPC",
            preset=preset,
            data="",
            seed=0,
            seconds=None,
            results=[result],
            settings={"steps": steps},
            stage=stage,
        )

    text = table.speech([of("cpc", 0.6), of("gim", 0.2), of("gim", 0.9, stage="phones")])
    assert "| CPC (cpc) | 1 | 60.0 |  |" in text
    assert "| CPC (gim) | 1 | 20.0 | 90.0 |" in text
    with pytest.raises(ValueError, match="runs of CPC differ in steps"):
        table.speech([of("cpc", 0.6), of("cpc", 0.6, steps=4)])
    wide, narrow, either = (
        dataclasses.replace(of("cpc", 0.6), settings={"precision": p}) for p in ("32-true", "bf16-mixed", "auto")
    )
    table.speech([narrow, either])
    with pytest.raises(ValueError, match="runs of CPC differ in precision"):
        table.speech([narrow, wide])


@pytest.mark.usefixtures("tiny_presets")
def test_an_interrupted_comparison_is_taken_up(
    speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(speech.cache.parent)  # a relative path, as people type it
    words = f"small-cpc --corpus {speech.cache.name} --seeds 0 --runs {tmp_path / 'runs'}"
    call(compare.main, words, monkeypatch)
    folder = tmp_path / "runs" / "small-cpc-seed0"
    whole = load_checkpoint(newest(folder)).weights
    (result, _) = records.read(folder / "results.json")[0].results
    # Nothing is held out of this call, and the record says so.
    assert "24 of 24 utterances" in str(result.details["pretraining saw"])
    for path in (folder / "done", folder / "results.json", folder / "checkpoints" / "step=6.ckpt"):
        path.unlink()
    call(compare.main, words, monkeypatch)
    again = load_checkpoint(newest(folder)).weights
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert records.read(folder / "results.json")[0].results[0].value == result.value
    assert "points, 95 % interval" not in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_presets")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("small-cpc small-pool --corpus {cache}", "no preset 'small-pool'; the nearest are small-pooled"),
        ("small-cpc small-cpc --corpus {cache}", "name one or more, each once"),
        ("--corpus {cache}", "name one or more, each once"),
        (
            "small-cpc --corpus {cache} --labels {labels}",
            "with --labels, --train-split and --test-split; give all three",
        ),
        ("small-cpc small-supervised --corpus {cache}", "small-supervised learns from phone labels; give --labels"),
        ("small-cpc --corpus {cache} --epochs -1", "epochs is -1"),
        ("small-cpc --corpus nowhere", "nowhere does not exist"),
    ],
)
def test_mistakes_in_a_comparison_are_found_before_training(
    words: str, message: str, speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words.format(cache=speech.cache, labels=speech.labels) + f" --runs {tmp_path / 'runs'}"
    with pytest.raises(ValueError, match=message):
        call(compare.main, words, monkeypatch)
    assert not list(tmp_path.rglob("*.ckpt"))


# --- quickstart ------------------------------------------------------------------------------------------------------


def test_the_quickstart_ends_and_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("espeakng_loader") is None:
        pytest.skip('espeakng_loader is not installed: pip install -e ".[synthesis]"')
    for name in ("small-cpc", "small-pooled"):
        small = dataclasses.replace(presets.PRESETS[name], channels=16, context_dim=16, batch_size=8, warmup_epochs=0)
        monkeypatch.setitem(presets.PRESETS, name, small)
    out = tmp_path / "quick"
    (out / "speech.partial").mkdir(parents=True)  # what an interrupted one leaves behind
    (out / ".quickstart-audio").write_text("")
    call(quickstart.main, f"--out {out} --speakers 4 --minutes 1.5 --epochs 1", monkeypatch)
    assert {path.name for path in out.iterdir()} == {
        ".quickstart-audio",
        *("speech", "cache", "cpc", "time-insensitive", "pictures", "results.json"),
    }
    assert {path.suffix for path in (out / "pictures").iterdir()} == {".png"}
    found = records.read(out / "results.json")
    methods = {"majority", "MFCC", "untrained", "CPC", "CPC + time-insensitive (pooled)"}
    assert {record.method for record in found} == methods
    assert {(record.method, record.stage) for record in found} >= {(m, "speakers") for m in methods - {"majority"}}
    assert all(0 < r.value <= 1 for record in found for r in record.results)
    said = capsys.readouterr().out
    assert all(name in said for name in ("majority", "MFCC", "untrained", "s in all. Pictures:"))
    assert "\nc: features of the context, z: of the latents" in said
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes.txt"):
        call(quickstart.main, f"--out {out}", monkeypatch)
