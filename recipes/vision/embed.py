"""Embed plain and augmented test images as Fig. 4 does: python -m recipes.vision.embed --checkpoint FILE --root FOLDER.

Encodes test images as they are and an augmented view of each, fits one UMAP (McInnes et al. 2018) on both, and draws
them by magnitude of augmentation and by class, plain images alone, and the centroids of each class. Measures how far
the centroids of augmented views lie from those of plain images, in the features and in the embedding. Several
checkpoints, each named by a --checkpoint of its own, see the same images and views, and are drawn one below the other.
UMAP is the package umap-learn, of the extra `analysis`.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from recipes import records
from recipes.run_folder import check_writable, plain
from recipes.terminal import command, say, table
from recipes.vision import embed_picture, evaluate, inputs, measure
from recipes.vision.config import Config, Data, method
from recipes.vision.run import load_learner, record_of
from stec.core.actions import step_seed
from stec.core.probe import extract
from stec.vision.affine import CropFlip
from stec.vision.analysis import CentroidDistances, centroid_distances, crop_magnitude
from stec.vision.data import ImageSet
from stec.vision.photometric import Photometric
from stec.vision.views import Augmentation

BATCH = 256
NEIGHBOURS, MIN_DIST = 15, 0.1  # umap-learn's defaults; the paper names none
LEAST = 10  # images: with their views, more than have so many neighbours


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which encoders, and which images they see."""

    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]]  # a file of a run's checkpoints folder; give several times
    root: Path | None = None  # where the test images lie; those of the first checkpoint's run by default
    data: Data | None = None  # which data; those of the first checkpoint's run by default
    n: int = 2000  # test images, their classes balanced, and as many augmented views
    seed: int = 0  # of the views and of UMAP
    out: Path | None = None  # folder of embedding.png and embedding.json; the first checkpoint's run by default


class Views(NamedTuple):
    """Test images, and the law and the draw of an augmented view of each: the same for every encoder."""

    images: ImageSet
    law: Augmentation
    draws: list[tuple[CropFlip, Photometric]]  # of BATCH images each

    @property
    def magnitude(self) -> Float[Tensor, " n"]:
        """Of each view's crop."""
        return torch.cat([crop_magnitude(crops) for crops, _ in self.draws])

    def batches(self) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int[Tensor, " b"]]]:
        """Augmented images in [0, 1], and labels."""
        for i, (crops, changes) in enumerate(self.draws):
            part = slice(i * BATCH, (i + 1) * BATCH)
            views = crops.apply(self.images.images[part], self.law.size or crops.image_size)
            yield changes.apply(views), self.images.labels[part]


class Embedded(NamedTuple):
    """What an encoder makes of the images, n plain and then n augmented ones."""

    features: Float[Tensor, "2*n f"]
    places: Float[Tensor, "2*n 2"]  # the embedding
    labels: Int[Tensor, " 2*n"]
    in_features: CentroidDistances
    in_embedding: CentroidDistances


def draw_views(images: ImageSet, law: Augmentation, *, seed: int) -> Views:
    """One view of each image: crop, flip and colours from one generator for each batch."""
    h, w = (int(n) for n in images.images.shape[2:])
    draws = []
    for start in range(0, len(images), BATCH):
        generator = torch.Generator().manual_seed(step_seed(seed, start, stream=-4))
        n = min(BATCH, len(images) - start)
        crops = law.draw_crops(n, (h, w), generator=generator)
        draws.append((crops, law.draw_photometric(n, law.size or h, generator=generator)))
    return Views(images, law, draws)


def test_images(arguments: Arguments, config: Config) -> tuple[ImageSet, Config]:
    """The test images to embed, and where they lie; those of many sizes are cut to the size of the law's views.

    ValueError where they are not labelled, too many for the memory, or of many sizes and the law has none.
    """
    # No training image is of use here: one stands for all.
    wanted = evaluate.Arguments(arguments.checkpoint[0], root=arguments.root, data=arguments.data, limit=1)
    config = evaluate.data_of(wanted, config)
    _, source = inputs.labelled_sources(config)
    if arguments.n < len(source):
        source = source.subset(arguments.n, seed=0)
    images = inputs.read(config, source).images
    if not isinstance(images, ImageSet) and config.augmentation.size:
        images = inputs.read(config, source, size=config.augmentation.size).images
    if not isinstance(images, ImageSet):
        raise ValueError(
            "these images are of many sizes, and the checkpoint's views have the size of their images, or there are "
            "too many for the memory: name others by --root, or give a smaller --n"
        )
    if len(images) < LEAST:
        raise ValueError(f"{len(images)} images are too few for an embedding; give at least --n {LEAST}")
    return images, config


