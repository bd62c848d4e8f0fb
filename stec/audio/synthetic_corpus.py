"""A corpus of synthetic speech in the shape of LibriSpeech, with the files of the CPC task: labels and splits."""

import errno
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from stec.audio import espeak
from stec.audio.espeak import PHONES
from stec.audio.synthetic import RATE, Utterance, cpc_labels, draw_speaker, utterance

_UTTERANCES_OF_CHAPTER = 20
_FORMAT = 1  # of the corpus: raise it with every change that alters a byte


class Summary(NamedTuple):
    """What a corpus holds: `frames` counts the labels (100 Hz) of each phone in the order of `PHONES`."""

    speakers: int
    test_speakers: int
    utterances: int
    minutes: float
    frames: dict[str, int]


def write_corpus(
    out: Path,
    *,
    speakers: int,
    minutes: float,
    seed: int,
    test_share: float = 0.2,
    workers: int = 1,
    progress: Callable[[Summary], None] | None = None,
) -> Summary:
    """Write a corpus of `minutes` in all, equal for each speaker, into the new folder `out`, and tell what it holds.

    `out` has LibriSpeech/synthetic/<speaker>/<chapter>/ with FLAC files and transcripts, labels.txt (the text format of
    CPC labels), phones.txt (names in the order of ids), train_split.txt and test_split.txt with no speaker in common
    (`test_share` of the speakers, at least 2, are for testing), and CORPUS.json. For one seed and one set of library
    versions the files are the same to the byte, whatever `workers`, the number of processes. `progress` gets the sum of
    what is done after each speaker.

    All is written into `out`.partial and moved when whole. An interrupted call goes on with the next speaker when it is
    repeated; a whole corpus of the same settings is left as it is. Raises ValueError for settings that make no corpus,
    for a folder that holds something else, and where nothing can be written.
    """
    out = Path(out).expanduser().absolute()
    partial = out.with_name(out.name + ".partial")
    settings = _settings(speakers=speakers, minutes=minutes, seed=seed, test_share=test_share)
    if (whole := _whole(out, settings)) is not None:
        return whole
    try:
        _begin(partial, out, settings)
        samples = minutes * 60 * RATE / speakers
        done = Summary(0, settings["test_speakers"], 0, 0.0, dict.fromkeys(PHONES, 0))
        for record in _speakers(partial, speakers, samples=samples, seed=seed, workers=workers):
            done = _add(done, record)
            if progress:
                progress(done)
        _finish(partial, out, settings)
    except OSError as error:
        cure = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name a folder that can be written"
        raise ValueError(
            f"cannot write {error.filename or partial}: {error.strerror or error}; {cure} and repeat the command, "
            f"speakers that are finished in {partial} are kept"
        ) from error
    return done


def _settings(*, speakers: int, minutes: float, seed: int, test_share: float) -> dict[str, Any]:
    """What was asked for, checked."""
    if seed < 0:
        raise ValueError(f"seed is {seed}; give one of at least 0")
    if not 0 < minutes < float("inf"):
        raise ValueError(f"minutes is {minutes}; ask for more than 0")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share is {test_share}; give a share of the speakers between 0 and 1")
    test_speakers = max(2, round(test_share * speakers))
    if speakers <= test_speakers:
        raise ValueError(
            f"of {speakers} speakers {test_speakers} would be for testing and none for training; ask for more speakers"
        )
    return {
        "format": _FORMAT,
        "speakers": speakers,
        "minutes": float(minutes),
        "seed": seed,
        "test_share": test_share,
        "test_speakers": test_speakers,
    }


def _versions() -> dict[str, str]:
    """Of the libraries that decide the bytes."""
    return {
        "espeak-ng": espeak.version(),
        "numpy": np.__version__,
        "soxr": soxr.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
    }


