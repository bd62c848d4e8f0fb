"""Speed of CPC on speech as ratios, each measured side by side in this run: python -m recipes.bench.audio.

  python -m recipes.bench.audio --folder data/LibriSpeech --out speed.json
  python -m recipes.bench.audio --parts step --rounds 8

Windows: cached ones against reading each out of its file, on one thread. Step: the CPC training step against a bare
forward and backward pass of its encoder, the default settings against float32, and a plain loop of Greedy InfoMax.
Memory: what the loss adds to the peak. Probe: 20 epochs on features extracted once against decoding and encoding an
utterance for every step. Prepare: files to cache against bare decoding. Without --folder, files are made of noise.

Nothing else should run meanwhile: the last line says how much processor time other programs took.
"""

import dataclasses
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile
import torch
import tyro

from recipes import records
from recipes.audio import networks
from recipes.audio.measure import device
from recipes.audio.presets import Config, preset
from recipes.audio.run import precision
from recipes.bench.speech_peers import (
    FRAMES,
    GATHERED,
    PermutedInfoNCE,
    decode,
    fresh_peak,
    pair_of,
    probe_epoch,
    read_file,
    read_windows,
)
from recipes.bench.turns import in_turn, processor_seconds
from recipes.run import check_writable
from recipes.terminal import command, say, table
from stec.audio.corpus import Corpus
from stec.audio.features import extract
from stec.audio.preparing import prepare
from stec.audio.sources import RATE, AudioFile, find_audio
from stec.audio.views import SpeechPairs
from stec.audio.windows import WindowBatches, WindowLoader, Windows
from stec.core.actions import ViewPair
from stec.core.heads import PROTOCOLS, Head, train_heads
from stec.core.objective import Features, STECObjective, encode

Part = Literal["windows", "step", "memory", "probe", "prepare"]
OTHERS = "other programs, cores"
QUIET = 0.15  # cores that others may take: with more, timings of two threads were off by up to 2.5 times
PHONES = 41


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    folder: Path | None = None  # of 16 kHz mono files, or LibriSpeech; noise without
    parts: tuple[Part, ...] = ("windows", "step", "memory", "probe", "prepare")
    rounds: int = 4  # samples of each, in turn
    utterances: int = 60  # files of noise, where there is no folder
    utterance_seconds: float = 12.0
    window: int = 20_480  # samples
    window_batches: tuple[int, ...] = (8, 64)
    windows: int = 512  # that one sample of per-window reads takes; cached ones, 40 times as many
    channels: int = 512  # of the encoder
    batch: int = 8  # of the step
    compiled: bool = True  # compile the default settings' encoder, as pretraining does
    memory_batch: int = 64  # sequences of 128 frames, in groups of 8
    probe_utterances: int = 20
    workers: int = os.cpu_count() or 1  # threads that decode
    out: Path | None = None  # a file of records


class Speech(NamedTuple):
    """The files to measure on, and a cache of them."""

    files: list[AudioFile]
    corpus: Corpus
    name: str
    scratch: Path  # a folder that goes at the end


def measured(work: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, object]]:
    """Median seconds of each in turn; and as details, with what other programs took of the processor meanwhile."""
    start, before = time.perf_counter(), processor_seconds()
    seconds = in_turn(work, rounds)
    elapsed, after = time.perf_counter() - start, processor_seconds()
    others = ((after[0] - before[0]) - (after[1] - before[1])) / elapsed
    details: dict[str, object] = {f"{name}, s": round(value, 4) for name, value in seconds.items()}
    return seconds, details | {OTHERS: round(max(0.0, others), 2)}


def write_noise(folder: Path, arguments: Arguments) -> None:
    """FLAC files of noise with a falling spectrum that swells as syllables do, so that decoding costs what speech's
    does: white noise would be stored as it is."""
    rng = np.random.default_rng(0)
    n = int(arguments.utterance_seconds * RATE)
    fall = 1 / (1 + (np.fft.rfftfreq(n, 1 / RATE) / 1000) ** 2)
    swell = 0.1 + np.sin(np.arange(n) * (2 * np.pi * 2 / RATE)) ** 2
    for i in range(arguments.utterances):
        noise = swell * np.fft.irfft(fall * np.fft.rfft(rng.standard_normal(n)), n)
        path = folder / f"speaker{i % 6}" / f"{i:04d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.05 * noise / noise.std(), RATE, subtype="PCM_16")


def speech(arguments: Arguments, scratch: Path) -> Speech:
    """The files and their cache. ValueError where a file is not at 16 kHz and mono."""
    folder, name = arguments.folder, arguments.folder.name if arguments.folder else ""
    if folder is None:
        folder = scratch / "noise"
        write_noise(folder, arguments)
        name = f"noise, {arguments.utterance_seconds:g} s each"
    files = find_audio(folder, speaker="folder")
    prepare(files, scratch / "cache", workers=arguments.workers)
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


