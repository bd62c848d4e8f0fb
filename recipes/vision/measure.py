"""What frozen features are worth, and how well the inverse model reads actions: the numbers behind every table."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from recipes.ranks import cores
from recipes.records import Result
from recipes.vision import networks
from recipes.vision.inputs import Images, Inputs
from recipes.vision.presets import Config
from stec.core.actions import Bins, Chance, EfferenceCopy, ViewPair, chance_level, step_seed
from stec.core.learner import Learner
from stec.core.losses import binned_nll
from stec.core.manipulation import BinnedActions, EveryPair
from stec.core.objective import encode
from stec.core.probe import (
    EpochFeatures,
    OnlineProbe,
    ProbeResult,
    extract,
    knn_accuracy,
    linear_accuracy,
    logistic_accuracy,
)
from stec.vision.colour import WithColour
from stec.vision.data import ImageSet
from stec.vision.folder import ImageFiles
from stec.vision.held import HeldImages, header_size
from stec.vision.simulation import actions_of_law
from stec.vision.streaming import CroppedPairs, EvalImages, collate
from stec.vision.views import CROP_FLIP, Augmentation, CroppedPair, TwoViews, two_views

Offline = Literal["linear", "logistic", "knn"]  # fitted on frozen features
Protocol = Literal["linear", "logistic", "knn", "online"]  # the last is part of the checkpoint
PROTOCOLS: tuple[Offline, ...] = ("linear", "logistic", "knn")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Features of labelled images, (n, f) float32 on the CPU."""

    train: Float[Tensor, "n f"]
    train_labels: Int[Tensor, " n"]
    test: Float[Tensor, "m f"]
    test_labels: Int[Tensor, " m"]


def device() -> torch.device:
    """Where features are computed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plain_batches(inputs: Inputs, config: Config, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    """Images in [0, 1] without augmentation: as they are, or resized and cut at their centre to the views' size.

    The resizing is that of `EvalImages`, so that it does not matter whether the images lie in memory or are streamed.
    """
    if isinstance(inputs.images, ImageSet):
        data, views = inputs.images, config.augmentation.size
        resized = views is not None and tuple(data.images.shape[2:]) != (views, views)
        for start in range(0, len(data), size):
            part = slice(start, start + size)
            images = data.images[part]
            if resized and views is not None:
                images = functional.resize(images, [round(views * 256 / 224)], antialias=True)
                images = functional.center_crop(images, [views, views])
            yield images.float() / 255, data.labels[part]
    else:
        files = EvalImages(inputs.images, config.augmentation.size or 224)
        for pixels, labels in DataLoader(files, batch_size=size, num_workers=min(config.workers, cores())):
            yield pixels.float() / 255, labels


def frozen(encoder: nn.Module, train: Inputs, test: Inputs, config: Config) -> Frozen:
    """Features of both splits from one pass each."""
    return Frozen(*features(encoder, train, config), *features(encoder, test, config))


def features(encoder: nn.Module, images: Inputs, config: Config) -> tuple[Float[Tensor, "n f"], Int[Tensor, " n"]]:
    """Features and labels of images as they are."""
    return extract(encoder.to(device()), plain_batches(images, config), device=device())


class Pixels(nn.Module):
    """The baseline without a network: the image itself, flat."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def augmented(encoder: nn.Module, train: ImageSet, config: Config) -> EpochFeatures:
    """Features of newly cropped and flipped images for every epoch, as the released code's linear fit has them."""
    law, (h, w) = geometry(config.augmentation), (int(n) for n in train.images.shape[2:])
    encoder, data = encoder.to(device()), train.to(device())

    def epoch_features(epoch: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step_seed(config.seed, epoch, stream=-2))

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, len(data), 256):
                part = slice(start, start + 256)
                images = data.images[part]
                crops = law.draw_crops(len(images), (h, w), generator=generator)
                yield crops.apply(images, law.size or (h, w)), data.labels[part]

        return extract(encoder, batches(), device=device())

    return epoch_features


def probe(
    features: Frozen, protocols: Sequence[Offline], *, seed: int, views: EpochFeatures | None = None
) -> list[Result]:
    """Accuracy on the test features by each protocol; with `views` the linear layer trains on these, epoch by epoch."""
    train = features.train if views is None else views
    train_labels = features.train_labels if views is None else None
    size = min(1024, len(features.train))
    data = (features.train, features.train_labels, features.test, features.test_labels)
    run: dict[Offline, Callable[[], ProbeResult]] = {
        "linear": lambda: linear_accuracy(
            train, train_labels, features.test, features.test_labels, seed=seed, batch_size=size
        ),
        "logistic": lambda: logistic_accuracy(*data),
        "knn": lambda: knn_accuracy(*data),
    }
    found = [run[protocol]() for protocol in protocols]
    return [
        Result(
            "accuracy",
            round(r.accuracy, 4),
            r.protocol,
            {"train": r.n_train, "test": r.n_test, **r.settings}
            | ({"augmented": views is not None} if r.protocol == "linear" else {}),
        )
        for r in found
    ]


