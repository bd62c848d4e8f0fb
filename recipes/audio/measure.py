"""What frozen features of speech are worth: the numbers behind the phone and speaker tables."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recipes.audio.presets import Config
from recipes.records import Result
from stec.audio.alignment import CONVENTIONS, Alignment
from stec.audio.corpus import Corpus
from stec.audio.encoders import CPCEncoder
from stec.audio.features import MFCC_CENTRE, extract, extract_mfcc, extract_windows
from stec.audio.frame_features import FrameFeatures
from stec.audio.views import SpeechPairs
from stec.audio.windows import WindowBatches, WindowLoader
from stec.core.bootstrap import bootstrap
from stec.core.heads import PROTOCOLS, Head, Settings, TrainedHeads, train_heads
from stec.core.learner import Learner
from stec.core.objective import encode
from stec.core.sequence import CPC

Layer = Literal["context", "latents"]
Context = Literal["utterances", "windows"]
Progress = Callable[[int, int], None]
LEAST_STEPS = 1000
SHOWN = (
    "c: features of the context, z: of the latents under it; speakers by frame: of 10 ms each, by window: of the mean "
    "over 1.28 s, by utterance: of the mean over it all"
)
SETTLED = 66  # updates of BatchNorm's running statistics: those of the start weigh 0.9^66 = 0.001
UNSETTLED = "updates of BatchNorm"  # in the details of a surprise, where they are fewer


@dataclasses.dataclass(frozen=True)
class Frames:
    """Features of the frames of a corpus, by layer, and how they lie to the labels."""

    sets: Mapping[str, FrameFeatures]
    centre: float  # of frame 0, in samples

    @property
    def any(self) -> FrameFeatures:
        """One of the sets: all have the same frames."""
        return next(iter(self.sets.values()))


def device() -> torch.device:
    """Where features are computed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def encoder_frames(
    encoder: CPCEncoder,
    corpus: Corpus,
    *,
    layers: Sequence[Layer],
    context: Context,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Frames:
    """Features of an encoder, over whole utterances or window by window; in a file in `folder`, if one is given."""
    read = extract if context == "utterances" else extract_windows
    sets = read(
        encoder.to(device()),
        corpus.waveform,
        corpus.utterances,
        device=device(),
        layers=layers,
        dtype=torch.float16 if folder else torch.float32,  # half the disk, and what it rounds no probe sees
        folder=folder,
        progress=progress,
    )
    return Frames(sets, encoder.centre)


def mfcc_frames(corpus: Corpus, *, folder: Path | None = None, progress: Progress | None = None) -> Frames:
    """The baseline that learns nothing: 13 MFCC with deltas and double deltas."""
    return Frames(
        {"mfcc": extract_mfcc(corpus.waveform, corpus.utterances, folder=folder, progress=progress)}, MFCC_CENTRE
    )


@dataclasses.dataclass(frozen=True)
class Counts:
    """Correct frames of each test utterance by head, and all that count: what a paired bootstrap needs."""

    utterances: tuple[str, ...]
    total: Float[Tensor, " u"]
    correct: Mapping[str, Float[Tensor, " u"]]

    def plain(self) -> dict[str, Any]:
        """As lists of whole numbers."""
        correct = {head: [int(n) for n in counts] for head, counts in self.correct.items()}
        return {"utterances": list(self.utterances), "total": [int(n) for n in self.total], "correct": correct}


@dataclasses.dataclass(frozen=True)
class PhoneProbe:
    """Trained heads, what they got right, and the results for a record."""

    heads: TrainedHeads
    results: list[Result]
    counts: dict[str, Counts]  # by head: offsets differ in which frames count
    labels: dict[str, Int[Tensor, " n"]]  # by head, of all frames


def label_frames(frames: FrameFeatures, labels: Mapping[str, np.ndarray], alignment: Alignment) -> Int[Tensor, " n"]:
    """The label of every frame of every utterance, -1 where there is none."""
    return torch.cat(
        [
            alignment.frame_labels(labels[name], int(length))
            for name, length in zip(frames.utterances, frames.lengths.tolist())
        ]
    )


def probe_phones(
    frames: Frames,
    labels: Mapping[str, np.ndarray],
    train: Sequence[str],
    test: Sequence[str],
    *,
    classes: int,
    offsets: Sequence[int],
    hidden: Sequence[int],
    protocol: str,
    seed: int,
    alignment: str = "nearest",
    block: int = 1,
    speakers: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> PhoneProbe:
    """A linear head, and one for each number of `hidden` units, for every layer and offset, all in one pass.

    `offsets` are frames past that of `alignment`, a name of CONVENTIONS; `block` is that of `train_heads`. Accuracy is
    the share of test frames that count. With `speakers`, of each utterance, a linear head for every layer reads the
    speaker of a frame in the same pass (Oord et al. 2018); speakers of the test split alone do not count.
    """
    some = frames.any
    place = {name: i for i, name in enumerate(some.utterances)}
    law = Alignment.nearest(frame_centre=frames.centre) if alignment == "nearest" else CONVENTIONS[alignment]
    by_offset = {
        f"{k:+d}": label_frames(
            some, labels, law if law.offset is None else dataclasses.replace(law, offset=law.offset + k)
        )
        for k in offsets
    }
    heads = {
        head_name(layer, offset, units): Head(layer, offset, classes, units)
        for layer in frames.sets
        for offset in by_offset
        for units in (None, *hidden)
    }
    who: dict[str, Tensor] = {}
    speaker_heads = {}
    if speakers is not None:
        known = {name: i for i, name in enumerate(sorted({speakers[name] for name in train}))}
        ids = torch.tensor([known.get(speakers[name], -1) for name in some.utterances])
        if len(known) < 2 or not any(speakers[name] in known for name in test):
            raise ValueError(
                f"the training split has {len(known)} speakers, of which the test split has none; speakers are read of "
                "utterances, not of people, that are new: use splits that share speakers, or recipes.audio.speakers"
            )
        who = {"speaker": ids.repeat_interleave(some.lengths)}
        speaker_heads = {f"{layer} speaker": Head(layer, "speaker", len(known)) for layer in frames.sets}
    rows = some.rows(place[name] for name in train)
    trained = train_heads(
        {layer: features.values for layer, features in frames.sets.items()},
        {**by_offset, **who},
        {**heads, **speaker_heads},
        seed=seed,
        rows=rows,
        block=block,
        progress=progress,
        **head_settings(protocol, len(rows)),
    )
    tested = torch.tensor([place[name] for name in test])
    results, counts = [], {}
    for name, head in heads.items():
        truth = by_offset[head.labels]
        correct = some.sums(trained.correct(name, frames.sets[head.features].values, truth).float())[tested]
        total = some.sums((truth >= 0).float())[tested]
        counts[name] = Counts(tuple(test), total, {name: correct})
        details = {"layer": head.features, "offset": head.labels, "train": len(train), "test": len(test)}
        results.append(accuracy(head, correct, total, {**details, "protocol": protocol}))
    for name, head in speaker_heads.items():
        correct = some.sums(trained.correct(name, frames.sets[head.features].values, who["speaker"]).float())[tested]
        total = some.sums((who["speaker"] >= 0).float())[tested]
        details = {"layer": head.features, "speakers": head.classes, "train": len(train), "test": len(test)}
        found = accuracy(head, correct, total, {**details, "protocol": protocol})
        results.append(dataclasses.replace(found, metric="speaker accuracy", protocol="frame"))
    return PhoneProbe(trained, results, counts, {name: by_offset[head.labels] for name, head in heads.items()})


def head_settings(protocol: str, rows: int) -> Settings:
    """How heads train on so many rows. The package's own protocol takes LEAST_STEPS: few rows take many epochs."""
    settings = PROTOCOLS[protocol].copy()
    if protocol == "stec":
        steps_per_epoch = math.ceil(rows / settings["batch_size"])
        settings["epochs"] = max(settings["epochs"], math.ceil(LEAST_STEPS / max(1, steps_per_epoch)))
    return settings


def head_name(layer: str, offset: str, hidden: int | None) -> str:
    """What a head is called in files and pictures: "context linear +0"."""
    return f"{layer} {'linear' if hidden is None else f'hidden {hidden}'} {offset}"


def accuracy(head: Head, correct: Tensor, total: Tensor, details: Mapping[str, object]) -> Result:
    """The share of correct frames, with its 95 % interval over utterances where two or more hold frames that count.

    ValueError where none does.
    """
    frames = int(total.sum())
    if not frames:
        raise ValueError(f"offset {head.labels}: no test frame has a label; choose a smaller offset, or longer speech")
    interval = {}
    if int((total > 0).sum()) > 1:
        found = bootstrap(correct[None], total, seed=0)
        interval = {"low": round(found.low, 4), "high": round(found.high, 4)}
    share = round(float(correct.sum() / frames), 4)
    name = "linear" if head.hidden is None else f"hidden {head.hidden}"
    return Result("phone accuracy", share, name, {**details, **interval, "frames": frames})


def majority(labels: Mapping[str, np.ndarray], train: Sequence[str], test: Sequence[str]) -> Result:
    """The commonest training label's share of the test labels: what a blind guess gets."""
    commonest = np.bincount(np.concatenate([labels[name] for name in train])).argmax()
    tested = np.concatenate([labels[name] for name in test])
    share = float((tested == commonest).mean())
    return Result("phone accuracy", round(share, 4), "majority", {"class": int(commonest), "frames": len(tested)})


def unsettled(encoder: CPCEncoder) -> int | None:
    """How many updates BatchNorm's running statistics are of, where that is fewer than SETTLED.

    Evaluation reads them in place of the batch's. Those of the start weigh 0.9^n after n updates, 0.35 after 10: the
    latents are then scaled wrongly in each layer, and predictions that have been learnt may be far worse than chance.
    """
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    updates = min((int(n) for norm in norms if (n := norm.num_batches_tracked) is not None), default=SETTLED)
    return updates if updates < SETTLED else None


@torch.no_grad()
def surprise(learner: Learner, config: Config, corpus: Corpus, *, passes: int = 4) -> list[Result]:
    """The surprise of CPC on random windows of speech, in evaluation mode, beside that of a blank context; nats.

    Each utterance gives a window a pass, in batches of the size of training where there are as many.
    """
    model = learner.objective.models["time_sensitive"]
    assert isinstance(model, CPC)
    long_enough = int((corpus.lengths >= config.window).sum())
    group = min(config.batch_group, config.batch_size)
    size = min(config.batch_size, long_enough // group * group)
    if not size:
        raise ValueError(
            f"the surprise is measured on groups of {group} windows, and {corpus.path} has {long_enough} utterances "
            f"of {config.window} samples among those held out; hold out more"
        )
    batches = WindowBatches(
        corpus, batch_size=size, seed=config.seed, window=config.window, sampling="random", together="uniform"
    )
    network, model = learner.encoder.to(device()).eval(), model.to(device()).eval()
    views = SpeechPairs(object=config.object)
    steps, levels = [], []
    for epoch in range(passes):
        batches.steps_done = functools.partial(int, epoch * len(batches))
        for windows in WindowLoader(corpus, batches, device=device() if torch.cuda.is_available() else None):
            pair = views(windows, torch.Generator())
            online = encode(network, pair)
            steps.append(model.steps(online, pair).cpu())
            levels.append(model.chance(online, pair))
    per_step, level = torch.stack(steps).mean(dim=0), sum(levels) / len(levels)
    nats = float(per_step.mean())
    details = {"unit": "nats", "windows": len(steps) * size, "chance": round(level, 4)}
    assert isinstance(network, CPCEncoder)
    if (updates := unsettled(network)) is not None:
        details[UNSETTLED] = updates
    ahead = {f"{k} ahead": round(float(value), 4) for k, value in enumerate(per_step, start=1)}
    return [
        Result("time-sensitive surprise", round(nats, 4), "held-out", {**details, **ahead}),
        Result("time-sensitive minus chance", round(nats - level, 4), "held-out", details),
    ]
