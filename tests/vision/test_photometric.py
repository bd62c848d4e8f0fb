"""Every photometric change against torchvision's at the same parameters, and the law of their draws."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import ColorJitter, GaussianBlur
from torchvision.transforms.v2 import functional as TF

from stec.vision import photometric
from stec.vision.photometric import Photometric

LAW = {
    "jitter": (0.8, 0.8, 0.8, 0.2),
    "p_jitter": 0.8,
    "p_grayscale": 0.2,
    "p_blur": 0.5,
    "kernel_size": 5,
    "sigma": (0.1, 2.0),
    "p_solarise": 0.2,
    "threshold": 0.5,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def colours(n: int = 48, height: int = 17, width: int = 23) -> Tensor:
    """Random colours, and the corners of the colour cube, greys, equal pairs of channels and nearly grey images."""
    images = torch.rand(n, 3, height, width, generator=seeded(3))
    images[0] = 0.3
    images[1] = images[1].round()
    images[2, 0] = images[2, 1]
    images[3, 1] = images[3, 2]
    images[4, 2] = images[4, 0]
    images[5] = (4 * images[5]).round() / 4
    images[6] = 0.5 + 1e-6 * images[6]
    images[7] = 0
    images[8] = 1
    return images


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (photometric.adjust_brightness, TF.adjust_brightness, 0.0, 2.0),
        (photometric.adjust_contrast, TF.adjust_contrast, 0.0, 2.0),
        (photometric.adjust_saturation, TF.adjust_saturation, 0.0, 2.0),
        (photometric.adjust_hue, TF.adjust_hue, -0.5, 0.5),
    ],
)
def test_adjustments_equal_torchvisions(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], low: float, high: float
) -> None:
    images = colours()
    kept = images.clone()
    amounts = torch.linspace(low, high, len(images))[torch.randperm(len(images), generator=seeded())]
    expected = torch.stack([theirs(image, float(amount)) for image, amount in zip(images, amounts)])
    assert float((expected - images).abs().max()) > 0.3
    torch.testing.assert_close(ours(images, amounts), expected, atol=5e-6, rtol=0)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("shift", [-0.5, -1 / 3, -1 / 6, 0.0, 1 / 6, 1 / 3, 0.5])
def test_hue_at_the_corners_of_the_circle(shift: float) -> None:
    images = colours()
    turned = photometric.adjust_hue(images, torch.full((len(images),), shift))
    torch.testing.assert_close(turned, TF.adjust_hue(images, shift), atol=5e-6, rtol=0)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_hue_of_narrow_images_is_rounded_once(narrow: torch.dtype) -> None:
    images = torch.cat([colours(), colours().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)]).to(narrow)
    shift = torch.full((len(images),), 0.2)
    turned = photometric.adjust_hue(images, shift)
    assert torch.equal(turned, photometric.adjust_hue(images.float(), shift).to(narrow))
    assert turned.isfinite().all()


def test_hue_keeps_greys_and_turns_red_to_green_to_blue() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    third = torch.tensor([1 / 3])
    green = photometric.adjust_hue(red, third)
    torch.testing.assert_close(green.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=2e-6, rtol=0)
    torch.testing.assert_close(
        photometric.adjust_hue(green, third).flatten(), red.flatten()[[1, 2, 0]], atol=4e-6, rtol=0
    )
    grey = torch.full((1, 3, 2, 2), 0.4)
    assert torch.equal(photometric.adjust_hue(grey, third), grey)


def test_grayscale_and_solarise_equal_torchvisions() -> None:
    images = colours()
    torch.testing.assert_close(photometric.grayscale(images), TF.rgb_to_grayscale(images, 3), atol=1e-6, rtol=0)
    images[9] = 0.5  # a value at the threshold is inverted
    for threshold in (0.5, 0.3, 0.8, 1.0):
        torch.testing.assert_close(photometric.solarise(images, threshold), TF.solarize(images, threshold))


@pytest.mark.parametrize(("kernel", "height", "width"), [(1, 5, 5), (3, 32, 32), (9, 31, 20), (9, 5, 5), (23, 40, 40)])
def test_blur_equals_torchvisions(kernel: int, height: int, width: int) -> None:
    images = torch.rand(12, 3, height, width, generator=seeded())
    sigma = torch.linspace(0.05, 2.5, 12)
    expected = torch.stack([TF.gaussian_blur(image, [kernel] * 2, [float(s)] * 2) for image, s in zip(images, sigma)])
    torch.testing.assert_close(photometric.gaussian_blur(images, sigma, kernel), expected, atol=2e-6, rtol=0)


def test_blur_refuses_even_and_too_large_kernels() -> None:
    images, sigma = torch.rand(1, 3, 8, 8), torch.ones(1)
    with pytest.raises(ValueError, match="need an odd number"):
        photometric.gaussian_blur(images, sigma, 4)
    with pytest.raises(ValueError, match="needs images of more than 8 pixels"):
        photometric.gaussian_blur(images, sigma, 17)


def by_torchvision(image: Tensor, draw: Photometric, k: int) -> Tensor:
    """The changes of image k of a draw, one torchvision function after the other."""
    if draw.jitter[k]:
        brightness, contrast, saturation = draw.factors[k].tolist()
        operations = [
            lambda view: TF.adjust_brightness(view, brightness),
            lambda view: TF.adjust_contrast(view, contrast),
            lambda view: TF.adjust_saturation(view, saturation),
            lambda view: TF.adjust_hue(view, float(draw.hue[k])),
        ]
        for operation in draw.order[k].tolist():
            image = operations[operation](image)
    if draw.grayscale[k]:
        image = TF.rgb_to_grayscale(image, 3)
    if draw.blur[k]:
        image = TF.gaussian_blur(image, [draw.kernel_size] * 2, [float(draw.sigma[k])] * 2)
    return TF.solarize(image, draw.threshold) if draw.solarise[k] else image


@pytest.mark.parametrize("chunk", [1, 20_000, 1 << 30])
def test_a_draw_equals_torchvisions_chain_in_each_images_order(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photometric, "CHUNK", chunk)
    images = torch.rand(120, 3, 19, 16, generator=seeded())
    draw = Photometric.draw(120, **LAW, generator=seeded(1))
    assert len(draw.order[draw.jitter].unique(dim=0)) == 24  # all orders occur
    changed = draw.apply(images)
    expected = torch.stack([by_torchvision(image, draw, k) for k, image in enumerate(images)])
    torch.testing.assert_close(changed, expected, atol=3e-5, rtol=0)


def test_uint8_images_are_scaled_to_one() -> None:
    images = torch.randint(0, 256, (30, 3, 12, 12), dtype=torch.uint8, generator=seeded())
    draw = Photometric.draw(30, **LAW, generator=seeded(1))
    torch.testing.assert_close(draw.apply(images), draw.apply(images.float() / 255))


def test_the_law_of_a_draw() -> None:
    n = 40_000
    draw = Photometric.draw(n, **LAW, generator=seeded())
    jitter = ColorJitter(*LAW["jitter"])
    ranges = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    values = torch.cat((draw.factors, draw.hue[:, None]), dim=1)
    for column, (low, high) in zip(values.T, ranges.tolist()):
        assert low <= float(column.min()) < low + 0.001 * (high - low) + 1e-6
        assert high - 0.001 * (high - low) < float(column.max()) <= high
        uniform = torch.linspace(low, high, n)
        assert float((column.sort().values - uniform).abs().max()) < 0.01 * (high - low)  # Kolmogorov's distance
    assert abs(float(torch.corrcoef(values.T).fill_diagonal_(0).abs().max())) < 0.02
    orders = draw.order.unique(dim=0, return_counts=True)
    assert len(orders[0]) == 24
    assert float((orders[1] / n * 24 - 1).abs().max()) < 0.1
    for mask, p in ((draw.jitter, 0.8), (draw.grayscale, 0.2), (draw.blur, 0.5), (draw.solarise, 0.2)):
        assert float(mask.double().mean()) == pytest.approx(p, abs=0.01)
    both = torch.stack((draw.jitter, draw.grayscale, draw.blur, draw.solarise)).double()
    assert float(torch.corrcoef(both).fill_diagonal_(0).abs().max()) < 0.02
    assert float(draw.sigma.min()) >= 0.1
    assert float(draw.sigma.double().mean()) == pytest.approx(sum(GaussianBlur(5, (0.1, 2.0)).sigma) / 2, abs=0.01)


def test_factors_are_never_negative() -> None:
    draw = Photometric.draw(2000, **{**LAW, "jitter": (1.6, 1.6, 1.6, 0.4)}, generator=seeded())
    assert float(draw.factors.min()) >= 0
    assert float(draw.factors.max()) > 2.5


@pytest.mark.unchecked
# torch itself warns when its compiler is first imported
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_equals_eager() -> None:
    images = torch.rand(40, 3, 16, 16, generator=seeded())
    draw = Photometric.draw(40, **LAW, generator=seeded(1))
    assert not torch.equal(draw.apply(images), images)
    torch.testing.assert_close(draw.apply(images, compile=True), draw.apply(images), atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_changes() -> None:
    images = torch.rand(64, 3, 24, 24, generator=seeded())
    draw = Photometric.draw(64, **LAW, generator=seeded(1))
    torch.testing.assert_close(draw.apply(images.cuda()).cpu(), draw.apply(images), atol=3e-5, rtol=0)