@torch.no_grad()
def online(head: OnlineProbe, features: Float[Tensor, "n f"], labels: Int[Tensor, " n"]) -> Result:
    """Accuracy of the linear head that was trained along with the encoder, on features of test images as they are.

    This is what the released code's eval.py prints. ValueError where the head and the labels are of other classes.
    """
    classes = head.linear.out_features
    if len(labels) == 0 or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"the online head knows {classes} classes, which the {len(labels)} test labels are not of")
    hits = head.cpu()(features).argmax(dim=1) == labels
    share = round(hits.double().mean().item(), 4)
    return Result("accuracy", share, "online", {"test": len(labels), "classes": classes, "images": "as they are"})


def geometry(law: Augmentation) -> Augmentation:
    """The same crops and flips without the changes of colour, which leave the action alone."""
    return dataclasses.replace(CROP_FLIP, size=law.size, scale=law.scale, ratio=law.ratio, p_flip=law.p_flip)


def reading_law(config: Config) -> Augmentation:
    """The law of the views that actions are read off: without changes of colour, unless they are part of the action."""
    coloured = isinstance(networks.COPIES[config.action], WithColour)
    return config.augmentation if coloured else geometry(config.augmentation)


def reading_pairs(
    images: Images, law: Augmentation, copy: EfferenceCopy, *, passes: int, batch: int, workers: int
) -> Iterator[ViewPair]:
    """Pairs of views of all images, `passes` times: on the device, or of streamed images cut by `workers`."""
    where, starts = device(), range(0, len(images), batch)
    for i in range(passes):
        generators = (torch.Generator().manual_seed(step_seed(i, start, stream=99)) for start in starts)
        if isinstance(images, ImageSet):
            for start, generator in zip(starts, generators):
                part = images.images[start : start + batch].to(where)
                yield two_views(part, generator=generator, augmentation=law, copy=copy)
            continue
        seed = step_seed(i, 0, stream=98)
        keys = [[(j, step_seed(seed, j)) for j in range(len(images))][start : start + batch] for start in starts]
        cut = CroppedPairs(images, law.size or 224, scale=law.scale, ratio=law.ratio, p_flip=law.p_flip)
        loader: Iterable[CroppedPair] = DataLoader(cut, batch_sampler=keys, num_workers=workers, collate_fn=collate)
        for cropped, generator in zip(loader, generators):
            there = cropped._replace(x=cropped.x.to(where), x_prime=cropped.x_prime.to(where))
            yield TwoViews(law, copy)(there, generator)


def chance_of(config: Config, bins: Bins, images: Images | HeldImages) -> Chance:
    """What a predictor blind to the views reaches, from 100,000 simulated pairs; of several sizes, by each image's own.

    Of more than 1,000 such images every n-th counts.
    """
    if isinstance(images, ImageSet):
        h, w = images.images.shape[2:]
        return networks.chance(config, bins, (int(h), int(w)))
    some = range(0, len(images), math.ceil(len(images) / 1000))
    if isinstance(images, HeldImages):
        sizes = [(int(h), int(w)) for h, w in images.sizes[some.start : some.stop : some.step]]
    elif isinstance(images, ImageFiles):
        sizes = [header_size(images.path(i)) or (1, 1) for i in some]
    else:
        sizes = [images.decode_rgb(i).size[::-1] for i in some]
    generator, each = torch.Generator().manual_seed(1), math.ceil(100_000 / len(sizes))
    copy, law = networks.COPIES[config.action], config.augmentation
    actions = [actions_of_law(law, copy, each, image_size=size, generator=generator) for size in sizes]
    return chance_level(bins(torch.cat(actions)), bins.bins)


@torch.no_grad()
def read_actions(
    learner: Learner, config: Config, images: Images, *, passes: int = 2, batch: int = 256
) -> list[Result]:
    """How well the manipulation model reads actions off views of held-out images, in evaluation mode.

    The views follow the law of pretraining without its changes of colour, unless they are part of the action. Nats are
    the mean over valid pairs (no view solarised) and components; chance is that of a predictor blind to the views, from
    100,000 simulated pairs. Views of streamed images are those that training cuts. ValueError where no pair is valid.
    """
    model = learner.objective.models["manipulation"]
    if isinstance(model, EveryPair):
        model = model.model
    if not isinstance(model, BinnedActions):
        return []
    where = device()
    network, model = learner.encoder.to(where).eval(), model.to(where).eval()
    copy = networks.COPIES[config.action]
    law = reading_law(config)
    nll, hits, count = 0.0, torch.zeros(len(copy.components)), 0
    for pair in reading_pairs(images, law, copy, passes=passes, batch=batch, workers=min(config.workers, cores())):
        logits, bins = model.logits(encode(network, pair)), model.bins(pair.action)
        valid, n = pair.valid, int(pair.valid.sum())
        nll += float(binned_nll(logits, bins, valid)) * n
        hits += (logits.argmax(dim=2) == bins)[valid].float().sum(dim=0).cpu()
        count += n
    if not count:
        raise ValueError(f"no action to read: one view of every pair is solarised (p_solarise {law.p_solarise})")
    chance = chance_of(config, model.bins.cpu(), images)
    model.bins.to(where)
    level = float(chance.nll.mean())
    components = {
        name: {"accuracy": round(float(hit) / count, 4), "majority": round(float(majority), 4)}
        for name, hit, majority in zip(copy.components, hits, chance.accuracy)
    }
    return [
        Result("manipulation", round(nll / count, 4), "held-out", {"unit": "nats", "pairs": count, **components}),
        Result("manipulation minus chance", round(nll / count - level, 4), "held-out", {"chance": round(level, 4)}),
    ]
