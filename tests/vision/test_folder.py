"""Folders of images: what is found, how each kind of file is decoded (against closed forms), and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from stec.vision.decoding import centre, check, decode
from stec.vision.folder import ImageFiles, image_folder, imagenet, scan, tiny_imagenet
from stec.vision.loading import load

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)  # h w c
BUDGET = 10**8


def save(path: Path, pixels: np.ndarray = PIXELS, mode: str | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def names(root: Path, paths: list[Path]) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def all_paths(files: ImageFiles) -> list[str]:
    return names(files.root, [Path(files.path(i)) for i in range(len(files))])


# --- decoding


def test_rgb_pixels(tmp_path: Path) -> None:
    image = decode(save(tmp_path / "a.png"))
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(PIXELS).permute(2, 0, 1))


def test_greyscale_is_repeated(tmp_path: Path) -> None:
    image = decode(save(tmp_path / "a.png", PIXELS[..., 0]))
    assert torch.equal(image, torch.from_numpy(PIXELS[..., 0]).expand(3, -1, -1))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    image = decode(save(tmp_path / "a.png", PIXELS[..., 0] > 100))
    assert torch.equal(image[1], torch.from_numpy(PIXELS[..., 0] > 100) * 255)


def test_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 2], [1, 0]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").permute(1, 2, 0).tolist() == [
        [[10, 20, 30], [70, 80, 90]],
        [[40, 50, 60], [10, 20, 30]],
    ]


def test_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=1)
    assert decode(tmp_path / "a.png").permute(1, 2, 0).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_laid_over_white(tmp_path: Path, channels: int) -> None:
    alpha = np.arange(0, 256, 8, dtype=np.uint8).reshape(4, 8)
    colour = np.random.default_rng(1).integers(0, 256, (4, 8, channels - 1), dtype=np.uint8)
    image = decode(save(tmp_path / "a.png", np.dstack((colour, alpha))))
    share = alpha[..., None] / 255
    expected = np.broadcast_to(share * colour + (1 - share) * 255, (4, 8, 3))
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 1.0
    assert image[:, 0, 0].tolist() == [255, 255, 255]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = decode(save(tmp_path / "a.tif", np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8), mode="CMYK"))
    assert image[:, 3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path: Path, extension: str) -> None:
    values = np.array([[0, 128, 129, 257], [25700, 32768, 65534, 65535]], dtype=np.uint16)
    image = decode(save(tmp_path / f"a.{extension}", values))
    expected = [[0, 0, 1, 1], [100, 128, 255, 255]]  # values / 257, rounded
    assert image.tolist() == [expected] * 3


def test_32_bit_pixels_have_no_known_range(tmp_path: Path) -> None:
    for values in (np.ones((2, 2), dtype=np.float32), np.ones((2, 2), dtype=np.int32)):
        with pytest.raises(ValueError, match=r"a\.tif .*32-bit pixels.* save it with 8 or 16 bits"):
            decode(save(tmp_path / "a.tif", values))


ORIENTED: list[Callable[[np.ndarray], np.ndarray]] = [  # how an upright picture lies in the file, tags 1 to 8
    lambda a: a,
    lambda a: a[:, ::-1],
    lambda a: a[::-1, ::-1],
    lambda a: a[::-1],
    lambda a: a.transpose(1, 0, 2),
    lambda a: np.rot90(a, 1),
    lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    lambda a: np.rot90(a, -1),
]


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_exif_orientation_is_undone(tmp_path: Path, tag: int, extension: str) -> None:
    upright = np.kron(PIXELS, np.ones((16, 16, 1), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"exif": exif, "quality": 100, "subsampling": 0} if extension == "jpg" else {"exif": exif}
    path = save(tmp_path / f"a.{extension}", np.ascontiguousarray(ORIENTED[tag - 1](upright)), **options)
    image = decode(path).permute(1, 2, 0).numpy().astype(int)
    assert image.shape == upright.shape
    assert np.abs(image - upright).max() <= (4 if extension == "jpg" else 0)


def test_broken_exif_does_not_make_the_pixels_worse(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert torch.equal(decode(path), torch.from_numpy(PIXELS).permute(2, 0, 1))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def truncated(path: Path) -> Path:
    large = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(path, large)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp", "bmp"])
def test_truncated_files_are_named(tmp_path: Path, extension: str) -> None:
    path = truncated(tmp_path / f"half.{extension}")
    with pytest.raises(ValueError, match=rf"half\.{extension}"):
        decode(path)
    with pytest.raises(ValueError, match=rf"half\.{extension}"):
        check(path, pixels=True)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.jpg").write_bytes(content)
    for read in (decode, lambda path: check(path, pixels=False)):
        with pytest.raises(ValueError, match=r"text\.jpg (is no image|cannot be)"):
            read(tmp_path / "text.jpg")


def test_missing_file_and_dangling_link_are_named(tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert names(tmp_path, scan(tmp_path)) == ["link.jpg"]
    with pytest.raises(ValueError, match=r"link\.jpg cannot be read: No such file"):
        decode(tmp_path / "link.jpg")


@pytest.mark.parametrize("limit", [29, 14])  # of 30 pixels: where Pillow warns, and where it refuses
def test_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (decode, lambda path: check(path, pixels=False)):
        with pytest.raises(ValueError, match=rf"bomb\.png has more than {limit} pixels; .*MAX_IMAGE_PIXELS"):
            read(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_where_pillow_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29)
    with pytest.raises(ValueError, match="more than 29 pixels"):
        decode(path)


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (20, 31), (33, 33)])
def test_centre_equals_torchvision_on_tensors(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = functional.pil_to_tensor(centre(Image.fromarray(pixels), resize=32, crop=28))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float()
    expected = functional.center_crop(functional.resize(tensor, [32], antialias=True), [28])
    assert (image - expected).abs().max() <= 1.0


# --- finding and labelling


def test_scan_is_sorted_and_leaves_hidden_and_other_files_out(tmp_path: Path) -> None:
    for name in ("b/2.JPEG", "b/10.jpg", "a.PNG", "b/deep/er/x.webp", "ñandú/köln 日本.png"):
        save(tmp_path / name)
    for name in (".DS_Store", "b/._10.jpg", ".thumbs/1.jpg", "notes.txt", "b/labels.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    found = names(tmp_path, scan(tmp_path))
    assert found == ["a.PNG", "b/10.jpg", "b/2.JPEG", "b/deep/er/x.webp", "ñandú/köln 日本.png"]
    files = image_folder(tmp_path, labelled=False)
    assert all_paths(files) == found
    assert files.labels.tolist() == [-1] * 5
    assert files.classes == ()
    assert len(load(files, size=None, memory_budget=BUDGET).resident or ()) == 5


def test_loops_of_links_end_and_links_are_followed_once(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    save(root / "cat" / "1.png")
    save(outside / "2.png")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    (root / "dog").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (root / "another").symlink_to(root / "cat")  # sorted before the folder's own name, which yet goes first
    assert names(root, scan(root)) == ["cat/1.png", "cat/self.png", "dog/2.png"]


def test_scan_refuses_what_is_no_folder_of_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone does not exist"):
        scan(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"1\.png is a file; name the folder"):
        scan(save(tmp_path / "files" / "1.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no image; .*\.jpg"):
        scan(tmp_path / "empty")
    (tmp_path / "empty" / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match="empty holds no image"):
        scan(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_folder_without_permission(tmp_path: Path) -> None:
    save(tmp_path / "shut" / "1.png")
    (tmp_path / "shut").chmod(0)
    try:
        with pytest.raises(ValueError, match="shut cannot be read; change its permissions"):
            scan(tmp_path)
    finally:
        (tmp_path / "shut").chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission(tmp_path: Path) -> None:
    path = save(tmp_path / "shut.png")
    path.chmod(0)
    with pytest.raises(ValueError, match=r"shut\.png cannot be read: Permission denied"):
        decode(path)


def test_class_folders_give_labels_even_with_one_image(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/only.png", "dog/puppies/2.png"):
        save(tmp_path / name)
    files = image_folder(tmp_path, labelled=True)
    assert files.classes == ("cat", "dog")
    assert all_paths(files) == ["cat/only.png", "dog/1.png", "dog/puppies/2.png"]
    assert files.labels.tolist() == [0, 1, 1]
    assert all_paths(files.subset(2, seed=0))[0] == "cat/only.png"


def test_given_classes_keep_their_numbers(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "1.png")
    files = image_folder(tmp_path, labelled=True, classes=("cat", "cow", "dog"))
    assert files.labels.tolist() == [2]
    with pytest.raises(ValueError, match="folders that are no class: dog; the classes are cat, cow"):
        image_folder(tmp_path, labelled=True, classes=("cat", "cow"))


def test_layouts_that_give_no_labels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="class folders without an image: dog; fill or remove"):
        image_folder(tmp_path, labelled=True)
    save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"1 of 2 images lie in .*loose\.png; .*labelled=False"):
        image_folder(tmp_path, labelled=True)


@pytest.mark.unchecked
def test_imagenet_folders_share_the_classes_of_train(tmp_path: Path) -> None:
    for name in ("train/n01/a.JPEG", "train/n02/b.JPEG", "val/n02/c.JPEG"):
        save(tmp_path / name)
    assert imagenet(tmp_path, "train").labels.tolist() == [0, 1]
    val = imagenet(tmp_path, "val")
    assert val.labels.tolist() == [1]
    assert val.classes == ("n01", "n02")
    save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(ValueError, match="val is flat; sort its images into one folder for each wnid"):
        imagenet(tmp_path, "val")
    with pytest.raises(ValueError, match="'test'; there are train, val"):
        imagenet(tmp_path, "test")


def test_tiny_imagenet_reads_the_annotations(tmp_path: Path) -> None:
    for name in ("train/n02/images/n02_0.JPEG", "train/n01/images/n01_0.JPEG", "val/images/v0.JPEG"):
        save(tmp_path / name)
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("v0.JPEG\tn02\t0\t1\t2\t3\n")
    train, val = tiny_imagenet(tmp_path, "train"), tiny_imagenet(tmp_path, "val")
    assert train.classes == val.classes == ("n01", "n02")
    assert train.labels.tolist() == [0, 1]
    assert val.labels.tolist() == [1]
    save(tmp_path / "val" / "images" / "v1.JPEG")
    with pytest.raises(ValueError, match=r"gives no class of wnids\.txt to v1\.JPEG"):
        tiny_imagenet(tmp_path, "val")
    (tmp_path / "wnids.txt").unlink()
    with pytest.raises(ValueError, match=r"wnids\.txt does not exist; name the folder"):
        tiny_imagenet(tmp_path, "train")


# --- loading


def test_load_keeps_order_and_reports_progress(tmp_path: Path) -> None:
    for i in range(70):
        save(tmp_path / f"{'ab'[i % 2]}" / f"{i:02}.png", np.full((4, 6, 3), i, dtype=np.uint8))
    calls: list[tuple[int, int]] = []
    files = image_folder(tmp_path, labelled=True)
    loaded = load(files, size=None, memory_budget=BUDGET, threads=3, progress=lambda *call: calls.append(call))
    assert loaded.resident is not None
    assert loaded.resident.images.shape == (70, 3, 4, 6)
    order = [*range(0, 70, 2), *range(1, 70, 2)]
    assert loaded.resident.images[:, 2, 3, 5].tolist() == order
    assert loaded.resident.labels.tolist() == [0] * 35 + [1] * 35
    assert loaded.resident.classes == ("a", "b")
    assert calls == [(32, 70), (64, 70), (70, 70)]


def test_memory_budget_decides_to_the_byte(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png")
    files = image_folder(tmp_path, labelled=False)
    assert load(files, size=None, memory_budget=3 * 90).resident is not None
    streamed = load(files, size=None, memory_budget=3 * 90 - 1)
    assert streamed.resident is None
    assert streamed.why_streamed == "3 images of 6x5 need 270 bytes, the budget is 269"
    assert all_paths(streamed.files) == all_paths(files)


def test_mixed_sizes_are_streamed_or_resized(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    save(tmp_path / "2.png", PIXELS[:5])
    files = image_folder(tmp_path, labelled=False)
    streamed = load(files, size=None, memory_budget=BUDGET)
    assert streamed.resident is None
    assert streamed.why_streamed == "the images are of several sizes"
    resized = load(files, size=5, memory_budget=BUDGET).resident
    assert resized is not None
    assert torch.equal(resized.images[1], torch.from_numpy(PIXELS[:5]).permute(2, 0, 1))
    # 6 rows, centre-cropped to 5: torchvision rounds the half pixel to the even side
    assert torch.equal(resized.images[0], functional.center_crop(decode(tmp_path / "1.png"), [5]))


@pytest.mark.parametrize("budget", [BUDGET, 1])
def test_broken_files_are_named_or_skipped_and_counted(tmp_path: Path, budget: int) -> None:
    for i, name in enumerate(("a/1.png", "b/3.png", "b/4.png")):
        save(tmp_path / name, PIXELS // (i + 1))
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    files = image_folder(tmp_path, labelled=True)
    with pytest.raises(ValueError, match=r"1 of 4 files .*0\.png is no image.* skip_broken=True"):
        load(files, size=None, memory_budget=budget)
    loaded = load(files, size=None, memory_budget=budget, skip_broken=True)
    assert all_paths(loaded.files) == ["a/1.png", "b/3.png", "b/4.png"]
    assert loaded.files.labels.tolist() == [0, 1, 1]
    ((path, reason),) = loaded.broken
    assert path == tmp_path / "a" / "0.png"
    assert "is no image" in reason
    if budget == BUDGET:
        assert loaded.resident is not None
        assert torch.equal(loaded.resident.images[1], torch.from_numpy(PIXELS // 2).permute(2, 0, 1))
        assert loaded.resident.labels.tolist() == [0, 1, 1]


def test_streamed_files_are_read_in_full_where_broken_ones_are_skipped(tmp_path: Path) -> None:
    save(tmp_path / "good.jpg")
    truncated(tmp_path / "half.jpg")
    loaded = load(image_folder(tmp_path, labelled=False), size=None, memory_budget=1, skip_broken=True)
    assert all_paths(loaded.files) == ["good.jpg"]
    assert len(loaded.broken) == 1


@pytest.mark.parametrize("budget", [BUDGET, 1])
def test_what_is_left_out_is_named_below_the_root_and_the_rest_counted(tmp_path: Path, budget: int) -> None:
    save(tmp_path / "a" / "good.png")
    files = image_folder(tmp_path, labelled=True)
    assert load(files, size=None, memory_budget=budget, skip_broken=True).left_out == ""
    for n, name in enumerate(("b/0.png", "a/1.png", "b/2.png", "a/3.png"), 1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
        files = image_folder(tmp_path, labelled=True)
        with pytest.raises(ValueError, match=rf"^{n} of {n + 1} files") as raised:
            load(files, size=None, memory_budget=budget)
        assert (", and 1 more. Restore" in str(raised.value)) == (n == 4)
        assert str(raised.value).count("is no image") == min(n, 3)
        found = load(files, size=None, memory_budget=budget, skip_broken=True).left_out
        expected = {
            1: "1 unreadable left out: b/0.png",
            2: "2 unreadable left out: a/1.png, b/0.png",
            3: "3 unreadable left out: a/1.png, b/0.png, b/2.png",
            4: "4 unreadable left out: a/1.png, a/3.png, b/0.png and 1 more",
        }
        assert found == expected[n]


def test_nothing_left_is_an_error_even_where_broken_files_are_skipped(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of 5 files in .* can be decoded: .*0\.jpg.*2\.jpg is no image[^;]*$"):
        load(image_folder(tmp_path, labelled=False), size=None, memory_budget=BUDGET, skip_broken=True)


# --- real data


@pytest.mark.shared
def test_tiny_imagenet_as_published(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("tiny-imagenet-200-subset20")
    train, val = tiny_imagenet(root, "train"), tiny_imagenet(root, "val")
    assert train.labels.bincount().tolist() == [100] * 20
    assert val.labels.bincount().tolist() == [50] * 20
    data = load(val, size=None, memory_budget=BUDGET).resident
    assert data is not None
    assert data.images.shape == (1000, 3, 64, 64)
    for i in (0, 499, 999):
        with Image.open(val.path(i)) as image:
            assert np.array_equal(data.images[i].permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
