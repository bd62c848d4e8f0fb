"""Synthetic speech: sound and labels agree, an utterance depends on nothing but its arguments, what is refused."""

import _ctypes
import ctypes
import errno
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stec.audio import espeak, synthetic, synthetic_corpus
from stec.audio.cpc_labels import read_cpc_labels
from stec.audio.espeak import ACCENTS, PHONES, speak
from stec.audio.grammar import WORDS, compose
from stec.audio.labels import Intervals
from stec.audio.sentences import SENTENCES, draw_sentence
from stec.audio.synthetic import RATE, Speaker, Utterance, cpc_labels, draw_speaker, synthesise, utterance
from stec.audio.synthetic_corpus import Summary, write_corpus

pytest.importorskip("espeakng_loader", reason='no espeak-ng: pip install -e ".[synthesis]"')

VOWELS = ["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"]
STOPS = ["P", "T", "K", "B", "D", "G"]
SMALL: dict[str, Any] = {"speakers": 4, "minutes": 1.0, "seed": 3}  # 15 s a speaker: at least 2 utterances


# --- espeak


def test_what_is_said_does_not_depend_on_what_was_said_before() -> None:
    def say(variant: str) -> espeak.Spoken:
        return speak("The quick brown fox was late.", accent="en-US", variant=variant)

    for variant in ("m1", "f2", "klatt2"):  # with flutter; with echo and breath; another synthesiser
        first = say(variant)
        speak("Seven zebras.", accent="en", variant="klatt4", words_per_minute=220, pitch=80, pitch_range=10)
        again = say(variant)
        assert np.array_equal(first.samples, again.samples)
        assert np.array_equal(first.starts, again.starts)


def test_voice_rate_and_pitch_are_heard() -> None:
    text = "A short sentence to be said."
    plain = speak(text, accent="en-US", variant="m3")
    assert len(speak(text, accent="en-US", variant="m3", words_per_minute=120).samples) > 1.2 * len(plain.samples)
    for other in (
        speak(text, accent="en-US", variant="f1"),
        speak(text, accent="en-US", variant="m3", pitch=80),
        speak(text, accent="en-US", variant="m3", pitch_range=90),
        speak(text, accent="en-GB-scotland", variant="m3"),
    ):
        n = min(len(other.samples), len(plain.samples))
        assert not np.array_equal(other.samples[:n], plain.samples[:n])


def test_phones_of_known_words() -> None:
    def phones(text: str, accent: str) -> str:
        return " ".join(speak(text, accent=accent, variant="m3").phones)

    assert phones("Good boy.", "en-US") == "sil G UH D B OY sil"
    assert phones("Measure the bath.", "en-US") == "sil M EH ZH ER DH AH B AE TH sil"
    assert phones("Measure the bath.", "en-GB-x-rp") == "sil M EH ZH AH DH AH B AA TH sil"


@pytest.mark.parametrize("accent", ACCENTS)
def test_every_sentence_has_known_phones(accent: str) -> None:
    generator = np.random.default_rng(0)
    words = [". ".join(choices) for choices in WORDS.values()]
    texts = [" ".join(SENTENCES[i : i + 20]) for i in range(0, len(SENTENCES), 20)]
    texts += [*words, " ".join(compose(generator) for _ in range(40))]
    heard: set[str] = set()
    for text in texts:
        spoken = speak(text, accent=accent, variant="m3", words_per_minute=400)
        heard.update(spoken.phones)
        assert spoken.starts[0] == 0
        assert (np.diff(spoken.starts, append=len(spoken.samples)) > 0).all()
    assert heard == set(PHONES)


def test_unknown_phoneme_is_no_silence() -> None:
    with pytest.raises(ValueError, match=r"'q\^' in 'Qaf.' \(en\) has no class"):
        espeak._phone("q^", accent="en", text="Qaf.")


def test_closure_belongs_to_the_stop_and_a_pause_to_silence() -> None:
    # At 1,000 Hz: sound to 200, a pause to 260, sound to 400, a pause to 600, sound; events where the pauses end.
    samples = np.full(800, 1000, dtype=np.int16)
    samples[200:260] = samples[400:600] = 0
    starts, names = espeak._with_closures(samples, 1000, [0, 260, 600], ["AA", "T", "K"])
    assert names == ("AA", "T", "sil", "K")  # the pause of T is 60 ms; of that of K, 200 ms, it takes 100
    assert starts.tolist() == [0, 200, 400, 500]
    starts, names = espeak._with_closures(samples, 1000, [0, 260, 600], ["AA", "S", "M"])
    assert names == ("AA", "sil", "S", "sil", "M")
    assert starts.tolist() == [0, 200, 260, 400, 600]
    samples[220:260] = 1000  # 20 ms are not worth a silence
    assert espeak._with_closures(samples, 1000, [0, 220], ["AA", "S"])[0].tolist() == [0, 220]


