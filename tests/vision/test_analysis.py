"""Distances of Fig. 4: plain loops, what a change of the space does to them, and mistakes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stec.vision.analysis import centroid_distances, centroids, crop_magnitude
from stec.vision.views import SIMCLR_CIFAR


def cloud(n: int, f: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n points of f dimensions; every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat((torch.arange(classes), torch.randint(classes, (n - classes,), generator=generator)))
    return torch.randn(n, f, generator=generator) + labels[:, None], labels


@given(seed=st.integers(0, 100), classes=st.integers(2, 5), f=st.integers(1, 6))
def test_distances_by_a_loop(seed: int, classes: int, f: int) -> None:
    plain, labels = cloud(20, f, classes, seed)
    augmented, augmented_labels = cloud(31, f, classes, seed + 1000)
    found = centroid_distances(plain, augmented, labels=labels, augmented_labels=augmented_labels)

    def mean(points: Tensor, of: Tensor, c: int) -> np.ndarray:
        return np.mean([points[i].double().numpy() for i in range(len(points)) if int(of[i]) == c], axis=0)

    still = [mean(plain, labels, c) for c in range(classes)]
    each = [float(np.linalg.norm(still[c] - mean(augmented, augmented_labels, c))) for c in range(classes)]
    between = [float(np.linalg.norm(still[a] - still[b])) for a in range(classes) for b in range(a)]
    assert found.distance == pytest.approx(np.mean(each), rel=1e-6)
    assert found.between == pytest.approx(np.mean(between), rel=1e-6)
    assert found.ratio == pytest.approx(np.mean(each) / np.mean(between), rel=1e-6)
    assert found.each.tolist() == pytest.approx(each, rel=1e-6)


def test_a_change_of_scale_place_and_direction_leaves_the_ratio() -> None:
    plain, labels = cloud(60, 4, 3)
    augmented, augmented_labels = cloud(60, 4, 3, seed=1)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(5)))[0]

    def moved(points: Tensor) -> Tensor:
        return 7 * points @ rotation + 3

    one = centroid_distances(plain, augmented, labels=labels, augmented_labels=augmented_labels)
    other = centroid_distances(moved(plain), moved(augmented), labels=labels, augmented_labels=augmented_labels)
    assert other.ratio == pytest.approx(one.ratio, rel=1e-5)
    assert other.distance == pytest.approx(7 * one.distance, rel=1e-5)


def test_views_in_the_place_of_their_images_are_at_no_distance() -> None:
    plain, labels = cloud(60, 4, 3)
    order = torch.randperm(60)
    found = centroid_distances(plain, plain[order], labels=labels, augmented_labels=labels[order])
    assert found.distance == pytest.approx(0.0, abs=1e-12)
    assert found.between > 1


def test_labels_need_not_be_consecutive() -> None:
    points = torch.tensor([[1.0], [5.0], [3.0]])
    found = centroids(points, torch.tensor([40, 7, 40]))
    assert found.classes.tolist() == [7, 40]
    assert found.points.tolist() == [[5.0], [2.0]]


def test_magnitude_is_the_share_that_the_crop_leaves_out() -> None:
    crops = SIMCLR_CIFAR.draw_crops(500, (40, 60), generator=torch.Generator().manual_seed(0))
    found = crop_magnitude(crops)
    expected = [1 - int(h) * int(w) / 2400 for h, w in zip(crops.height, crops.width)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    # the law draws areas from 0.08 to 1 of the image's, rounded to pixels
    assert 0.0 <= float(found.min()) < 0.2
    assert 0.88 < float(found.max()) < 0.94
    # the other face of the draw tells the same, flipped or not
    determinant = crops.matrix()[:, 0, 0].abs() * crops.matrix()[:, 1, 1]
    assert (1 - determinant).tolist() == pytest.approx(found.tolist(), abs=1e-6)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("plain", "augmented", "labels", "augmented_labels", "words"),
    [
        ([[0.0], [1.0]], [[0.0], [1.0]], [0, 1], [0, 2], r"classes \[0, 1\], augmented ones of \[0, 2\]"),
        ([[0.0], [1.0]], [[0.0], [1.0]], [0, 0], [0, 0], "at least two classes"),
        ([[0.0], [1.0]], [[0.0], [1.0]], [0, -1], [0, 1], r"1 of 2 points have no label"),
        ([[0.0], [1.0]], [[0.0], [math.nan]], [0, 1], [0, 1], r"1 of 2 points hold NaN"),
        ([[0.0], [1.0]], [[0.0], [1.0]], [0, 1, 1], [0, 1], "2 points and 3 labels"),
        ([[0.0], [1.0]], [[0.0, 0.0], [1.0, 1.0]], [0, 1], [0, 1], "1 dimensions, augmented ones 2"),
    ],
)
def test_mistakes(
    plain: list[list[float]],
    augmented: list[list[float]],
    labels: list[int],
    augmented_labels: list[int],
    words: str,
) -> None:
    with pytest.raises(ValueError, match=words):
        centroid_distances(
            torch.tensor(plain),
            torch.tensor(augmented),
            labels=torch.tensor(labels),
            augmented_labels=torch.tensor(augmented_labels),
        )
