"""The actions of Lee et al. (2021): their crop target against their formula, and the colours that made the pixels."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from stec.core.actions import EfferenceCopy, Egocentric, chance_level
from stec.core.manipulation import BinnedActions, RegressedActions
from stec.core.objective import Features
from stec.vision import photometric
from stec.vision.affine import Affine, AugSelfCopy, CropFlip, OfficialCopy, quantile_bins, simulate_actions
from stec.vision.colour import COLOURS, WithColour, colour_of, coloured
from stec.vision.simulation import actions_of_law, bins_of_law
from stec.vision.views import CROP_FLIP, SIMCLR_CIFAR, SIMCLR_STL, CroppedPair, TwoViews, two_views

LEE = replace(SIMCLR_STL, strength=0.5, scale=(0.2, 1.0), p_solarise=0.0)  # their views of STL-10
BOTH = WithColour(AugSelfCopy())
CROPS = {"scale": (0.08, 0.5), "ratio": (3 / 4, 4 / 3), "p_flip": 0.5}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = 16, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=seeded(9))


def crops(n: int, seed: int, image_size: tuple[int, int] = (40, 60)) -> CropFlip:
    return CropFlip.draw(n, image_size, **CROPS, generator=seeded(seed))


# ------------------------------------------------------------------------------------------------ crop


def lee(first: CropFlip, second: CropFlip, k: int, *, mirror_second_by_its_own: bool = False) -> list[float]:
    """The target of pair k by their formula, from pixels: centres over the image's size, mirrored, and subtracted."""
    height, width = first.image_size
    centres = []
    for draw in (first, second):
        mirrored = (draw if mirror_second_by_its_own else first).flip[k]
        centre_y = float(draw.top[k] + draw.height[k] / 2) / height
        centre_x = float(draw.left[k] + draw.width[k] / 2) / width
        centres.append((centre_y, 1 - centre_x if mirrored else centre_x))
    return [
        centres[0][0] - centres[1][0],
        centres[0][1] - centres[1][1],
        float(first.height[k] - second.height[k]) / height,
        float(first.width[k] - second.width[k]) / width,
    ]


def test_the_crop_target_is_lees_in_both_orders() -> None:
    first, second = crops(300, 1), crops(300, 2)
    for a, b in ((first, second), (second, first)):
        expected = torch.tensor([lee(a, b, k) for k in range(300)], dtype=torch.float64)
        torch.testing.assert_close(AugSelfCopy()(a.matrix(torch.float64), b.matrix(torch.float64)), expected)


def moved(draw: CropFlip, pixels: Tensor) -> CropFlip:
    return draw._replace(left=draw.left + pixels)


def mirrored(draw: CropFlip) -> CropFlip:
    return draw._replace(left=draw.image_size[1] - draw.left - draw.width, flip=~draw.flip)


def test_equal_views_have_equal_crop_targets_wherever_their_crops_lie() -> None:
    # An image moved or mirrored along with both crops: the views are the same, pixel by pixel.
    images = random_images(200, 40, 60)
    first, second = crops(200, 1), crops(200, 2)
    room = 60 - torch.maximum(first.left + first.width, second.left + second.width)
    pixels = (torch.rand(200, generator=seeded(3)) * (room + 1)).long()
    assert int((pixels > 0).sum()) > 50
    shifted = torch.stack([image.roll(int(by), -1) for image, by in zip(images, pixels)])
    for world, a, b in (
        (shifted, moved(first, pixels), moved(second, pixels)),
        (images.flip(-1), mirrored(first), mirrored(second)),
    ):
        for draw, other in ((first, a), (second, b)):
            torch.testing.assert_close(draw.apply(images, 16), other.apply(world, 16), atol=1e-5, rtol=0)
        labels = AugSelfCopy()(first.matrix(torch.float64), second.matrix(torch.float64))
        torch.testing.assert_close(AugSelfCopy()(a.matrix(torch.float64), b.matrix(torch.float64)), labels)

    # each centre mirrored by its own view's flip: another label for the same two views, where one of them is flipped
    a, b = moved(first, pixels), moved(second, pixels)
    one = (first.flip ^ second.flip) & (pixels > 0)
    for k in one.nonzero()[:, 0].tolist():
        own = [lee(*pair, k, mirror_second_by_its_own=True)[1] for pair in ((first, second), (a, b))]
        assert abs(abs(own[1] - own[0]) - 2 * float(pixels[k]) / 60) < 1e-12
    assert int(one.sum()) > 25


# ------------------------------------------------------------------------------------------------ colour