def test_phones_without_length_are_dropped() -> None:
    samples = np.full(100, 1000, dtype=np.int16)
    starts, names = espeak._with_closures(samples, 1000, [10, 50, 50, 80, 80], ["R", "L", "AA", "sil", "sil"])
    assert (starts.tolist(), names) == ([0, 10, 50, 80], ("sil", "R", "AA", "sil"))
    starts, names = espeak._with_closures(samples, 1000, [10, 50, 80], ["R", "sil", "sil"])  # one silence
    assert (starts.tolist(), names) == ([0, 10, 50], ("sil", "R", "sil"))


def test_voice_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no voice variant 'nonsense'; it has .*, f1, .*, m7,"):
        speak("Hello.", accent="en", variant="nonsense")
    with pytest.raises(ValueError, match="no accent 'fr'; there are en-US, en"):
        speak("Hello.", accent="fr", variant="f1")
    with pytest.raises(ValueError, match="says nothing to ''"):
        speak("", accent="en", variant="f1")


def test_missing_espeak_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    espeak._paths.cache_clear()
    monkeypatch.setattr("stec.audio.espeak.importlib.import_module", missing)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[synthesis\]"'):
        speak("Hello.", accent="en", variant="f1")
    with pytest.raises(ValueError, match=r'pip install -e "\.\[synthesis\]"'):
        write_corpus(tmp_path / "corpus", **SMALL)
    espeak._paths.cache_clear()
    assert not any(tmp_path.iterdir())


def test_data_in_a_folder_of_a_long_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = speak("Hello.", accent="en", variant="f1").samples
    library, data = espeak._paths()
    deep = tmp_path / ("x" * 90) / ("y" * 90)  # the library takes no more than 160 bytes
    deep.mkdir(parents=True)
    (deep / "data").symlink_to(data)
    monkeypatch.setattr(espeak, "_paths", lambda: (library, deep / "data"))
    espeak._link.cache_clear()
    assert np.array_equal(speak("Hello.", accent="en", variant="f1").samples, expected)
    espeak._link().cleanup()
    espeak._link.cache_clear()


def test_damaged_data_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = espeak._paths()[0]
    monkeypatch.setattr(espeak, "_paths", lambda: (library, tmp_path))
    with pytest.raises(ValueError, match=f"cannot read its data in {tmp_path}; pip install"):
        espeak.version()


def test_library_in_use_by_others_is_refused() -> None:
    other = ctypes.CDLL(str(espeak._paths()[0]))
    try:
        with pytest.raises(ValueError, match="in use by another part of this process"):
            speak("Hello.", accent="en", variant="f1")
    finally:
        _ctypes.dlclose(other._handle)
    assert espeak.version().startswith("1.")


# --- text


def test_sentences() -> None:
    assert len(set(SENTENCES)) == len(SENTENCES) >= 250
    assert all(6 <= len(sentence.split()) <= 16 and sentence[-1] in ".?" for sentence in SENTENCES)
    generator = np.random.default_rng(0)
    drawn = [draw_sentence(generator) for _ in range(1300)]
    assert len(set(drawn)) > 1200
    assert not any("{" in sentence or " a o" in sentence or " an us" in sentence for sentence in drawn)


# --- utterances


def intervals(said: Utterance) -> list[tuple[int, int, str]]:
    """From and to which sample, and the phone."""
    phones = said.phones
    return [(round(s * RATE), round(e * RATE), name) for s, e, name in zip(phones.starts, phones.ends, phones.names)]


def labels_by_loop(said: Utterance) -> list[int]:
    labels = []
    i = 0
    while 160 * i + 400 <= len(said.waveform):
        for start, end, name in intervals(said):
            if start <= 160 * i + 200 < end:
                labels.append(PHONES.index(name))
        i += 1
    return labels


def test_labels_are_the_phones_at_the_middles_of_frames() -> None:
    said = utterance(draw_speaker(1, seed=0), 0, seed=0)
    labels = cpc_labels(said)
    assert labels.dtype == np.int64
    assert len(labels) == (len(said.waveform) - 400) // 160 + 1
    assert labels.tolist() == labels_by_loop(said)
    edge = Intervals(np.array([0, 200, 361]) / RATE, np.array([200, 361, 720]) / RATE, ("AA", "B", "sil"))
    assert cpc_labels(Utterance(np.zeros(720, dtype=np.int16), edge, "")).tolist() == [7, 7, 0]


