"""Images with boxes in PASCAL VOC's layout, checked as a whole before anything is trained on them.

Annotations may come from strangers: a document type declaration, and with it every entity, is refused before
`xml.etree` sees the text.
"""

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from xml.parsers import expat

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from stec.core.inert import named
from stec.vision.decoding import decode
from stec.vision.loading import Progress
from stec.vision.voc_layout import Part, Problem, find_image, image_size, read_parts, report

Corners = tuple[float, float, float, float]


class Objects(NamedTuple):
    """What an image shows: boxes (x1, y1, x2, y2) in pixels, from 0, the far edges excluded; labels from 1."""

    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, " n"]
    difficult: Bool[Tensor, " n"]


class Annotation(NamedTuple):
    """An XML file's contents: the image's size where the file tells it, and its objects with the numbers as written."""

    size: tuple[int, int] | None  # width, height
    names: tuple[str, ...]
    corners: tuple[Corners, ...]  # xmin, ymin, xmax, ymax
    difficult: tuple[bool, ...]


def parse_annotation(path: Path) -> Annotation:
    """Reads an annotation file. ValueError where it is empty, no XML, has a DTD, or lacks what an object needs."""
    data = path.read_bytes()
    if not data.strip():
        raise ValueError("the file is empty")
    guard = expat.ParserCreate()  # sees a DTD in any encoding; fetches no external entity, as xml.etree does not
    guard.StartDoctypeDeclHandler = _refuse_doctype
    try:
        guard.Parse(data, True)
        root = ET.fromstring(data)
    except (expat.ExpatError, ET.ParseError, LookupError) as error:  # the last: it names an encoding that is none
        raise ValueError(f"it is no XML: {str(error)[:200]!a}") from error
    if root.tag != "annotation":
        raise ValueError(f"its outermost element is <{named([root.tag])}>, not <annotation>")
    told = root.find("size")
    size = None if told is None else (int(_number(told, "width", "<size>")), int(_number(told, "height", "<size>")))
    objects = [_object(thing, f"object {i}") for i, thing in enumerate(root.findall("object"), start=1)]
    names, corners, difficult = zip(*objects) if objects else ((), (), ())
    return Annotation(size, names, corners, difficult)


def _refuse_doctype(*args: object) -> None:
    raise ValueError("it has a document type declaration, where entities could hide; take it out")


def _object(thing: ET.Element, where: str) -> tuple[str, Corners, bool]:
    """Name, corners and difficulty of an <object>; the boxes of its <part>s, such as heads, are not looked at."""
    name, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
    if not name or box is None:
        raise ValueError(f"{where} has no <{'bndbox' if name else 'name'}>")
    hard = (thing.findtext("difficult") or "").strip() or "0"  # some tools write <difficult/>
    if hard not in ("0", "1"):
        raise ValueError(f"{where} ({named([name])}) has difficult {hard[:60]!r}, neither 0 nor 1")
    xmin, ymin, xmax, ymax = (
        _number(box, key, f"{where} ({named([name])})") for key in ("xmin", "ymin", "xmax", "ymax")
    )
    return name, (xmin, ymin, xmax, ymax), hard == "1"


def _number(parent: ET.Element, name: str, where: str) -> float:
    text = (parent.findtext(name) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} has {name} {text[:60]!r}, no number")
    return value


class DetectionSet(Dataset[tuple[Tensor, Objects]]):
    """Item i: an image, uint8 (3, h, w), and its Objects. `tolerated` counts what a flag let pass or left out."""

    def __init__(
        self, images: Sequence[Path], objects: Sequence[Objects], classes: Sequence[str], tolerated: dict[str, int]
    ) -> None:
        self.images = tuple(images)
        self.objects = tuple(objects)
        self.classes = tuple(classes)  # class i has label i + 1; 0 is the background
        self.tolerated = tolerated

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 h w"], Objects]:
        return decode(self.images[index]), self.objects[index]


class MirroredAtRandom(Dataset[tuple[Tensor, Objects]]):
    """Item (index, seed): the item of a set, mirrored left to right with probability 1/2, as `seed` decides."""

    def __init__(self, source: DetectionSet) -> None:
        self.source = source

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[UInt8[Tensor, "3 h w"], Objects]:
        index, seed = key
        image, objects = self.source[index]
        mirrored = torch.rand((), generator=torch.Generator().manual_seed(seed)) < 0.5
        return mirror(image, objects) if mirrored else (image, objects)


def mirror(image: UInt8[Tensor, "3 h w"], objects: Objects) -> tuple[UInt8[Tensor, "3 h w"], Objects]:
    """An image and its boxes seen in a mirror.

    >>> objects = Objects(torch.tensor([[0.0, 0.0, 2.0, 5.0]]), torch.tensor([1]), torch.tensor([False]))
    >>> mirror(torch.zeros(3, 6, 10, dtype=torch.uint8), objects)[1].boxes
    tensor([[ 8.,  0., 10.,  5.]])
    """
    x1, y1, x2, y2 = objects.boxes.unbind(dim=1)
    width = image.shape[2]
    return image.flip(2), objects._replace(boxes=torch.stack((width - x2, y1, width - x1, y2), dim=1))


