"""Segmentation as people run it, on drawn rectangles: the mean intersection over union, whole runs, mistakes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rectangles import CLASSES, draw_folder
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes import records
from recipes.vision import segment, voc_encoders
from recipes.vision.voc_predictions import mean_iou
from stec.vision.voc_layout import VOC_CLASSES
from stec.vision.voc_masks import IGNORE

pytest.importorskip("pycocotools")

NAMES = ("background", *CLASSES)


def by_hand(found: list[Tensor], masks: list[Tensor], classes: int) -> dict[int, float]:
    """Intersection over union of each class that occurs, pixel by pixel."""
    inside, outside = [0] * classes, [0] * classes
    for a, b in zip(found, masks):
        for x, y in zip(a.flatten().tolist(), b.flatten().tolist()):
            if y == IGNORE:
                continue
            for c in range(classes):
                inside[c] += x == c and y == c
                outside[c] += x == c or y == c
    return {c: inside[c] / outside[c] for c in range(classes) if outside[c]}


def test_mean_iou_is_that_of_counting_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [torch.randint(4, (9, 7), generator=generator).to(torch.uint8) for _ in range(3)]
    found = [torch.randint(4, (9, 7), generator=generator).to(torch.uint8) for _ in range(3)]
    for mask in masks:
        mask[torch.rand(9, 7, generator=generator) < 0.2] = IGNORE
    names = ("a", "b", "c", "d", "absent")
    (result,) = mean_iou(found, masks, names)
    expected = by_hand(found, masks, 5)
    assert result.value == pytest.approx(sum(expected.values()) / 4, abs=1e-4)
    assert result.details["of each class"] == {names[c]: pytest.approx(v, abs=1e-4) for c, v in expected.items()}


def test_perfect_and_missing_classes() -> None:
    mask = torch.tensor([[0, 1, IGNORE], [0, 1, 2]], dtype=torch.uint8)
    known = mask.clone()
    known[0, 2] = 2
    assert mean_iou([known], [mask], NAMES)[0].value == 1.0
    nothing = torch.zeros_like(mask)  # background 2 of 5, the others 0
    assert mean_iou([nothing], [mask], NAMES)[0].value == pytest.approx(0.4 / 3, abs=1e-4)
    with pytest.raises(ValueError):
        mean_iou([nothing, nothing], [mask], NAMES)


def test_the_loss_is_a_mean_over_known_pixels() -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"out": logits}

    logits = torch.randn(2, 3, 4, 5)
    masks = torch.randint(3, (2, 4, 5)).to(torch.uint8)
    masks[0, :2] = IGNORE
    batch = (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), masks)
    expected = [
        -logits.log_softmax(dim=1)[b, int(masks[b, y, x]), y, x]
        for b in range(2)
        for y in range(4)
        for x in range(5)
        if masks[b, y, x] != IGNORE
    ]
    cpu = torch.device("cpu")
    torch.testing.assert_close(segment.loss(Fixed(), batch, cpu)["cross-entropy"], torch.stack(expected).mean())
    unknown = (batch[0], torch.full_like(masks, IGNORE))
    assert float(segment.loss(Fixed(), unknown, cpu)["cross-entropy"]) == 0.0


def test_moco_s_protocol() -> None:
    for name, split in (("voc", "VOC2012/trainaug"), ("voc-train", "VOC2012/train")):
        args = segment.PRESETS[name]
        assert (args.config.train, args.config.test, args.config.crop) == ((split,), ("VOC2012/val",), 513)
        assert args.config.classes == ("background", *VOC_CLASSES)
        schedule = args.schedule
        assert (schedule.steps, schedule.batch_size, schedule.lr, schedule.weight_decay) == (30_000, 16, 0.003, 1e-4)
        factors = [schedule.factor(step) for step in (0, 20_999, 21_000, 27_000)]
        assert factors == pytest.approx([1.0, 1.0, 0.1, 0.01])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "VOC"
    draw_folder(folder, "train", [f"train{i}" for i in range(6)])
    return draw_folder(folder, "val", [f"val{i}" for i in range(3)], seed=1)


def arguments(
    root: Path, out: Path, *, steps: int = 4, lr: float = 0.02, width: int = 4, resume: bool = False, **config: object
) -> segment.Arguments:
    """A run of seconds from an untrained encoder."""
    base = segment.PRESETS["labelme-small"]
    data = {"train": ("train",), "test": ("val",), "classes": NAMES, "same": False, "crop": 48, "channels": 8}
    return dataclasses.replace(
        base,
        schedule=dataclasses.replace(
            base.schedule, steps=steps, lr=lr, warmup_steps=1, drops=(), precise_bn=2, save_every=2, check_every=2
        ),
        encoders=voc_encoders.Encoders(random=True, arch="resnet18", stem="stl", width=width),
        config=dataclasses.replace(base.config, **{**data, **config}),  # type: ignore[arg-type]
        root=root,
        out=out,
        resume=resume,
    )


def test_a_run_learns_and_leaves_its_record_weights_and_picture(root: Path, tmp_path: Path) -> None:
    whole = {"dilation": 1, "dilated_stages": 2, "channels": 16, "scale": (1.0, 1.0)}
    (record,) = segment.segment(arguments(root, tmp_path, steps=60, lr=0.1, width=8, **whole))
    assert (record.method, record.stage, record.data) == ("untrained encoder", "segment", "VOC")
    (result,) = record.results
    assert result.metric == "mIoU"
    assert result.value > 0.7  # background alone: 0.28
    folder = tmp_path / "untrained-seed0"
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,loss,cross-entropy,lr"
    assert float(rows[-1].split(",")[1]) < 0.6 * float(rows[1].split(",")[1])
    assert "backbone.layer4.1.bn2.weight" in load_file(folder / "weights.safetensors")
    with Image.open(folder / "predictions.png") as image:
        assert np.asarray(image.convert("L")).std() > 10
    assert (folder / "predictions.png").stat().st_size < 150_000
    assert records.read(tmp_path / "results.json") == [record]


def test_an_interrupted_run_goes_on_to_the_same_weights(root: Path, tmp_path: Path) -> None:
    segment.segment(arguments(root, tmp_path))
    folder = tmp_path / "untrained-seed0"
    whole = load_file(folder / "weights.safetensors")
    for name in ("checkpoints/step=4.ckpt", "results.json", "weights.safetensors"):
        (folder / name).unlink()
    segment.segment(arguments(root, tmp_path, resume=True))
    again = load_file(folder / "weights.safetensors")
    assert all(torch.equal(again[key], value) for key, value in whole.items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: Image.new("L", (64, 40)).save(root / "SegmentationClass" / "b.png"), "another size"),
        (lambda root: Image.new("L", (64, 48), 7).save(root / "SegmentationClass" / "b.png"), "unknown classes"),
        (lambda root: (root / "SegmentationClass" / "b.png").unlink(), "files are missing"),
    ],
)
def test_mistakes_in_the_data_stop_before_training(
    root: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    data = draw_folder(tmp_path / "VOC", "train", ["a", "b", "c"])
    draw_folder(data, "val", ["d"])
    spoil(data)
    with pytest.raises(ValueError, match=message):
        segment.segment(arguments(data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"6 images are trained and tested on, such as .*train0\.jpg"):
        segment.segment(arguments(root, tmp_path, test=("train",)))
    with pytest.raises(ValueError, match="no preset 'x'; there are voc, voc-train, labelme-small"):
        segment.main(["x"])
    with pytest.raises(ValueError, match="no encoder to begin from"):
        segment.main(["labelme-small", "--root", str(root)])
    assert segment.main([]) is None


@pytest.mark.shared
def test_labelme_s_sample(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    root = shared_data("labelme-voc-sample") / "semantic_segmentation"
    base = segment.PRESETS["labelme-small"]
    short = dataclasses.replace(base.schedule, steps=3, warmup_steps=1, drops=(), precise_bn=1)
    tiny = dataclasses.replace(base.encoders, random=True, width=4)
    args = dataclasses.replace(base, schedule=short, encoders=tiny, root=root, out=tmp_path)
    (record,) = segment.segment(args)
    assert record.results[0].details["test"] == 3
