"""VOC folders: where boxes and masks lie to the pixel, and every mistake in the data, told before any training."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rectangles import CLASSES, COLOURS, an_object, annotation, draw_folder

from stec.vision.voc import DetectionSet, MirroredAtRandom, Objects, mirror, parse_annotation, read_detection
from stec.vision.voc_layout import VOC_CLASSES, Part
from stec.vision.voc_masks import IGNORE, PADDING, RandomCrops, SegmentationSet, read_mask, read_segmentation


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound folder of three images."""
    return draw_folder(tmp_path / "VOC", "train", ["a", "b", "c"])


def read(root: Path, **options: object) -> DetectionSet:
    return read_detection([Part(root, "train")], classes=CLASSES, **options)  # type: ignore[arg-type]


def refused(root: Path, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        read(root, **options)
    return str(caught.value)


def write(root: Path, objects: str, name: str = "b", **options: object) -> None:
    (root / "Annotations" / f"{name}.xml").write_text(annotation(objects, **options))  # type: ignore[arg-type]


# --- boxes


def test_boxes_lie_on_the_drawn_pixels(root: Path) -> None:
    data = read(root)
    assert (len(data), data.classes, data.tolerated) == (3, CLASSES, {})
    for i in range(3):
        image, objects = data[i]
        assert objects.labels.tolist() == [2, 1]  # red, blue; 0 is the background
        for box, label in zip(objects.boxes.int().tolist(), objects.labels.tolist()):
            x1, y1, x2, y2 = box
            colour = torch.tensor(COLOURS[CLASSES[label - 1]])[:, None, None]
            inside = (image.int() - colour).abs().amax(dim=0) < 60  # JPEG
            assert inside[y1:y2, x1:x2].all()
            x1, y1 = max(x1 - 1, 0), max(y1 - 1, 0)  # one pixel more on any side is another colour
            rim = inside[y1 : y2 + 1, x1 : x2 + 1].clone()
            assert int(rim.sum()) == (box[2] - box[0]) * (box[3] - box[1])


def test_pixels_count_from_one_and_both_ends_belong_to_the_box(root: Path) -> None:
    write(root, an_object("red", 1, 1, 64, 48) + an_object("blue", 5, 7, 6, 9))
    boxes = read(root).objects[1].boxes
    assert boxes.tolist() == [[0, 0, 64, 48], [4, 6, 6, 9]]
    write(root, an_object("red", 5, 7, 6, 8))  # the smallest
    assert read(root).objects[1].boxes.tolist() == [[4, 6, 6, 8]]
    assert boxes.dtype == torch.float32


def test_edges_counted_from_zero_on_request(root: Path) -> None:
    write(root, an_object("red", 0, 0, 64, 48) + an_object("blue", 5, 7, 6, 9))
    assert read(root, one_based=False).objects[1].boxes.tolist() == [[0, 0, 64, 48], [5, 7, 6, 9]]
    write(root, an_object("red", 5, 7, 5, 9))
    assert "boxes have no area" in refused(root, one_based=False)


def test_difficult_objects_are_marked_and_parts_passed_over(root: Path) -> None:
    head = "<difficult>1</difficult><part><name>head</name><bndbox><xmin>0</xmin></bndbox></part>"
    write(root, an_object("red", 2, 2, 20, 20, head) + an_object("blue", 3, 3, 9, 9, "<difficult/>"))
    objects = read(root).objects[1]
    assert objects.difficult.tolist() == [True, False]
    assert objects.boxes[0].tolist() == [1, 1, 20, 20]


def test_parts_are_joined_in_order_and_classes_collected(root: Path, tmp_path: Path) -> None:
    other = draw_folder(tmp_path / "other", "val", ["a", "d"], seed=1)
    data = read_detection([Part(other, "val"), Part(root, "train")], classes=None)
    assert [path.parent.parent.name + path.stem for path in data.images] == ["othera", "otherd", "VOCa", "VOCb", "VOCc"]
    assert data.classes == ("blue", "red")
    assert len(VOC_CLASSES) == 20


def test_all_that_is_annotated_without_a_list(root: Path) -> None:
    (root / "Annotations" / "c.xml").unlink()
    assert len(read_detection([Part(root, None)], classes=CLASSES)) == 2


def test_a_list_may_begin_with_a_byte_order_mark(root: Path) -> None:
    split("a\r\nc\r\n", "utf-8-sig")(root)
    assert [path.stem for path in read(root).images] == ["a", "c"]


def test_images_of_another_kind_are_found(root: Path) -> None:
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "a.PNG".lower())
    assert [path.suffix for path in read(root).images] == [".png", ".jpg", ".jpg"]


