"""The folders of PASCAL VOC: which images a split names, where their files lie, and how mistakes in them are told.

Reading takes every file of the named splits into view before anything is trained, and reports all mistakes at once, by
kind, with files, values and cures. `stec.vision.voc` reads boxes, `stec.vision.voc_masks` the masks of segmentation.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from stec.vision.decoding import ORIENTATION, check
from stec.vision.folder import EXTENSIONS
from stec.vision.loading import Progress

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
EXAMPLES = 3  # of each kind of problem
LONGEST = 240  # bytes of a name: file systems have 255, and an ending follows
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width

CURES = {
    "files are missing": "restore them, or take their names out of the split",
    "files cannot be read": "restore them, or take their names out of the split",
    "annotations are of another size than their image": "they belong to another version of the image; restore it",
    "annotations have no object": "annotate them, take them out of the split, or keep them as images of nothing but "
    "background with keep_empty=True (--keep-empty)",
    "boxes reach outside their image": "mend them, or cut them off with boxes='clip' (--boxes clip), or leave them out "
    "with boxes='skip'; where a tool counted pixels from 0, give one_based=False (--no-one-based)",
    "boxes have no area": "mend them, or leave them out with boxes='skip' (--boxes skip)",
    "objects are of unknown classes": "mend their names, or name every class in `classes` (--classes)",
    "masks are of another size than their image": "they belong to another version of the image; restore it",
    "masks hold unknown classes": "mend them, or name every class in the order of the numbers (--classes)",
    "masks mark nothing": "all pixels are 255, unknown; label some, or take the masks out of the split",
    "masks are no pictures of class numbers": "save them as 8-bit palette or greyscale PNG, a pixel's value the number "
    "of its class",
}

Read = TypeVar("Read")


class Part(NamedTuple):
    """One split of one VOC folder, such as (VOCdevkit/VOC2007, "trainval"); split None: whatever is annotated."""

    root: Path  # holds JPEGImages, Annotations or SegmentationClass, and ImageSets
    split: str | None


class Problem(NamedTuple):
    """One mistake in the data, of a kind that CURES knows."""

    kind: str
    file: Path
    what: str


def report(problems: Sequence[Problem], images: int) -> None:
    """Nothing where there is no problem; else a ValueError that counts them by kind, with the first few and the cure.

    >>> report([Problem("files are missing", Path("a.xml"), "no such annotation")], 5)
    Traceback (most recent call last):
    ValueError: 1 problem in 5 annotated images
    1 x files are missing: a.xml: no such annotation. Cure: restore them, or take their names out of the split
    """
    if not problems:
        return
    lines = [f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {images} annotated images"]
    for kind, count in Counter(problem.kind for problem in problems).items():
        first = [f"{p.file}: {p.what}" for p in problems if p.kind == kind][:EXAMPLES]
        more = f"; and {count - EXAMPLES} more" if count > EXAMPLES else ""
        lines.append(f"{count} x {kind}: {'; '.join(first)}{more}. Cure: {CURES[kind]}")
    raise ValueError("\n".join(lines))


def image_names(part: Part, task: str, annotated: Path) -> list[str]:
    """The names that a split lists (`task` is "Main" or "Segmentation"), or of all files in the folder `annotated`.

    ValueError where the folder or list is missing or empty, is no UTF-8, or a line is no single name or is there twice.
    """
    for folder in (part.root / "JPEGImages", annotated):
        if not folder.is_dir():
            raise ValueError(f"{folder} does not exist; name a folder in PASCAL VOC's layout")
    if part.split is None:
        names = sorted(path.stem for path in annotated.iterdir() if not path.name.startswith("."))
        if not names:
            raise ValueError(f"{annotated} is empty; annotate some images")
        return names
    path = part.root / "ImageSets" / task / f"{part.split}.txt"
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        raise ValueError(
            f"{path} does not exist; the splits there are {', '.join(there[:8]) or 'none'}, and 'all' takes every "
            "annotated image"
        )
    names = [line.strip() for line in _lines(path) if line.strip()]
    if not names:
        raise ValueError(f"{path} is empty; give a split that lists images")
    for name in names:
        if len(name.split()) > 1 or Path(name).name != name or not name.isprintable() or len(name.encode()) > LONGEST:
            raise ValueError(
                f"{path} has the line {name[:60]!r}, no single name; give a split of names, such as trainval"
            )
    return names


def _lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8, with a byte order mark (as Windows writes it) or without."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without its mark
        raise ValueError(f"{path} is no text in UTF-8 (it has zero bytes, as UTF-16 has); save it as UTF-8")
    return text.splitlines()


def read_parts(
    parts: Iterable[Part], task: str, folder: str, read: Callable[[Path, str], Read], progress: Progress | None
) -> list[Read]:
    """`read(root, name)` of every image of the parts, in order; `folder` holds the annotations.

    Raises ValueError for what `image_names` refuses, and where an image is there twice.
    """
    jobs = [(part.root, name) for part in parts for name in image_names(part, task, part.root / folder)]
    if twice := [job for job, count in Counter(jobs).items() if count > 1]:
        root, name = twice[0]
        raise ValueError(f"{len(twice)} images of {root} are listed twice, such as {name}; let no splits overlap")
    done: list[Read] = []
    with ThreadPoolExecutor() as threads:  # Pillow decodes outside Python's lock
        for result in threads.map(lambda job: read(*job), jobs):
            done.append(result)
            if progress is not None:
                progress(len(done), len(jobs))
    return done


def find_image(root: Path, name: str) -> Path:
    """The image of a name: a .jpg or, where there is none, of another known kind."""
    usual = root / "JPEGImages" / f"{name}.jpg"
    others = (usual.with_name(name + extension) for extension in EXTENSIONS)
    return usual if usual.is_file() else next((path for path in others if path.is_file()), usual)


def image_size(path: Path, problems: list[Problem]) -> tuple[int, int] | None:
    """Width and height as `decode` gives the image, upright; all its data are decoded, to find a torn file."""
    if not path.is_file():
        problems.append(Problem("files are missing", path, "no such image"))
        return None
    try:
        check(path, pixels=True)
    except ValueError as error:
        problems.append(Problem("files cannot be read", path, str(error)))
        return None
    with Image.open(path) as image:
        width, height = image.size
        try:
            orientation = image.getexif().get(ORIENTATION, 1)
        except Exception:  # a camera's broken note, which `decode` passes over too
            orientation = 1
    return (height, width) if orientation in SIDEWAYS else (width, height)
