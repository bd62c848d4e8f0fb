"""Detectors and segmenters: the encoder's weights arrive, mean what they meant, and are trained."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rectangles import CLASSES, draw_folder
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models.detection import FasterRCNN

from stec.vision.encoders import ResNet, Stem, resnet18, resnet50
from stec.vision.transfer import c4_detector, dilate_, fpn_detector, segmenter, stage_channels, stages
from stec.vision.voc import read_detection
from stec.vision.voc_layout import Part
from stec.vision.voc_masks import IGNORE, read_segmentation

SMALL = {"min_sizes": (48,), "max_size": 80, "anchors": (4, 8, 16, 24, 32), "proposals": (100, 50), "rois": 32}


def c4(encoder: nn.Module) -> FasterRCNN:
    return c4_detector(encoder, 2, roi_size=4, **SMALL)  # type: ignore[arg-type]


def fpn(encoder: nn.Module) -> FasterRCNN:
    return fpn_detector(encoder, 2, channels=8, **SMALL)  # type: ignore[arg-type]


def an_encoder(stem: Stem = "stl", width: int = 4) -> ResNet:
    """With statistics and weights that no fresh network has."""
    torch.manual_seed(3)
    encoder = resnet18(stem, width=width)
    with torch.no_grad():
        for _ in range(3):
            encoder(torch.rand(8, 3, 32, 32))
        for parameter in encoder.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return encoder


def parts_of(model: nn.Module, encoder: nn.Module) -> dict[str, str]:
    """The key in the model of each of the encoder's tensors, found by the name of its end."""
    keys = list(model.state_dict())
    found = {
        name: [key for key in keys if key.endswith(f".{name}") and "layer" not in key.removesuffix(name)]
        for name in encoder.state_dict()
    }
    assert all(len(matches) == 1 for matches in found.values())
    return {name: matches[0] for name, matches in found.items()}


def targets(n: int) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[3.0, 5.0, 20.0, 25.0], [30.0, 8.0, 60.0, 40.0]])
    return [{"boxes": boxes, "labels": torch.tensor([2, 1])} for _ in range(n)]


def detection_loss(model: nn.Module, images: Tensor) -> Tensor:
    return torch.stack(list(model(list(images), targets(len(images))).values())).sum()


def segmentation_loss(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)["out"]
    return functional.cross_entropy(logits, torch.arange(64).expand(len(images), 48, 64) // 32)


MODELS: dict[str, tuple[Callable[[nn.Module], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "c4": (c4, detection_loss),
    "fpn": (fpn, detection_loss),
    "fcn": (lambda encoder: segmenter(encoder, 2, channels=8), segmentation_loss),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_encoder_arrives_and_is_trained_as_a_copy(name: str) -> None:
    build, loss = MODELS[name]
    encoder = an_encoder()
    before = copy.deepcopy(encoder.state_dict())
    model = build(encoder)
    keys = parts_of(model, encoder)
    for mine, theirs in keys.items():
        assert torch.equal(model.state_dict()[theirs], before[mine])
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    loss(model, torch.rand(2, 3, 48, 64)).backward()
    optimizer.step()
    for theirs in keys.values():  # weights, biases, BatchNorm's parameters and statistics
        assert not torch.equal(model.state_dict()[theirs], start[theirs]), theirs
    for mine, value in encoder.state_dict().items():
        assert torch.equal(value, before[mine])


@pytest.mark.parametrize("name", ["c4", "fpn"])
def test_the_stages_give_what_the_encoder_gives(name: str) -> None:
    encoder = an_encoder().eval()
    model = MODELS[name][0](encoder).eval()
    images = torch.rand(2, 3, 40, 56)
    with torch.no_grad():
        x = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(images))))
        maps = [x := stage(x) for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)]
        if name == "c4":
            assert torch.equal(model.backbone(images), maps[2])
            head = model.roi_heads.box_head
            torch.testing.assert_close(encoder(images), head.flatten(head.avgpool(head.layer4(maps[2]))))
            plain = head.norm.eval()  # fresh: it divides by sqrt(1 + eps) alone
            torch.testing.assert_close(head(maps[2]), encoder(images) / (1 + plain.eps) ** 0.5)
        else:
            for i, given in enumerate(model.backbone.body(images).values()):
                assert torch.equal(given, maps[i])


@pytest.mark.parametrize("name", ["c4", "fpn"])
def test_images_stay_in_zero_to_one(name: str) -> None:
    model = MODELS[name][0](an_encoder())
    image = torch.rand(3, 48, 64)
    assert torch.equal(model.transform([image])[0].tensors[0, :, :48, :64], image)


