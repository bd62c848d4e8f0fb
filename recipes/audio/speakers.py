"""Read speakers off frozen features: python -m recipes.audio.speakers --checkpoint FILE --corpus CACHE.

Every speaker's utterances are dealt into --folds; linear heads learn on all folds but one and are tested on that one,
so that every utterance is tested once, by speakers that the heads know and utterances that they do not. Protocols:
"frame", on every frame (Oord et al. 2018); "window", on the mean over 1.28 s (Greedy InfoMax); "last", on the last
frame of 1.28 s (CPC_audio); "utterance", on the mean over an utterance (s3prl). With --context windows every 1.28 s
have a context of their own, as Greedy InfoMax and CPC_audio have it; --heads names their optimisers. --baselines adds
MFCC and the untrained encoder. Numbers go into the run's results.json.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from recipes import records
from recipes.audio import networks
from recipes.audio.measure import Context, Frames, Layer, encoder_frames, mfcc_frames
from recipes.audio.phones import names_of
from recipes.audio.presets import method
from recipes.audio.run import load_learner, record_of
from recipes.progress import EpochProgress
from recipes.results.published import published_speech
from recipes.run_folder import check_writable
from recipes.terminal import command, say, table
from stec.audio.corpus import Corpus
from stec.audio.encoders import CPCEncoder
from stec.audio.frame_features import FrameFeatures
from stec.audio.splits import few, overlap_with, read_split, select
from stec.core.bootstrap import bootstrap
from stec.core.heads import PROTOCOLS, Head, Settings, train_heads

Protocol = Literal["frame", "window", "last", "utterance"]
WINDOW = 128  # frames: 1.28 s


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to probe, on whose speech, how."""

    checkpoint: Path  # a file of a run's checkpoints folder
    corpus: Path  # the cache that recipes.audio.prepare wrote; its speakers are the classes
    split: Path | None = None  # these utterances alone, a name a line
    protocols: tuple[Protocol, ...] = ("frame", "window", "utterance")
    layers: tuple[Layer, ...] = ("context", "latents")
    context: Context = "utterances"  # or "windows" of 1.28 s, each with a context of its own
    heads: str = "stec"  # how heads train: a name of stec.core.heads.PROTOCOLS
    folds: int = 5
    features: Path | None = None  # a folder for features that exceed memory, in memory-mapped files
    baselines: bool = False  # also MFCC, and the encoder before training
    seed: int = 0
    out: Path | None = None  # where to write; results.json in the run's folder by default


def deal(speaker: Int[Tensor, " u"], folds: int, *, seed: int) -> Int[Tensor, " u"]:
    """The fold of each utterance: every speaker's shuffled and dealt in turn, where the one before left off."""
    order = torch.randperm(len(speaker), generator=torch.Generator().manual_seed(seed))
    by_speaker = order[speaker[order].argsort(stable=True)]
    fold = torch.empty_like(speaker)
    fold[by_speaker] = torch.arange(len(speaker)) % folds
    return fold


