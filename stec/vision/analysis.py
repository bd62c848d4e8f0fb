"""Where augmented views lie among plain images: what Fig. 4 of the paper draws and measures.

Identity models alone place all views of an object in one spot; an encoder that also reads actions has to tell views
apart. So the mean of a class's augmented views leaves the mean of its plain images. How far depends on the scale of the
space, hence the ratio to the distance between classes beside it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stec.vision.affine import CropFlip


def crop_magnitude(crops: CropFlip) -> Float[Tensor, " b"]:
    """1 - h w / (H W): the share of the image that each crop leaves out (Scherr et al. 2022, Fig. 4C-F).

    >>> side = torch.tensor([32, 16])
    >>> zero = torch.tensor([0, 0])
    >>> crop_magnitude(CropFlip(zero, zero, side, side, zero > 0, (32, 32)))
    tensor([0.0000, 0.7500])
    """
    full_height, full_width = crops.image_size
    return 1.0 - (crops.height * crops.width).float() / (full_height * full_width)


class Centroids(NamedTuple):
    """The mean of each class, in the order of `classes`, which rise."""

    points: Float[Tensor, "c f"]
    classes: Int[Tensor, " c"]


def centroids(points: Float[Tensor, "n f"], labels: Int[Tensor, " n"]) -> Centroids:
    """The mean of the points of each class, in float64. ValueError for points without labels, or that are not finite.

    >>> centroids(torch.tensor([[0.0, 1.0], [4.0, 1.0], [7.0, 7.0]]), torch.tensor([3, 3, 5])).points
    tensor([[2., 1.],
            [7., 7.]], dtype=torch.float64)
    """
    if len(points) != len(labels) or not len(points):
        raise ValueError(f"{len(points)} points and {len(labels)} labels; need one label for each of some points")
    if unlabelled := int((labels < 0).sum()):
        raise ValueError(f"{unlabelled} of {len(labels)} points have no label (-1); leave them out")
    if bad := int((~points.isfinite().all(dim=1)).sum()):
        raise ValueError(f"{bad} of {len(points)} points hold NaN or infinite values; use an earlier checkpoint")
    classes, which, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = points.new_zeros(len(classes), points.shape[1], dtype=torch.float64).index_add_(0, which, points.double())
    return Centroids(sums / counts[:, None], classes)


class CentroidDistances(NamedTuple):
    """How far augmented views lie from plain images, in the units of the space and free of them."""

    distance: float  # of the two centroids of a class, mean over classes: 10.5 for S-TEC, 0.4 for SimCLR in the paper
    between: float  # of two classes' centroids of plain images, mean over pairs
    ratio: float  # distance / between
    each: Float[Tensor, " c"]  # distance of each class, in the order of its label


def centroid_distances(
    plain: Float[Tensor, "n f"],
    augmented: Float[Tensor, "m f"],
    *,
    labels: Int[Tensor, " n"],
    augmented_labels: Int[Tensor, " m"],
) -> CentroidDistances:
    """Of each class, the distance between the centroids of augmented views and of plain images (Scherr et al. 2022).

    `plain` and `augmented` are features, or their places in one embedding. ValueError where the two hold different
    classes, or fewer than two, or as `centroids`.

    >>> plain = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    >>> classes = torch.tensor([0, 1])
    >>> found = centroid_distances(plain, plain + torch.tensor([3.0, 0.0]), labels=classes, augmented_labels=classes)
    >>> found.distance, found.between, found.ratio
    (3.0, 4.0, 0.75)
    """
    still, moved = centroids(plain, labels), centroids(augmented, augmented_labels)
    if not torch.equal(still.classes, moved.classes) or len(still.classes) < 2:
        raise ValueError(
            f"plain images are of the classes {still.classes.tolist()}, augmented ones of {moved.classes.tolist()}; "
            "need at least two classes, the same for both: take more images"
        )
    if plain.shape[1] != augmented.shape[1]:
        raise ValueError(f"plain points have {plain.shape[1]} dimensions, augmented ones {augmented.shape[1]}")
    each = (still.points - moved.points).norm(dim=1)
    between = torch.nn.functional.pdist(still.points).mean()
    return CentroidDistances(float(each.mean()), float(between), float(each.mean() / between), each)
