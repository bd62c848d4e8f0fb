"""S-TEC in four minutes on two cores, no download: python -m recipes.quickstart.

Pretrains SimCLR and S-TEC on the rendered images, probes both by logistic regression beside raw pixels and the
untrained encoder, and draws what the inverse model reads off pairs of views. Writes runs/quickstart/.
"""

import dataclasses
import time
from pathlib import Path

import torch
import tyro

from recipes import records
from recipes.run_folder import make_folder
from recipes.terminal import command, say, table
from recipes.vision import evaluate, inputs, networks
from recipes.vision.measure import frozen, geometry, probe, read_actions
from recipes.vision.pairs_picture import draw_pairs
from recipes.vision.presets import Config, preset
from recipes.vision.run import pretrain, record_of
from stec.core.learner import Learner
from stec.core.manipulation import BinnedActions
from stec.core.objective import encode
from stec.vision.data import ImageSet
from stec.vision.views import two_views

MARK = ".quickstart"
RUNS = ("simclr", "stec")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Everything has a default; the flags are for smaller trials."""

    out: Path = Path("runs/quickstart")  # made anew
    epochs: int | None = None  # the preset's own by default
    images: int | None = None  # rendered training images; the preset's own by default
    seed: int = 0


@torch.no_grad()
def picture(learner: Learner, config: Config, test: ImageSet, path: Path, *, pairs: int = 6) -> None:
    """Draw pairs of views of test images with the action between them and the bins that the model reads off."""
    model = learner.objective.models["manipulation"]
    assert isinstance(model, BinnedActions)
    learner.eval().cpu()
    images = test.images[:pairs]
    law = geometry(config.augmentation)
    crops = law.draw_crops(2 * pairs, (images.shape[2], images.shape[3]), generator=torch.Generator().manual_seed(5))
    pair = two_views(
        images,
        generator=torch.Generator().manual_seed(5),
        augmentation=law,
        copy=networks.COPIES["exact"],
    )
    beliefs = model.logits(encode(learner.encoder, pair)).softmax(dim=2)
    to_x = crops.matrix()[:pairs]
    draw_pairs(images, pair, beliefs=beliefs, truth=model.bins(pair.action), to_x=to_x, path=path)


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.quickstart", description=__doc__)
    start = time.monotonic()
    make_folder(arguments.out, mark=MARK, own=(*RUNS, "results.json", "pairs.png"))
    stec = preset("quickstart")
    stec = dataclasses.replace(
        stec,
        seed=arguments.seed,
        epochs=arguments.epochs or stec.epochs,
        limit=arguments.images or stec.limit,
    )
    simclr = dataclasses.replace(stec, lambda_manip=0.0)
    train, test = inputs.labelled_images(stec)
    assert isinstance(test.images, ImageSet)
    found = evaluate.baselines(stec, train, test, ["logistic"])
    learner = None
    for name, config in zip(RUNS, (simclr, stec)):
        outcome = pretrain(config, arguments.out / name)
        learner = outcome.learner
        results = probe(frozen(learner.encoder, train, test, config), ["logistic"], seed=config.seed)
        if config.lambda_manip:
            results += read_actions(learner, config, test.images)
        found.append(record_of(config, results, seconds=outcome.seconds))
    assert learner is not None
    records.write(found, arguments.out / "results.json")
    picture(learner, stec, test.images, arguments.out / "pairs.png")
    rows = [
        [
            r.method,
            *(f"{100 * x.value:.1f}" for x in r.results if x.metric == "accuracy"),
            next((f"{x.value:+.2f}" for x in r.results if x.metric == "manipulation minus chance"), ""),
        ]
        for r in found
    ]
    table(["", "logistic, %", "manipulation minus chance, nats"], rows, title="frozen features of held-out images")
    say(f"{time.monotonic() - start:.0f} s in all. Pairs, and what the model read off them: {arguments.out}/pairs.png")


if __name__ == "__main__":
    command(main, RuntimeError)
