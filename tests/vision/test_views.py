"""Batches of view pairs: the views equal crop then photometric change of the same draw, the action is that draw's."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from waiting import waiting_forbidden

from stec.core.actions import Egocentric
from stec.vision import photometric
from stec.vision.affine import Affine, CropFlip, OfficialCopy, exact_action
from stec.vision.photometric import Photometric
from stec.vision.views import (
    CROP_FLIP,
    SIMCLR_CIFAR,
    SIMCLR_IMAGENET,
    SIMCLR_STL,
    Augmentation,
    CroppedPair,
    TwoViews,
    two_views,
)

ALL = replace(SIMCLR_STL, size=40)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = 16, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=seeded(9))


def same_draws(
    augmentation: Augmentation, n: int, image_size: tuple[int, int], size: int
) -> tuple[CropFlip, Photometric]:
    """The 2n draws that a generator of seed 0 gives."""
    generator = seeded()
    crops = augmentation.draw_crops(2 * n, image_size, generator=generator)
    return crops, augmentation.draw_photometric(2 * n, size, generator=generator)


@pytest.mark.parametrize("chunk", [1, 30_000, 1 << 30])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 37)])
def test_views_are_the_crop_and_then_the_change_of_one_draw(
    height: int, width: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_images(24, height, width)
    crops, changes = same_draws(ALL, 24, (height, width), 40)
    monkeypatch.setattr(photometric, "CHUNK", chunk)
    pair = two_views(images, generator=seeded(), augmentation=ALL)
    expected = changes.apply(crops.apply(torch.cat((images, images)), 40))
    torch.testing.assert_close(torch.cat((pair.x, pair.x_prime)), expected, atol=1e-6, rtol=0)
    to_x, to_x_prime = crops.matrix().chunk(2)
    torch.testing.assert_close(pair.action, Affine().flatten(exact_action(to_x, to_x_prime)), atol=1e-5, rtol=1e-5)
    assert torch.equal(pair.valid, ~(changes.solarise[:24] | changes.solarise[24:]))
    assert 0 < int(pair.valid.sum()) < 24


def test_x_prime_is_x_seen_through_the_action() -> None:
    # slow waves, geometry alone: the pipeline's own label makes one view from the other
    y, x = torch.meshgrid(*[(torch.arange(128) + 0.5) / 128] * 2, indexing="ij")
    phase = torch.rand(32, 3, 3, generator=seeded(2))[..., None, None]
    images = 0.5 + 0.5 * torch.sin(6.28 * (2 * phase[:, :, 0] * x + 2 * phase[:, :, 1] * y + phase[:, :, 2]))
    pair = two_views(images, generator=seeded(), augmentation=CROP_FLIP)
    scale_x, scale_y, shift_x, shift_y = pair.action.T
    zero = torch.zeros_like(scale_x)
    action = torch.stack((scale_x, zero, shift_x, zero, scale_y, shift_y), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(action, list(images.shape), align_corners=False)
    seen = (grid.abs() < 0.95).all(dim=-1)[:, None].expand_as(images)
    assert float(seen.float().mean()) > 0.2
    made = F.grid_sample(pair.x, grid, align_corners=False)
    assert float((made - pair.x_prime).abs()[seen].mean()) < 2e-3
    assert float((made.roll(1, 0) - pair.x_prime).abs()[seen].mean()) > 0.1


def test_the_batch_type() -> None:
    images = random_images()
    pair = two_views(images, generator=seeded())
    assert pair.x.shape == pair.x_prime.shape == (16, 3, 32, 32)
    assert pair.x.dtype == pair.x_prime.dtype == pair.action.dtype == torch.float32
    assert pair.action.shape == (16, 4)
    assert pair.label.tolist() == [-1] * 16
    assert bool(pair.valid.all())  # SimCLR's CIFAR views are never solarised
    assert 0 <= float(pair.x.min()) < 0.05 < 0.95 < float(pair.x.max()) <= 1
    label = torch.arange(16)
    official = two_views(images, label, generator=seeded(), copy=OfficialCopy())
    assert official.action.shape == (16, 6)
    assert torch.equal(official.label, label)
    assert torch.equal(official.x, pair.x)  # a label is no part of the draw


def test_float_images_give_the_views_of_their_bytes() -> None:
    images = random_images()
    bytes_, floats = (two_views(value, generator=seeded(), augmentation=ALL) for value in (images, images / 255))
    for a, b in zip(bytes_, floats):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    half = two_views((images / 255).half(), generator=seeded(), augmentation=CROP_FLIP)
    torch.testing.assert_close(
        half.x, two_views(images, generator=seeded(), augmentation=CROP_FLIP).x, atol=1e-3, rtol=0
    )


def test_equal_generators_give_equal_pairs_and_the_images_stay() -> None:
    images = random_images()
    kept = images.clone()
    first, again, other = (two_views(images, generator=seeded(seed), augmentation=ALL) for seed in (0, 0, 1))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.x, other.x)
    assert not torch.equal(first.x, first.x_prime)
    assert torch.equal(images, kept)
    floats = images / 255
    two_views(floats, generator=seeded(), augmentation=ALL)
    assert torch.equal(floats, images / 255)


def test_one_image() -> None:
    pair = two_views(random_images(1), generator=seeded(), augmentation=ALL)
    assert pair.x.shape == (1, 3, 40, 40)


def test_the_released_codes_laws() -> None:
    assert SIMCLR_CIFAR.strength == 0.5
    assert SIMCLR_STL.strength == SIMCLR_IMAGENET.strength == 1.0
    kernels = {}
    for size in (32, 96, 224):
        changes = SIMCLR_STL.draw_photometric(20_000, size, generator=seeded())
        kernels[size] = changes.kernel_size
        assert float(changes.sigma.min()) == pytest.approx(0.1 * size / 224, abs=1e-3)
        assert float(changes.sigma.max()) == pytest.approx(2 * size / 224, abs=1e-3)
    assert kernels == {32: 3, 96: 9, 224: 23}
    changes = SIMCLR_CIFAR.draw_photometric(20_000, 32, generator=seeded())
    assert not bool(changes.blur.any() | changes.solarise.any())
    assert float(changes.factors.min()) == pytest.approx(0.6, abs=1e-3)
    assert float(changes.hue.max()) == pytest.approx(0.1, abs=1e-3)
    plain = CROP_FLIP.draw_photometric(1000, 32, generator=seeded())
    assert not bool((plain.jitter | plain.grayscale | plain.blur | plain.solarise).any())


def test_pairs_are_valid_where_neither_view_is_solarised() -> None:
    pair = two_views(random_images(2000, 8, 8), generator=seeded(), augmentation=SIMCLR_STL)
    assert float(pair.valid.double().mean()) == pytest.approx(0.64, abs=0.04)


def test_pairs_cropped_by_workers_get_the_same_changes_and_labels() -> None:
    images, label = random_images(20), torch.arange(20)
    law = replace(SIMCLR_STL, size=24)
    crops = law.draw_crops(40, (32, 32), generator=seeded(5))
    x, x_prime = crops.apply(torch.cat((images, images)), 24).chunk(2)
    to_x, to_x_prime = crops.matrix(torch.float64).chunk(2)
    make = TwoViews(law, Egocentric(Affine()))
    pair = make(CroppedPair(x, x_prime, to_x, to_x_prime, label), seeded(6))
    changes = law.draw_photometric(40, 24, generator=seeded(6))
    torch.testing.assert_close(torch.cat((pair.x, pair.x_prime)), changes.apply(torch.cat((x, x_prime))))
    torch.testing.assert_close(pair.action, Affine().flatten(exact_action(to_x, to_x_prime)).float())
    assert torch.equal(pair.label, label)
    assert torch.equal(pair.valid, ~(changes.solarise[:20] | changes.solarise[20:]))
    whole = make((images, label), seeded())
    again = two_views(images, label, generator=seeded(), augmentation=law)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(whole, again))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 1, 8, 8), r"Grey images .* become colour by images.expand"),
        (torch.zeros(3, 8, 8), r"need a batch"),
        (torch.zeros(0, 3, 8, 8), r"shape \(0, 3, 8, 8\)"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.long), r"torch.int64; need uint8"),
        (torch.full((4, 3, 8, 8), 255.0), r"between 255 and 255; need values in \[0, 1\]: divide by 255"),
        (torch.linspace(-1, 1, 4 * 192).view(4, 3, 8, 8), r"between -1 and 1; need values in \[0, 1\]: scale or clamp"),
        (torch.full((4, 3, 8, 8), 1.0000002), r"and 1.0000002; need values in"),
        (torch.tensor([torch.nan, *[0.5] * 191]).view(1, 3, 8, 8), r"between nan and nan"),
    ],
)
def test_what_is_no_batch_of_colour_images_is_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_views(images, generator=seeded())


@pytest.mark.unchecked
def test_a_generator_on_a_device_is_refused() -> None:
    class OnDevice(torch.Generator):
        @property
        def device(self) -> torch.device:
            return torch.device("cuda", 0)

    with pytest.raises(ValueError, match=r"lives on cuda:0; .* use torch.Generator\(\)"):
        two_views(random_images(), generator=OnDevice())


@pytest.mark.shared
def test_real_photographs(shared_data) -> None:
    from PIL import Image
    from torchvision.transforms import functional as TF

    folder = shared_data("stl10-unlabeled-sample") / "examples"
    paths = sorted(folder.rglob("*.png"))[:8]
    images = torch.stack([TF.pil_to_tensor(Image.open(path).convert("RGB")) for path in paths])
    pair = two_views(images, generator=seeded(), augmentation=CROP_FLIP)
    crops, _ = same_draws(CROP_FLIP, 8, (96, 96), 96)
    for k in range(8):  # PIL's own crop and resize rounds to bytes twice
        top, left, height, width = (int(value[k]) for value in crops[:4])
        expected = TF.resized_crop(Image.open(paths[k]).convert("RGB"), top, left, height, width, [96, 96])
        expected = TF.pil_to_tensor(TF.hflip(expected) if crops.flip[k] else expected) / 255
        assert float((pair.x[k] - expected).abs().max()) < 1.5 / 255


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_pairs() -> None:
    images = random_images(64)
    cpu, gpu = (two_views(value, generator=seeded(), augmentation=ALL) for value in (images, images.cuda()))
    for a, b in zip(cpu[:5], gpu[:5], strict=True):
        assert b.device.type == "cuda"
        torch.testing.assert_close(b.cpu(), a, atol=3e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_never_waited_for() -> None:
    images = random_images(64).cuda()
    two_views(images, generator=seeded(), augmentation=ALL)
    with waiting_forbidden():
        two_views(images, torch.arange(64).cuda(), generator=seeded(), augmentation=ALL)