def test_the_size_is_that_of_the_upright_image(root: Path) -> None:
    path = root / "JPEGImages" / "b.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways: 64 x 48 pixels are seen as 48 x 64
    Image.open(path).save(path, exif=exif)
    assert "it says (width, height) (64, 48), the image has (48, 64)" in refused(root)
    write(root, an_object("red", 1, 1, 48, 64), width=48, height=64)
    data = read(root)
    assert data[1][0].shape == (3, 64, 48)


@given(
    st.lists(st.tuples(*[st.integers(0, 20)] * 4), max_size=4),
    st.integers(0, 2**40),
)
def test_a_mirrored_mirror_is_the_original(corners: list[tuple[int, int, int, int]], seed: int) -> None:
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in corners], dtype=torch.float32).reshape(-1, 4)
    objects = Objects(boxes, torch.ones(len(boxes), dtype=torch.int64), torch.zeros(len(boxes), dtype=torch.bool))
    image = torch.randint(256, (3, 41, 43), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    there = mirror(image, objects)
    back = mirror(*there)
    assert torch.equal(back[0], image)
    assert torch.equal(back[1].boxes, boxes)
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(boxes.int().tolist(), there[1].boxes.int().tolist()):
        assert torch.equal(there[0][:, v1:v2, u1:u2], image[:, y1:y2, x1:x2].flip(2))


def test_mirrors_follow_the_seed(root: Path) -> None:
    data = read(root)
    views = MirroredAtRandom(data)
    image, objects = data[1]
    same = []
    for seed in range(40):
        view, boxes = views[1, seed]
        assert torch.equal(view, views[1, seed][0])
        same.append(torch.equal(view, image))
        assert torch.equal(boxes.boxes, objects.boxes) == same[-1]
    assert 10 < sum(same) < 30


# --- mistakes


def unlink(folder: str, name: str) -> Callable[[Path], None]:
    return lambda root: (root / folder / name).unlink()


def text(content: str | bytes, name: str = "b") -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda root: (root / "Annotations" / f"{name}.xml").write_bytes(data) and None  # type: ignore[return-value]


def split(content: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    data = content.encode(encoding)
    return lambda root: (root / "ImageSets" / "Main" / "train.txt").write_bytes(data) and None  # type: ignore[return-value]


def torn(root: Path) -> None:
    path = root / "JPEGImages" / "b.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])  # its header is whole


RED = an_object("red", 2, 2, 20, 20)
MISTAKES = {
    "no annotation": (unlink("Annotations", "b.xml"), "1 x files are missing: .*b.xml: no such annotation. Cure: "),
    "no image": (unlink("JPEGImages", "b.jpg"), "1 x files are missing: .*b.jpg: no such image"),
    "torn image": (torn, "1 x files cannot be read: .*b.jpg"),
    "empty file": (text("  \n"), "b.xml: the file is empty"),
    "no XML": (text("<annotation><size>"), "b.xml: it is no XML: .*line 1"),
    "other XML": (text("<html/>"), "outermost element is <html>, not <annotation>"),
    "no object": (text(annotation("")), "1 x annotations have no object: .*b.xml: no <object>. Cure: .*--keep-empty"),
    "no name": (text(annotation(RED.replace("<name>red</name>", ""))), "object 1 has no <name>"),
    "no box": (text(annotation(RED + "<object><name>red</name></object>")), "object 2 has no <bndbox>"),
    "no number": (text(annotation(RED.replace("<xmax>20", "<xmax>2o"))), r"object 1 \(red\) has xmax '2o', no number"),
    "not finite": (text(annotation(RED.replace("<xmax>20", "<xmax>inf"))), "xmax 'inf', no number"),
    "strange difficulty": (text(annotation(RED.replace("<difficult>0", "<difficult>yes"))), "difficult 'yes'"),
    "other size": (text(annotation(RED, width=640)), r"1 x .*another size.*\(640, 48\), the image has \(64, 48\)"),
    "unknown class": (
        text(annotation(an_object("rot", 2, 2, 9, 9))),
        "unknown classes: .*'rot'; the classes are blue, red",
    ),
    "left of the image": (
        text(annotation(an_object("red", 0, 2, 9, 9))),
        "xmin 0, ymin 2, xmax 9, ymax 9 in .*64 x 48",
    ),
    "above the image": (text(annotation(an_object("red", 2, -3, 9, 9))), "boxes reach outside .*ymin -3"),
    "right of the image": (text(annotation(an_object("red", 2, 2, 65, 9))), "boxes reach outside .*--boxes clip"),
    "below the image": (text(annotation(an_object("red", 2, 2, 9, 48.5))), "boxes reach outside .*ymax 48.5"),
    "upside down": (text(annotation(an_object("red", 9, 2, 3, 9))), "1 x boxes have no area: .*xmin 9, ymin 2, xmax 3"),
    "no width": (text(annotation(an_object("red", 9, 5, 9, 20))), "1 x boxes have no area: .*xmin 9, ymin 5, xmax 9"),
    "no height": (text(annotation(an_object("red", 9, 5, 20, 5))), "1 x boxes have no area: .*ymin 5, xmax 20, ymax 5"),
    "a click": (text(annotation(an_object("red", 9, 5, 9, 5))), "1 x boxes have no area: .*--boxes skip"),
    "no list": (
        unlink("ImageSets/Main", "train.txt"),
        "train.txt does not exist; the splits there are none, and 'all'",
    ),
    "empty list": (split("\n"), "train.txt is empty"),
    "list of one class": (split("a  1\nb -1\n"), "'a  1', no single name"),
    "list in UTF-16": (
        split("a\nb\n", "utf-16"),
        r"train.txt is no text in UTF-8 \(.*can't decode.*; save it as UTF-8",
    ),
    "list in UTF-16 without a mark": (
        split("a\nb\n", "utf-16-le"),
        "train.txt is no text in UTF-8 .*; save it as UTF-8",
    ),
    "path in a list": (split("../a\n"), "'../a', no single name"),
    "twice in a list": (split("a\nb\na\n"), "1 images of .* listed twice, such as a"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_with_file_value_and_cure(root: Path, mistake: str) -> None:
    spoil, message = MISTAKES[mistake]
    spoil(root)
    assert re.search(message, refused(root)), refused(root)


def test_all_problems_are_counted_and_the_first_named(root: Path) -> None:
    for name in "abc":
        write(root, an_object("red", 2, 2, 99, 9) + an_object("rot", 2, 2, 9, 9) + an_object("red", 3, 3, 99, 9), name)
    message = refused(root)
    assert message.startswith("9 problems in 3 annotated images\n6 x boxes reach outside their image: ")
    assert "3 x objects are of unknown classes: " in message
    assert message.count("xmax 99") == 3
    assert "xmax 99, ymax 9 in an image of 64 x 48; and 3 more. Cure: " in message


def test_the_same_split_twice_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"3 images of .* are listed twice"):
        read_detection([Part(root, "train"), Part(root, "train")], classes=None)
    with pytest.raises(ValueError, match=r"no/JPEGImages does not exist; name a folder in PASCAL VOC's layout"):
        read_detection([Part(root / "no", "train")], classes=None)


def test_boxes_are_cut_or_left_out_on_request_and_counted(root: Path) -> None:
    out, click = an_object("red", -4, 3, 20, 99), an_object("red", 9, 9, 9, 9)
    beside = an_object("red", 70, 3, 90, 9)
    write(root, out + click + beside + an_object("blue", 2, 2, 9, 9))
    clipped = read(root, boxes="clip")
    assert clipped.objects[1].boxes.tolist() == [[0, 2, 20, 48], [1, 1, 9, 9]]
    assert clipped.objects[1].labels.tolist() == [2, 1]
    assert clipped.tolerated == {"boxes cut off at the image's edge": 2, "boxes left out": 2}
    skipped = read(root, boxes="skip")
    assert skipped.objects[1].boxes.tolist() == [[1, 1, 9, 9]]
    assert skipped.tolerated == {"boxes left out": 3}
    assert refused(root).startswith("3 problems")


def test_images_without_objects_on_request(root: Path) -> None:
    write(root, "")
    data = read(root, keep_empty=True)
    assert data.objects[1].boxes.shape == (0, 4)
    assert data.tolerated == {"images without objects": 1}
    write(root, an_object("red", 9, 9, 9, 9))
    assert "b.xml: none is left of its objects" in refused(root, boxes="skip")
    assert read(root, boxes="skip", keep_empty=True).tolerated == {"boxes left out": 1, "images without objects": 1}


LAUGHS = '<!DOCTYPE annotation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
FETCH = '<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize("doctype", [LAUGHS, FETCH, "<!DOCTYPE annotation>"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused_in_any_encoding(root: Path, doctype: str, encoding: str) -> None:
    body = annotation(RED.replace("red", "&a;" if "ENTITY" in doctype else "red"), head=doctype)
    text(f'<?xml version="1.0" encoding="{encoding}"?>{body}'.encode(encoding))(root)
    assert "b.xml: it has a document type declaration, where entities could hide" in refused(root)


def test_other_encodings_are_read(root: Path) -> None:
    text(f'<?xml version="1.0" encoding="utf-16"?>{annotation(RED)}'.encode("utf-16"))(root)
    assert parse_annotation(root / "Annotations" / "b.xml").names == ("red",)


# --- masks


def masks(root: Path, **options: object) -> SegmentationSet:
    classes = ("background", *CLASSES)
    return read_segmentation([Part(root, "train")], classes=classes, **options)  # type: ignore[arg-type]


def test_masks_hold_the_palette_s_numbers(root: Path) -> None:
    data = masks(root)
    boxes = read(root)
    for i in range(3):
        image, mask = data[i]
        assert (image.shape, mask.shape, mask.dtype) == ((3, 48, 64), (48, 64), torch.uint8)
        assert mask.unique().tolist() == [0, 1, 2, IGNORE]
        for (x1, y1, x2, y2), label in zip(boxes.objects[i].boxes.int().tolist(), boxes.objects[i].labels.tolist()):
            assert (mask[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] == label).all()
            assert (mask[y1, x1:x2] == IGNORE).all()


def save_mask(root: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(root / "SegmentationClass" / "b.png")


GREY = np.zeros((48, 64), dtype=np.uint8)
MASK_MISTAKES = {
    "missing": (unlink("SegmentationClass", "b.png"), "files are missing: .*b.png: no such mask"),
    "other size": (
        lambda root: save_mask(root, GREY[:40]),
        "another size .*the mask has 64 x 40 pixels, the image 64 x 48",
    ),
    "unknown class": (
        lambda root: save_mask(root, GREY + 3),
        "unknown classes: .*numbers 3; the classes are 0 to 2, and 255",
    ),
    "colours": (lambda root: save_mask(root, np.dstack([GREY] * 3)), "no pictures of class numbers: .*RGB, neither"),
    "nothing known": (lambda root: save_mask(root, GREY + 255), "masks mark nothing"),
    "no picture": (
        lambda root: (root / "SegmentationClass" / "b.png").write_text("x"),
        "files cannot be read: .*b.png",
    ),
    "no image": (unlink("JPEGImages", "b.jpg"), "files are missing: .*b.jpg: no such image"),
}


@pytest.mark.parametrize("mistake", MASK_MISTAKES)
def test_mistakes_in_masks_are_told(root: Path, mistake: str) -> None:
    spoil, message = MASK_MISTAKES[mistake]
    spoil(root)
    with pytest.raises(ValueError, match=message):
        masks(root)


def test_a_torn_mask_is_named(root: Path) -> None:
    path = root / "SegmentationClass" / "b.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"b\.png cannot be read"):
        read_mask(path)


def test_grey_masks_and_other_folders(root: Path) -> None:
    (root / "SegmentationClass").rename(root / "Aug")
    Image.fromarray(GREY + 2).save(root / "Aug" / "b.png")
    assert masks(root, folder="Aug")[1][1].unique().tolist() == [2]


def test_crops_move_image_and_mask_together(root: Path) -> None:
    data = masks(root)
    crops = RandomCrops(data, 40, scale=(0.5, 2.0))
    colours = torch.tensor([COLOURS["blue"], COLOURS["red"]])
    sizes, lefts, right = set(), set(), []
    for seed in range(30):
        image, mask = crops[seed % 3, seed]
        again = crops[seed % 3, seed]
        assert torch.equal(image, again[0])
        assert torch.equal(mask, again[1])
        assert (image.shape, mask.shape) == ((3, 40, 40), (40, 40))
        distance = (image.permute(1, 2, 0).int()[:, :, None] - colours).abs().amax(dim=-1)  # h w 2
        known = (mask == 1) | (mask == 2)
        right.append((torch.where(mask == 1, distance[..., 0], distance[..., 1]) < 100)[known])
        padded = (mask == IGNORE) & (image == torch.tensor(PADDING)[:, None, None]).all(dim=0)
        sizes.add(int(padded.sum()))
        lefts.add(tuple(mask[20].tolist()))
    assert torch.cat(right).float().mean() > 0.98  # rims blur when resized
    assert len(torch.cat(right)) > 3000
    assert len(sizes) > 5
    assert len(lefts) > 20


def test_crops_at_scale_one_are_parts_of_the_image(root: Path) -> None:
    data = masks(root)
    crops = RandomCrops(data, 32, scale=(1.0, 1.0))
    image, mask = data[0]
    mirrored, places = 0, set()
    for seed in range(60):
        crop, numbers = crops[0, seed]
        found = []
        for flipped, (x, m) in enumerate(((image, mask), (image.flip(2), mask.flip(1)))):
            windows = x.unfold(1, 32, 1).unfold(2, 32, 1)  # 3 top left h w
            same = (windows == crop[:, None, None]).flatten(3).all(dim=3).all(dim=0).nonzero()
            found += [
                (flipped, *place)
                for place in same.tolist()
                if torch.equal(m[place[0] : place[0] + 32, place[1] : place[1] + 32], numbers)
            ]
        assert len(found) == 1
        mirrored += found[0][0]
        places.add(found[0][1:])
    assert 15 < mirrored < 45
    tops, lefts = zip(*places)
    assert (min(tops), max(tops)) == (0, 16)
    assert min(lefts) < 4
    assert max(lefts) > 28


def test_small_images_are_padded_with_unknown_pixels(root: Path) -> None:
    crops = RandomCrops(masks(root), 100, scale=(0.5, 0.5))
    mirrored = 0
    for seed in range(8):
        image, mask = crops[0, seed]
        padded = (image == torch.tensor(PADDING)[:, None, None]).all(dim=0)
        if padded[:24, :60].all():
            mirrored, padded, mask = mirrored + 1, padded.flip(1), mask.flip(1)
        assert padded[:24, :32].float().mean() < 0.1
        assert mask[:24, :32].ne(IGNORE).any()
        for outside in (slice(24, None), slice(None)), (slice(None), slice(32, None)):
            assert padded[outside].all()
            assert mask[outside].eq(IGNORE).all()
    assert 0 < mirrored < 8
    with pytest.raises(ValueError, match=r"crop 0, scale"):
        RandomCrops(masks(root), 0, scale=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"0 < lowest"):
        RandomCrops(masks(root), 9, scale=(2.0, 1.0))


# --- real data


@pytest.mark.shared
def test_blood_cells(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("BCCD_Dataset") / "BCCD"
    with pytest.raises(ValueError) as caught:
        read_detection([Part(root, "trainval"), Part(root, "test")], classes=None)
    message = str(caught.value)
    assert message.startswith("2 problems in 364 annotated images\n2 x boxes have no area: ")
    assert "BloodImage_00338.xml: RBC at xmin 504, ymin 337, xmax 504, ymax 337" in message
    data = read_detection([Part(root, "trainval"), Part(root, "test")], classes=None, boxes="skip")
    assert data.tolerated == {"boxes left out": 2}
    assert data.classes == ("Platelets", "RBC", "WBC")
    labels = torch.cat([objects.labels for objects in data.objects])
    assert torch.bincount(labels).tolist() == [0, 361, 4153, 372]
    assert data[0][0].shape == (3, 480, 640)


@pytest.mark.shared
def test_labelme_s_samples(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("labelme-voc-sample")
    boxes = read_detection([Part(root / "bbox_detection", None)], classes=None)
    assert boxes.classes == ("bus", "car", "person")
    torch.testing.assert_close(boxes.objects[0].boxes[0], torch.tensor([190.0, 106.3690, 313.0, 329.3690]))
    data = read_segmentation([Part(root / "semantic_segmentation", None)], classes=("background", *VOC_CLASSES))
    assert [sorted(set(data[i][1].unique().tolist())) for i in range(3)] == [
        [0, 5, 15, 255],
        [0, 9, 15, 18, 255],
        [0, 6, 7],
    ]
    with pytest.raises(ValueError, match="numbers 15; the classes are 0 to 9"):
        read_segmentation([Part(root / "semantic_segmentation", None)], classes=("background", *VOC_CLASSES[:9]))
