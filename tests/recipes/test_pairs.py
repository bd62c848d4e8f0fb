"""The picture of view pairs: what is drawn lies where the action says, and tells what the model believes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import ten_classes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from recipes.vision import inputs, networks, pairs, splits
from recipes.vision.measure import reading_law
from recipes.vision.pairs_picture import FALSE, FRAME, GREY, GUESS, TRUE, X_COLOUR, draw_pairs, frame_corners
from recipes.vision.presets import preset
from recipes.vision.run import build_learner, load_learner
from stec.core.actions import ViewPair
from stec.core.checkpoints import save_checkpoint
from stec.core.objective import encode
from stec.vision.affine import Affine, exact_action
from stec.vision.data import ImageSet
from stec.vision.views import EXACT, SIMCLR_CIFAR, two_views

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
    return int(found.min() + start), int(rows.min()), int(found.max() + start), int(rows.max())


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


def test_bars_tell_beliefs_the_true_bin_and_a_wrong_guess(tmp_path: Path) -> None:
    """The true bin green with its per cent, a larger belief in another bin red; one scale for all."""
    pair = two_views(smooth_images(3), generator=torch.Generator().manual_seed(1))
    pair = pair._replace(valid=torch.tensor([True, True, False]))
    beliefs = torch.full((3, 4, K), 0.1)
    beliefs[:, 0, 2] = 0.5
    beliefs[1, 1] = torch.tensor([0.05, 0.05, 0.0, 0.0, 0.0, 0.9])
    truth = torch.tensor([[2, 0, 0, 0], [4, 5, 0, 0], [2, 0, 0, 0]])
    figure = draw_pairs(smooth_images(3), pair, beliefs=beliefs, truth=truth, to_x=None, path=tmp_path / "p.png")
    axes = [figure.axes[7 * row + 3 : 7 * row + 7] for row in range(3)]

    def seen(row: int, component: int) -> tuple[list[str], list[str]]:
        found = axes[row][component]
        bars = [bar for bar in found.patches if isinstance(bar, Rectangle)]
        assert [bar.get_height() for bar in bars] == pytest.approx(beliefs[row, component].tolist())
        colours = [to_hex(bar.get_facecolor()) for bar in bars]
        assert all(to_hex(text.get_color()) in (*colours, GREY) for text in found.texts)
        return colours, [text.get_text() for text in found.texts]

    assert seen(0, 0) == ([FALSE, FALSE, TRUE, FALSE, FALSE, FALSE], ["50"])
    colours, figures = seen(1, 0)
    assert colours == [FALSE, FALSE, GUESS, FALSE, TRUE, FALSE]
    assert sorted(figures) == ["10", "50"]
    assert seen(1, 1) == ([FALSE] * 5 + [TRUE], ["90"])
    assert seen(2, 0) == ([FALSE] * K, ["no label"])
    (top,) = {panel.get_ylim()[1] for row in axes for panel in row}
    assert 1 < top / 0.9 < 1.2  # the largest of all
    low = draw_pairs(smooth_images(3), pair, beliefs=beliefs / 5, truth=truth, to_x=None, path=tmp_path / "low.png")
    assert {round(panel.get_ylim()[1], 6) for panel in low.axes if panel.patches and not panel.images} == {0.46}
    assert (tmp_path / "p.png").stat().st_size < 150_000


# --- the command -----------------------------------------------------------------------------------------------------


def checkpoint_of(folder: Path, **changes: Any) -> Path:
    """Of networks that have seen images: no belief is 1 / K."""
    config = dataclasses.replace(
        preset("quickstart"), width=4, projection_hidden=8, projection_out=4, manipulation_hidden=8, limit=20
    )
    learner = build_learner(dataclasses.replace(config, **changes), (32, 32), 10, batches=None).train()
    with torch.no_grad():
        learner.encoder(torch.rand(16, 3, 32, 32))
    path = folder / "checkpoints" / "step=1.ckpt"
    save_checkpoint(path, learner.state_dict(), learner.record, step=1)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"action": "official"},
        {"action": "augself-colour"},
        {"identity": "relicv2", "small_views": 2, "small_size": 16},
    ],
)
def test_the_beliefs_are_of_the_views_that_are_drawn(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_of(tmp_path, **changes)
    learner, config, _ = load_learner(path)
    drawn: list[tuple[Any, ...]] = []

    def spied(images: Tensor, pair: ViewPair, **rest: Any) -> None:
        drawn.append((images, pair, rest))
        draw_pairs(images, pair, **rest)

    monkeypatch.setattr(pairs, "draw_pairs", spied)
    images = smooth_images(4)
    pairs.picture(learner, config, images, tmp_path / "p.png", seed=3)
    ((shown, pair, rest),) = drawn
    assert torch.equal(shown, images)
    model = pairs.binned_model(learner, config)
    with torch.no_grad():
        beliefs = model.logits(encode(learner.encoder, pair._replace(more=None))).softmax(dim=2)
    torch.testing.assert_close(rest["beliefs"], beliefs)
    copy = networks.COPIES[config.action]
    assert rest["components"] == copy.components
    # the exact action of the poses, and the bins of the one that the model was told
    draw = reading_law(config).draw(8, (32, 32), generator=torch.Generator().manual_seed(3))
    for view, expected in zip(
        (pair.x, pair.x_prime), draw.views(images, compile=False)
    ):  # colours as they are, unless they are told
        torch.testing.assert_close(view, expected)
    exact = Affine().flatten(exact_action(*draw.poses(EXACT).chunk(2)))
    torch.testing.assert_close(pair.action, exact.float())
    if config.action != "augself-colour":
        assert torch.equal(rest["truth"], model.bins(copy(*draw.poses(copy).chunk(2)).float()))
    torch.testing.assert_close(rest["to_x"], draw.poses(EXACT)[:4].to(rest["to_x"].dtype))


def test_the_command_draws_test_images_of_the_runs_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint_of(tmp_path / "run")
    out = tmp_path / "new" / "p.png"
    monkeypatch.setattr(sys, "argv", ["x", "--checkpoint", str(path), "--out", str(out), "--images", "2"])
    pairs.main()
    assert f"S-TEC exact: 2 pairs, and the beliefs over their actions, in {out}" in capsys.readouterr().out
    assert pixels(out).std() > 10
    config = load_learner(path)[1]
    found = pairs.images_to_draw(pairs.Arguments(path, out, images=3), config)
    test = inputs.labelled_sources(config)[1]
    assert isinstance(test, ImageSet)
    assert len(found) == 3
    assert all((test.images == image).flatten(1).all(dim=1).any() for image in found)


def test_a_split_gives_the_images_that_were_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint_of(tmp_path / "run")
    ten_classes(tmp_path / "classes")
    split = splits.make_split(tmp_path / "classes" / "train", 0.2, seed=0)
    splits.write_split(split, tmp_path / "split.json")
    arguments = pairs.Arguments(path, tmp_path / "p.png", root=tmp_path / "split.json", data="folder", images=999)
    found = pairs.images_to_draw(arguments, load_learner(path)[1])
    assert len(found) == len(split.test)
    assert "drawing images of training" not in capsys.readouterr().out


def test_folders_with_and_without_test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint_of(tmp_path / "run")
    config = load_learner(path)[1]
    ten_classes(tmp_path / "classes")
    arguments = pairs.Arguments(path, tmp_path / "p.png", root=tmp_path / "classes", data="folder", images=30)
    assert pairs.images_to_draw(arguments, config).shape == (30, 3, 32, 32)  # all test images: three of each class
    assert "images of training" not in capsys.readouterr().out
    plain = tmp_path / "plain"
    plain.mkdir()
    for i, size in enumerate([(40, 50), (64, 36), (33, 33)]):
        Image.new("RGB", size, (10 * i, 0, 0)).save(plain / f"{i}.png")
    sized = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, size=24))
    arguments = dataclasses.replace(arguments, root=plain, images=2)
    assert pairs.images_to_draw(arguments, sized).shape == (2, 3, 48, 48)
    assert f"{plain} holds no test images (test/ or val/): drawing images of training" in capsys.readouterr().out
    with pytest.raises(ValueError, match="images is 0; need at least 1"):
        pairs.images_to_draw(dataclasses.replace(arguments, images=0), config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_manip": 0.0}, "SimCLR reads no actions: there are no"),
        ({"manipulation": "regressed"}, "regresses actions: there are"),
    ],
)
def test_a_checkpoint_without_beliefs_is_named_before_anything_is_made(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_of(tmp_path / "run", **changes)
    monkeypatch.setattr(sys, "argv", ["x", "--checkpoint", str(path), "--out", str(tmp_path / "new" / "p.png")])
    with pytest.raises(ValueError, match=message):
        pairs.main()
    assert not (tmp_path / "new").exists()