@pytest.mark.parametrize("build", [resnet18, resnet50])
@pytest.mark.parametrize("dilated", [1, 2, 3])
def test_dilated_stages_keep_what_weights_mean(build: Callable[..., ResNet], dilated: int) -> None:
    encoder = build("stl", width=4).double().eval()
    images = torch.rand(1, 3, 150, 97, dtype=torch.float64)
    plain, spread = (nn.Sequential(stages(encoder, "layer4")).eval() for _ in range(2))
    dilate_(*list(spread.children())[-dilated:])
    with torch.no_grad():
        coarse, fine = plain(images), spread(images)
    step = 2**dilated
    assert fine.shape[2] > (step - 1) * (coarse.shape[2] - 1)
    torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("stem", "stride"), [("cifar", 4), ("stl", 8), ("imagenet", 16)])
def test_the_segmenter_s_map_and_output(stem: Stem, stride: int) -> None:
    model = segmenter(resnet18(stem, width=4), 5, channels=8).eval()
    images = torch.rand(1, 3, 96, 64)
    assert model.backbone(images)["out"].shape == (1, 32, 96 // stride, 64 // stride)
    assert model(images)["out"].shape == (1, 5, 96, 64)
    fine = segmenter(resnet18(stem, width=4), 5, channels=8, dilated_stages=2).eval()
    assert fine.backbone(images)["out"].shape == (1, 32, 192 // stride, 128 // stride)
    convolutions = [module for module in model.classifier if isinstance(module, nn.Conv2d)]
    assert [(c.out_channels, c.dilation[0], c.kernel_size[0]) for c in convolutions] == [
        (8, 6, 3),
        (8, 6, 3),
        (5, 1, 1),
    ]
    with pytest.raises(ValueError, match="dilated_stages is 4; the last 0 to 3"):
        segmenter(resnet18(stem, width=4), 5, dilated_stages=4)


@pytest.mark.parametrize("width", [3, 8])
@pytest.mark.parametrize("form", ["c4", "fpn"])
def test_any_width_and_architecture_detects(width: int, form: str) -> None:
    model = MODELS[form][0](resnet50("imagenet", width=width)).eval()
    with torch.no_grad():
        found = model([torch.rand(3, 48, 64), torch.rand(3, 64, 50)])
    assert [set(f) for f in found] == [{"boxes", "labels", "scores"}] * 2
    assert stage_channels(resnet50("imagenet", width=width)) == [4 * width, 8 * width, 16 * width, 32 * width]


def test_moco_s_defaults() -> None:
    model = c4_detector(resnet50("imagenet", width=2), 20)
    assert model.transform.min_size == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert model.transform.max_size == 1333
    assert model.rpn.anchor_generator.num_anchors_per_location() == [15]
    assert model.rpn._pre_nms_top_n == {"training": 12000, "testing": 6000}
    assert model.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 512
    assert model.roi_heads.box_roi_pool.output_size == (14, 14)
    assert model.roi_heads.box_predictor.cls_score.out_features == 21
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize(("form", "factor"), [(c4_detector, 6), (fpn_detector, 1)])
def test_proposals_before_suppression_follow_those_kept(form: Callable[..., FasterRCNN], factor: int) -> None:
    model = form(resnet50("imagenet", width=2), 20, proposals=(30, 20))
    assert model.rpn._pre_nms_top_n == {"training": 30 * factor, "testing": 20 * factor}
    assert model.rpn._post_nms_top_n == {"training": 30, "testing": 20}


def test_other_networks() -> None:
    theirs = torchvision_resnet18()
    theirs.feature_dim = 512
    assert list(stages(theirs, "layer1")) == ["conv1", "bn1", "relu", "maxpool", "layer1"]
    with pytest.raises(
        ValueError, match=r"Sequential has the children 0; .* stages of a ResNet, whose children are conv1"
    ):
        stages(nn.Sequential(nn.Identity()), "layer4")
    with pytest.raises(ValueError, match="2 anchors \\(8, 16\\); a pyramid has 5 levels"):
        fpn_detector(an_encoder(), 2, anchors=(8, 16))


@pytest.mark.parametrize("name", ["c4", "fpn"])
def test_twenty_steps_lower_a_detector_s_loss(name: str, tmp_path: Path) -> None:
    data = read_detection([Part(draw_folder(tmp_path, "train", list("abcd")), "train")], classes=CLASSES)
    images = [data[i][0].float() / 255 for i in range(4)]
    truth = [{"boxes": objects.boxes, "labels": objects.labels} for objects in data.objects]
    model = MODELS[name][0](an_encoder(width=8)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = torch.stack(list(model(images, truth).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])


def test_twenty_steps_lower_a_segmenter_s_loss(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, "train", list("abcd"))
    data = read_segmentation([Part(root, "train")], classes=("background", *CLASSES))
    images = torch.stack([data[i][0] for i in range(4)]).float() / 255
    masks = torch.stack([data[i][1] for i in range(4)]).long()
    model = segmenter(an_encoder(width=8), 3, channels=16).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = functional.cross_entropy(model(images)["out"], masks, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
