"""The picture of view pairs: what is drawn lies where the action says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from recipes.vision.pairs import FRAME, X_COLOUR, draw_pairs, frame_corners
from stec.core.actions import ViewPair
from stec.vision.affine import Affine, exact_action
from stec.vision.views import SIMCLR_CIFAR, two_views

K = 6


def smooth_images(b: int) -> Tensor:
    coarse = torch.rand(b, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").to(torch.uint8)


def beliefs_of(b: int, seed: int = 0) -> Tensor:
    return torch.randn(b, 4, K, generator=torch.Generator().manual_seed(seed)).softmax(dim=2)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def box_of(picture: np.ndarray, colour: str, columns: slice) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixels of a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    rows, found = np.nonzero(np.abs(picture[:, columns] - wanted).sum(axis=2) < 12)
    start = columns.start or 0
    return found.min() + start, rows.min(), found.max() + start, rows.max()


def draw_one(action: list[float], path: Path) -> np.ndarray:
    grey = torch.full((1, 3, 16, 16), 0.5)
    pair = ViewPair(grey, grey, torch.tensor([action]), torch.tensor([True]), torch.tensor([-1]))
    truth = torch.zeros(1, 4, dtype=torch.long)
    draw_pairs((grey * 255).to(torch.uint8), pair, beliefs=beliefs_of(1), truth=truth, to_x=None, path=path)
    return pixels(path)


def test_the_corners_of_x_prime_in_x_are_where_the_matrices_put_them() -> None:
    draws = SIMCLR_CIFAR.draw_crops(8, (32, 32), generator=torch.Generator().manual_seed(0))
    to_x, to_x_prime = draws.matrix(torch.float64).chunk(2)
    actions = Affine().flatten(exact_action(to_x, to_x_prime))
    own = torch.tensor([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1.0]], dtype=torch.float64)
    for i, action in enumerate(actions):
        in_image = own @ to_x_prime[i].T
        through_x = torch.tensor([[*corner, 1] for corner in frame_corners(action)], dtype=torch.float64) @ to_x[i].T
        torch.testing.assert_close(through_x, in_image)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_frame_is_drawn_where_the_action_puts_it(tmp_path: Path, mirrored: bool) -> None:
    picture = draw_one([-0.5 if mirrored else 0.5, 0.4, 0.25, -0.3], tmp_path / "one.png")
    left, top, right, bottom = box_of(picture, X_COLOUR, slice(None))
    inside = box_of(picture, FRAME, slice(left + 4, right - 3))
    found = [2 * (inside[i] - (left, top)[i % 2]) / ((right - left), (bottom - top))[i % 2] - 1 for i in range(4)]
    # the dot and the width of the line add some pixels on every side
    assert found == pytest.approx([-0.25, -0.7, 0.75, 0.1], abs=0.09)


def test_a_frame_outside_x_is_in_the_picture(tmp_path: Path) -> None:
    picture = draw_one([1.5, 1.2, 0.0, 2.5], tmp_path / "one.png")
    left, top, right, bottom = box_of(picture, X_COLOUR, slice(None))
    third = (right - left) // 3  # 1.5 times the width of x, so 0.25 of it on either side
    frame = box_of(picture, FRAME, slice(left - third, right + third))
    assert 2 * (frame[3] - top) / (bottom - top) - 1 == pytest.approx(3.7, abs=0.2)


def test_real_pairs_with_and_without_the_image_around_x(tmp_path: Path) -> None:
    images = smooth_images(3)
    pair = two_views(images, generator=torch.Generator().manual_seed(1))
    # the crops come first off the generator
    draws = SIMCLR_CIFAR.draw_crops(6, (32, 32), generator=torch.Generator().manual_seed(1))
    to_x = draws.matrix(torch.float64)[:3]
    truth = torch.randint(K, (3, 4), generator=torch.Generator().manual_seed(2))
    pictures = []
    for name, beliefs, pose in (("a", beliefs_of(3), None), ("b", beliefs_of(3), to_x), ("c", beliefs_of(3, 1), None)):
        path = tmp_path / "new" / f"{name}.png"
        draw_pairs(images, pair, beliefs=beliefs, truth=truth, to_x=pose, path=path)
        pictures.append(pixels(path))
    assert all(picture.std() > 10 for picture in pictures)
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[0] != pictures[2]).any()


def test_what_does_not_fit_together_is_named(tmp_path: Path) -> None:
    images = smooth_images(2)
    pair = two_views(images, generator=torch.Generator().manual_seed(0))
    truth = torch.zeros(2, 4, dtype=torch.long)
    path = tmp_path / "no.png"
    released = pair._replace(action=torch.zeros(2, 6))
    with pytest.raises(ValueError, match="exact action"):
        draw_pairs(images, released, beliefs=beliefs_of(2), truth=truth, to_x=None, path=path)
    none = pair._replace(action=pair.action[:0])
    with pytest.raises(ValueError, match="at least one image"):
        draw_pairs(images[:0], none, beliefs=beliefs_of(0), truth=truth[:0], to_x=None, path=path)
    with pytest.raises(ValueError, match="beliefs"):
        draw_pairs(images, pair, beliefs=beliefs_of(3), truth=truth, to_x=None, path=path)
    assert not path.exists()
