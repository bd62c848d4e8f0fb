"""How well actions are read off held-out views: beside a loop over pairs, with colour and solarised views."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from recipes.vision import measure, networks
from recipes.vision.presets import preset
from stec.core.actions import Bins, ViewPair
from stec.core.learner import Learner
from stec.core.manipulation import BinnedActions
from stec.core.objective import STECObjective
from stec.vision.data import ImageSet
from stec.vision.folder import ImageFiles, image_folder
from stec.vision.views import SIMCLR_CIFAR, Augmentation, TwoViews, two_views

IMAGES = ImageSet(torch.randint(256, (50, 3, 16, 16), dtype=torch.uint8), torch.zeros(50).long(), ("a",))


def reader(action: str, law: Augmentation) -> tuple[Learner, Any, BinnedActions]:
    """A learner with a binned manipulation model on the mean colour of each view, and its configuration."""
    config = dataclasses.replace(preset("quickstart"), action=action, augmentation=law)  # type: ignore[arg-type]
    copy = networks.COPIES[action]
    d = len(copy.components)
    model = BinnedActions(nn.Linear(2 * 3, d * 4), Bins.uniform(-1.0, 1.0, 4), components=copy.components)
    learner = Learner(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        STECObjective({"manipulation": model}, {"manipulation": 1.0}),
        views=networks.views(config),
        optimizer=torch.optim.Adam,
        adapt=lambda name, parameter: False,
        weight_decay=0.0,
        warmup_steps=0,
        total_steps=1,
        seed=0,
    )
    return learner, config, model


@pytest.mark.parametrize("action", ["augself-colour", "exact"])
def test_actions_are_read_off_valid_pairs_with_their_colours(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, config, model = reader(action, dataclasses.replace(SIMCLR_CIFAR, p_solarise=0.3))
    seen: list[ViewPair] = []

    def recorded(*images: Any, **law: Any) -> ViewPair:
        seen.append(two_views(*images, **law))
        return seen[-1]

    monkeypatch.setattr(measure, "two_views", recorded)
    found, minus_chance = measure.read_actions(learner, config, IMAGES, batch=32)
    names = networks.COPIES[action].components
    nats: list[float] = []
    hits = dict.fromkeys(names, 0)
    for pair in seen:
        for i in range(len(pair.x)):
            if pair.valid[i]:
                h = torch.cat((pair.x[i].mean(dim=(1, 2)), pair.x_prime[i].mean(dim=(1, 2))))
                beliefs = model.head(h).detach().double().view(len(names), 4).softmax(dim=1)
                for name, belief, value in zip(names, beliefs, pair.action[i].tolist()):
                    k = min(max(int((value + 1) * 2), 0), 3)
                    nats.append(-float(belief[k].log()))
                    hits[name] += int(belief.argmax()) == k
    pairs = len(nats) // len(names)
    colour = action == "augself-colour"
    assert (pairs < 90) if colour else (pairs == 100)  # solarised views only where colours are part of the action
    assert found.details["pairs"] == pairs
    assert found.value == pytest.approx(sum(nats) / len(nats), abs=1e-4)
    assert minus_chance.value == pytest.approx(found.value - minus_chance.details["chance"], abs=2e-4)
    for name in names:
        assert found.details[name]["accuracy"] == pytest.approx(hits[name] / pairs, abs=1e-4)
    actions = torch.cat([pair.action for pair in seen])
    assert bool((actions.std(dim=0) > 0).all())  # without jitter, colours would not differ


def test_actions_are_read_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of networks left in training mode: running statistics in the encoder, and no drop-out in the model's head."""
    learner, config, model = reader("exact", SIMCLR_CIFAR)
    mean, variance = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.01, 0.3, 2.0])
    norm = nn.BatchNorm1d(3)
    norm.running_mean, norm.running_var = mean.clone(), variance.clone()

    class Standardised(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - mean) / (variance + norm.eps).sqrt()

    encoder, head = learner.encoder, model.head
    learner.encoder = nn.Sequential(encoder, Standardised())
    expected = measure.read_actions(learner, config, IMAGES)
    learner.encoder, model.head = nn.Sequential(encoder, norm), nn.Sequential(head, nn.Dropout(0.5))
    learner.train()
    assert measure.read_actions(learner, config, IMAGES) == expected
    torch.testing.assert_close(norm.running_mean, mean, rtol=0, atol=0)