def test_utterance_is_a_function_of_seed_speaker_and_number() -> None:
    speaker = draw_speaker(0, seed=5)
    alone = utterance(speaker, 2, seed=5)
    for number in (0, 1):
        utterance(speaker, number, seed=5)
    utterance(draw_speaker(1, seed=5), 2, seed=5)
    again = utterance(speaker, 2, seed=5)
    assert np.array_equal(alone.waveform, again.waveform)
    assert alone.text == again.text
    assert alone.phones.names == again.phones.names
    texts = {utterance(draw_speaker(i, seed=s), n, seed=s).text for i in (0, 1) for n in (0, 1) for s in (5, 6)}
    assert len(texts) == 8


def test_utterance_is_whole() -> None:
    for index in range(6):
        said = utterance(draw_speaker(index, seed=1), index, seed=1)
        starts, ends, names = (np.array(column) for column in zip(*intervals(said)))
        assert 4 * RATE <= len(said.waveform) <= 14 * RATE
        assert starts[0] == 0
        assert ends[-1] == len(said.waveform)
        assert np.array_equal(starts[1:], ends[:-1])
        assert (ends > starts).all()
        assert names[0] == names[-1] == "sil"
        assert np.abs(said.waveform).max() < 32767


def test_utterance_of_another_length_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = draw_speaker(0, seed=0)
    monkeypatch.setattr(synthetic, "SHORTEST", 8.0)
    monkeypatch.setattr(synthetic, "LONGEST", 9.0)
    assert all(8 <= len(utterance(speaker, n, seed=0).waveform) / RATE <= 9 for n in range(3))


def frame_levels(said: Utterance) -> np.ndarray:
    """dB of the 10 ms around the middle of each label, relative to the utterance."""
    sound = said.waveform.astype(np.float64) ** 2
    frames = np.lib.stride_tricks.sliding_window_view(sound, 160)[120::160][: len(cpc_labels(said))]
    return 10 * np.log10(frames.mean(1) / sound.mean())


@pytest.fixture(scope="module")
def speech() -> list[Utterance]:
    return [utterance(draw_speaker(i, seed=0), n, seed=0) for i in range(12) for n in range(2)]


def test_sound_and_labels_agree(speech: list[Utterance]) -> None:
    levels = defaultdict(list)
    for said in speech:
        for label, level in zip(cpc_labels(said).tolist(), frame_levels(said)):
            levels[PHONES[label]].append(level)
    means = {name: float(np.mean(values)) for name, values in levels.items()}
    loudest_stop, faintest_vowel = max(means[name] for name in STOPS), min(means[name] for name in VOWELS)
    assert faintest_vowel > -3
    assert loudest_stop < -8
    assert means["sil"] < min(level for name, level in means.items() if name != "sil") - 5
    assert -50 < means["sil"] < -25  # noise, not nothing


def test_labels_fit_nowhere_better(speech: list[Utterance]) -> None:
    """How much of the variance of the level the labels explain, when they are shifted by whole frames."""

    def explained(shift: int) -> float:
        levels = np.concatenate([frame_levels(said)[10:-10] for said in speech])
        labels = np.concatenate([np.roll(cpc_labels(said), shift)[10:-10] for said in speech])
        within = sum(levels[labels == k].var() * (labels == k).sum() for k in np.unique(labels))
        return 1 - within / (levels.var() * len(levels))

    shares = {shift: explained(shift) for shift in range(-4, 5)}
    assert max(shares, key=shares.__getitem__) == 0, shares
    assert shares[0] > 0.7


def test_phones_last_as_phones_do(speech: list[Utterance]) -> None:
    lengths = defaultdict(list)
    for said in speech:
        for start, end, name in intervals(said):
            lengths[name].append((end - start) / RATE)
    mean = {name: np.mean(values) for name, values in lengths.items()}
    assert all(0.03 < value < 0.25 for name, value in mean.items() if name != "sil"), mean
    assert mean["OY"] > 1.5 * mean["IH"]
    frames = np.concatenate([cpc_labels(said) for said in speech])
    assert 0.1 < (frames == 0).mean() < 0.22


def quiet_speaker(**changes: Any) -> Speaker:
    return draw_speaker(3, seed=0)._replace(**changes)


