"""Annotations in PASCAL VOC's layout: XML without entities, lists of names, masks, and what else labels a folder."""

from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
from mutations import BINARY, TEXT, Target, address_space, check, mutated, refusing
from PIL import Image
from rectangles import CLASSES, an_object, annotation

from stec.vision.folder import tiny_imagenet
from stec.vision.voc import parse_annotation, read_detection
from stec.vision.voc_layout import Part, image_names
from stec.vision.voc_masks import read_mask

ODD_XML = (
    b"<![CDATA[<a>]]>",
    b"<!-- -->",
    b"<?xml-stylesheet href='file:///etc/passwd'?>",
    b"&lt;",
    b"&#x202e;",
    b"&#0;",
    b"&#9;",
    b"&b;",
    b"xmlns='http://a'",
    b"<a>" * 2000,
    b"<size/>",
    b"<object/>",
    b"<bndbox/>",
    b"<name> </name>",
    b"<name>" + b"x" * 9000,
    b'<!DOCTYPE a [<!ENTITY b "c">]>',
    b"<xmin>1_0</xmin>",
    b"</annotation>",
    b"<annotation>",
)
HEADS = (
    "",
    "",
    "",
    "",
    "<?xml version='1.0'?>",
    "<?xml version='1.0' encoding='latin-1'?>",
    "<?xml version='1.1'?>",
    "<?xml version='1.0' encoding='UTF-7'?>",
    "<?xml version='1.0' encoding='zip'?>",
    "<?xml version='1.0' encoding='gbk'?>",
    "<?xml version='1.0' encoding='nothing'?>",
    "<?xml version='1.0' encoding='idna'?>",
    "<?xml version='1.0' encoding='utf-16'?>",
    "<!DOCTYPE annotation SYSTEM 'file:///etc/passwd'>",
)


def xml(random: Random) -> bytes:
    """An annotation of up to three objects."""
    objects = "".join(
        an_object(random.choice(("red", "blue", "green")), *(random.choice((0, 1, 2, 3, 8, 16, 17)) for _ in range(4)))
        for _ in range(random.randrange(4))
    )
    text = annotation(objects, width=16, height=16, head=random.choice(HEADS)).encode()
    if random.random() < 0.4:
        at = random.choice([i for i, c in enumerate(text) if c in b"<>"])
        text = text[:at] + random.choice(ODD_XML) + text[at:]
    return mutated(text, random, TEXT)


def split(random: Random) -> bytes:
    """A list of names."""
    return mutated("\n".join(f"2007_{i:06d}" for i in range(random.randrange(1, 5))).encode(), random, TEXT)


def mask(random: Random) -> bytes:
    """A picture of class numbers."""
    picture = Image.fromarray(np.full((8, 8), random.choice((0, 1, 255)), dtype=np.uint8))
    if random.random() < 0.5:
        picture.putpalette(list(range(256)) * 3)
    file = BytesIO()
    picture.save(file, random.choice(("PNG", "PNG", "PNG", "GIF", "TIFF")))
    return mutated(file.getvalue(), random, BINARY)


def listing(random: Random) -> bytes:
    """Lines of a file and its class."""
    return mutated("".join(f"val_{i}.JPEG\tn0144{i % 2}\t0\t0\t62\t62\n" for i in range(3)).encode(), random, TEXT)


def read_xml(data: bytes, folder: Path) -> None:
    path = folder / "a.xml"
    path.write_bytes(data)
    with refusing(None):
        parse_annotation(path)


def detection(data: bytes, folder: Path) -> None:
    """The whole folder, whatever the annotation says."""
    root = folder / "VOC"
    if not root.is_dir():
        for inner in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / inner).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(root / "JPEGImages" / "a.jpg")
        (root / "ImageSets/Main/train.txt").write_text("a\n")
    (root / "Annotations" / "a.xml").write_bytes(data)
    handling = ("refuse", "clip", "skip")[len(data) % 3]
    with refusing(root / "Annotations" / "a.xml"):
        found = read_detection(
            [Part(root, "train")],
            classes=None if len(data) % 2 else CLASSES,
            boxes=handling,
            keep_empty=True,  # type: ignore[arg-type]
        )
        boxes = found.objects[0].boxes
        assert bool(((boxes >= 0) & (boxes <= 16)).all())


def read_names(data: bytes, folder: Path) -> None:
    root = folder / "lists"
    for inner in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / inner).mkdir(parents=True, exist_ok=True)
    path = root / "ImageSets/Main/train.txt"
    path.write_bytes(data)
    with refusing(path):
        for name in image_names(Part(root, "train"), "Main", root / "Annotations"):
            inside = (root / "JPEGImages" / f"{name}.jpg").resolve()
            assert inside.parent == (root / "JPEGImages").resolve(), f"{name!r} leaves its folder"
            assert not inside.is_file()  # nor does the question raise


def read_a_mask(data: bytes, folder: Path) -> None:
    path = folder / "a.png"
    path.write_bytes(data)
    with refusing(path):
        assert read_mask(path).ndim == 2


def read_listing(data: bytes, folder: Path) -> None:
    root = folder / "tiny"
    if not root.is_dir():
        (root / "val" / "images").mkdir(parents=True)
        for i in range(3):
            (root / "val" / "images" / f"val_{i}.JPEG").touch()
        (root / "wnids.txt").write_text("n01440\nn01441\n")
    which = root / "wnids.txt" if len(data) % 4 == 0 else root / "val" / "val_annotations.txt"
    (root / "wnids.txt").write_text("n01440\nn01441\n")
    which.write_bytes(data if which.name != "wnids.txt" else data.replace(b"\t", b"\n"))
    if not (root / "val" / "val_annotations.txt").exists():
        (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01440\n")
    with refusing(root):
        assert len(tiny_imagenet(root, "val")) == 3


TARGETS = [
    Target("VOC XML", xml, read_xml, guided=True),
    Target("VOC folder", xml, detection),
    Target("VOC names", split, read_names, guided=True),
    Target("VOC mask", mask, read_a_mask),
    Target("Tiny-ImageNet lists", listing, read_listing, guided=True),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_broken_annotations_are_read_or_refused_with_their_name(target: Target, tmp_path: Path) -> None:
    check(target, tmp_path, examples=60)


LAUGHS = "<!DOCTYPE a [<!ENTITY a0 'ha'>{}]><annotation><object><name>&a30;</name></object></annotation>".format(
    "".join(f"<!ENTITY a{i + 1} '&a{i};&a{i};'>" for i in range(30))
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///etc/hostname'>]><annotation><filename>&e;</filename></annotation>",
        "<!DOCTYPE a SYSTEM 'http://127.0.0.1:9/a.dtd'><annotation/>",
        "<!DOCTYPE a [<!ENTITY % e SYSTEM 'file:///etc/hostname'> %e;]><annotation/>",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_no_entity_is_expanded_and_none_fetched(text: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(text.encode(encoding))
    with address_space(256 << 20), pytest.raises(ValueError, match="document type declaration"):
        parse_annotation(path)


@pytest.mark.parametrize(
    "text", ["<annotation>" * 200_000, "<annotation>" + "<a>" * 200_000 + "</a>" * 200_000 + "</annotation>"]
)
def test_deep_nesting_ends_in_an_annotation_or_a_refusal(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text)
    with address_space(512 << 20), refusing(None):
        assert parse_annotation(path).names == ()