def test_colours_are_the_parameters_that_made_the_pixels() -> None:
    # Each operation by the reported parameters, in the drawn order: an independent way to the jittered views.
    images = torch.rand(40, 3, 8, 8, generator=seeded(1))
    law = replace(LEE, p_grayscale=0.0, p_blur=0.0, p_jitter=0.7)
    changes = law.draw_photometric(40, 8, generator=seeded())
    colours = colour_of(changes)
    operations = [
        photometric.adjust_brightness,
        photometric.adjust_contrast,
        photometric.adjust_saturation,
        photometric.adjust_hue,
    ]
    views = []
    for k in range(40):
        view = images[k : k + 1]
        for operation in changes.order[k].tolist():
            view = operations[operation](view, colours[k, operation : operation + 1].float())
        views.append(view)
    torch.testing.assert_close(torch.cat(views), changes.apply(images), atol=1e-6, rtol=0)
    assert colours.dtype == torch.float64
    still = ~changes.jitter
    assert 0 < int(still.sum()) < 40
    assert torch.equal(colours[still], torch.tensor([[1.0, 1.0, 1.0, 0.0]]).double().expand(int(still.sum()), 4))
    assert bool((colours[~still] != colours.new_tensor([1.0, 1.0, 1.0, 0.0])).all())


@pytest.mark.parametrize("geometry", [AugSelfCopy(), Egocentric(Affine()), OfficialCopy()])
def test_four_columns_behind_the_geometrys(geometry: EfferenceCopy) -> None:
    images, copy = random_images(64), WithColour(geometry)
    plain = two_views(images, generator=seeded(), augmentation=LEE, copy=geometry)
    pair = two_views(images, generator=seeded(), augmentation=LEE, copy=copy)
    assert torch.equal(pair.x, plain.x)
    assert torch.equal(pair.x_prime, plain.x_prime)
    assert torch.equal(pair.valid, plain.valid)
    d = len(geometry.components)
    assert copy.components == (*geometry.components, *COLOURS)
    assert pair.action.shape == (64, d + 4)
    assert pair.action.dtype == torch.float32
    assert torch.equal(pair.action[:, :d], plain.action)

    generator = seeded()
    LEE.draw_crops(128, (32, 32), generator=generator)
    changes = LEE.draw_photometric(128, 32, generator=generator)
    for k in range(64):  # one at a time, from the draw
        views = []
        for row in (k, 64 + k):
            drawn = [*changes.factors[row].double().tolist(), float(changes.hue[row])]
            views.append(drawn if changes.jitter[row] else [1.0, 1.0, 1.0, 0.0])
        expected = torch.tensor([a - b for a, b in zip(*views)])
        torch.testing.assert_close(pair.action[k, d:], expected, atol=1e-7, rtol=0)
    still = ~(changes.jitter[:64] | changes.jitter[64:])
    assert int(still.sum()) > 0
    assert bool((pair.action[still, d:] == 0).all())


def test_pairs_cropped_by_workers_tell_their_colours_too() -> None:
    images, label = random_images(20), torch.arange(20)
    law = replace(LEE, size=24)
    draw = law.draw_crops(40, (32, 32), generator=seeded(5))
    x, x_prime = draw.apply(torch.cat((images, images)), 24).chunk(2)
    to_x, to_x_prime = draw.matrix(torch.float64).chunk(2)
    pair = TwoViews(law, BOTH)(CroppedPair(x, x_prime, to_x, to_x_prime, label), seeded(6))
    changes = law.draw_photometric(40, 24, generator=seeded(6))
    first, second = coloured(draw.matrix(torch.float64), changes).chunk(2)
    assert torch.equal(pair.action, BOTH(first, second).float())
    assert torch.equal(pair.action[:, :4], AugSelfCopy()(to_x, to_x_prime).float())
    assert torch.equal(pair.action[:, 4:], (colour_of(changes)[:20] - colour_of(changes)[20:]).float())


# ------------------------------------------------------------------------------------------------ simulated


def test_simulated_actions_have_the_laws_spread() -> None:
    actions = actions_of_law(LEE, BOTH, 100_000, image_size=(96, 96), generator=seeded())
    # a uniform of width w, with probability p: variance p w^2 / 12, and twice that for a difference
    expected = [width * math.sqrt(LEE.p_jitter / 6) for width in (0.8, 0.8, 0.8, 0.2)]
    assert actions.std(dim=0)[4:].tolist() == pytest.approx(expected, rel=0.01)
    assert actions.mean(dim=0).abs().max() < 0.01
    still = (actions[:, 4:] == 0).all(dim=1).double().mean()
    assert float(still) == pytest.approx((1 - LEE.p_jitter) ** 2, abs=0.004)
    pair = two_views(random_images(2000, 8, 8), generator=seeded(), augmentation=LEE, copy=BOTH)
    torch.testing.assert_close(pair.action[:, 4:].std(dim=0), actions[:, 4:].std(dim=0), atol=0, rtol=0.08)


