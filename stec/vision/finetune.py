"""Fine-tuning on few labels in the terms of the Learner: one cropped view of each image, and a linear classifier."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stec.core.actions import ViewPair
from stec.core.learner import Learner
from stec.core.objective import Features, InverseModel, STECObjective
from stec.core.optim import by_kind
from stec.core.probe import linear_layer
from stec.vision.encoders import prefers_channels_last
from stec.vision.views import Augmentation, CroppedPair


class Classification(InverseModel):
    """-log p(label | x) in nats, the mean over the batch, under a linear classifier on the features of x.

    It stands where the inverse models of Eq. 2 stand, so that the Learner fine-tunes an encoder as it pretrains one.
    The weights start from N(0, 0.01^2), drawn from `seed`, the biases from 0, as Chen et al. (2020) start them. Every
    image needs a label.
    """

    def __init__(self, in_features: int, classes: int, *, seed: int) -> None:
        super().__init__()
        self.linear = linear_layer(in_features, classes, generator=torch.Generator().manual_seed(seed))

    def forward(self, online: Features, target: Features | None, pair: ViewPair) -> Float[Tensor, ""]:
        with torch.autocast(online.x.device.type, enabled=False):
            return F.cross_entropy(self.linear(online.x.float()), pair.label)


class OneView:
    """One crop and flip of every image, without changes of colour: a ViewPair without x' and without an action.

    Takes what TwoViews takes, images on their device or pairs that workers have cropped, of which x alone is used.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    @torch.no_grad()
    def __call__(self, batch: CroppedPair | tuple[Tensor, Int[Tensor, " b"]], generator: torch.Generator) -> ViewPair:
        if isinstance(batch, CroppedPair):
            x, label = (batch.x / 255 if batch.x.dtype == torch.uint8 else batch.x), batch.label
        else:
            images, label = batch
            h, w = (int(n) for n in images.shape[2:])
            crops = self.augmentation.draw_crops(len(images), (h, w), generator=generator)
            x = crops.apply(images, self.augmentation.size or (h, w))
        valid = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return ViewPair(x, None, x.new_empty(len(x), 0), valid, label.to(x.device, non_blocking=True))


def fine_tuner(
    encoder: nn.Module,
    classes: int,
    *,
    augmentation: Augmentation,
    lr: float,
    total_steps: int,
    seed: int,
    check_every: int = 1,
    compiled: bool = False,
    record: Mapping[str, Any] | None = None,
) -> Learner:
    """A Learner that trains the whole encoder, which has a `feature_dim`, and a new linear classifier on labels.

    Optimised as in Chen et al. (2020, B.5): SGD with Nesterov momentum 0.9, neither weight decay nor warm-up; `lr`
    falls to 0 along half a cosine, as in their code. BatchNorm is in training mode, so its statistics move too.
    """
    classifier = Classification(int(encoder.feature_dim), classes, seed=seed)  # type: ignore[arg-type]
    return Learner(
        encoder,
        STECObjective({"classification": classifier}, {"classification": 1.0}),
        views=OneView(augmentation),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
        adapt=by_kind,
        weight_decay=0.0,
        warmup_steps=0,
        total_steps=total_steps,
        seed=seed,
        channels_last=prefers_channels_last(encoder),
        check_every=check_every,
        compiled=compiled,
        record=record,
    )


def tuned(learner: Learner) -> nn.Sequential:
    """The network that a `fine_tuner` has trained: (b, 3, h, w) images to (b, classes) logits."""
    classifier = learner.objective.models["classification"]
    assert isinstance(classifier, Classification)
    return nn.Sequential(learner.encoder, classifier.linear)
