"""Draw pairs of views and what a model reads off them: python -m recipes.vision.pairs --checkpoint FILE --out PNG.

A row for each image: x with the frame of x' on it, x', and for each component of the action the beliefs over its bins.
Test images of the run's own data, or of those that --root (and --data) name; where a folder holds no test images, the
images of training.
"""

import dataclasses
from pathlib import Path

import torch
import tyro
from jaxtyping import UInt8
from torch import Tensor

from recipes.run_folder import check_writable
from recipes.terminal import command, say
from recipes.vision import evaluate, inputs, networks
from recipes.vision.config import Config, Data, method
from recipes.vision.measure import reading_law
from recipes.vision.pairs_picture import draw_pairs
from recipes.vision.run import load_learner
from stec.core.learner import Learner
from stec.core.manipulation import BinnedActions, EveryPair
from stec.core.objective import encode
from stec.vision.data import ImageSet
from stec.vision.views import EXACT, two_views


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Whose beliefs, over actions on which images."""

    checkpoint: Path  # a file of a run's checkpoints folder
    out: Path  # the picture, such as pairs.png
    images: int = 6  # rows: images, and one pair of views of each
    root: Path | None = None  # where the images lie; those of the checkpoint's run by default
    data: Data | None = None  # which data; those of the checkpoint's run by default
    seed: int = 5  # of the views


def binned_model(learner: Learner, config: Config) -> BinnedActions:
    """The model whose beliefs can be drawn. ValueError where the checkpoint has none."""
    names = learner.objective.names
    model = learner.objective.models["manipulation"] if "manipulation" in names else None
    model = model.model if isinstance(model, EveryPair) else model
    if not isinstance(model, BinnedActions):
        told = "regresses actions" if model is not None else "reads no actions"
        raise ValueError(
            f"{method(config)} {told}: there are no beliefs over bins to draw; give a checkpoint of a preset such as "
            "cifar10-resnet18-stec"
        )
    return model


def images_to_draw(arguments: Arguments, config: Config) -> UInt8[Tensor, "b 3 height width"]:
    """As many images as are asked for, of one size. ValueError where they cannot be found or held."""
    if arguments.images < 1:
        raise ValueError(f"images is {arguments.images}; need at least 1")
    # No labelled training image is of use here: one stands for all.
    wanted = evaluate.Arguments(arguments.checkpoint, root=arguments.root, data=arguments.data, limit=1)
    config = evaluate.data_of(wanted, config)
    source: inputs.Images
    if config.data == "folder" and config.root and not inputs.sharded_folder(config) and not _has_test(config.root):
        source, _ = inputs.training_files(dataclasses.replace(config, limit=None))
        say(f"{config.root} holds no test images (test/ or val/): drawing images of training")
    else:
        _, source = inputs.labelled_sources(config)
    if arguments.images < len(source):
        source = source.subset(arguments.images, seed=0)
    images, size = inputs.read(config, source).images, config.augmentation.size
    if not isinstance(images, ImageSet) and size:
        images = inputs.read(config, source, size=2 * size).images  # of many sizes: squares, not too coarse for crops
    if not isinstance(images, ImageSet):
        raise ValueError("these images are of many sizes, or lie in shards: name a folder of files by --root")
    return images.images


def _has_test(root: Path) -> bool:
    root = root.expanduser()
    return root.is_file() or inputs.folder_split(root, "test") is not None  # a file: the split of --holdout


@torch.no_grad()
def picture(
    learner: Learner, config: Config, images: UInt8[Tensor, "b 3 height width"], path: Path, *, seed: int = 5
) -> None:
    """Draw a pair of views of every image with the action between them and the bins that the model reads off."""
    model = binned_model(learner, config)
    learner.eval().cpu()
    law, copy = reading_law(config), networks.COPIES[config.action]
    size = images.shape[2], images.shape[3]
    to_x = law.draw_crops(2 * len(images), size, generator=torch.Generator().manual_seed(seed)).matrix()[: len(images)]
    # The same draw twice: the exact action is drawn as a frame, the model was told its own.
    exact, told = (
        two_views(images, generator=torch.Generator().manual_seed(seed), augmentation=law, copy=each)
        for each in (EXACT, copy)
    )
    beliefs = model.logits(encode(learner.encoder, told)).softmax(dim=2)
    truth = model.bins(told.action)
    draw_pairs(images, exact, beliefs=beliefs, truth=truth, to_x=to_x, path=path, components=copy.components)


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.vision.pairs", description=__doc__)
    learner, config, _ = load_learner(arguments.checkpoint)
    binned_model(learner, config)  # before any image is read
    check_writable(arguments.out.parent)
    images = images_to_draw(arguments, config)
    picture(learner, config, images, arguments.out, seed=arguments.seed)
    say(f"{method(config)}: {len(images)} pairs, and the beliefs over their actions, in {arguments.out}")


if __name__ == "__main__":
    command(main)
