"""ResNets against torchvision's own, in both directions; the released initialisation; encoders from elsewhere."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from stec.vision.encoders import (
    ResNet,
    check_encoder,
    feature_dim,
    init_official_,
    load_torchvision,
    prefers_channels_last,
    resnet18,
    resnet50,
    torchvision_state_dict,
)

BUILDERS = {"resnet18": resnet18, "resnet50": resnet50}


def _images(b: int, size: int, *, seed: int = 0) -> Tensor:
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _torchvision_features(architecture: str) -> nn.Module:
    """torchvision's network with features for an output and BatchNorm statistics that are not the initial ones."""
    torch.manual_seed(1)
    network: nn.Module = getattr(torchvision.models, architecture)()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.1)
    return network.eval()


@pytest.mark.parametrize(("architecture", "parameters"), [("resnet18", 11_168_832), ("resnet50", 23_500_352)])
def test_parameters_of_the_cifar_stem(architecture: str, parameters: int) -> None:
    with torch.device("meta"):
        encoder = BUILDERS[architecture]("cifar")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
@pytest.mark.parametrize(
    ("stem", "conv1"), [("cifar", (64, 3, 3, 3)), ("stl", (64, 3, 7, 7)), ("imagenet", (64, 3, 7, 7))]
)
def test_keys_are_torchvisions_without_fc(architecture: str, stem: str, conv1: tuple[int, ...]) -> None:
    with torch.device("meta"):
        encoder, plain = BUILDERS[architecture](stem), getattr(torchvision.models, architecture)()
    own, theirs = encoder.state_dict(), plain.state_dict()
    assert list(own) == [name for name in theirs if not name.startswith("fc.")]
    assert own["conv1.weight"].shape == conv1
    assert all(own[name].shape == theirs[name].shape for name in own if name != "conv1.weight")


@pytest.mark.parametrize(
    ("stem", "size", "maps"), [("cifar", 32, 32), ("stl", 96, 48), ("imagenet", 96, 24), ("imagenet", 65, 17)]
)
def test_first_stage_sees_the_maps_of_its_stem(stem: str, size: int, maps: int) -> None:
    encoder = resnet18(stem, width=4)
    seen: list[torch.Size] = []
    encoder.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    assert encoder(_images(2, size)).shape == (2, 32)
    assert seen == [(2, 4, maps, maps)]


@pytest.mark.parametrize(("architecture", "full", "narrow"), [("resnet18", 512, 64), ("resnet50", 2048, 256)])
def test_feature_dimension_is_the_width_of_the_output(architecture: str, full: int, narrow: int) -> None:
    with torch.device("meta"):
        assert BUILDERS[architecture]("cifar").feature_dim == full
    encoder = BUILDERS[architecture]("cifar", width=8)
    assert encoder.feature_dim == feature_dim(encoder) == narrow
    assert encoder(_images(2, 32)).shape == (2, narrow)
    assert check_encoder(encoder, _images(3, 32)) == narrow


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_outputs_equal_torchvisions_with_weights_carried_either_way(architecture: str) -> None:
    plain = _torchvision_features(architecture)
    encoder = BUILDERS[architecture]("imagenet").eval()
    load_torchvision(encoder, plain.state_dict())  # with its fc, which is passed over

    back = getattr(torchvision.models, architecture)().eval()
    result = back.load_state_dict(torchvision_state_dict(encoder), strict=False)
    assert result.unexpected_keys == []
    assert sorted(result.missing_keys) == ["fc.bias", "fc.weight"]

    plain.fc = back.fc = nn.Identity()
    images = _images(2, 64)
    with torch.no_grad():
        expected = plain(images)
        assert expected.std() > 1e-3
        assert torch.equal(encoder(images), expected)
        assert torch.equal(back(images), expected)


def test_default_initialisation_is_torchvisions() -> None:
    torch.manual_seed(3)
    plain = torchvision.models.resnet18()
    torch.manual_seed(4)
    encoder = resnet18("imagenet")
    for name, parameter in encoder.named_parameters():
        theirs = plain.get_parameter(name)
        if parameter.ndim == 4:
            fan_out = parameter.shape[0] * parameter[0, 0].numel()
            sampling_error = 1 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=5 * sampling_error)
            assert theirs.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=5 * sampling_error)
        else:
            assert torch.equal(parameter, theirs)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_released_initialisation(architecture: str) -> None:
    encoder = BUILDERS[architecture]("cifar", width=32)
    assert init_official_(encoder, generator=torch.Generator().manual_seed(0)) is encoder
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 4:
            fan_in = parameter[0].numel()
            sampling_error = 1 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(fan_in**-0.5, rel=5 * sampling_error), name
            assert abs(parameter.mean().item()) < 5 * fan_in**-0.5 / math.sqrt(parameter.numel())
        else:
            starts_at_one = name.endswith("weight") and "bn3" not in name
            assert parameter.unique().tolist() == [1.0 if starts_at_one else 0.0], name