def _whole(out: Path, settings: dict[str, Any]) -> Summary | None:
    """What `out` holds where it is a whole corpus of these settings; None where there is nothing yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not out.is_dir() or not (out / "CORPUS.json").is_file():
        raise ValueError(f"{out} holds something else than a synthetic corpus; name a new folder")
    record = _read(out / "CORPUS.json")
    _same(out, record["settings"], settings)
    return Summary(**record["holds"])


def _begin(partial: Path, out: Path, settings: dict[str, Any]) -> None:
    """A folder for what is not whole, or that of an interrupted call with the same settings."""
    asked = settings | _versions()
    if out.exists():  # empty; now, for a folder that cannot be removed could not be replaced at the end
        out.rmdir()
    if (partial / "settings.json").is_file():
        _same(partial, _read(partial / "settings.json"), asked)
        return
    if partial.exists() and any(partial.iterdir()):
        raise ValueError(f"{partial} is needed for what is not whole of {out}, but holds something else; move it away")
    partial.mkdir(parents=True, exist_ok=True)
    _write(partial / "settings.json", json.dumps(asked, indent=1).encode())


def _same(folder: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    differ = [f"{key} {there.get(key)} there, {value} here" for key, value in asked.items() if there.get(key) != value]
    if differ:
        raise ValueError(
            f"{folder} was made with other settings ({'; '.join(differ)}); name a new folder, or remove this one"
        )


def _speakers(partial: Path, speakers: int, *, samples: float, seed: int, workers: int) -> Iterator[dict[str, Any]]:
    """The records of all speakers, as they are finished: those of an interrupted call first."""
    missing = []
    for index in range(speakers):
        if (record := _record_path(partial, index)).is_file():
            yield _read(record)
        else:
            missing.append(index)
    if workers <= 1 or len(missing) <= 1:
        for index in missing:
            yield _write_speaker(partial, index, samples=samples, seed=seed)
        return
    # Processes, for espeak-ng has one state for each; spawned, for a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(min(workers, len(missing)), mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = [pool.submit(_write_speaker, partial, index, samples=samples, seed=seed) for index in missing]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _record_path(partial: Path, index: int) -> Path:
    return partial / "speakers" / f"{index:05d}.json"


def _write_speaker(partial: Path, index: int, *, samples: float, seed: int) -> dict[str, Any]:
    """Write the utterances of a speaker, at least `samples` in all, and at last the record that says so."""
    speaker = draw_speaker(index, seed=seed)
    names: list[str] = []
    lines: list[str] = []
    transcripts: dict[str, list[str]] = {}
    frames = np.zeros(len(PHONES), dtype=np.int64)
    said_samples = 0
    while said_samples < samples:
        said = utterance(speaker, len(names), seed=seed)
        chapter, number = divmod(len(names), _UTTERANCES_OF_CHAPTER)
        folder = f"{speaker.name}{chapter:02d}"  # chapters of LibriSpeech are numbered through all speakers
        name = f"{speaker.name}-{folder}-{number:04d}"
        path = partial / "LibriSpeech" / "synthetic" / speaker.name / folder / f"{name}.flac"
        _write(path, _flac(said))
        labels = cpc_labels(said)
        lines.append(f"{name} {' '.join(map(str, labels.tolist()))}")
        transcripts.setdefault(folder, []).append(f"{name} {_plain(said.text)}")
        frames += np.bincount(labels, minlength=len(PHONES))
        said_samples += len(said.waveform)
        names.append(name)
    for folder, texts in transcripts.items():
        path = partial / "LibriSpeech" / "synthetic" / speaker.name / folder / f"{speaker.name}-{folder}.trans.txt"
        _write(path, _text(texts))
    record = {
        "speaker": speaker.name,
        "voice": speaker._asdict(),
        "utterances": names,
        "samples": said_samples,
        "frames": dict(zip(PHONES, frames.tolist())),
    }
    _write(_record_path(partial, index).with_suffix(".labels"), _text(lines))
    _write(_record_path(partial, index), json.dumps(record).encode())
    return record


def _finish(partial: Path, out: Path, settings: dict[str, Any]) -> None:
    """The files over all speakers, CORPUS.json last, and the move."""
    records = [_read(_record_path(partial, index)) for index in range(settings["speakers"])]
    labels = [_record_path(partial, index).with_suffix(".labels").read_bytes() for index in range(len(records))]
    _write(partial / "labels.txt", b"".join(labels))
    _write(partial / "phones.txt", _text(PHONES))
    # The last speakers test: women and men, for these alternate, of voices that no other has.
    first_test = len(records) - settings["test_speakers"]
    for split, part in (("train", records[:first_test]), ("test", records[first_test:])):
        _write(partial / f"{split}_split.txt", _text([name for record in part for name in record["utterances"]]))
    done = Summary(0, settings["test_speakers"], 0, 0.0, dict.fromkeys(PHONES, 0))
    for record in records:
        done = _add(done, record)
    corpus = {
        "settings": settings,
        "versions": _versions(),
        "holds": done._asdict(),
        "voices": {record["speaker"]: record["voice"] for record in records},
    }
    _write(partial / "CORPUS.json", (json.dumps(corpus, indent=1) + "\n").encode())
    shutil.rmtree(partial / "speakers")
    (partial / "settings.json").unlink()
    partial.replace(out)


def _add(done: Summary, record: dict[str, Any]) -> Summary:
    return done._replace(
        speakers=done.speakers + 1,
        utterances=done.utterances + len(record["utterances"]),
        minutes=done.minutes + record["samples"] / (60 * RATE),
        frames={name: count + record["frames"][name] for name, count in done.frames.items()},
    )


def _flac(said: Utterance) -> bytes:
    # In memory first: libsndfile does not tell in every case that a disk is full.
    buffer = io.BytesIO()
    soundfile.write(buffer, said.waveform, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _plain(text: str) -> str:
    """As LibriSpeech transcribes: capitals, no punctuation but the apostrophe."""
    return " ".join("".join(c if c.isalpha() or c == "'" else " " for c in text.upper()).split())


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove the folder {path.parent}") from error
    assert isinstance(record, dict)
    return record


def _write(path: Path, data: bytes) -> None:
    """A whole file or none, for what is there counts as finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