def streamed(folder: Path, sizes: list[tuple[int, int]]) -> ImageFiles:
    for i, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(256, size=(height, width, 3), dtype=np.uint8)
        pixels[:, : width // 2] //= 2  # the mean colour tells the crop
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return image_folder(folder, labelled=False)


def test_actions_are_read_off_streamed_images_of_several_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = streamed(tmp_path, [(20 + i, 50 - i) for i in range(25)])
    learner, config, model = reader("exact", dataclasses.replace(SIMCLR_CIFAR, size=16, p_solarise=0.3))
    config = dataclasses.replace(config, workers=0)
    seen: list[ViewPair] = []

    class Recorded(TwoViews):
        def __call__(self, *given: Any) -> ViewPair:
            seen.append(super().__call__(*given))
            return seen[-1]

    monkeypatch.setattr(measure, "TwoViews", Recorded)
    found, minus_chance = measure.read_actions(learner, config, files, batch=10)
    assert [len(pair.x) for pair in seen] == [10, 10, 5] * 2
    nats, hits = [], 0
    for pair in seen:
        for x, x_prime, action in zip(pair.x, pair.x_prime, pair.action):
            h = torch.cat((x.mean(dim=(1, 2)), x_prime.mean(dim=(1, 2))))
            beliefs = model.head(h).detach().double().view(4, 4).softmax(dim=1)
            for component, value in enumerate(action.tolist()):
                k = min(max(int((value + 1) * 2), 0), 3)
                nats.append(-float(beliefs[component, k].log()))
                hits += component == 0 and int(beliefs[0].argmax()) == k
    assert found.details["pairs"] == 50
    assert found.value == pytest.approx(sum(nats) / len(nats), abs=1e-4)
    assert found.details["scale_x"]["accuracy"] == pytest.approx(hits / 50, abs=1e-4)
    assert minus_chance.value == pytest.approx(found.value - minus_chance.details["chance"], abs=2e-4)
    both = torch.cat([torch.cat((pair.x, pair.x_prime)) for pair in seen])
    assert len(both.flatten(1).unique(dim=0)) == 100  # every view of either pass is another one
    again, _ = measure.read_actions(learner, dataclasses.replace(config, workers=2), files, batch=10)
    assert again == found


def test_chance_on_streamed_images_is_that_of_their_shapes(tmp_path: Path) -> None:
    """Bins of even shares for squares: on long images crops sit otherwise, and a blind predictor knows more."""
    config = dataclasses.replace(preset("quickstart"), augmentation=dataclasses.replace(SIMCLR_CIFAR, size=16))
    bins = networks.action_bins(config, (16, 16))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, long = streamed(tmp_path / "a", [(48, 48)] * 20), streamed(tmp_path / "b", [(30, 120)] * 20)
    for files, size in ((one, (48, 48)), (long, (30, 120))):
        expected = networks.chance(config, bins, size)
        torch.testing.assert_close(measure.chance_of(config, bins, files).nll, expected.nll, atol=0.01, rtol=0)
    assert (
        float((measure.chance_of(config, bins, long).nll - measure.chance_of(config, bins, one).nll).abs().max()) > 0.05
    )


def test_no_valid_pair_is_an_error() -> None:
    learner, config, _ = reader("augself-colour", dataclasses.replace(SIMCLR_CIFAR, p_solarise=1.0))
    with pytest.raises(ValueError, match=r"every pair is solarised \(p_solarise 1.0\)"):
        measure.read_actions(learner, config, IMAGES)