def test_released_initialisation_repeats_with_its_generator() -> None:
    first, second = resnet18("cifar", width=4), resnet18("cifar", width=4)
    for encoder in (first, second):
        init_official_(encoder, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_channels_last_gives_the_same_features_and_gradients(architecture: str) -> None:
    encoder = BUILDERS[architecture]("cifar", width=8).double()
    images = _images(4, 32).double()
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        encoder.to(memory_format=layout).zero_grad()
        features = encoder(images.to(memory_format=layout))
        features.square().sum().backward()
        gradient = encoder.conv1.weight.grad
        assert gradient is not None
        results.append((features.detach(), gradient.clone()))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-9, atol=1e-12)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-7, atol=1e-9)


def test_saved_weights_are_contiguous_copies() -> None:
    encoder = resnet18("cifar", width=4).to(memory_format=torch.channels_last)
    saved = torchvision_state_dict(encoder)
    assert all(value.is_contiguous() and not value.requires_grad for value in saved.values())
    before = {name: value.clone() for name, value in saved.items()}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in saved.items())


@pytest.mark.unchecked
@pytest.mark.parametrize("stem", ["CIFAR", "cifar10", None, ""])
def test_an_unknown_stem_names_the_choices(stem: str) -> None:
    with pytest.raises(ValueError, match="choose one of 'cifar', 'stl', 'imagenet'"):
        resnet18(stem)


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="width is 0"):
        resnet50("cifar", width=0)


def _small() -> ResNet:
    return resnet18("cifar", width=4)


def test_weights_that_do_not_fit_change_nothing() -> None:
    encoder = _small()
    before = torchvision_state_dict(encoder)
    other_stem = torchvision_state_dict(resnet18("stl", width=4))
    with pytest.raises(ValueError, match=r"conv1.weight is \(4, 3, 7, 7\) in the weights, \(4, 3, 3, 3\) here"):
        load_torchvision(encoder, other_stem)
    with pytest.raises(ValueError, match="another stem or width"):
        load_torchvision(encoder, torchvision_state_dict(resnet18("cifar", width=8)))
    with pytest.raises(ValueError, match=r"another architecture.*layer1.0.conv3"):
        load_torchvision(encoder, torchvision_state_dict(resnet50("cifar", width=4)))
    truncated = dict(list(before.items())[:-3])
    with pytest.raises(ValueError, match="2 of the encoder's tensors are missing"):
        load_torchvision(encoder, truncated)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_old_weights_without_batch_counts_load() -> None:
    source, encoder = _small(), _small()
    old = {k: v for k, v in torchvision_state_dict(source).items() if not k.endswith("num_batches_tracked")}
    load_torchvision(encoder, old)
    assert torch.equal(encoder.conv1.weight, source.conv1.weight)


class _LikeTimm(nn.Module):
    """A module that says its feature dimension as timm's do; with its classifier on, that is not its output's."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_features = 6
        self.norm = nn.BatchNorm2d(3)
        self.body = nn.Linear(3, 6)
        self.head = nn.Linear(6, num_classes) if num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(self.norm(images).mean(dim=(2, 3))))
        return output


def test_a_module_from_elsewhere_is_an_encoder() -> None:
    module = _LikeTimm(0)
    module.body.eval()
    assert feature_dim(module) == 6
    assert check_encoder(module, _images(2, 8)) == 6
    assert (module.training, module.norm.training, module.body.training) == (True, True, False)
    assert module.norm.num_batches_tracked == 0


def test_a_module_that_is_no_encoder_is_told_the_cure() -> None:
    with pytest.raises(ValueError, match=r"set encoder.feature_dim"):
        feature_dim(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"gives \(2, 10\) for 2 images, not \(2, 6\).*num_classes=0"):
        check_encoder(_LikeTimm(10), _images(2, 8))


def test_narrow_convolutions_keep_the_plain_layout() -> None:
    assert prefers_channels_last(resnet18("cifar", width=16))
    assert not prefers_channels_last(resnet18("cifar", width=8))
