"""On a GPU: a training step makes the host wait for nothing."""

import dataclasses

import pytest
import torch
from torch import nn
from waiting import waiting_forbidden

from recipes.vision import networks
from recipes.vision.presets import preset
from recipes.vision.run import optimizer_factory
from stec.core.batches import EpochBatches
from stec.core.networks import MomentumEncoder
from stec.core.objective import encode
from stec.core.optim import by_kind, parameter_groups
from stec.vision.data import ImageSet, ResidentLoader
from stec.vision.views import SIMCLR_STL

ENDS = ["stec", "stec-star", "relicv2-stec", "byol-stec", "simsiam-stec", "vicreg-stec", "moco-stec", "barlow-stec"]


@pytest.mark.gpu
@pytest.mark.unchecked
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("end", ENDS)
def test_a_training_step_never_waits_for_the_device(end: str, precision: torch.dtype) -> None:
    config = dataclasses.replace(preset(f"tiny-{end}"), augmentation=SIMCLR_STL, optimizer="lars", weight_decay=1e-6)
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, device="cuda")
    data = ImageSet(images, torch.zeros(64, dtype=torch.long, device="cuda"), ("one",))
    encoder = networks.encoder(config).cuda().to(memory_format=torch.channels_last)
    objective = networks.objective(config, int(encoder.feature_dim), (32, 32)).cuda()
    target = MomentumEncoder(encoder, momentum=0.99) if objective.needs_target else None
    modules = nn.ModuleList([encoder, objective])
    optimizer = optimizer_factory(config)(parameter_groups(modules, weight_decay=1e-6, adapt=by_kind))
    views = networks.views(config)

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        with torch.autocast("cuda", dtype=precision, enabled=precision != torch.float32):
            pair = views(batch, torch.Generator().manual_seed(0))
            slow = encode(target, pair, large_only=True) if target else None
            loss = objective(encode(encoder, pair), slow, pair)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for module in (*objective.modules(), target):
            if isinstance(module, MomentumEncoder):
                module.update(0.99)

    batches = list(ResidentLoader(data, EpochBatches(64, batch_size=16, seed=0)))
    step(batches[0])  # allocations and library start-up may wait
    with waiting_forbidden():
        for batch in batches[1:]:
            step(batch)
