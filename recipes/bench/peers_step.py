"""A whole training step of SimCLR from images in memory: views, encoder, projector, loss, gradient, update.

ResNet-18 with a 3x3 stem on images of 32 pixels, a projector 512-512-128, NT-Xent, SGD with momentum, for all. Each arm
is written as its project's documentation shows it, with its habits: how views are made, whether both pass the encoder
at once, and how images lie in memory. Beside them S-TEC, whose step does more.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.models import resnet18
from torchvision.transforms import functional as TF

from recipes.bench.peers_views import N_IMAGES, PIPELINES, Two, describe, images_of, law_of
from recipes.bench.vision import plain_nt_xent
from recipes.vision import networks
from recipes.vision.presets import preset
from stec.core.actions import ViewPair
from stec.core.batches import EpochBatches
from stec.core.losses import nt_xent
from stec.core.memory import keep_freed_memory
from stec.core.objective import STECObjective, encode
from stec.vision.data import ImageSet, ResidentLoader
from stec.vision.encoders import prefers_channels_last
from stec.vision.views import TwoViews

SIZE, FEATURES, HIDDEN, OUT = 32, 512, 512, 128
NtXent = Callable[[Tensor, Tensor], Tensor]
TEMPERATURE = 0.5
PREFETCHED = 2  # batches that each worker of a loader makes ahead: torch's default


class Pictures(Dataset[list[Tensor]]):
    """Item index: two views of an image in memory."""

    def __init__(self, pictures: list[Image.Image], two: Two) -> None:
        self.pictures, self.two = pictures, two

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.two(self.pictures[index])


def loaded(images: Tensor, two: Two, *, batch: int, workers: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Endless batches of x and x' out of a DataLoader, on the device."""
    data = Pictures([TF.to_pil_image(image) for image in images], two)
    loader = DataLoader(
        data,
        batch_size=batch,
        sampler=RandomSampler(data, replacement=True, num_samples=1 << 30),
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    for views in loader:
        yield tuple(view.to(device, non_blocking=True) for view in views)


def drawn(images: Tensor, batch: int) -> Iterator[Tensor]:
    """Endless batches of images that lie on the device, as our loader of images in memory draws them."""
    data = ImageSet(images, torch.full((len(images),), -1, device=images.device), ())
    while True:
        for found, _ in ResidentLoader(data, EpochBatches(len(images), batch_size=batch, seed=0)):
            yield found


def encoder_of_torchvision() -> nn.Module:
    """torchvision's ResNet-18 with a stem for small images, up to its pooled features."""
    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


class OfLightly(nn.Module):
    """SimCLR as lightly's documentation builds it; one view is one pass."""

    def __init__(self) -> None:
        super().__init__()
        heads = importlib.import_module("lightly.models.modules.heads")
        self.encoder = nn.Sequential(*list(encoder_of_torchvision().children())[:-1])
        self.projector = heads.SimCLRProjectionHead(FEATURES, HIDDEN, OUT)

    def forward(self, images: Tensor) -> Tensor:
        """Projections (b, 128) of images."""
        projection: Tensor = self.projector(self.encoder(images).flatten(start_dim=1))
        return projection


class Plain(nn.Module):
    """SimCLR of torchvision and torch alone; both views in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder_of_torchvision()
        self.projector = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, OUT, bias=False),
            nn.BatchNorm1d(OUT),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Projections (b, 128) of images."""
        projection: Tensor = self.projector(self.encoder(images))
        return projection


class OfStec(nn.Module):
    """Ours, SimCLR or S-TEC with exact actions, as pretraining lays it out."""

    def __init__(self, *, actions: bool) -> None:
        super().__init__()
        config = dataclasses.replace(
            preset("cifar10-resnet18-stec" if actions else "cifar10-resnet18-simclr"),
            action="exact",
            projection_hidden=HIDDEN,
            projection_out=OUT,
            temperature=TEMPERATURE,
        )
        self.encoder = networks.encoder(config)
        self.objective: STECObjective = networks.objective(config, FEATURES, (SIZE, SIZE))
        self.projector = self.objective.models["identity"].projector
        self.channels_last = prefers_channels_last(self.encoder)
        if self.channels_last:
            self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pair: ViewPair) -> Tensor:
        """The loss of a pair."""
        if self.channels_last:
            x, x_prime = (view.to(memory_format=torch.channels_last) for view in (pair.x, pair.x_prime))
            pair = pair._replace(x=x, x_prime=x_prime)
        loss: Tensor = self.objective(encode(self.encoder, pair), None, pair)["loss"]
        return loss


class StepWork:
    """A training step a piece. `workers` serve arms that make views by the image; `keep`: `keep_freed_memory`."""

    def __init__(
        self, arm: str, precision: str, batch: int, folder: str | None, workers: int, probes: int, keep: bool
    ) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if keep and device.type == "cpu":
            keep_freed_memory()  # as recipes.run.fit does
        torch.manual_seed(0)
        images, law = images_of(folder, max(N_IMAGES, 2 * batch), SIZE), law_of(SIZE)
        make = PIPELINES["stec" if arm == "stec-actions" else arm]
        pipeline = make(law, SIZE)
        self.units = batch
        self.lead = PREFETCHED * workers if pipeline.two is not None else 0
        self.nt_xent: NtXent = lambda z, z_prime: plain_nt_xent(z, z_prime, TEMPERATURE)
        self.network: nn.Module
        batches: Any  # an iterator of images, or of both views
        if pipeline.two is not None:
            batches = loaded(images, pipeline.two, batch=batch, workers=workers, device=device)
        else:
            batches = drawn(images.to(device), batch)
        if arm in ("stec", "stec-actions"):
            self.network = OfStec(actions=arm == "stec-actions").to(device)
            two_views, generator = TwoViews(law, networks.COPIES["exact"]), torch.Generator().manual_seed(0)
            self.nt_xent = lambda z, z_prime: nt_xent(z, z_prime, TEMPERATURE)
            self.loss = lambda: self.network(two_views((next(batches), None), generator))
        elif arm == "lightly":
            self.network = OfLightly().to(device)
            self.nt_xent = importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
            self.loss = lambda: self._two_passes(*next(batches))
        elif arm == "kornia":
            self.network = Plain().to(device)
            self.loss = lambda: self._one_pass(*pipeline.views(next(batches)))
        else:
            self.network = Plain().to(device)
            self.loss = lambda: self._one_pass(*next(batches))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-6)
        narrow = precision == "bfloat16"
        self.autocast = lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=narrow)
        generator_of_z = torch.Generator().manual_seed(0)
        z, z_prime = torch.randn(2, 64, OUT, generator=generator_of_z).to(device)
        self.facts: dict[str, Any] = {
            "views": describe(make, law, images[:probes]),
            "nt_xent": float(self.nt_xent(z, z_prime)),
            "parameters of the encoder": count(self.network.encoder),
            "parameters of the projector": count(self.network.projector),
            "memory format": "channels last" if getattr(self.network, "channels_last", False) else "channels first",
            "device": device.type,
            "freed memory": "kept" if keep else "returned",
        }

    def _one_pass(self, x: Tensor, x_prime: Tensor) -> Tensor:
        return self.nt_xent(*self.network(torch.cat((x, x_prime))).chunk(2))

    def _two_passes(self, x: Tensor, x_prime: Tensor) -> Tensor:
        return self.nt_xent(self.network(x), self.network(x_prime))

    def run(self) -> None:
        """Views, forward, backward, update."""
        with self.autocast():
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def count(module: Any) -> int:
    """Parameters of a module, those that do not learn included."""
    return sum(parameter.numel() for parameter in module.parameters())