def test_speaker_is_as_described() -> None:
    def measure(speaker: Speaker) -> tuple[float, float, int]:
        """dB of the speech to full scale, dB of the silence below it, samples."""
        said = synthesise(speaker, "We watched the show.", generator=np.random.default_rng(0))
        sound = (said.waveform / 32768) ** 2
        silent = np.zeros(len(sound), dtype=bool)
        for start, end, name in intervals(said):
            silent[start:end] = name == "sil"
        speech_power, lead = sound[~silent].mean(), sound[: intervals(said)[0][1]].mean()
        return 10 * np.log10(speech_power), 10 * np.log10(speech_power / lead), len(sound)

    for level, noise in ((-30, 25), (-22, 40)):
        measured_level, measured_noise, _ = measure(quiet_speaker(level=level, noise=noise))
        assert measured_level == pytest.approx(level, abs=1.6)
        assert measured_noise == pytest.approx(noise, abs=2.6)
    assert measure(quiet_speaker(tract=1.1))[2] < 0.95 * measure(quiet_speaker(tract=1.0))[2]


def test_noise_has_its_colour() -> None:
    for colour in (0.0, 1.0):
        noise = synthetic._noise(100_000, colour=colour, generator=np.random.default_rng(0))
        assert noise.std() == pytest.approx(1, abs=0.15)
        power = np.abs(np.fft.rfft(noise)) ** 2
        octaves = [power[low : 2 * low].mean() for low in (1_000, 4_000, 16_000)]
        assert octaves[0] / octaves[1] == pytest.approx(4**colour, rel=0.15)
        assert octaves[1] / octaves[2] == pytest.approx(4**colour, rel=0.15)


def test_speakers_differ() -> None:
    speakers = [draw_speaker(i, seed=0) for i in range(24)]
    assert len({speaker.variant for speaker in speakers}) == 24  # no voice twice
    assert {speaker.accent for speaker in speakers} == set(ACCENTS)
    assert all(s.variant in (synthetic._WOMEN, synthetic._MEN)[s.ordinal % 2].split() for s in speakers)
    assert speakers[5] == draw_speaker(5, seed=0) != draw_speaker(5, seed=1)
    assert speakers[5].name == "1006"
    assert len({draw_speaker(i, seed=0).pitch for i in range(60)}) == 60


# --- corpus


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "corpus"
    write_corpus(out, **SMALL)
    return out


def test_corpus_has_the_shape_of_librispeech(corpus: Path) -> None:
    assert sorted(path.name for path in corpus.iterdir()) == [
        "CORPUS.json",
        "LibriSpeech",
        "labels.txt",
        "phones.txt",
        "test_split.txt",
        "train_split.txt",
    ]
    assert not corpus.with_name("corpus.partial").exists()
    assert tuple((corpus / "phones.txt").read_text().split()) == PHONES
    labels = {
        line.split()[0]: np.array(line.split()[1:], int) for line in (corpus / "labels.txt").read_text().splitlines()
    }
    files = sorted((corpus / "LibriSpeech").rglob("*.flac"))
    assert [path.stem for path in files] == list(labels)
    for path in files:
        speaker, chapter, number = path.stem.split("-")
        assert path.parent == corpus / "LibriSpeech" / "synthetic" / speaker / chapter
        assert chapter.startswith(speaker)
        sound, rate = soundfile.read(path, dtype="int16")
        assert rate == 16_000
        assert len(labels[path.stem]) == (len(sound) - 400) // 160 + 1
        transcript = (path.parent / f"{speaker}-{chapter}.trans.txt").read_text().splitlines()[int(number)]
        assert transcript.split()[0] == path.stem
        assert transcript.split(" ", 1)[1].replace("'", "").replace(" ", "").isalpha()
        assert transcript == transcript.upper()
    splits = [(corpus / f"{part}_split.txt").read_text().split() for part in ("train", "test")]
    assert sorted(splits[0] + splits[1]) == sorted(labels)
    speakers = [{name.split("-")[0] for name in names} for names in splits]
    assert speakers == [{"1001", "1002"}, {"1003", "1004"}]
    record = json.loads((corpus / "CORPUS.json").read_text())
    assert record["holds"]["utterances"] == len(files)
    assert record["holds"]["minutes"] >= SMALL["minutes"]
    assert sum(record["holds"]["frames"].values()) == sum(map(len, labels.values()))
    assert record["versions"]["espeak-ng"] == espeak.version()
    assert record["voices"]["1002"]["variant"] == draw_speaker(1, seed=3).variant