def rows_of(features: FrameFeatures, protocol: Protocol) -> tuple[Float[Tensor, "n f"], Int[Tensor, " n"]]:
    """What a protocol classifies, and the utterance of each: frames, means or last frames of windows, or means.

    A window's last, shorter piece counts where it is half a window or more, or all there is. Utterances too short for a
    frame have no row.
    """
    if protocol == "frame":  # as they lie: not copied
        return features.values, torch.arange(len(features)).repeat_interleave(features.lengths)
    values, owner = [], []
    for i in range(len(features)):
        frames = features.of(i).float()
        if not len(frames):
            continue
        if protocol == "utterance":
            pieces = frames.mean(dim=0, keepdim=True)
        else:
            parts = [p for p in frames.split(WINDOW) if len(p) >= WINDOW // 2] or [frames]
            pieces = torch.stack([p[-1] if protocol == "last" else p.mean(dim=0) for p in parts])
        values.append(pieces)
        owner.append(torch.full((len(pieces),), i))
    return torch.cat(values), torch.cat(owner)


STEPS = 2000  # of the package's own protocol, whatever the number of rows


def probe(
    frames: Frames,
    speaker: Int[Tensor, " u"],
    fold: Int[Tensor, " u"],
    protocols: Sequence[Protocol],
    *,
    heads: str = "stec",
    context: Context = "utterances",
    seed: int,
) -> list[records.Result]:
    """Accuracy by layer and protocol, over all folds.

    The heads of all folds and layers train in one pass, each blind to the labels of its own fold. The means and
    standard deviations that features are scaled by are those of all folds.
    """
    folds, classes = int(fold.max()) + 1, int(speaker.max()) + 1
    results = []
    for protocol in protocols:
        sets = {}
        for layer, features in frames.sets.items():
            sets[layer], owner = rows_of(features, protocol)
        truth, held_out = speaker[owner], fold[owner]
        specified = {(layer, k): Head(layer, f"without {k}", classes) for layer in sets for k in range(folds)}
        trained = train_heads(
            sets,
            {f"without {k}": torch.where(held_out == k, -1, truth) for k in range(folds)},
            {f"{layer} {k}": head for (layer, k), head in specified.items()},
            seed=seed,
            block=128 if protocol == "frame" else 1,
            **_settings(heads, len(owner)),
        )
        for layer, values in sets.items():
            correct = torch.zeros(len(owner))
            for k in range(folds):
                tested = (held_out == k).nonzero().flatten()
                correct[tested] = trained.correct(f"{layer} {k}", values[tested], truth[tested]).float()
            hits = torch.zeros(len(speaker)).index_add_(0, owner, correct)
            total = torch.bincount(owner, minlength=len(speaker)).float()
            found = bootstrap(hits[None], total, seed=0)
            details = {
                "layer": layer,
                "speakers": classes,
                "utterances": len(speaker),
                "folds": folds,
                "heads": heads,
                "context": context,
                "rows": len(owner),
                "low": round(found.low, 4),
                "high": round(found.high, 4),
            }
            results.append(records.Result("speaker accuracy", round(found.accuracy, 4), protocol, details))
    return results


def _settings(heads: str, rows: int) -> Settings:
    """A published protocol as it is; the package's own with as many epochs as make 2,000 steps."""
    settings = PROTOCOLS[heads].copy()
    if heads == "stec":
        settings["epochs"] = math.ceil(STEPS / math.ceil(rows / settings["batch_size"]))
    return settings


def read_corpus(arguments: Arguments) -> Corpus:
    """The utterances to classify: those of speakers who are known and have two at least; it is said who is left out.

    ValueError where fewer than two speakers remain.
    """
    if arguments.folds < 2:
        raise ValueError(f"--folds is {arguments.folds}; heads learn on all but one, so give 2 at least")
    corpus = Corpus.open(arguments.corpus)
    if arguments.split:
        split = read_split(arguments.split)
        try:
            chosen = select(split, corpus=corpus.utterances)
        except ValueError as error:
            raise ValueError(f"{arguments.split}: {error}") from error
        corpus = corpus.subset(chosen.names)
    counts = Counter(names_of(corpus).values())
    nameless = counts.pop("", 0)
    if len(counts) < 2:
        raise ValueError(
            f"{arguments.corpus} knows {len(counts)} speakers of these utterances; prepare it from a folder for each "
            "speaker (--speaker folder), two at least"
        )
    single = sorted(name for name, count in counts.items() if count < 2)
    if len(counts) - len(single) < 2:
        raise ValueError(
            f"{len(single)} of {len(counts)} speakers of {arguments.corpus} have one utterance alone, {few(single)}; "
            "heads learn on one and are tested on another, of two speakers at least: cut long files into several and "
            "prepare them again, from a folder for each speaker"
        )
    if single:
        say(f"{len(single)} of {len(counts)} speakers have one utterance alone and are left out: {few(single)}")
    if nameless:
        say(f"{nameless} utterances are of no known speaker and are left out")
    kept = [name for name, who in names_of(corpus).items() if counts[who] > 1]
    return corpus.subset(kept) if single or nameless else corpus


def encode_frames(arguments: Arguments, corpus: Corpus, network: CPCEncoder) -> Frames:
    """Features of whole utterances, with a bar."""
    with EpochProgress(reading="extracting features") as progress:
        return encoder_frames(
            network,
            corpus,
            layers=arguments.layers,
            context=arguments.context,
            folder=arguments.features,
            progress=progress.reading,
        )


def evaluate(arguments: Arguments, *, seconds: float | None = None) -> list[records.Record]:
    """Everything the arguments ask for, as records; `seconds` is how long pretraining took, where that is known."""
    out = arguments.out or arguments.checkpoint.parent.parent / "results.json"
    check_writable(out.parent)
    if arguments.heads not in PROTOCOLS:
        raise ValueError(f"no protocol {arguments.heads!r}; there are {', '.join(PROTOCOLS)}")
    learner, config, record = load_learner(arguments.checkpoint)
    corpus = read_corpus(arguments)
    names, speaker = corpus.speaker.unique(return_inverse=True)
    fold = deal(speaker, arguments.folds, seed=arguments.seed)
    who = {**dict(zip(record["utterances"], record["speakers"])), **names_of(corpus)}
    saw = str(overlap_with(record["utterances"], corpus.utterances, speakers=who))
    say(f"pretraining has seen, of these, {saw}")
    assert isinstance(learner.encoder, CPCEncoder)
    sources: dict[str, Callable[[], Frames]] = {}
    if arguments.baselines:
        sources["MFCC"] = lambda: mfcc_frames(corpus)
        sources["untrained"] = lambda: encode_frames(arguments, corpus, networks.untrained(config))
    encoder = learner.encoder
    sources[method(config)] = lambda: encode_frames(arguments, corpus, encoder)
    found = []
    for name, frames in sources.items():
        results = probe(
            frames(),
            speaker,
            fold,
            arguments.protocols,
            heads=arguments.heads,
            context=arguments.context,
            seed=arguments.seed,
        )
        details = {"pretraining saw": saw} if name == method(config) else {}
        results = [dataclasses.replace(r, details={**r.details, **details}) for r in results]
        trained = seconds if name == method(config) else None
        data = f"{corpus.path.name}, {len(corpus)} utterances of {len(names)} speakers"
        found.append(record_of(config, results, seconds=trained, name=name, stage="speakers", data=data))
    records.update(found, out)
    return found


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.audio.speakers", description=__doc__)
    found = evaluate(arguments)
    rows = []
    for record in found:
        for r in record.results:
            low, high = (100 * float(str(r.details[key])) for key in ("low", "high"))
            layer = str(r.details["layer"])
            rows.append([record.method, layer, r.protocol, f"{100 * r.value:.1f}", f"{low:.1f} to {high:.1f}"])
    table(
        ["", "features", "protocol", "%", "95 % interval"], rows, title="speaker accuracy, each utterance tested once"
    )
    if published := published_speech(found):
        say(published)
    say(f"written to {arguments.out or arguments.checkpoint.parent.parent / 'results.json'}")


if __name__ == "__main__":
    command(main, RuntimeError)