def windows(arguments: Arguments, speech: Speech) -> list[records.Result]:
    """Batches of float waveforms out of the cache, and read window by window from the same files, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [windows_of(arguments, speech, b) for b in arguments.window_batches]
    finally:
        torch.set_num_threads(threads)


def windows_of(arguments: Arguments, speech: Speech, b: int) -> records.Result:
    """At one batch size. A sample takes so many more cached windows that both last about as long."""
    batches = WindowBatches(
        speech.corpus, batch_size=b, seed=0, window=arguments.window, sampling="all", together="uniform"
    )
    steps, more = max(1, arguments.windows // b), 40
    index = list(itertools.islice(itertools.cycle(batches), steps))
    cached = endless(WindowLoader(speech.corpus, batches), batches)
    views, generator = SpeechPairs(), torch.Generator()
    paths = [file.path for file in speech.files]

    def ours() -> None:
        for _ in range(more * steps):
            views(next(cached), generator)

    def theirs() -> None:
        for utterance, start, _ in index:
            read_windows([paths[u] for u in utterance.tolist()], start.tolist(), arguments.window)

    name = f"cached, {more} times as many"
    seconds, details = measured({name: ours, "read": theirs}, arguments.rounds)
    speeds = {"cached": more * steps * b / seconds[name], "read": steps * b / seconds["read"]}
    details |= {f"{name}, windows/s": round(speed) for name, speed in speeds.items()}
    details |= {"window": arguments.window, "threads": 1, "speech": speech.name, "wanted": ">= 35"}
    return records.Result(f"windows, batch {b}: cached over read", speeds["cached"] / speeds["read"], "cpu", details)


def train(
    config: Config,
    pair: ViewPair,
    loss_of: Callable[[Features], torch.Tensor],
    *,
    encoder: torch.nn.Module,
    loss: torch.nn.Module | None,
) -> Callable[[], None]:
    """A training step of Adam; without the parameters of a `loss` a mere forward and backward pass."""
    modules = torch.nn.ModuleList([encoder] if loss is None else [encoder, loss])
    optimizer = torch.optim.Adam(modules.parameters(), lr=config.lr)
    forward = torch.compile(encoder) if config.compiled else encoder
    narrow = precision(config) == "bf16-mixed"

    def run() -> None:
        with torch.autocast(pair.x.device.type, dtype=torch.bfloat16, enabled=narrow):
            value = loss_of(encode(forward, pair))
        value.backward()
        if loss is not None:
            optimizer.step()
        optimizer.zero_grad()

    return run


def step(arguments: Arguments) -> list[records.Result]:
    """Seconds of a step on one batch of ready waveforms: bare, float32, the default settings, Greedy InfoMax."""
    where = device()
    torch.manual_seed(0)
    pair = pair_of(0.1 * torch.randn(arguments.batch, arguments.window, device=where))
    default = dataclasses.replace(preset("cpc"), channels=arguments.channels, compiled=arguments.compiled)
    plain = dataclasses.replace(default, precision="32-true", compiled=False)
    peer = dataclasses.replace(preset("gim"), channels=arguments.channels, precision="32-true", compiled=False)

    def ours(config: Config) -> Callable[[], None]:
        objective: STECObjective = networks.objective(config, 0).to(where)
        encoder = networks.encoder(config).to(where)
        return train(config, pair, lambda f: objective(f, None, pair)["loss"], encoder=encoder, loss=objective)

    infonce = PermutedInfoNCE(peer.context_dim, peer.channels, steps=peer.steps, negatives=peer.samples or 10).to(where)
    work: dict[str, Callable[[], object]] = {
        "bare": train(plain, pair, lambda f: f.x[0].mean(), encoder=networks.encoder(plain).to(where), loss=None),
        "float32": ours(plain),
        "default": ours(default),
        "Greedy InfoMax": train(
            peer, pair, lambda f: infonce(*f.x), encoder=networks.encoder(peer).to(where), loss=infonce
        ),
    }
    start = time.perf_counter()
    work["default"]()
    first = time.perf_counter() - start
    seconds, details = measured(work, arguments.rounds)
    details |= {
        "first default step, with its compilation, s": round(first, 1),
        "default": f"{precision(default)}, {'compiled' if default.compiled else 'not compiled'}",
        "batch": arguments.batch,
        "window": arguments.window,
        "channels": arguments.channels,
    }
    ratios = (
        ("step: CPC over bare encoder, both float32", "float32", "bare", "<= 1.4"),
        ("step: CPC in float32 over default settings", "float32", "default", ">= 2"),
        ("step: plain Greedy InfoMax over CPC, both float32", "Greedy InfoMax", "float32", ""),
        ("step: plain Greedy InfoMax over default settings", "Greedy InfoMax", "default", ""),
    )
    return [
        records.Result(
            name,
            seconds[above] / seconds[below],
            where.type,
            ({"wanted": wanted} if wanted else {}) | (details if i == 0 else {}),
        )
        for i, (name, above, below, wanted) in enumerate(ratios)
    ]


def memory(arguments: Arguments) -> list[records.Result]:
    """What the loss adds to the peak, each form in a fresh process; none where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        say("memory: left out, this system has no /proc to read the peak from")
        return []
    b, channels = arguments.memory_batch, arguments.channels
    kibibytes = next(line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    available = 1024 * int(kibibytes) / 1e9
    need = 5 * b * FRAMES * GATHERED * channels * 4 / 1e9  # the vectors, and what autograd keeps and adds up of them
    details: dict[str, object] = {"batch": b, "frames": FRAMES, "channels": channels}
    if need > available / 2:
        note = f"left out: needs some {need:.1f} GB, and {available:.1f} GB are available"
        say(f"memory of {GATHERED} gathered vectors a frame: {note}")
        details["gathered form"] = note
    results = [
        records.Result(
            "memory: added by CPC, MB", fresh_peak("ours", b, channels), "cpu", {**details, "wanted": "< 500"}
        )
    ]
    if need <= available / 2:
        metric = f"memory: added by {GATHERED} gathered vectors a frame, MB"
        results.append(records.Result(metric, fresh_peak("gathered", b, channels), "cpu", details))
    return results


def probe(arguments: Arguments, speech: Speech) -> list[records.Result]:
    """Six heads on features extracted once, decoding included, against an epoch of the peer's protocol times 20."""
    where = device()
    epochs = PROTOCOLS["stec"]["epochs"]
    files = speech.files[: arguments.probe_utterances]
    paths, names = [file.path for file in files], [file.utterance for file in files]
    encoder = networks.untrained(dataclasses.replace(preset("gim"), channels=arguments.channels)).to(where)
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
    seconds, details = measured(work, arguments.rounds)
    details |= {
        "theirs": f"1 epoch measured, times {epochs}; one head, on the context",
        "ours": f"decoding, extraction and {epochs} epochs of {len(heads)} heads, on context and latents",
        "labels": "random",
        "utterances": len(files),
        "frames": sum(counts),
        "channels": arguments.channels,
        "speech": speech.name,
        "wanted": ">= 10",
    }
    ratio = epochs * seconds["theirs, 1 epoch"] / seconds["ours"]
    return [records.Result("probe: Greedy InfoMax's protocol over ours", ratio, where.type, details)]


def preparing(arguments: Arguments, speech: Speech) -> list[records.Result]:
    """All files into an empty folder, against decoding them and keeping nothing, in as many threads."""
    cache = speech.scratch / "again"

    def ours() -> None:
        prepare(speech.files, cache, workers=arguments.workers)
        shutil.rmtree(cache)  # counts against us, little

    paths = [file.path for file in speech.files]
    work: dict[str, Callable[[], object]] = {"ours": ours, "theirs": lambda: decode(paths, arguments.workers)}
    seconds, details = measured(work, arguments.rounds)
    details |= {"threads": arguments.workers, "speech": speech.name, "wanted": "<= 1.5"}
    return [records.Result("prepare: over bare decoding", seconds["ours"] / seconds["theirs"], "cpu", details)]


OF_SPEECH: dict[str, Callable[[Arguments, Speech], list[records.Result]]] = {
    "windows": windows,
    "probe": probe,
    "prepare": preparing,
}


def measure(arguments: Arguments) -> tuple[list[records.Result], str]:
    """All parts that are asked for, and what they were measured on. ValueError where there is nothing to measure."""
    for name in ("rounds", "workers", "utterances", "windows", "probe_utterances"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} is {getattr(arguments, name)}; need at least 1")
    results = step(arguments) if "step" in arguments.parts else []
    if "memory" in arguments.parts:
        results += memory(arguments)
    name = "random waveforms and features"
    if wanted := [part for part in OF_SPEECH if part in arguments.parts]:
        with tempfile.TemporaryDirectory(prefix="stec-bench-") as scratch:
            found = speech(arguments, Path(scratch))
            name = found.name
            for part in wanted:
                results += OF_SPEECH[part](arguments, found)
    return [dataclasses.replace(r, value=round(r.value, 3)) for r in results], name


def show(results: list[records.Result], others: float | None) -> None:
    """The table for the terminal, and whether to believe it."""
    rows = []
    for r in results:
        rest = ", ".join(f"{key} {value}" for key, value in r.details.items() if key != "wanted")
        rows.append([r.metric, f"{r.value:.2f}", str(r.details.get("wanted", "")), rest])
    table(["", "ratio, MB", "wanted", "measured"], rows, title="speed")
    if others is None:  # nothing was timed
        return
    say(f"other programs used up to {others:.2f} of a core meanwhile")
    if others > QUIET:
        say(f"that is more than {QUIET}: these times are not to be believed, measure again when nothing else runs")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m recipes.bench.audio", description=__doc__)
    if arguments.out:
        check_writable(arguments.out.parent)
    start = time.perf_counter()
    results, data = measure(arguments)
    others = max((float(str(r.details[OTHERS])) for r in results if OTHERS in r.details), default=None)
    show(results, others)
    if arguments.out:
        record = records.record(
            method="speed",
            preset="cpc",
            data=data,
            seed=0,
            seconds=time.perf_counter() - start,
            results=results,
            settings={OTHERS: others},
            stage="bench",
        )
        records.write([record], arguments.out)


if __name__ == "__main__":
    command(main, RuntimeError)
