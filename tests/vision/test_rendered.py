"""The data that need no download: a function of the seed, balanced, all different, and hard for linear eyes alone."""

import hashlib

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import avg_pool2d

from stec.vision.data import ImageSet
from stec.vision.rendered import RenderedImages, rendered_images


@pytest.fixture(scope="module")
def train() -> RenderedImages:
    return rendered_images(2_000, size=32, seed=0)


@pytest.fixture(scope="module")
def test() -> RenderedImages:
    return rendered_images(2_000, size=32, seed=1)


def grey(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean(dim=1) / 255


def spectrum(images: torch.Tensor) -> torch.Tensor:
    """Log amplitudes of low frequencies: blind to where things are, to colour and to which ink is the dark one."""
    amplitudes = torch.fft.rfft2(grey(images)).abs()
    return torch.cat((amplitudes[:, :12, :12], amplitudes[:, -11:, :12]), dim=1).add(0.1).log().flatten(1)


def logistic_accuracy(
    train_features: torch.Tensor, train: RenderedImages, test_features: torch.Tensor, test: RenderedImages
) -> float:
    mean, std = train_features.mean(dim=0), train_features.std(dim=0) + 1e-6
    model = LogisticRegression(C=0.001 if train_features.shape[1] > 1_000 else 0.1, max_iter=300)
    model.fit(((train_features - mean) / std).numpy(), train.labels.numpy())
    return float(model.score(((test_features - mean) / std).numpy(), test.labels.numpy()))


@pytest.mark.parametrize(("n", "size"), [(1, 16), (37, 32), (20, 48)])
def test_shapes_types_and_classes_fit_an_image_set(n: int, size: int) -> None:
    images, labels, classes = rendered_images(n, size=size, seed=3)
    assert images.shape == (n, 3, size, size)
    assert len(ImageSet(images, labels, classes)) == n  # which checks types, contiguity and the range of labels
    assert len(set(classes)) == len(classes) == 10


@pytest.mark.parametrize(("n", "size", "cure"), [(0, 32, "at least 1"), (-3, 32, "at least 1"), (4, 15, "at least 16")])
def test_too_few_images_or_pixels_are_refused(n: int, size: int, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        rendered_images(n, size=size, seed=0)


def test_equal_seeds_give_equal_images_whatever_the_global_generator(train: RenderedImages) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = rendered_images(2_000, size=32, seed=0)
    assert torch.equal(again.images, train.images)
    assert torch.equal(again.labels, train.labels)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_two_images_are_alike_within_or_between_seeds(train: RenderedImages, test: RenderedImages) -> None:
    digests = {hashlib.sha256(image.numpy().tobytes()).digest() for image in torch.cat((train.images, test.images))}
    assert len(digests) == 4_000
    # Not the noise alone: no scene of seed 1 comes near one of seed 0 (noise has a root mean square of 0.012).
    thumbs = [avg_pool2d(data.images.float() / 255, 4).flatten(1) for data in (train, test)]
    nearest = torch.cdist(thumbs[1], thumbs[0]).amin(dim=1) / thumbs[0].shape[1] ** 0.5
    assert float(nearest.min()) > 0.02


@pytest.mark.parametrize("n", [1, 9, 10, 101, 997])
def test_classes_are_balanced_to_one_and_shuffled(n: int) -> None:
    labels = rendered_images(n, size=16, seed=5).labels
    counts = labels.bincount(minlength=10)
    assert int(counts.max() - counts.min()) <= 1
    if n > 100:
        assert labels[:100].unique().numel() == 10  # not sorted
        assert not torch.equal(labels[:50], labels[50:100])  # nor in turn


def test_size_changes_the_pixels_and_not_the_scenes() -> None:
    small, large = rendered_images(40, size=32, seed=2), rendered_images(40, size=128, seed=2)
    assert torch.equal(small.labels, large.labels)
    reduced = avg_pool2d(large.images.float(), 4) / 255
    error = (reduced - small.images / 255).abs().mean(dim=(1, 2, 3))
    strangers = (reduced.roll(1, 0) - small.images / 255).abs().mean(dim=(1, 2, 3))
    assert float(error.max()) < 0.045 < 0.08 < float(strangers.min())


def test_pixels_and_colours_betray_little_of_the_class(train: RenderedImages, test: RenderedImages) -> None:
    def pixels(data: RenderedImages) -> torch.Tensor:
        return data.images.float().flatten(1) / 255

    def colours(data: RenderedImages) -> torch.Tensor:
        flat = data.images.float().flatten(2) / 255
        return torch.cat((flat.mean(dim=2), flat.std(dim=2)), dim=1)

    raw = logistic_accuracy(pixels(train), train, pixels(test), test)
    assert 0.1 < raw < 0.3
    assert logistic_accuracy(colours(train), train, colours(test), test) < 0.22


def test_structure_tells_the_class(train: RenderedImages, test: RenderedImages) -> None:
    accuracy = logistic_accuracy(spectrum(train.images), train, spectrum(test.images), test)
    assert accuracy > 0.6


def test_light_falls_from_the_upper_left(train: RenderedImages) -> None:
    # What lets mirroring be told from a view: every class is brighter on its left and on top.
    brightness = grey(train.images)
    for k in range(10):
        mean = brightness[train.labels == k].mean(dim=0)
        assert float(mean[:, :16].mean() - mean[:, 16:].mean()) > 0.03
        assert float(mean[:16].mean() - mean[16:].mean()) > 0.03


def test_contrast_is_high_enough_to_see_the_pattern(train: RenderedImages) -> None:
    middle = train.images[:, :, 8:24, 8:24].float() / 255
    assert float(middle.std(dim=(2, 3)).mean(dim=1).quantile(0.05)) > 0.1
