"""ResNets with the stems of the paper, their torchvision-keyed weights, and what any other encoder has to say."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

Stem = Literal["cifar", "stl", "imagenet"]


class ResNet(nn.Module):
    """A ResNet (He et al. 2016) up to its pooled features, made of torchvision's blocks under torchvision's names.

    `blocks` counts the blocks of the four stages; the first stage is `width` wide, each later one twice the one before.
    The stem: "cifar" is 3x3 with stride 1 and no pooling, "stl" 7x7 with stride 2 and no pooling, "imagenet" 7x7 with
    stride 2 and 3x3 max-pooling with stride 2. The stride of a Bottleneck is on its 3x3 convolution ("v1.5"), as in
    torchvision and the released code. Initialised as torchvision does; see `init_official_`.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int], *, stem: Stem, width: int
    ) -> None:
        super().__init__()
        if stem not in get_args(Stem):
            raise ValueError(f"stem is {stem!r}; choose one of {', '.join(map(repr, get_args(Stem)))}")
        if width < 1:
            raise ValueError(f"width is {width}; need at least 1 (64 is the paper's)")
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        expansion = block.expansion
        self.layer1 = _stage(block, blocks[0], width, width, stride=1)
        self.layer2 = _stage(block, blocks[1], width * expansion, 2 * width, stride=2)
        self.layer3 = _stage(block, blocks[2], 2 * width * expansion, 4 * width, stride=2)
        self.layer4 = _stage(block, blocks[3], 4 * width * expansion, 8 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = 8 * width * expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], count: int, in_channels: int, planes: int, *, stride: int
) -> nn.Sequential:
    """`count` blocks of one width; the first takes the stride and, where shapes change, a 1x1 shortcut."""
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out_channels, planes) for _ in range(count - 1)))


def resnet18(stem: Stem, *, width: int = 64) -> ResNet:
    """A ResNet-18: (b, 3, h, w) images to (b, 8 * width) features; `stem` is "cifar", "stl" or "imagenet".

    >>> resnet18("cifar", width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 32])
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), stem=stem, width=width)


def resnet50(stem: Stem, *, width: int = 64) -> ResNet:
    """A ResNet-50: (b, 3, h, w) images to (b, 32 * width) features; `stem` is "cifar", "stl" or "imagenet".

    >>> resnet50("imagenet", width=4).feature_dim
    128
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), stem=stem, width=width)


@torch.no_grad()
def init_official_(encoder: nn.Module, *, generator: torch.Generator | None = None) -> nn.Module:
    """Draws the weights as the released code does, in place: every convolution from N(0, 1 / fan_in).

    The last BatchNorm of every Bottleneck starts at weight 0 (a ResNet-50's blocks start as their shortcuts; a
    ResNet-18's do not). torchvision's own initialisation is N(0, 2 / fan_out) with all BatchNorm weights 1.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0.0, fan_in**-0.5, generator=generator)
        elif isinstance(module, Bottleneck):
            module.bn3.weight.zero_()
    return encoder


def load_torchvision(encoder: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads weights with a torchvision ResNet's keys, in place; those of its classifier `fc` are passed over.

    Raises ValueError, before anything is changed, where keys or shapes do not fit.
    """
    given = {name: value for name, value in state_dict.items() if not name.startswith("fc.")}
    own = encoder.state_dict()
    # Weights saved before torchvision 0.2.2 do not count their batches.
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in own]
    if missing or unknown:
        raise ValueError(
            f"these weights are of another architecture: {len(missing)} of the encoder's tensors are missing "
            f"{missing[:3]}, {len(unknown)} are unknown to it {unknown[:3]}; build the encoder they were saved from"
        )
    for name, value in given.items():
        if value.shape != own[name].shape:
            cure = (
                "another stem or width: build the encoder with the stem that the weights were trained with "
                "(torchvision's own have stem='imagenet', width=64)"
            )
            raise ValueError(f"{name} is {tuple(value.shape)} in the weights, {tuple(own[name].shape)} here; {cure}")
    encoder.load_state_dict(given, strict=False)


def torchvision_state_dict(encoder: nn.Module) -> dict[str, Tensor]:
    """The encoder's weights under torchvision's keys: a detached, contiguous copy on the CPU, ready to be saved.

    A `torchvision.models.resnet18()` (or resnet50) loads those of an encoder with the ImageNet stem and width 64 with
    `strict=False`: only `fc` is missing.
    """
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in encoder.state_dict().items()
    }


def feature_dim(module: nn.Module) -> int:
    """The number of features that an encoder says it gives: its `feature_dim`, or timm's `num_features`.

    Raises ValueError where it says neither.

    >>> feature_dim(resnet18("cifar", width=16))
    128
    """
    for name in ("feature_dim", "num_features"):
        size = getattr(module, name, None)
        if isinstance(size, int) and size > 0:
            return size
    raise ValueError(
        f"{type(module).__name__} does not say how many features it gives; set encoder.feature_dim to the f of its "
        "(b, f) output (timm's models have num_features; create them with num_classes=0)"
    )


def prefers_channels_last(module: nn.Module) -> bool:
    """Whether to lay an encoder and its images out in channels-last order: faster, and safe for its convolutions.

    False for convolutions of fewer than 16 channels. With an odd batch and several threads torch 2.11 (oneDNN) writes
    beyond the memory of their channels-last gradients.
    """
    return all(part.out_channels >= 16 for part in module.modules() if isinstance(part, nn.Conv2d))


def check_encoder(module: nn.Module, images: Float[Tensor, "b c h w"]) -> int:
    """Proves on a small batch that a module is an encoder, (b, c, h, w) to (b, feature_dim); returns `feature_dim`.

    Raises ValueError where it is not, such as for a timm model that still has its classifier. The module's training
    mode and buffers stay as they are.
    """
    size = feature_dim(module)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            output = module(images)
    finally:
        for part, mode in modes.items():
            part.training = mode
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got != (len(images), size):
        raise ValueError(
            f"{type(module).__name__} gives {got} for {len(images)} images, not {(len(images), size)} as its feature "
            "dimension says; take the classifier off (timm: num_classes=0; torchvision: fc = nn.Identity())"
        )
    return size