def umap_package() -> ModuleType:
    """umap-learn. ValueError where it is not installed, or something else has its name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)  # of a part not used here
        cure = 'pip install -e ".[analysis]" in the clone of stec, or pip install umap-learn'
        try:
            import umap
        except ImportError as error:
            raise ValueError(f"the embedding needs umap-learn ({error}): {cure}") from error
    package: ModuleType = umap
    if not hasattr(package, "UMAP"):  # Python imports any folder of that name where there is no package
        found = package.__file__ or ", ".join(package.__path__)
        raise ValueError(
            f"the embedding needs umap-learn, and Python finds {found} in its place: {cure}; where it is installed, "
            "run from another folder"
        )
    return package


def umap_places(features: Float[Tensor, "n f"], *, seed: int) -> Float[Tensor, "n 2"]:
    """UMAP of features in two dimensions: the same on every run of one machine."""
    reducer = umap_package().UMAP(n_neighbors=NEIGHBOURS, min_dist=MIN_DIST, random_state=seed, n_jobs=1)
    return torch.from_numpy(reducer.fit_transform(features.numpy())).float()


def embedded(encoder: torch.nn.Module, views: Views, config: Config, *, seed: int) -> Embedded:
    """Encode plain images and views, embed both at once, and measure the distances of their centroids."""
    still, labels = measure.features(encoder, inputs.Inputs(views.images, ""), config)
    moved, _ = extract(encoder, views.batches(), device=measure.device())
    # Before the embedding, since this names features that are not finite.
    in_features = centroid_distances(still, moved, labels=labels, augmented_labels=labels)
    features = torch.cat((still, moved))
    places = umap_places(features, seed=seed)
    here, there = places.chunk(2)
    in_embedding = centroid_distances(here, there, labels=labels, augmented_labels=labels)
    return Embedded(features, places, torch.cat((labels, labels)), in_features, in_embedding)


def results(found: Embedded, classes: Sequence[str]) -> list[records.Result]:
    """The distances in both spaces, and as shares of the distance between classes."""
    listed = []
    for space, distances in (("features", found.in_features), ("embedding", found.in_embedding)):
        each = {classes[int(c)]: round(float(d), 4) for c, d in zip(found.labels.unique(), distances.each)}
        details = {"between classes": round(distances.between, 4), "each class": each}
        listed += [
            records.Result("centroid distance", round(distances.distance, 4), space, details),
            records.Result("centroid distance over class distance", round(distances.ratio, 4), space),
        ]
    return listed


def told_apart(methods: Sequence[str], checkpoints: Sequence[Path]) -> list[str]:
    """Methods as the rows of a picture name them: those of several checkpoints by what tells these apart as well.

    >>> told_apart(["SimCLR", "S-TEC", "S-TEC"], [Path("runs/a/checkpoints/1.ckpt"), Path("runs/b/checkpoints/1.ckpt"),
    ...                                           Path("runs/c/checkpoints/1.ckpt")])
    ['SimCLR', 'S-TEC, b', 'S-TEC, c']
    """
    ways = (
        lambda path: path.parent.parent.name,  # the run's folder
        lambda path: f"{path.parent.parent.name}, {path.stem}",
        str,
    )
    named = []
    for name, path in zip(methods, checkpoints):
        alike = [other for method, other in zip(methods, checkpoints) if method == name]
        words = [way(path) for way in ways if len({way(other) for other in alike}) == len(alike)] or [str(path)]
        named.append(name if len(alike) == 1 else f"{name}, {words[0]}")
    return named


def embed(arguments: Arguments, folder: Path) -> list[records.Record]:
    """Everything the arguments ask for: embedding.png and embedding.json in `folder`, and what the latter holds."""
    umap_package()  # whether it is there shows before the work
    loaded = [load_learner(path) for path in arguments.checkpoint]
    images, first = test_images(arguments, loaded[0][1])
    views = draw_views(images, first.augmentation, seed=arguments.seed)
    names = told_apart([method(config) for _, config, _ in loaded], arguments.checkpoint)
    rows, done = [], []
    for (learner, config, _), name in zip(loaded, names):
        say(f"{name}: {len(images):,} images and as many views, features and their UMAP")
        # The first one's sizes: every encoder sees the same pixels.
        found = embedded(learner.encoder, views, first, seed=arguments.seed)
        rows.append(embed_picture.Row(name, found.places, found.labels, found.in_features, found.in_embedding))
        record = record_of(config, results(found, images.classes), seconds=None, stage="analysis")
        record = dataclasses.replace(record, data=first.data)
        settings = {
            "images": {"data": first.data, "n": len(images), "seed": arguments.seed, "views": plain(views.law)},
            "row": name,  # of the picture
            "umap": {"version": version("umap-learn"), "n_neighbors": NEIGHBOURS, "min_dist": MIN_DIST},
        }
        done.append(dataclasses.replace(record, settings={**record.settings, "embedding": settings}))
    embed_picture.draw(rows, views.magnitude, images.classes, path=folder / "embedding.png")
    records.write(done, folder / "embedding.json")
    return done


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.vision.embed", description=__doc__)
    if not arguments.checkpoint:
        raise ValueError("what is to be embedded? give --checkpoint FILE, once or several times")
    umap_package()  # before there is a folder, which may be called umap
    folder = arguments.out or arguments.checkpoint[0].parent.parent
    check_writable(folder)
    done = embed(arguments, folder)
    names = told_apart([record.method for record in done], arguments.checkpoint)
    table(
        ["", "features", "over classes", "embedding", "over classes"],
        [[name, *(f"{x.value:.3f}" for x in record.results)] for name, record in zip(names, done)],
        title="distance of augmented from plain centroids",
    )
    say(f"written to {folder / 'embedding.png'} and embedding.json")


if __name__ == "__main__":
    command(main)
