"""How well a regression of actions (the L2 ablation of Fig. 3A) reads them: it has no bins to count nats of."""

import torch
from torch import Tensor

from recipes.records import Result
from recipes.vision import networks
from recipes.vision.config import Config
from recipes.vision.measure import device, reading_law
from stec.core.actions import step_seed
from stec.core.learner import Learner
from stec.core.manipulation import EveryPair, RegressedActions
from stec.core.objective import encode
from stec.vision.data import ImageSet
from stec.vision.views import two_views


@torch.no_grad()
def read_regression(
    learner: Learner, config: Config, images: ImageSet, *, passes: int = 2, batch: int = 256
) -> list[Result]:
    """R2 of the actions predicted for views of held-out images: 1 - squared error over variance, by component.

    The views are those of `measure.read_actions`: the law of pretraining without its changes of colour, unless they are
    part of the action. The value is the mean over components that vary; 0 is a predictor blind to the views, 1 a
    perfect one. Nothing for a model that is no regression.
    """
    model = learner.objective.models["manipulation"]
    if isinstance(model, EveryPair):
        model = model.model
    if not isinstance(model, RegressedActions):
        return []
    where = device()
    network, model = learner.encoder.to(where).eval(), model.to(where).eval()
    copy = networks.COPIES[config.action]
    law = reading_law(config)
    errors: list[Tensor] = []
    actions: list[Tensor] = []
    for i in range(passes):
        for start in range(0, len(images), batch):
            generator = torch.Generator().manual_seed(step_seed(i, start, stream=99))
            part = images.images[start : start + batch].to(where)
            pair = two_views(part, generator=generator, augmentation=law, copy=copy)
            online = encode(network, pair)
            mean = model.head(torch.cat((online.x, online.x_prime), dim=1))
            actions.append(pair.action[pair.valid].double().cpu())
            errors.append((pair.action - mean)[pair.valid].double().cpu())
    truth = torch.cat(actions)
    squares = (truth - truth.mean(dim=0)).square().sum(dim=0)
    live = squares > 0
    explained = 1 - torch.cat(errors).square().sum(dim=0)[live] / squares[live]
    names = [name for name, lives in zip(copy.components, live.tolist()) if lives]
    details = {name: round(float(value), 4) for name, value in zip(names, explained)}
    return [Result("R2 of actions", round(float(explained.mean()), 4), "held-out", {"pairs": len(truth), **details})]
