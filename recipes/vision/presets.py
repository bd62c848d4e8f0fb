"""The presets: a function of a few words each, variants by replacing fields.

Sources of the numbers. README: the commands of the authors' repository (NeuromorphicComputing/S-TEC). Code: what that
code fixes, or does by default. Chosen: this project's own choice where the record is silent: the paper's appendix with
the settings of ReLIC, MoCo v2 and BYOL is not public, so what is there follows each method's own publication.
"""

import dataclasses

from recipes.presets import find
from recipes.vision.arms import METHODS, STEC, arms_of
from recipes.vision.config import Action, Config, Data, Identity, method
from recipes.vision.small_presets import folder_small, quickstart, small, tiny
from recipes.vision.tables import stl, tables
from stec.vision.views import CROP_FLIP, SIMCLR_IMAGENET


def folder() -> dict[str, Config]:
    """One's own images of any size, on a GPU: S-TEC in views of 96 pixels."""
    base = dataclasses.replace(
        stl("resnet18"),
        data="folder",
        augmentation=dataclasses.replace(SIMCLR_IMAGENET, size=96),
        epochs=200,
        batch_size=256,
        lr=1.2 * 256 / 1024,
        check_every=10,
        checkpoint_every=1,
    )
    return {"folder": dataclasses.replace(arms_of(base, "simclr")["stec"], preset="folder")}


PRESETS = tables() | folder() | folder_small() | quickstart() | small() | tiny()


def preset(name: str) -> Config:
    """The preset of this name. ValueError names the nearest ones where there is none."""
    return find(name, PRESETS)


__all__ = ["CROP_FLIP", "METHODS", "PRESETS", "STEC", "Action", "Config", "Data", "Identity", "method", "preset"]
