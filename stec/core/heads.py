"""Many classification heads in one pass over features that were extracted once: phones, speakers, offsets, layers.

A head reads one set of features and one set of labels of the same frames. All heads see the same batches, and their
losses are independent, so a head learns the same alone as among others; heads that read the same features and have the
same shape share one matrix product.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stec.core import frames
from stec.core.actions import step_seed
from stec.core.head_groups import HeadGroup, Layers
from stec.core.optim import warmup_cosine


class Head(NamedTuple):
    """One classifier: softmax regression, or with `hidden` units one layer of ReLUs before it."""

    features: str
    labels: str
    classes: int
    hidden: int | None = None


class Settings(TypedDict):
    """How heads are trained, as keywords of `train_heads`."""

    epochs: int
    batch_size: int
    lr: float
    cosine: bool
    standardise: bool


# The published ones as their code has them (Löwe et al. 2019; Rivière et al. 2020). Greedy InfoMax steps through phones
# one utterance at a time and CPC_audio 8 windows at a time: both about 1,024 frames, here of all utterances mixed.
PROTOCOLS: dict[str, Settings] = {
    "stec": {"epochs": 20, "batch_size": 1024, "lr": 1e-2, "cosine": True, "standardise": True},
    "gim-phones": {"epochs": 20, "batch_size": 1024, "lr": 1e-4, "cosine": False, "standardise": False},
    "gim-speakers": {"epochs": 50, "batch_size": 64, "lr": 1e-3, "cosine": False, "standardise": False},
    "cpc-audio-phones": {"epochs": 10, "batch_size": 1024, "lr": 2e-4, "cosine": False, "standardise": False},
    "cpc-audio-speakers": {"epochs": 10, "batch_size": 8, "lr": 2e-4, "cosine": False, "standardise": False},
}


class TrainedHeads:
    """Heads after training; results are on the CPU, whatever device the heads and features are on."""

    def __init__(
        self,
        heads: Mapping[str, Head],
        layers: Mapping[str, Layers],
        scaling: Mapping[str, tuple[Tensor, Tensor]],
        losses: Mapping[str, Sequence[float]],
    ) -> None:
        self.heads = dict(heads)
        self.layers = dict(layers)  # of each head
        self.scaling = dict(scaling)  # of each set of features: what is subtracted, and what the rest is multiplied by
        self.losses = dict(losses)  # of each head: mean training loss in nats, epoch by epoch

    def logits(self, name: str, features: Float[Tensor, "n f"]) -> Float[Tensor, "n c"]:
        """Log-probabilities up to a constant for each frame, float32. Raises ValueError for features of another width,
        NaN features and unknown heads.
        """
        return torch.cat(list(self._blocks(name, features)))

    def predict(self, name: str, features: Float[Tensor, "n f"]) -> Int[Tensor, " n"]:
        """The likeliest class of each frame, int64; errors as `logits`, of which no more than a block is held."""
        return torch.cat([logits.argmax(dim=1) for logits in self._blocks(name, features)])

    def correct(self, name: str, features: Float[Tensor, "n f"], labels: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Whether each frame is classified as labelled; False where the label is -1. Errors as `logits`."""
        if len(labels) != len(features):
            raise ValueError(
                f"head {name!r}: {len(features)} frames have {len(labels)} labels; give one for each frame"
            )
        return self.predict(name, features) == labels.cpu()

    @torch.no_grad()
    def _blocks(self, name: str, features: Tensor) -> Iterator[Tensor]:
        if name not in self.heads:
            raise ValueError(f"there is no head {name!r}; there are {', '.join(self.heads)}")
        mean, scale = self.scaling[self.heads[name].features]
        if features.shape[1] != len(mean):
            raise ValueError(f"head {name!r} was trained on {len(mean)} features, these are {features.shape[1]}")
        for block in features.split(frames.CHUNK):
            x = (block.to(mean.device).float() - mean) * scale
            if not bool(x.isfinite().all()):
                raise ValueError(f"head {name!r}: the features hold NaN or infinity; the encoder diverged")
            for i, (weight, bias) in enumerate(self.layers[name]):
                x = torch.addmm(bias, x.relu() if i else x, weight)
            yield x.cpu()