def test_labels_of_a_corpus_are_read_as_those_of_the_cpc_task(corpus: Path) -> None:
    labels = read_cpc_labels(corpus / "labels.txt", classes=len(PHONES))
    said = utterance(draw_speaker(0, seed=3), 0, seed=3)
    assert np.array_equal(labels["1001-100100-0000"], cpc_labels(said))


def test_corpus_holds_the_utterances_that_are_said_alone(corpus: Path) -> None:
    said = utterance(draw_speaker(2, seed=3), 1, seed=3)
    sound, _ = soundfile.read(corpus / "LibriSpeech/synthetic/1003/100300/1003-100300-0001.flac", dtype="int16")
    assert np.array_equal(sound, said.waveform)
    lines = (corpus / "labels.txt").read_text().splitlines()
    line = next(line for line in lines if line.startswith("1003-100300-0001 "))
    assert line.split()[1:] == [str(label) for label in cpc_labels(said)]


def test_corpus_is_the_same_to_the_byte_with_any_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    seen: list[Summary] = []
    whole = write_corpus(tmp_path / "again", **SMALL, workers=2, progress=seen.append)
    assert contents(tmp_path / "again") == contents(corpus)
    assert [done.speakers for done in seen] == [1, 2, 3, 4]
    assert whole._replace(minutes=0) == write_corpus(corpus, **SMALL)._replace(minutes=0)


def test_interrupted_corpus_goes_on(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    def counted(speaker: Speaker, number: int, *, seed: int) -> Utterance:
        calls.append((speaker.ordinal, number))
        if calls[-1] == stop_at:
            raise KeyboardInterrupt
        return utterance(speaker, number, seed=seed)

    monkeypatch.setattr(synthetic_corpus, "utterance", counted)
    stop_at: tuple[int, int] | None = (1, 1)  # within the second speaker
    out = tmp_path / "corpus"
    with pytest.raises(KeyboardInterrupt):
        write_corpus(out, **SMALL)
    assert calls[-1] == (1, 1)
    assert not out.exists()  # nothing that looks whole
    stop_at, calls = None, []
    write_corpus(out, **SMALL)
    assert calls[0] == (1, 0)  # the first speaker is not said again
    assert contents(out) == contents(corpus)
    calls = []
    write_corpus(out, **SMALL)
    assert calls == []  # whole


def test_other_settings_and_other_folders_are_refused(corpus: Path, tmp_path: Path) -> None:
    before = contents(corpus)
    with pytest.raises(ValueError, match=r"other settings \(seed 3 there, 4 here\); name a new folder"):
        write_corpus(corpus, **{**SMALL, "seed": 4})
    assert contents(corpus) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="mine holds something else"):
        write_corpus(tmp_path / "mine", **SMALL)
    with pytest.raises(ValueError, match=r"thesis.txt holds something else"):
        write_corpus(tmp_path / "mine" / "thesis.txt", **SMALL)
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"new.partial is needed .* move it away"):
        write_corpus(tmp_path / "new", **SMALL)


def test_partial_corpus_of_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(done: Summary) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "corpus", **SMALL, progress=interrupt)
    with pytest.raises(ValueError, match=r"corpus.partial was made .* \(minutes 1.0 there, 0.5 here\)"):
        write_corpus(tmp_path / "corpus", **{**SMALL, "minutes": 0.5})
    monkeypatch.setattr(espeak, "version", lambda: "9.9")
    with pytest.raises(ValueError, match=r"espeak-ng .* there, 9.9 here"):
        write_corpus(tmp_path / "corpus", **SMALL)


def test_full_disk_is_told_and_loses_nothing(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 400_000
    write_bytes = Path.write_bytes

    def fill(path: Path, data: bytes) -> int:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        with pytest.raises(ValueError, match=r"cannot write .*flac.*: No space left on device; free some space"):
            write_corpus(tmp_path / "corpus", **SMALL)
    assert not (tmp_path / "corpus").exists()
    write_corpus(tmp_path / "corpus", **SMALL)
    assert contents(tmp_path / "corpus") == contents(corpus)


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file/corpus.partial.*; name a folder that can be written"):
        write_corpus(tmp_path / "file" / "corpus", **SMALL)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"speakers": 2}, "of 2 speakers 2 would be for testing"),
        ({"speakers": 0}, "of 0 speakers"),
        ({"minutes": 0.0}, "minutes is 0.0; ask for more"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"test_share": 1.0}, "test_share is 1.0"),
    ],
)
def test_settings_that_make_no_corpus(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        write_corpus(tmp_path / "corpus", **{**SMALL, **change})
    assert not any(tmp_path.iterdir())