@pytest.mark.parametrize("copy", [AugSelfCopy(), Egocentric(Affine())])
def test_the_geometry_is_simulated_as_before(copy: EfferenceCopy) -> None:
    crops_alone = {"scale": LEE.scale, "ratio": LEE.ratio, "p_flip": LEE.p_flip}
    expected = simulate_actions(copy, 500, image_size=(40, 60), **crops_alone, generator=seeded(4))
    for asked, columns in ((copy, slice(None)), (WithColour(copy), slice(4))):
        actions = actions_of_law(LEE, asked, 500, image_size=(40, 60), generator=seeded(4))
        assert torch.equal(actions[:, columns], expected)
    edges = quantile_bins(copy, 6, image_size=(40, 60), **crops_alone).edges
    assert torch.equal(bins_of_law(LEE, copy, 6, image_size=(40, 60)).edges, edges)
    assert torch.equal(bins_of_law(LEE, WithColour(copy), 6, image_size=(40, 60)).edges[:4], edges)


def test_bins_of_colour_hold_equal_shares_and_are_symmetric() -> None:
    bins = bins_of_law(SIMCLR_STL, BOTH, 6, image_size=(96, 96))
    assert bins.edges.shape == (8, 5)
    torch.testing.assert_close(bins.edges[4:], -bins.edges[4:].flip(1), atol=1e-5, rtol=0)
    actions = actions_of_law(SIMCLR_STL, BOTH, 100_000, image_size=(96, 96), generator=seeded(5))
    chance = chance_level(bins(actions), 6)
    # 4 % of pairs have no jitter at all and lie at 0, in the bin above: half of that share more than a sixth
    shares = torch.tensor([1 / 6] * 2 + [1 / 6 - 0.02, 1 / 6 + 0.02] + [1 / 6] * 2)
    entropy = float(-(shares * shares.log()).sum())
    assert chance.nll[4:].tolist() == pytest.approx([entropy] * 4, abs=0.002)
    assert chance.accuracy[4:].tolist() == pytest.approx([float(shares.max())] * 4, abs=0.006)


@pytest.mark.parametrize("law", [CROP_FLIP, replace(SIMCLR_CIFAR, p_jitter=0.0), replace(SIMCLR_CIFAR, strength=0.0)])
def test_a_law_without_jitter_has_no_bins_of_colour(law) -> None:
    with pytest.raises(ValueError, match=r"no colour ever changes.* raise both"):
        bins_of_law(law, BOTH, 6, image_size=(32, 32))
    assert bool((actions_of_law(law, BOTH, 50, image_size=(32, 32), generator=seeded())[:, 4:] == 0).all())


# ------------------------------------------------------------------------------------------------ learnt


class Shift(nn.Module):
    """Reads the action off two features that hold the views' parameters: their difference, plus what is learnt."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(d))

    def forward(self, both: Tensor) -> Tensor:
        first, second = both.chunk(2, dim=1)
        return first - second + self.bias


def test_a_regression_reads_all_eight_components() -> None:
    pair = two_views(random_images(48), generator=seeded(), augmentation=LEE, copy=BOTH)
    std = actions_of_law(LEE, BOTH, 100_000, image_size=(32, 32), generator=seeded(1)).std(dim=0)
    model = RegressedActions(Shift(8), std=std)
    features = Features(pair.action, torch.zeros_like(pair.action))
    assert model(features, None, pair).item() == 0
    nothing = Features(torch.zeros(48, 8), torch.zeros(48, 8))
    loss = model(nothing, None, pair)
    expected = sum(float((pair.action[k, j] / std[j]) ** 2) / 2 for k in range(48) for j in range(8)) / (48 * 8)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(0.5, abs=0.1)  # of unit variance
    loss.backward()
    gradient = model.head.bias.grad
    assert gradient is not None
    assert gradient.tolist() == pytest.approx((-pair.action.mean(dim=0) / std**2 / 8).tolist(), rel=1e-4)

    # Lee et al. divide colours by the width of their range: with the std of that, the same loss
    widths = torch.tensor([1, 1, 1, 1, 0.8, 0.8, 0.8, 0.2])
    theirs = RegressedActions(Shift(8), std=std / widths)
    normalised = pair._replace(action=pair.action / widths)
    assert theirs(nothing, None, normalised).item() == pytest.approx(loss.item())


def test_bins_read_all_eight_components() -> None:
    pair = two_views(random_images(48), generator=seeded(), augmentation=LEE, copy=BOTH)
    bins = bins_of_law(LEE, BOTH, 6, image_size=(32, 32))
    head = nn.Linear(6, 48)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    features = Features(torch.zeros(48, 3), torch.zeros(48, 3))
    assert BinnedActions(head, bins)(features, None, pair).item() == pytest.approx(math.log(6))
    assert BinnedActions(head, bins).logits(features).shape == (48, 8, 6)