def train_heads(
    features: Mapping[str, Float[Tensor, "n _f"]],
    labels: Mapping[str, Int[Tensor, " n"]],
    heads: Mapping[str, Head],
    *,
    seed: int,
    epochs: int = 20,
    batch_size: int = 1024,
    lr: float = 1e-2,
    cosine: bool = True,
    standardise: bool = True,
    rows: Int[Tensor, " m"] | None = None,
    block: int = 1,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedHeads:
    """Train all `heads` by Adam (Kingma & Ba 2015) in one pass of `epochs` over the frames, or over `rows` of them.

    `features` are (n, f), of any float type and on any device, also memory-mapped: batches are indexed, converted to
    float32 and moved to `device` (by default that of the first set), and no set is copied. A label of -1 does not
    count; a head's loss is the mean over the frames of a batch that count for it. Weights start Xavier-normal, biases
    at 0, and everything drawn is a function of `seed`. The learning rate is constant, or with `cosine` falls to 0.

    `standardise` subtracts the training frames' mean and divides by their standard deviation. Adam's steps are equally
    long whatever the scale of the features, so without it features are compared by their scale and not by what they
    tell: an untrained encoder's, of standard deviation 0.002, stay at chance. A feature that never varies stays 0.
    The default rate is chosen by trial: speakers from MFCC, 10 of them in 54,000 frames, come out 13 points lower at
    1e-3, of which 20 epochs are too few steps. A constant rate of 1e-2 is as good there, within a point either way;
    the cosine ends without its noise.

    `block` > 1 shuffles runs of so many consecutive frames, and frames within 16,384 that are read together: a
    memory map is then read in runs. `progress` is called after every epoch with (epochs done, of how many).
    Raises ValueError for sets of unequal length, labels beyond a head's classes, a head without a labelled frame,
    NaN features and heads that diverge.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0])
    >>> heads = train_heads({"c": x}, {"phone": y}, {"linear": Head("c", "phone", 2)}, seed=0, epochs=50, lr=0.1)
    >>> heads.predict("linear", x)
    tensor([1, 0])
    """
    if min(epochs, batch_size, block) < 1 or lr <= 0:
        raise ValueError(
            f"epochs is {epochs}, batch_size {batch_size}, block {block}, lr {lr}; need at least 1, and lr above 0"
        )
    features = {name: features[name] for name in _used(features, heads, "features")}
    labels = {name: labels[name] for name in _used(labels, heads, "labels")}
    n = _check_lengths(features, labels)
    rows = None if rows is None else rows.cpu()
    if rows is not None and (len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= n):
        raise ValueError(f"rows must name at least one of the {n} frames, each in 0 to {n - 1}")
    _check_labels(labels, heads, rows)
    target = next(iter(features.values())).device if device is None else torch.device(device)
    scaling = {name: frames.scaling(name, values, rows, standardise, target) for name, values in features.items()}

    generator = torch.Generator()
    groups = [
        HeadGroup(
            {name: heads[name].labels for name in names},
            alike.features,
            f=len(scaling[alike.features][0]),
            hidden=alike.hidden,
            classes=alike.classes,
            generator=generator.manual_seed(seed),
            device=target,
        )
        for alike, names in _alike(heads).items()
    ]
    parameters = [parameter for group in groups for parameter in group.parameters]
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    m = n if rows is None else len(rows)
    steps_per_epoch = math.ceil(m / batch_size)
    step = 0
    losses: dict[str, list[float]] = {name: [] for name in heads}
    for epoch in range(epochs):
        generator.manual_seed(step_seed(seed, epoch, stream=1))
        for chunk, batches in frames.epoch_order(m, steps_per_epoch, block, generator):
            where = chunk if rows is None else rows[chunk]
            x = {name: frames.take(values, where).to(target) for name, values in features.items()}
            y = {name: frames.take(values, where).to(target) for name, values in labels.items()}
            for batch in batches:
                index = batch.to(target)
                inputs = {
                    name: x[name][index].float().sub_(mean).mul_(scale) for name, (mean, scale) in scaling.items()
                }
                truth = {name: values[index].long() for name, values in y.items()}
                loss = torch.stack([group.loss(inputs, truth) for group in groups]).sum()
                optimizer.param_groups[0]["lr"] = lr * (
                    warmup_cosine(step, 0, epochs * steps_per_epoch) if cosine else 1.0
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
        for group in groups:
            for name, mean_loss in group.epoch_losses():
                losses[name].append(mean_loss)
        if diverged := [name for name in heads if not math.isfinite(losses[name][-1])]:
            raise ValueError(f"heads {', '.join(diverged)} diverged in epoch {epoch} at lr {lr}; lower lr")
        if progress is not None:
            progress(epoch + 1, epochs)
    layers = {name: layers for group in groups for name, layers in group.layers()}
    return TrainedHeads(heads, layers, scaling, losses)


def _alike(heads: Mapping[str, Head]) -> dict[Head, list[str]]:
    """The heads that can be stacked: all but their labels is the same."""
    alike: dict[Head, list[str]] = {}
    for name, head in heads.items():
        alike.setdefault(head._replace(labels=""), []).append(name)
    return alike


def _used(given: Mapping[str, Tensor], heads: Mapping[str, Head], what: str) -> list[str]:
    """The sets that some head reads, so that others cost nothing."""
    if not heads:
        raise ValueError("there are no heads to train; give at least one")
    names = list(dict.fromkeys(head.features if what == "features" else head.labels for head in heads.values()))
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"a head reads {what} {missing[0]!r}; given are {', '.join(given) or 'none'}")
    return names


def _check_lengths(features: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> int:
    """The number of frames."""
    lengths = {f"features {name!r}": len(values) for name, values in features.items()}
    lengths |= {f"labels {name!r}": len(values) for name, values in labels.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"all sets must have the same frames, but lengths are {lengths}; align them (-1 where there is no label)"
        )
    return next(iter(lengths.values()))


def _check_labels(labels: Mapping[str, Tensor], heads: Mapping[str, Head], rows: Tensor | None) -> None:
    counted = {}
    for name, given in labels.items():
        values = given if rows is None else frames.take(given, rows)
        counted[name] = (int(values.min()), int(values.max())) if len(values) else (-1, -1)
    for name, head in heads.items():
        low, high = counted[head.labels]
        if head.classes < 2 or (head.hidden is not None and head.hidden < 1):
            raise ValueError(f"head {name!r} has {head.classes} classes and {head.hidden} hidden units; use 2 and more")
        if high < 0:
            raise ValueError(f"head {name!r} has no labelled frame in {head.labels!r}; check the split and the labels")
        if high >= head.classes or low < -1:
            raise ValueError(
                f"head {name!r} has classes 0 to {head.classes - 1}, labels {head.labels!r} run from {low} to {high}; "
                "raise its classes, or mark frames that do not count with -1"
            )
