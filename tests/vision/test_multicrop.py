"""Many views of every image: the pixels of their draws, the action of every ordered pair, and masked backgrounds."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from waiting import waiting_forbidden

from stec.core.actions import EfferenceCopy, ViewPair
from stec.core.objective import encode
from stec.vision import photometric, views
from stec.vision.affine import AugSelfCopy, CropFlip, OfficialCopy
from stec.vision.colour import WithColour, coloured
from stec.vision.multicrop import MultiCrop, multi_crop
from stec.vision.photometric import Photometric
from stec.vision.resample import resample
from stec.vision.saliency import GREY, mask_background
from stec.vision.simulation import actions_of_law
from stec.vision.views import CROP_FLIP, EXACT, SIMCLR_CIFAR, SIMCLR_STL, CroppedPair, TwoViews, two_views

LARGE = replace(SIMCLR_STL, size=40)
SMALL = replace(SIMCLR_STL, size=18, scale=(0.05, 0.14))
LAWS: dict[str, Any] = {"large": LARGE, "n_large": 3, "small": SMALL, "n_small": 2, "copy": EXACT}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = 12, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=seeded(9))


def waves(n: int, size: int) -> Tensor:
    """Slow waves: bilinear interpolation errs little on them."""
    y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    phase = torch.rand(n, 3, 3, generator=seeded(2))[..., None, None]
    return 0.5 + 0.5 * torch.sin(6.28 * (2 * phase[:, :, 0] * x + 2 * phase[:, :, 1] * y + phase[:, :, 2]))


def same_draws(n: int, image_size: tuple[int, int], seed: int = 0) -> list[tuple[CropFlip, Photometric]]:
    """The draws of three large and two small views that a generator gives."""
    generator = seeded(seed)
    draws = []
    for law, number in ((LARGE, 3), (SMALL, 2)):
        crops = law.draw_crops(number * n, image_size, generator=generator)
        assert law.size is not None
        draws.append((crops, law.draw_photometric(number * n, law.size, generator=generator)))
    return draws


def all_views(pair: ViewPair) -> list[Tensor]:
    assert pair.more is not None
    return [pair.x, pair.x_prime, *pair.more.views]


def tensors(pair: ViewPair) -> list[Tensor]:
    more = pair.more
    return [*pair[:5], *(() if more is None else (*more.views, more.action, more.valid))]


# ------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize("chunk", [1, 1 << 30])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 37)])
def test_views_are_the_crops_and_changes_of_one_draw(
    height: int, width: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_images(12, height, width)
    monkeypatch.setattr(photometric, "CHUNK", chunk)
    pair = multi_crop(images, generator=seeded(), **LAWS)
    expected: list[Tensor] = []
    for (crops, changes), number, size in zip(same_draws(12, (height, width)), (3, 2), (40, 18)):
        expected += changes.apply(crops.apply(images.repeat(number, 1, 1, 1), size)).chunk(number)
    assert len(all_views(pair)) == 5
    for view, other in zip(all_views(pair), expected):
        torch.testing.assert_close(view, other, atol=1e-6, rtol=0)
    assert pair.more is not None
    assert pair.more.large == 3
    assert [view.shape[2] for view in all_views(pair)] == [40, 40, 40, 18, 18]
    areas = [(crops.height * crops.width).double() / (height * width) for crops, _ in same_draws(12, (height, width))]
    assert float(areas[1].max()) < 0.16 < float(areas[0].max())


def test_one_batched_resampling_for_large_and_one_for_small(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def counted(images: Tensor, *taps: Any) -> Tensor:
        rows.append(len(images))
        return resample(images, *taps)

    monkeypatch.setattr(views, "resample", counted)
    monkeypatch.setattr(photometric, "CHUNK", 1 << 30)
    multi_crop(random_images(), generator=seeded(), **LAWS)
    assert rows == [36, 24]


@pytest.mark.parametrize("law", [SIMCLR_CIFAR, LARGE, CROP_FLIP])
@pytest.mark.parametrize("copy", [EXACT, OfficialCopy(), WithColour(AugSelfCopy())])
def test_two_large_views_are_two_views_to_the_last_bit(law: views.Augmentation, copy: EfferenceCopy) -> None:
    images, label = random_images(16, 32, 24), torch.arange(16)
    many, two = seeded(7), seeded(7)
    pair = multi_crop(images, label, generator=many, large=law, n_large=2, copy=copy)
    other = two_views(images, label, generator=two, augmentation=law, copy=copy)
    assert pair.more is other.more is None
    assert all(torch.equal(a, b) for a, b in zip(tensors(pair), tensors(other), strict=True))
    assert torch.equal(many.get_state(), two.get_state())


def test_small_views_leave_the_pair_as_it_was() -> None:
    images = random_images()
    alone = multi_crop(images, generator=seeded(), **{**LAWS, "n_small": 0})
    pair = multi_crop(images, generator=seeded(), **LAWS)
    assert pair.more is not None
    assert alone.more is not None
    assert all(torch.equal(a, b) for a, b in zip(tensors(alone)[:5], tensors(pair)[:5]))
    assert torch.equal(alone.more.views[0], pair.more.views[0])
    assert torch.equal(alone.more.action, pair.more.action[:3, :3])
    assert alone.more.large == len(alone.more.views) + 2 == 3


def test_the_same_generator_gives_the_same_views() -> None:
    images = random_images()
    kept = images.clone()
    first, again, other = (multi_crop(images, generator=seeded(seed), **LAWS) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(again), strict=True))
    for view, unlike in zip(all_views(first), all_views(other)):
        assert not torch.equal(view, unlike)
    for one, two in itertools.combinations(all_views(first)[:3], 2):
        assert not torch.equal(one, two)
    assert torch.equal(images, kept)


# ------------------------------------------------------------------------------------------------ actions


@pytest.mark.parametrize("copy", [EXACT, AugSelfCopy(), OfficialCopy(), WithColour(AugSelfCopy())])
def test_the_action_of_every_ordered_pair(copy: EfferenceCopy) -> None:
    images = random_images(12, 50, 37)
    pair = multi_crop(images, generator=seeded(), **{**LAWS, "copy": copy})
    poses: list[Tensor] = []
    for (crops, changes), number in zip(same_draws(12, (50, 37)), (3, 2)):
        pose = crops.matrix(torch.float64)
        poses += (coloured(pose, changes) if isinstance(copy, WithColour) else pose).chunk(number)
    assert pair.more is not None
    assert pair.more.action.shape == (5, 5, 12, len(copy.components))
    assert pair.more.action.dtype == torch.float32
    for i, j in itertools.product(range(5), repeat=2):
        assert torch.equal(pair.more.action[i, j], copy(poses[i], poses[j]).float())
    assert torch.equal(pair.action, pair.more.action[0, 1])


def test_the_actions_are_a_group() -> None:
    pair = multi_crop(random_images(40), generator=seeded(), **LAWS)
    assert pair.more is not None
    scale, shift = pair.more.action.double().chunk(2, dim=-1)
    for i, j, k in itertools.product(range(5), repeat=3):  # E_ik = E_ij E_jk
        torch.testing.assert_close(scale[i, j] * scale[j, k], scale[i, k], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scale[i, j] * shift[j, k] + shift[i, j], shift[i, k], atol=2e-5, rtol=1e-5)
    identity = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(40, 4)
    assert all(torch.equal(pair.more.action[i, i], identity) for i in range(5))
    assert float((scale[0, 3].abs() - 1).abs().mean()) > 0.2  # a small view shows less than a large one


def test_every_view_is_every_other_seen_through_the_action() -> None:
    # slow waves, geometry alone (theory 2.1): view j out of view i and E_ij, where i shows it
    large, small = replace(CROP_FLIP, size=128), replace(CROP_FLIP, size=56, scale=(0.05, 0.14))
    pair = multi_crop(waves(48, 128), generator=seeded(), **{**LAWS, "large": large, "small": small})
    assert pair.more is not None
    flat = pair.more.action
    zero = torch.zeros_like(flat[..., 0])
    scale_x, scale_y, shift_x, shift_y = flat.unbind(dim=-1)
    action = torch.stack((scale_x, zero, shift_x, zero, scale_y, shift_y), dim=-1).unflatten(-1, (2, 3))
    seen_at_all = 0
    for i, j in itertools.permutations(range(5), 2):
        view, other = all_views(pair)[i], all_views(pair)[j]
        grid = F.affine_grid(action[i, j], list(other.shape), align_corners=False)
        seen = (grid.abs() < 0.95).all(dim=-1)[:, None].expand_as(other)
        made = F.grid_sample(view, grid, align_corners=False)
        wrong = F.grid_sample(
            view, F.affine_grid(action[j, i], list(other.shape), align_corners=False), align_corners=False
        )
        assert float((made - other).abs()[seen].mean()) < 4e-3
        assert float((wrong - other).abs()[seen].mean()) > 0.05
        seen_at_all += int(seen.any(dim=(1, 2, 3)).sum())
    assert seen_at_all > 20 * 24


def test_simulated_actions_between_two_laws_are_those_of_the_views() -> None:
    images, copy = random_images(3000, 32, 32), WithColour(EXACT)
    law = {"large": replace(SIMCLR_CIFAR, size=2), "small": replace(SIMCLR_STL, size=2, scale=(0.05, 0.14), p_blur=0.0)}
    pair = multi_crop(images, generator=seeded(), **law, n_large=2, n_small=1, copy=copy)
    assert pair.more is not None
    for (i, first), (j, second) in itertools.product(((0, "large"), (2, "small")), repeat=2):
        if i == j == 2:
            continue
        actions = actions_of_law(law[first], copy, 20_000, image_size=(32, 32), generator=seeded(1), then=law[second])
        found = pair.more.action[i, 1 if i == j else j]
        levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
        for column, spread in enumerate(actions.std(dim=0)):
            difference = torch.quantile(found[:, column], levels) - torch.quantile(actions[:, column], levels)
            if column == 0:  # of two signs: its middle has no mass
                difference = difference[[0, 1, 3, 4]]
            assert float(difference.abs().max() / spread) < 0.12
    shrunk = actions_of_law(law["large"], EXACT, 5000, image_size=(32, 32), generator=seeded(), then=law["small"])
    assert 0.4 < float(shrunk[:, 1].median()) < 0.5  # about the root of the areas' ratio, 0.095 / 0.54


def test_pairs_are_valid_where_neither_view_is_solarised() -> None:
    images = random_images(60, 8, 8)
    pair = multi_crop(images, generator=seeded(), **LAWS)
    (_, large), (_, small) = same_draws(60, (8, 8))
    solarised = [*large.solarise.chunk(3), *small.solarise.chunk(2)]
    assert pair.more is not None
    for i, j in itertools.product(range(5), repeat=2):
        for k in range(60):
            assert bool(pair.more.valid[i, j, k]) == (not solarised[i][k] and not solarised[j][k])
    assert torch.equal(pair.valid, pair.more.valid[0, 1])
    assert 0 < int(pair.more.valid.sum()) < pair.more.valid.numel()


# ------------------------------------------------------------------------------------------------ masks


def disc(images: Tensor, generator: torch.Generator) -> Tensor:
    """A soft disc in the middle."""
    side = [torch.linspace(-1, 1, size) for size in images.shape[2:]]
    distance = (side[0][:, None] ** 2 + side[1][None] ** 2).sqrt()
    return (3 - 4 * distance).clamp(0, 1).expand(len(images), 1, -1, -1)


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("chunk", [1, 1 << 30])
def test_large_views_may_be_cut_from_a_grey_background(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(24) if kind == "uint8" else random_images(24) / 255
    monkeypatch.setattr(photometric, "CHUNK", chunk)
    plain = multi_crop(images, generator=seeded(), **LAWS)
    pair = multi_crop(images, generator=seeded(), **LAWS, mask=disc, p_mask=0.3)
    generator = seeded()
    for law, number in ((LARGE, 72), (SMALL, 48)):
        law.draw(number, (32, 32), generator=generator)
    chosen = torch.rand(72, generator=generator) < 0.3
    assert 10 < int(chosen.sum()) < 35

    (crops, changes), _ = same_draws(24, (32, 32))
    floats = images.float() / (255 if kind == "uint8" else 1)
    mask = disc(floats, generator)
    sources = torch.cat([floats] * 3)
    bare = torch.cat([floats * mask + 0.5 * (1 - mask)] * 3)
    sources[chosen] = bare[chosen]
    expected = changes.apply(crops.apply(sources, 40))
    torch.testing.assert_close(torch.cat(all_views(pair)[:3]), expected, atol=1e-5, rtol=0)
    for view, other, kept in zip(all_views(pair)[:3], all_views(plain)[:3], (~chosen).chunk(3)):
        assert torch.equal(view[kept], other[kept])  # the mask is no part of the other draws
        assert not torch.equal(view, other)
    for view, other in zip(all_views(pair)[3:], all_views(plain)[3:]):
        assert torch.equal(view, other)
    assert plain.more is not None
    assert pair.more is not None
    assert torch.equal(pair.more.action, plain.more.action)
    assert torch.equal(pair.more.valid, plain.more.valid)


def test_every_large_view_is_masked_or_none() -> None:
    images = torch.zeros(5, 3, 16, 16)
    nothing: Callable[..., Tensor] = lambda images, generator: torch.zeros(len(images), 1, 16, 16)  # noqa: E731
    law = {**LAWS, "large": CROP_FLIP, "small": replace(CROP_FLIP, size=8)}
    always = multi_crop(images, generator=seeded(), **law, mask=nothing, p_mask=1.0)
    never = multi_crop(images, generator=seeded(), **law, mask=nothing, p_mask=0.0)
    for view in all_views(always)[:3]:
        torch.testing.assert_close(view, torch.full_like(view, GREY))
    assert not any(bool(view.any()) for view in [*all_views(always)[3:], *all_views(never)])


def test_saliency_sees_the_images_it_is_needed_for_once_and_draws_from_the_generator() -> None:
    images = random_images(6)
    asked: list[Tensor] = []

    def noisy(seen: Tensor, generator: torch.Generator) -> Tensor:
        asked.append(seen)
        return torch.rand(len(seen), 1, 32, 32, generator=generator)

    chosen = torch.tensor([0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0]).bool()
    masked = mask_background(images, chosen, noisy, generator=seeded(3))
    assert masked is not None
    (seen,) = asked
    assert torch.equal(seen, images[[0, 2]] / 255)
    assert masked.source.tolist() == [-1, -1, 1, -1, -1, -1, 0, -1, 1, -1, -1, -1]
    weight = torch.rand(2, 1, 32, 32, generator=seeded(3))
    torch.testing.assert_close(masked.images, 255 * (seen * weight + 0.5 * (1 - weight)), atol=1e-4, rtol=0)
    assert mask_background(images, torch.zeros(12).bool(), noisy, generator=seeded()) is None
    assert len(asked) == 1


# ------------------------------------------------------------------------------------------------ interface


def test_the_callable_makes_the_pair_of_a_batch_in_memory_alone() -> None:
    images, label = random_images(), torch.arange(12)
    make = MultiCrop(LARGE, EXACT, n_large=3, small=SMALL, n_small=2, mask=disc, p_mask=0.4)
    pair = make((images, label), seeded())
    expected = multi_crop(images, label, generator=seeded(), **LAWS, mask=disc, p_mask=0.4)
    assert all(torch.equal(a, b) for a, b in zip(tensors(pair), tensors(expected), strict=True))
    assert torch.equal(pair.label, label)
    assert make((images, None), seeded()).label.tolist() == [-1] * 12
    two = TwoViews(LARGE, EXACT)((images, label), seeded())
    same = MultiCrop(LARGE, EXACT, n_large=2)((images, label), seeded())
    assert all(torch.equal(a, b) for a, b in zip(tensors(two), tensors(same), strict=True))

    pose = torch.eye(3, dtype=torch.float64).expand(12, 3, 3)
    streamed = CroppedPair(pair.x, pair.x_prime, pose, pose, label)
    with pytest.raises(ValueError, match=r"multi-crop needs images in memory.*--memory-gb.*two views"):
        make(streamed, seeded())


def test_an_encoder_takes_large_and_small_views_in_two_passes() -> None:
    pair = multi_crop(random_images(), generator=seeded(), **LAWS)
    passes: list[int] = []

    def encoder(images: Tensor) -> Tensor:
        passes.append(len(images))
        return images.mean(dim=(2, 3))

    features = encode(encoder, pair)
    assert passes == [36, 24]
    found = [features.x, features.x_prime, *features.more]
    for feature, view in zip(found, all_views(pair), strict=True):
        assert torch.equal(feature, view.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_large": 1}, "n_large is 1; a pair is two large views"),
        ({"small": None}, "n_small is 2 and their law None; give `small`"),
        ({"n_small": -1}, "n_small is -1"),
        ({"p_mask": 0.1}, "p_mask is 0.1 without a mask"),
        ({"p_mask": 1.5}, "p_mask is 1.5; a probability"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_crop(random_images(), generator=seeded(), **{**LAWS, **change})
    laws = {key: value for key, value in {**LAWS, **change}.items() if key not in ("large", "copy")}
    with pytest.raises(ValueError, match=message):
        MultiCrop(LARGE, EXACT, **laws)


def test_images_are_checked_as_for_two_views() -> None:
    with pytest.raises(ValueError, match="Grey images"):
        multi_crop(torch.zeros(4, 1, 8, 8), generator=seeded(), **LAWS)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(4, 3, 8, 8), r"has shape \(4, 3, 8, 8\); need one channel"),
        (torch.full((4, 1, 8, 8), 1.5), r"spans 1.5 to 1.5; need \[0, 1\]"),
        (torch.full((4, 1, 8, 8), torch.nan), r"spans nan to nan; need \[0, 1\]"),
    ],
)
def test_what_is_no_mask_is_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_crop(random_images(4, 8, 8), generator=seeded(), **LAWS, mask=lambda images, generator: mask, p_mask=1.0)


def test_no_value_on_the_device_is_ever_read() -> None:
    # tensors of the device "meta" have no values: whatever reads one raises
    images = random_images(64).to("meta")
    mask: Callable[..., Tensor] = lambda seen, generator: torch.ones_like(seen[:, :1])  # noqa: E731
    options = {**LAWS, "mask": mask, "p_mask": 0.3, "copy": WithColour(AugSelfCopy())}
    pair = multi_crop(images, torch.arange(64), generator=seeded(), **options)
    assert all(tensor.device.type == "meta" for tensor in tensors(pair))
    cpu = multi_crop(random_images(64), torch.arange(64), generator=seeded(), **options)
    assert [tensor.shape for tensor in tensors(pair)] == [tensor.shape for tensor in tensors(cpu)]
    with pytest.raises(RuntimeError, match="meta"):
        float(pair.x.mean())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_views_and_is_never_waited_for() -> None:
    images = random_images(64)
    options = {**LAWS, "p_mask": 0.3}
    cpu = multi_crop(images, generator=seeded(), **options, mask=disc)

    def on_device(seen: Tensor, generator: torch.Generator) -> Tensor:
        return torch.ones_like(seen[:, :1]) * device_disc

    device_disc = disc(torch.zeros(1, 3, 32, 32), seeded()).cuda()
    for _ in range(2):  # the first call warms up
        gpu = multi_crop(images.cuda(), generator=seeded(), **options, mask=on_device)
    for a, b in zip(tensors(cpu), tensors(gpu), strict=True):
        assert b.device.type == "cuda"
        torch.testing.assert_close(b.cpu(), a, atol=3e-5, rtol=0)
    images = images.cuda()
    with waiting_forbidden():
        multi_crop(images, torch.arange(64).cuda(), generator=seeded(), **options, mask=on_device)
