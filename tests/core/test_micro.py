"""Micro-batches against the plain gradient of the whole batch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stec.core.losses import nt_xent
from stec.core.micro import MicroBatches
from stec.core.networks import MomentumEncoder

ROWS = 10


class Context(nn.Module):
    """Two sequences of an input, as an encoder of speech gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.context = nn.Linear(3, 4), nn.GRU(4, 5, batch_first=True)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.latent(views).relu()
        return self.context(latents)[0], latents


def images(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def an_encoder(norm: Callable[[int], nn.Module], *, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(64, 5))
    return nn.Sequential(*layers).double()


def loss(features: Tensor) -> Tensor:
    """Every row against every other, so that no part of the batch has a loss of its own."""
    return nt_xent(*nn.functional.normalize(features, dim=1).chunk(2), temperature=0.2)


def gradients(encode: Callable[[Tensor], Tensor], module: nn.Module, views: Tensor) -> list[Tensor]:
    """The features, and what the loss of all of them says to every parameter."""
    torch.manual_seed(3)  # of dropout
    features = encode(views)
    loss(features).backward()
    return [features.detach(), *(parameter.grad for parameter in module.parameters() if parameter.grad is not None)]


def equal(some: list[Tensor], others: list[Tensor]) -> None:
    assert len(some) == len(others) > 0
    for one, other in zip(some, others):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def in_turns(module: nn.Module, size: int) -> Callable[[Tensor], Tensor]:
    """The encoder on rows side by side, all activations kept: what micro-batches are to reproduce."""
    return lambda views: torch.cat([module(part) for part in views.tensor_split(-(-len(views) // size))])


@given(size=st.integers(1, 12))
def test_without_batchnorm_the_gradient_is_the_plain_one(size: int) -> None:
    plain = an_encoder(lambda channels: nn.GroupNorm(2, channels))
    other = copy.deepcopy(plain)
    equal(gradients(MicroBatches(other, size=size), other, images()), gradients(plain, plain, images()))


@pytest.mark.parametrize(("criterion", "same"), [(loss, False), (lambda features: features.square().mean(), True)])
def test_the_mean_of_small_contrastive_losses_is_another_task(
    criterion: Callable[[Tensor], Tensor], same: bool
) -> None:
    """What makes the module necessary: gradients of small batches together are those of the whole for other losses."""
    encoder = an_encoder(lambda channels: nn.GroupNorm(2, channels))
    views = images(12)
    criterion(encoder(views)).backward()
    whole = next(encoder.parameters()).grad
    encoder.zero_grad()
    for pairs in zip(views[:6].split(2), views[6:].split(2)):
        (criterion(encoder(torch.cat(pairs))) / 3).backward()
    assert torch.allclose(whole, next(encoder.parameters()).grad, rtol=0.1) == same  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [3, 4, 5, 20])
def test_batchnorm_sees_its_micro_batch_and_moves_its_statistics_once(size: int) -> None:
    plain = an_encoder(nn.BatchNorm2d, dropout=0.3)
    other = copy.deepcopy(plain)
    equal(gradients(MicroBatches(other, size=size), other, images()), gradients(in_turns(plain, size), plain, images()))
    equal(list(other.buffers()), list(plain.buffers()))
    assert int(other[1].num_batches_tracked) == -(-ROWS // size)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [3, 20])
def test_frozen_statistics_make_the_gradient_the_plain_one(size: int) -> None:
    plain = an_encoder(nn.BatchNorm2d)
    plain(images(50) * 2 + 1)  # statistics of its own
    other = copy.deepcopy(plain)
    before = [buffer.clone() for buffer in other.buffers()]
    found = gradients(MicroBatches(other, size=size, statistics="frozen"), other, images())
    plain[1].eval()
    equal(found, gradients(plain, plain, images()))
    equal(list(other.buffers()), before)
    assert other[1].training  # as it was


def test_layers_in_evaluation_mode_stay_there() -> None:
    encoder = an_encoder(nn.BatchNorm2d)
    encoder[1].eval()
    gradients(MicroBatches(encoder, size=4, statistics="frozen"), encoder, images())
    assert not encoder[1].training
    assert encoder[0].training


def test_an_encoder_of_sequences_gives_its_tuple() -> None:
    torch.manual_seed(0)
    encoder = Context().double()
    windows = torch.randn(7, 6, 3, dtype=torch.float64)
    for found, expected in zip(MicroBatches(encoder, size=2)(windows), encoder(windows), strict=True):
        torch.testing.assert_close(found, expected)
    found = MicroBatches(encoder, size=2)(windows)
    (found[0].square().mean() + found[1].std()).backward()
    micro = [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]
    encoder.zero_grad()
    context, latents = encoder(windows)
    (context.square().mean() + latents.std()).backward()
    equal(micro, [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None])


def test_a_target_without_gradient_is_encoded_once() -> None:
    passes: list[int] = []
    target = MomentumEncoder(an_encoder(nn.BatchNorm2d), momentum=0.9)
    target.module.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    features = MicroBatches(target, size=4)(images())
    assert passes == [4, 3, 3]
    assert not features.requires_grad


def test_activations_are_kept_of_one_micro_batch_alone() -> None:
    """In the backward pass each micro-batch is encoded again when its turn comes, and not before."""
    events: list[str] = []
    encoder = an_encoder(lambda channels: nn.GroupNorm(2, channels))
    encoder[0].register_forward_hook(lambda module, inputs, output: events.append(f"forward {len(inputs[0])}"))
    encoder[5].register_full_backward_hook(lambda module, inputs, outputs: events.append(f"backward {len(outputs[0])}"))
    features = MicroBatches(encoder, size=5)(images())
    value = loss(features)
    assert events == ["forward 5", "forward 5"]
    value.backward()
    assert events[2:] == ["forward 5", "backward 5"] * 2


def test_what_is_called_may_stand_for_the_module() -> None:
    """A compiled encoder: its BatchNorm layers are those of the module."""
    encoder, calls = an_encoder(nn.BatchNorm2d), 0

    def call(views: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return encoder(views)

    MicroBatches(encoder, size=5, call=call)(images()).sum().backward()
    assert calls == 4


def test_an_empty_micro_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="micro-batch of 0"):
        MicroBatches(nn.Linear(3, 2), size=0)


@pytest.mark.unchecked
def test_another_word_for_statistics_is_an_error() -> None:
    with pytest.raises(ValueError, match="use 'micro' or 'frozen'"):
        MicroBatches(nn.Linear(3, 2), size=4, statistics="whole")  # type: ignore[arg-type]


def test_a_forward_pass_that_reads_a_buffer_which_it_moves_is_repeated_as_it_was() -> None:
    """Spectral normalisation divides by a singular value that each pass brings nearer to the true one."""

    def gradient(micro: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        encoder = nn.utils.spectral_norm(nn.Linear(6, 4)).double()
        views = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        features = (MicroBatches(encoder, size=5) if micro else encoder)(views)
        features.square().sum().backward()
        weight, u = encoder.weight_orig, encoder.weight_u
        assert isinstance(weight, Tensor)
        assert isinstance(u, Tensor)
        assert weight.grad is not None
        return weight.grad, u

    for mine, plain in zip(gradient(True), gradient(False)):
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)