class _Read(NamedTuple):
    """What one image's files gave; `size` only where it is certain."""

    image: Path
    file: Path
    size: tuple[int, int] | None
    annotation: Annotation | None
    problems: list[Problem]


def _read(root: Path, name: str) -> _Read:
    """One image and its annotation, with each problem noted."""
    problems: list[Problem] = []
    file, image = root / "Annotations" / f"{name}.xml", find_image(root, name)
    size = image_size(image, problems)
    annotation = None
    if not file.is_file():
        problems.append(Problem("files are missing", file, "no such annotation"))
    else:
        try:
            annotation = parse_annotation(file)
        except ValueError as error:
            problems.append(Problem("files cannot be read", file, str(error)))
    if annotation and annotation.size and size and annotation.size != size:
        what = f"it says (width, height) {annotation.size}, the image has {size}"
        problems.append(Problem("annotations are of another size than their image", file, what))
        size = None  # the boxes would be measured against the wrong image
    return _Read(image, file, size, annotation, problems)


def read_detection(
    parts: Iterable[Part],
    *,
    classes: Sequence[str] | None,
    boxes: Literal["refuse", "clip", "skip"] = "refuse",
    keep_empty: bool = False,
    one_based: bool = True,
    progress: Progress | None = None,
) -> DetectionSet:
    """Reads and checks the parts, joined to one set; `classes` None takes the names found, sorted.

    VOC counts pixels from 1 and includes both ends: (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax),
    as in detectron2. `one_based=False` takes the numbers as they are, for tools that count from 0 and exclude the far
    end. A box of VOC's with xmin = xmax is taken for a slip of the hand, though one pixel could be meant.
    Raises one ValueError for all problems together (`stec.vision.voc_layout.CURES` has the kinds). `boxes` "clip" cuts
    off what lies outside the image and leaves out what then has no area, "skip" leaves out boxes that reach outside
    or have none; `keep_empty` lets images without objects pass; `tolerated` counts all of these.
    """
    found = read_parts(parts, "Main", "Annotations", _read, progress)
    known = tuple(classes or sorted({name for read in found if read.annotation for name in read.annotation.names}))
    tolerated: Counter[str] = Counter()
    objects = [
        _objects(read, known, tolerated, boxes=boxes, keep_empty=keep_empty, first=int(one_based)) for read in found
    ]
    report([problem for read in found for problem in read.problems], len(found))
    return DetectionSet([read.image for read in found], objects, known, dict(tolerated))


def _objects(
    read: _Read, classes: Sequence[str], tolerated: Counter[str], *, boxes: str, keep_empty: bool, first: int
) -> Objects:
    """The objects of an image whose pixels count from `first`, each problem noted in `read` or `tolerated`."""
    kept: list[tuple[Corners, int, bool]] = []
    before = len(read.problems)
    annotation = read.annotation or Annotation(None, (), (), ())
    for name, corners, difficult in zip(annotation.names, annotation.corners, annotation.difficult):
        if name not in classes:
            what = f"{name[:60]!r}; the classes are {', '.join(classes[:30])}"
            read.problems.append(Problem("objects are of unknown classes", read.file, what))
        elif read.size and (box := _place(read, name, corners, tolerated, boxes=boxes, first=first)):
            kept.append((box, classes.index(name) + 1, difficult))
    if annotation is read.annotation and not kept and len(read.problems) == before and read.size:
        if keep_empty:
            tolerated["images without objects"] += 1
        else:
            what = "no <object>" if not annotation.names else "none is left of its objects"
            read.problems.append(Problem("annotations have no object", read.file, what))
    return Objects(
        torch.tensor([box for box, _, _ in kept], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label for _, label, _ in kept], dtype=torch.int64),
        torch.tensor([difficult for _, _, difficult in kept], dtype=torch.bool),
    )


def _place(
    read: _Read, name: str, corners: Corners, tolerated: Counter[str], *, boxes: str, first: int
) -> Corners | None:
    """The box between pixel edges, or None where it is left out or a problem."""
    assert read.size is not None
    width, height = read.size
    x1, y1, x2, y2 = corners[0] - first, corners[1] - first, corners[2], corners[3]
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    written = f"{named([name])} at xmin {corners[0]:g}, ymin {corners[1]:g}, xmax {corners[2]:g}, ymax {corners[3]:g}"
    if inside != (x1, y1, x2, y2):
        if boxes == "refuse":
            what = f"{written} in an image of {width} x {height}"
            read.problems.append(Problem("boxes reach outside their image", read.file, what))
            return None
        if boxes == "skip":
            tolerated["boxes left out"] += 1
            return None
        tolerated["boxes cut off at the image's edge"] += 1
        x1, y1, x2, y2 = inside
    if x2 - x1 <= first or y2 - y1 <= first:  # from 1, both ends included: xmax <= xmin
        if boxes == "refuse":
            read.problems.append(Problem("boxes have no area", read.file, written))
        else:
            tolerated["boxes left out"] += 1
        return None
    return x1, y1, x2, y2
