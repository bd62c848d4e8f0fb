"""Detectors and segmenters out of an encoder: its stages in torchvision's Faster R-CNN and FCN, all of them trained.

The encoder is copied, so it stays as it was. Its stages keep their names and torchvision's keys; the pooling at its end
is left out. Any width and stem will do, and other networks whose children are named as a torchvision ResNet's.
Images come in [0, 1] and are not normalised further, as in pretraining. BatchNorm layers train like the rest (He et
al. 2020), so a batch should hold several images. Feature maps have the size of the stem's: that of "stl" is twice and
that of "cifar" four times as fine as that of "imagenet" along each axis, and takes 4 and 16 times the memory.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.segmentation import FCN
from torchvision.ops import MultiScaleRoIAlign

from stec.vision.encoders import feature_dim

STAGES = ("layer1", "layer2", "layer3", "layer4")
CHAIN = ("conv1", "bn1", "relu", "maxpool", *STAGES)  # a ResNet's children, in the order of its forward pass
RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
MEAN, STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]  # images stay in [0, 1]


def stages(encoder: nn.Module, last: str) -> "OrderedDict[str, nn.Module]":
    """Copies of the encoder's children from the stem to stage `last`, by name. ValueError where it is no ResNet.

    >>> from stec.vision.encoders import resnet18
    >>> list(stages(resnet18("stl", width=4), "layer1"))
    ['conv1', 'bn1', 'relu', 'maxpool', 'layer1']
    """
    children = dict(encoder.named_children())
    if tuple(children)[: len(CHAIN)] != CHAIN:
        raise ValueError(
            f"{type(encoder).__name__} has the children {', '.join(list(children)[:9]) or 'none'}; detection and "
            f"segmentation read feature maps from the stages of a ResNet, whose children are {', '.join(CHAIN)}"
        )
    names = CHAIN[: CHAIN.index(last) + 1]
    return OrderedDict((name, copy.deepcopy(children[name])) for name in names)


def stage_channels(encoder: nn.Module) -> list[int]:
    """The channels of the four stages: each has twice those of the one before, the last one the feature dimension.

    >>> from stec.vision.encoders import resnet50
    >>> stage_channels(resnet50("imagenet", width=64))
    [256, 512, 1024, 2048]
    """
    return [feature_dim(encoder) // 2**i for i in (3, 2, 1, 0)]


class Trunk(nn.Sequential):
    """The stages up to one of them, images to one feature map; `out_channels` is what torchvision asks for."""

    def __init__(self, parts: "OrderedDict[str, nn.Module]", out_channels: int) -> None:
        super().__init__(parts)
        self.out_channels = out_channels


class NamedOutput(Trunk):
    """A trunk that calls its feature map "out", as torchvision's FCN expects."""

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        return {"out": super().forward(images)}


def c4_detector(
    encoder: nn.Module,
    classes: int,
    *,
    min_sizes: Sequence[int] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    max_size: int = 1333,
    anchors: Sequence[int] = (32, 64, 128, 256, 512),
    proposals: tuple[int, int] = (2000, 1000),
    rois: int = 512,
    roi_size: int = 14,
) -> FasterRCNN:
    """Faster R-CNN (Ren et al. 2015) on the third stage, with the fourth and one more BatchNorm as the head of boxes.

    That is the form in which He et al. (2020) compare pretrained encoders ("R50-C4", trained throughout), and its
    defaults are theirs: the shorter side of a training image is drawn from `min_sizes`, that of a test image is the
    last of them; `anchors` in pixels of the resized image; at most `proposals` (in training, in test) go from the
    region proposal network on, six times as many before suppression; `rois` of them are trained on in each image,
    each pooled to `roi_size` pixels squared. `classes` counts the classes without the background. Where they have
    detectron2's parts, here are torchvision's: pooling samples 2 x 2 points without detectron2's shift of half a pixel,
    the loss of boxes is quadratic within 1/9, the last layers start as torch's do.
    Raises ValueError for an encoder that has no such stages.
    """
    channels = stage_channels(encoder)
    trunk = Trunk(stages(encoder, "layer3"), channels[2])
    head = OrderedDict(
        layer4=stages(encoder, "layer4")["layer4"],
        norm=nn.BatchNorm2d(channels[3]),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    )
    return FasterRCNN(
        trunk,
        min_size=tuple(min_sizes),
        max_size=max_size,
        image_mean=MEAN,
        image_std=STD,
        rpn_anchor_generator=AnchorGenerator((tuple(anchors),), (RATIOS,)),
        rpn_pre_nms_top_n_train=6 * proposals[0],
        rpn_pre_nms_top_n_test=6 * proposals[1],
        rpn_post_nms_top_n_train=proposals[0],
        rpn_post_nms_top_n_test=proposals[1],
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=roi_size, sampling_ratio=2),
        box_head=nn.Sequential(head),
        box_predictor=FastRCNNPredictor(channels[3], classes + 1),
        box_batch_size_per_image=rois,
    )


