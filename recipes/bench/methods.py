"""A training step of every identity model beside the passes of its encoder on the same batch."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from recipes import records
from recipes.bench.turns import in_turn
from recipes.vision import networks
from recipes.vision.config import Config, method
from recipes.vision.presets import METHODS, STEC, Identity, preset
from recipes.vision.run import optimizer_factory
from stec.core.actions import ViewPair
from stec.core.networks import MomentumEncoder
from stec.core.objective import Features, encode
from stec.core.optim import by_kind, parameter_groups


def presets(width: int, identities: Sequence[Identity] = ()) -> list[Config]:
    """CIFAR-10's row of these identity models (of every one by default), alone and with actions."""
    ends = [end for name in identities or METHODS for end in (name, STEC.get(name, f"{name}-stec"))]
    return [dataclasses.replace(preset(f"cifar10-resnet18-{end}"), width=width) for end in ends]


def ready_pair(config: Config, batch: int, device: torch.device) -> ViewPair:
    """One batch of views as the Learner hands them to the encoder."""
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
    pair = networks.views(config)((images, None), torch.Generator().manual_seed(0))
    laid_out = [view.to(memory_format=torch.channels_last) for view in (pair.x, pair.x_prime)]
    more = pair.more and pair.more._replace(
        views=tuple(view.to(memory_format=torch.channels_last) for view in pair.more.views)
    )
    return pair._replace(x=laid_out[0], x_prime=laid_out[1], more=more)


def step_and_passes(config: Config, batch: int, precision: torch.dtype | None) -> tuple[Callable[[], None], ...]:
    """The training step of a configuration, and the same passes of its encoders with a loss that costs nothing.

    The passes are forward and backward of all views through the online encoder, and forward of the large ones through
    the momentum encoder where there is one. The step adds projectors, losses, the optimiser and the momentum update.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    encoder = networks.encoder(config).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = networks.objective(config, int(encoder.feature_dim), (32, 32)).to(device)
    target = MomentumEncoder(encoder, momentum=config.momentum or 0.0) if objective.needs_target else None
    slow = [module for module in objective.modules() if isinstance(module, MomentumEncoder)]
    modules = nn.ModuleList([encoder, objective])
    optimizer = optimizer_factory(config)(parameter_groups(modules, weight_decay=config.weight_decay, adapt=by_kind))
    pair = ready_pair(config, batch, device)

    def features() -> tuple[Features, Features | None]:
        return encode(encoder, pair), encode(target, pair, large_only=True) if target else None

    def step() -> None:
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            loss = objective(*features(), pair)["loss"]
        loss.backward()
        optimizer.step()
        modules.zero_grad()
        for module in (*slow, *([target] if target else [])):
            module.update(0.99)

    def passes() -> None:
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            online, _ = features()
            loss = torch.stack([view.float().mean() for view in (*online.pair, *online.more)]).sum()
        loss.backward()
        encoder.zero_grad()

    return step, passes


def methods(width: int, batch: int, rounds: int, identities: Sequence[Identity] = ()) -> list[records.Result]:
    """For these identity models, alone and with actions: seconds of a step over those of its encoder passes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for config in presets(width, identities):
        step, passes = step_and_passes(config, batch, torch.bfloat16)
        seconds = in_turn({"step": step, "passes": passes}, rounds)
        details: dict[str, object] = {f"{name}, s": round(value, 4) for name, value in seconds.items()}
        details |= {"batch": batch, "width": width}
        name = f"step bfloat16: {method(config)} over its encoder passes"
        results.append(records.Result(name, seconds["step"] / seconds["passes"], device, details))
    return results
