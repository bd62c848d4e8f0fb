"""Speech for tests: a phone is a tone of its own, a speaker is a hum and a chapter of their own."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from recipes.audio.presets import Config, preset
from stec.audio.cpc_labels import write_cpc_labels
from stec.audio.preparing import prepare
from stec.audio.sources import find_audio

RATE, HOP, RUN = 16_000, 160, 10  # a phone lasts 10 labels, 0.1 s
PITCHES = (350.0, 900.0, 1_800.0, 3_200.0)
HUMS = (5_000.0, 6_000.0, 7_000.0)


class Speech(NamedTuple):
    """A folder in LibriSpeech's layout, the cache made of it, and the files of the phone task."""

    root: Path
    cache: Path
    labels: Path
    train: Path
    test: Path

    def phones(self) -> dict[str, np.ndarray]:
        """The labels by utterance."""
        lines = (line.split() for line in self.labels.read_text().splitlines())
        return {name: np.array([int(i) for i in ids]) for name, *ids in lines}


def make_speech(folder: Path, *, speakers: int = 3, each: int = 8, seed: int = 0) -> Speech:
    """`each` utterances of 0.8 to 1.1 s by every speaker, the last of each for testing."""
    random = np.random.default_rng(seed)
    labels: dict[str, np.ndarray] = {}
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for s in range(speakers):
        for u in range(each):
            n = RATE * 8 // 10 + int(random.integers(RATE * 3 // 10))
            phones = random.integers(len(PITCHES), size=n // (RUN * HOP) + 1)
            # Label i is centred on sample 160 i + 200, so the phone of sample k is that of label (k - 120) / 160.
            of_sample = phones.repeat(RUN)[np.maximum(np.arange(n) - 120, 0) // HOP]
            phase = 2 * np.pi * np.cumsum(np.array(PITCHES)[of_sample]) / RATE
            hum = 0.05 * np.sin(2 * np.pi * HUMS[s] / RATE * np.arange(n))
            waveform = 0.1 * (1 + of_sample) * np.sin(phase) + hum + 0.003 * random.standard_normal(n)
            name = f"{s + 1}-{10 * s + 10}-{u:04d}"
            path = folder / "LibriSpeech" / "dev-clean" / str(s + 1) / str(10 * s + 10) / f"{name}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, waveform, RATE, subtype="PCM_16")
            labels[name] = phones.repeat(RUN)[: (n - 400) // HOP + 1]
            splits["test" if u == each - 1 else "train"].append(name)
    write_cpc_labels(folder / "labels.txt", labels)
    paths = [write_split(folder / f"{split}.txt", names) for split, names in splits.items()]
    prepare(find_audio(folder / "LibriSpeech", speaker="folder"), folder / "cache", workers=1)
    return Speech(folder / "LibriSpeech", folder / "cache", folder / "labels.txt", *paths)


def write_split(path: Path, names: Sequence[str]) -> Path:
    """A file of utterances, one a line."""
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def tiny(speech: Speech, **changes: object) -> Config:
    """A run of a second: 2 epochs of 3 steps on the 24 utterances."""
    config = dataclasses.replace(
        preset("cpc"),
        corpus=speech.cache,
        epochs=2,
        channels=8,
        context_dim=8,
        window=5_120,
        batch_size=8,
        batch_group=4,
        projection_hidden=8,
        projection_out=4,
        normalisation="channel",
        lr=1e-3,
        precision="32-true",
        compiled=False,
        check_every=1,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def newest(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