def fpn_detector(
    encoder: nn.Module,
    classes: int,
    *,
    min_sizes: Sequence[int] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    max_size: int = 1333,
    anchors: Sequence[int] = (32, 64, 128, 256, 512),
    proposals: tuple[int, int] = (2000, 1000),
    rois: int = 512,
    channels: int = 256,
) -> FasterRCNN:
    """Faster R-CNN on a pyramid of all four stages (Lin et al. 2017), with BatchNorm in the pyramid.

    torchvision's own form: `channels` in every level, one of the five `anchors` for each level (the last is the fourth
    stage's, pooled), a head of two linear layers on 7 x 7 pixels. Suppression works on each level apart, so each passes
    as many `proposals` on to it as are kept of all levels together, as in torchvision, where `c4_detector`'s only map
    passes six times as many. The rest is as in `c4_detector`.
    Raises ValueError for an encoder that has no such stages, and for another number of anchors.
    """
    if len(anchors) != len(STAGES) + 1:
        raise ValueError(f"{len(anchors)} anchors {tuple(anchors)}; a pyramid has 5 levels and takes one size for each")
    pyramid = BackboneWithFPN(
        nn.Sequential(stages(encoder, "layer4")),
        return_layers={stage: str(i) for i, stage in enumerate(STAGES)},
        in_channels_list=stage_channels(encoder),
        out_channels=channels,
        norm_layer=nn.BatchNorm2d,
    )
    return FasterRCNN(
        pyramid,
        classes + 1,
        min_size=tuple(min_sizes),
        max_size=max_size,
        image_mean=MEAN,
        image_std=STD,
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in anchors), (RATIOS,) * len(anchors)),
        rpn_pre_nms_top_n_train=proposals[0],  # of each level
        rpn_pre_nms_top_n_test=proposals[1],
        rpn_post_nms_top_n_train=proposals[0],
        rpn_post_nms_top_n_test=proposals[1],
        box_batch_size_per_image=rois,
    )


def dilate_(*parts: nn.Module) -> None:
    """Takes the strides out of successive stages, in place, and spreads the kernels that come after each instead.

    A kernel keeps its own dilation times the strides taken out before it. So the last stage gives at every second
    pixel (every fourth, ...) what it gave before, and pretrained weights keep their meaning.
    """
    rate = 1
    for conv in (module for part in parts for module in part.modules() if isinstance(module, nn.Conv2d)):
        stride, conv.stride = conv.stride[0], (1, 1)
        if conv.kernel_size != (1, 1):  # a shortcut takes the stride of the convolution beside it
            conv.dilation = (rate * conv.dilation[0], rate * conv.dilation[1])
            conv.padding = (rate * int(conv.padding[0]), rate * int(conv.padding[1]))
            rate *= stride


def segmenter(
    encoder: nn.Module, classes: int, *, channels: int = 256, dilation: int = 6, dilated_stages: int = 1
) -> FCN:
    """A fully convolutional network (Long et al. 2015) on the last stage: images to {"out": (b, classes, h, w)} logits.

    He et al. (2020), appendix: the last stage dilated, so that the map is 16 times coarser than the image (with the
    "imagenet" stem), two convolutions of 3 x 3 and `channels` with BatchNorm and the given `dilation`, one of 1 x 1,
    and bilinear interpolation to the image's size. `dilated_stages` 2 makes the map twice as fine. `classes` counts
    the background too. Raises ValueError for an encoder that has no such stages.

    >>> import torch
    >>> from stec.vision.encoders import resnet18
    >>> segmenter(resnet18("imagenet", width=4), 21, channels=8)(torch.zeros(2, 3, 65, 80))["out"].shape
    torch.Size([2, 21, 65, 80])
    """
    if not 0 <= dilated_stages <= 3:
        raise ValueError(f"dilated_stages is {dilated_stages}; the last 0 to 3 stages can be dilated")
    parts = stages(encoder, "layer4")
    dilate_(*(parts[stage] for stage in STAGES[len(STAGES) - dilated_stages :]))
    width = feature_dim(encoder)
    head = nn.Sequential(*_conv(width, channels, dilation), *_conv(channels, channels, dilation))
    head.append(nn.Conv2d(channels, classes, kernel_size=1))
    return FCN(NamedOutput(parts, width), head)


def _conv(inside: int, outside: int, dilation: int) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, kernel_size=3, padding=dilation, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
