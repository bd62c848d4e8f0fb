"""Images of several sizes in memory: their pixels, the budget, and crops whose actions are those of what is held."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from stec.core.actions import ViewPair
from stec.vision.decoding import ORIENTATION, decode, decode_rgb
from stec.vision.folder import ImageFiles, image_folder
from stec.vision.held import HeldImages, header_size, held_size, hold, several_sizes
from stec.vision.streaming import CroppedPairs, EvalImages, collate
from stec.vision.views import CROP_FLIP, EXACT, TwoViews

SIZES = [(20, 30), (50, 40), (16, 16), (100, 41)]  # height, width
LOTS = 10**9


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    """Noise of four sizes in two classes; the last lies on its side in the file."""
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        folder = tmp_path / f"class{i // 2}"
        folder.mkdir(exist_ok=True)
        exif = Image.Exif()
        if i == 3:
            exif[ORIENTATION] = 6
            height, width = width, height
        pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png", exif=exif)
    return image_folder(tmp_path, labelled=True)


def held(files: ImageFiles, short: int = 1000) -> HeldImages:
    found = hold(files, short=short, memory_budget=LOTS)
    assert found is not None
    return found


def test_small_images_are_held_as_they_are(files: ImageFiles) -> None:
    there = held(files)
    assert there.sizes.tolist() == [list(size) for size in SIZES]
    for i in range(len(files)):
        assert torch.equal(there.decode(i), decode(files.path(i)))
        assert there.decode_rgb(i).tobytes() == decode_rgb(files.path(i)).tobytes()
    assert there.labels.tolist() == [0, 0, 1, 1]
    assert there.classes == ("class0", "class1")


def test_large_ones_are_shrunk_whole(files: ImageFiles) -> None:
    there = held(files, short=20)
    assert there.sizes.tolist() == [[20, 30], [25, 20], [16, 16], [49, 20]]  # none is enlarged
    for i in (1, 3):
        shrunk = functional.resize(decode_rgb(files.path(i)), there.sizes[i].tolist(), antialias=True)
        assert torch.equal(there.decode(i), functional.pil_to_tensor(shrunk))


def test_the_budget_decides_to_the_byte(files: ImageFiles) -> None:
    needed = 3 * (20 * 30 + 25 * 20 + 16 * 16 + 49 * 20)
    calls: list[tuple[int, int]] = []
    assert hold(files, short=20, memory_budget=needed - 1) is None
    found = hold(files, short=20, memory_budget=needed, progress=lambda *call: calls.append(call))
    assert found is not None
    assert found.pixels.numel() == needed
    assert calls == [(4, 4)]


def test_crops_of_held_images_are_those_of_the_files(files: ImageFiles) -> None:
    laws = {"scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3), "p_flip": 0.5}
    mine, theirs = (CroppedPairs(source, 12, **laws) for source in (held(files), files))  # type: ignore[arg-type]
    for key in [(i, seed) for i in range(4) for seed in (0, 1)]:
        for one, other in zip(mine[key], theirs[key]):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    for i in range(4):
        assert torch.equal(EvalImages(held(files), 12)[i][0], EvalImages(files, 12)[i][0])


def read_pose(view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (x, y) of a view of an image whose red is x and whose green is y, both over [-1, 1]."""
    n = view.shape[-1]
    at = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1
    inner = slice(n // 4, n - n // 4)  # away from the crop's borders
    lines = view[0].double().mean(dim=0), view[1].double().mean(dim=1)
    scale, shift = [], []
    for line in lines:
        values, places = (line * 2 - 1)[inner], at[inner]
        slope = ((values - values.mean()) * places).sum() / places.square().sum()
        scale.append(slope)
        shift.append(values.mean())
    return torch.stack(scale), torch.stack(shift)


def test_the_action_is_that_between_the_crops_of_a_shrunk_image(tmp_path: Path) -> None:
    """What the pixels of two views say of where they lie, beside the label: an image of 301 x 437 held as 64 x 93."""
    height, width = 301, 437
    image = np.zeros((height, width, 3))
    image[:, :, 0] = (np.arange(width) + 0.5) / width * 255
    image[:, :, 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    Image.fromarray(image.round().astype(np.uint8)).save(tmp_path / "ramp.png")
    there = held(image_folder(tmp_path, labelled=False), short=64)
    assert there.sizes.tolist() == [[64, 93]]
    pairs = CroppedPairs(there, 32, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), p_flip=0.5)
    batch = collate([pairs[0, seed] for seed in range(40)])
    pair: ViewPair = TwoViews(CROP_FLIP, EXACT)(batch, torch.Generator().manual_seed(0))
    for x, x_prime, action in zip(pair.x, pair.x_prime, pair.action.double()):
        (scale, shift), (scale_prime, shift_prime) = read_pose(x), read_pose(x_prime)
        expected = torch.cat((scale_prime / scale, (shift_prime - shift) / scale))
        torch.testing.assert_close(action, expected, atol=0.04, rtol=0.02)


def test_a_torn_file_is_named(files: ImageFiles) -> None:
    torn = Path(files.path(1))
    torn.write_bytes(torn.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"1\.png"):
        hold(files, short=20, memory_budget=LOTS)
    torn.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1\.png is no image"):
        hold(files, short=20, memory_budget=LOTS)


def test_sizes_are_those_of_upright_images(tmp_path: Path, files: ImageFiles) -> None:
    assert several_sizes(files)
    one = files.select(torch.tensor([3, 3]))
    assert not several_sizes(one)
    upright = tmp_path / "class1" / "upright.png"
    decode_rgb(files.path(3)).save(upright)  # 100 x 41 without a note
    both = ImageFiles.of(tmp_path, [upright, Path(files.path(3))], torch.tensor([1, 1]), files.classes)
    assert not several_sizes(both)
    (tmp_path / "class1" / "torn.png").write_bytes(b"")
    assert not several_sizes(ImageFiles.of(tmp_path, [tmp_path / "class1" / "torn.png"], torch.tensor([0]), ("a",)))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
def test_every_turn_of_every_format_is_that_of_the_decoded_image(tmp_path: Path, kind: str, turn: int) -> None:
    """A TIFF's size is upright already in some versions of Pillow."""
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    path = tmp_path / f"x.{kind}"
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(path, kind, exif=exif)
    assert header_size(path) == tuple(decode(path).shape[1:]) == ((20, 30) if turn < 5 else (30, 20))


def test_an_image_that_is_turned_by_a_note_behind_its_pixels(tmp_path: Path) -> None:
    """PNG allows eXIf after the pixels, where a look at the header does not find it."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    rng = np.random.default_rng(0)
    for i in range(2):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(path, exif=exif)
        whole = path.read_bytes()
        length = int.from_bytes(whole[(start := whole.index(b"eXIf") - 4) : start + 4])
        note = whole[start : start + length + 12]
        path.write_bytes(whole.replace(note, b"").replace(whole[-12:], note + whole[-12:]))
    files = image_folder(tmp_path, labelled=False)
    assert header_size(files.path(0)) == (20, 30)
    there = held(files)
    assert there.sizes.tolist() == [[30, 20], [30, 20]]
    assert all(torch.equal(there.decode(i), decode(files.path(i))) for i in range(2))


def test_other_pixels_shapes_and_labels_have_another_checksum(files: ImageFiles) -> None:
    there = held(files)
    turned = there.sizes.flip(dims=(1,))
    pixels = there.pixels.clone()
    pixels[-1] ^= 1
    others = [
        HeldImages(pixels, there.sizes, there.labels, there.classes),
        HeldImages(there.pixels, turned, there.labels, there.classes),
        HeldImages(there.pixels, there.sizes, there.labels.flip(0), there.classes),
    ]
    assert len({there.checksum(), *(other.checksum() for other in others)}) == 4
    assert held(files).checksum() == there.checksum()


def test_a_thin_image_keeps_a_line() -> None:
    assert held_size(1000, 3, short=2) == (667, 2)
    assert held_size(3, 3, short=3) == (3, 3)
