"""What CPC does with files of speech, beside plain loops: reading windows, probing, and preparing the cache."""

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from recipes import records
from recipes.audio import networks
from recipes.audio.measure import device
from recipes.audio.presets import preset
from recipes.bench.speech_peers import decode, probe_epoch, read_file, read_windows
from recipes.bench.turns import measured
from stec.audio.corpus import Corpus
from stec.audio.decoding import RATE
from stec.audio.features import extract
from stec.audio.preparing import prepare
from stec.audio.sources import AudioFile, find_audio
from stec.audio.views import SpeechPairs
from stec.audio.windows import WindowBatches, WindowLoader, Windows
from stec.core.heads import PROTOCOLS, Head, train_heads

PHONES = 41


class Speech(NamedTuple):
    """The files to measure on, and a cache of them."""

    files: list[AudioFile]
    corpus: Corpus
    name: str
    scratch: Path  # a folder that goes at the end


def write_noise(folder: Path, *, utterances: int, seconds: float) -> None:
    """FLAC files of noise with a falling spectrum that swells as syllables do, so that decoding costs what speech's
    does: white noise would be stored as it is."""
    rng = np.random.default_rng(0)
    n = int(seconds * RATE)
    fall = 1 / (1 + (np.fft.rfftfreq(n, 1 / RATE) / 1000) ** 2)
    swell = 0.1 + np.sin(np.arange(n) * (2 * np.pi * 2 / RATE)) ** 2
    for i in range(utterances):
        noise = swell * np.fft.irfft(fall * np.fft.rfft(rng.standard_normal(n)), n)
        path = folder / f"speaker{i % 6}" / f"{i:04d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.05 * noise / noise.std(), RATE, subtype="PCM_16")


def speech(folder: Path, scratch: Path, *, name: str, workers: int) -> Speech:
    """The files of a folder, and their cache in `scratch`. ValueError where a file is not at 16 kHz and mono."""
    files = find_audio(folder, speaker="folder")
    prepare(files, scratch / "cache", workers=workers)
    for file in files:
        header = soundfile.info(file.path)
        if (header.samplerate, header.channels) != (RATE, 1):
            raise ValueError(
                f"{file.path} has {header.samplerate} Hz and {header.channels} channels; plain reads are compared on "
                f"mono files of {RATE} Hz alone: name a folder of such, or none for noise"
            )
    corpus = Corpus.open(scratch / "cache")
    return Speech(files, corpus, f"{len(files)} files of {name}, {corpus.hours:.2f} h", scratch)


def endless(loader: WindowLoader, batches: WindowBatches) -> Iterator[Windows]:
    """Epoch after epoch."""
    step = 0
    batches.steps_done = lambda: step
    while True:
        for batch in loader:
            yield batch
            step += 1


def windows(speech: Speech, *, batches: Sequence[int], window: int, count: int, rounds: int) -> list[records.Result]:
    """Batches of float waveforms out of the cache, and read window by window from the same files, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [windows_of(speech, b, window=window, count=count, rounds=rounds) for b in batches]
    finally:
        torch.set_num_threads(threads)


def windows_of(speech: Speech, b: int, *, window: int, count: int, rounds: int) -> records.Result:
    """At one batch size, `count` windows read. A sample takes so many more cached ones that both last as long."""
    batches = WindowBatches(speech.corpus, batch_size=b, seed=0, window=window, sampling="all", together="uniform")
    steps, more = max(1, count // b), 40
    index = list(itertools.islice(itertools.cycle(batches), steps))
    cached = endless(WindowLoader(speech.corpus, batches), batches)
    views, generator = SpeechPairs(), torch.Generator()
    paths = [file.path for file in speech.files]

    def ours() -> None:
        for _ in range(more * steps):
            views(next(cached), generator)

    def theirs() -> None:
        for utterance, start, _ in index:
            read_windows([paths[u] for u in utterance.tolist()], start.tolist(), window)

    name = f"cached, {more} times as many"
    seconds, details = measured({name: ours, "read": theirs}, rounds)
    speeds = {"cached": more * steps * b / seconds[name], "read": steps * b / seconds["read"]}
    details |= {f"{name}, windows/s": round(speed) for name, speed in speeds.items()}
    details |= {"window": window, "threads": 1, "speech": speech.name, "wanted": ">= 35"}
    return records.Result(f"windows, batch {b}: cached over read", speeds["cached"] / speeds["read"], "cpu", details)


def probe(speech: Speech, *, utterances: int, channels: int, rounds: int) -> list[records.Result]:
    """Six heads on features extracted once, decoding included, against an epoch of the peer's protocol times 20."""
    where = device()
    epochs = PROTOCOLS["stec"]["epochs"]
    files = speech.files[:utterances]
    paths, names = [file.path for file in files], [file.utterance for file in files]
    encoder = networks.untrained(dataclasses.replace(preset("gim"), channels=channels)).to(where)
    counts = [encoder.frames(len(read_file(path))) for path in paths]
    labels = [torch.randint(PHONES, (count,)) for count in counts]
    linear = torch.nn.Linear(encoder.feature_dim, PHONES).to(where)
    adam = torch.optim.Adam(linear.parameters(), lr=PROTOCOLS["gim-phones"]["lr"])
    offsets = {f"{offset:+d}": torch.cat([truth.roll(offset) for truth in labels]) for offset in (-1, 0, 1)}
    heads = {f"{layer} {offset}": Head(layer, offset, PHONES) for layer in ("context", "latents") for offset in offsets}

    def ours() -> None:
        sets = extract(encoder, lambda i: read_file(paths[i]), names, device=where)
        features = {layer: found.values for layer, found in sets.items()}
        train_heads(features, offsets, heads, seed=0, **PROTOCOLS["stec"])

    work: dict[str, Callable[[], object]] = {
        "ours": ours,
        "theirs, 1 epoch": lambda: probe_epoch(encoder, paths, labels, linear, adam),
    }
    seconds, details = measured(work, rounds)
    details |= {
        "theirs": f"1 epoch measured, times {epochs}; one head, on the context",
        "ours": f"decoding, extraction and {epochs} epochs of {len(heads)} heads, on context and latents",
        "labels": "random",
        "utterances": len(files),
        "frames": sum(counts),
        "channels": channels,
        "speech": speech.name,
        "wanted": ">= 10",
    }
    ratio = epochs * seconds["theirs, 1 epoch"] / seconds["ours"]
    return [records.Result("probe: Greedy InfoMax's protocol over ours", ratio, where.type, details)]


def preparing(speech: Speech, *, workers: int, rounds: int) -> list[records.Result]:
    """All files into an empty folder, against decoding them and keeping nothing, in as many threads."""
    cache = speech.scratch / "again"

    def ours() -> None:
        prepare(speech.files, cache, workers=workers)
        shutil.rmtree(cache)  # counts against us, little

    paths = [file.path for file in speech.files]
    work: dict[str, Callable[[], object]] = {"ours": ours, "theirs": lambda: decode(paths, workers)}
    seconds, details = measured(work, rounds)
    details |= {"threads": workers, "speech": speech.name, "wanted": "<= 1.5"}
    return [records.Result("prepare: over bare decoding", seconds["ours"] / seconds["theirs"], "cpu", details)]
