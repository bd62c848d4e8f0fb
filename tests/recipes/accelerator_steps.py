"""Training on the simulated accelerator, as a program: what waits for the device, and what a step launches.

A learner takes its steps on the CPU and then on the simulated device, from the same batches. Between two reads of the
log nothing may wait. Prints a line of JSON for each case; `python accelerator_steps.py CASE ...` runs some of them and
lets errors through, `1/2` and `2/2` run half of them each.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from accelerator import DEVICE, Simulation, allowed_to_wait, to_host
from tones import Speech, make_speech, tiny

from recipes.audio import run as speech_run
from recipes.audio.labelled import LabelledWindows
from recipes.vision import run as image_run
from recipes.vision.networks import COPIES
from recipes.vision.presets import preset
from stec.audio.alignment import Alignment
from stec.audio.corpus import Corpus
from stec.audio.cpc_labels import read_cpc_labels
from stec.audio.windows import WindowBatches, WindowLoader
from stec.core.actions import ViewPair
from stec.core.batches import EpochBatches
from stec.core.learner import Learner
from stec.vision.data import ImageSet, ResidentLoader
from stec.vision.multicrop import MultiCrop
from stec.vision.views import SIMCLR_CIFAR, SIMCLR_STL, CroppedPair, two_views

STEPS = 2
CPU = torch.device("cpu")


class Steps(NamedTuple):
    """What came of some steps; the first, which makes buffers, may wait."""

    terms: Tensor  # (steps, terms)
    moved: Tensor  # how every parameter has changed
    launches: list[int]  # of each step
    of_views: list[int]  # and of its views alone


Case = Callable[[torch.device], Steps]


def take_steps(learner: Learner, batches: Iterator[Any], device: torch.device, *, bf16: bool) -> Steps:
    """Train on a device by hand, as the trainer does; its mixed precision is around the whole training step."""
    launches, of_views, views = [], [], learner.views

    def counted(batch: Any, generator: torch.Generator) -> ViewPair:
        pair = views(batch, generator)
        of_views.append(len(simulation.launches))
        return pair

    learner.views = counted
    with Simulation() as simulation:
        with allowed_to_wait():
            learner.to(device).train()
            optimizer: Any = learner.configure_optimizers()["optimizer"]
        before = torch.cat([to_host(p.detach()).flatten().clone() for p in learner.parameters()])
        trainer = SimpleNamespace(optimizers=[optimizer], global_step=0, loggers=[])
        learner._trainer = trainer  # type: ignore[assignment]
        for trainer.global_step in range(STEPS):
            simulation.launches = []
            with allowed_to_wait() if trainer.global_step == 0 else nullcontext():
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                    loss = learner.training_step(next(batches), trainer.global_step)
                optimizer.zero_grad()
                loss.backward()
                learner.optimizer_step(0, trainer.global_step, optimizer, None)
            launches.append(len(simulation.launches))
        terms = torch.stack([to_host(step) for step in learner._trace])
        after = torch.cat([to_host(p.detach()).flatten() for p in learner.parameters()])
        with allowed_to_wait():
            learner.read_terms()
    return Steps(terms, after - before, launches, of_views)


def resident(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images that lie on the device; a fifth is not labelled."""
    pixels = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    with allowed_to_wait():
        data = ImageSet(pixels.to(device), (torch.arange(64) % 5 - 1).to(device), tuple("abcd"))
    yield from ResidentLoader(data, EpochBatches(64, batch_size=16, seed=0))


def streamed(device: torch.device) -> Iterator[CroppedPair]:
    """Batches of pairs that workers have cropped, as the trainer moves them to the device."""
    generator = torch.Generator().manual_seed(3)
    while True:
        x, x_prime = torch.randint(256, (2, 16, 3, 32, 32), dtype=torch.uint8, generator=generator)
        to_x, to_x_prime = SIMCLR_CIFAR.draw_crops(32, (32, 32), generator=generator).matrix(torch.float64).chunk(2)
        pair = CroppedPair(x, x_prime, to_x, to_x_prime, torch.arange(16) % 5 - 1)
        yield CroppedPair(*(value.to(device, non_blocking=True) for value in pair))


def images(
    name: str,
    batches: Callable[[torch.device], Iterator[Any]] = resident,
    views: Callable[..., Any] | None = None,
    bf16: bool = False,
    **changes: object,
) -> Case:
    """A small network of a preset's method, on views with every photometric change."""
    config = dataclasses.replace(
        preset(name),
        width=4,
        projection_hidden=16,
        projection_out=16,
        manipulation_hidden=16,
        predictor_hidden=8,
        queue=48,
        augmentation=dataclasses.replace(SIMCLR_STL, p_solarise=0.3),
        lr=1e-4,
        warmup_epochs=0,
        check_every=1000,
    )
    config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]

    def case(device: torch.device) -> Steps:
        learner = image_run.build_learner(config, (32, 32), 4, batches=None)
        if views is not None:
            learner.views = views(config.augmentation, COPIES[config.action])
        return take_steps(learner, batches(device), device, bf16=bf16)

    return case


def masked(law: Any, copy: Any) -> MultiCrop:
    """Three large and two small views; of some the left half is background."""

    def saliency(seen: Tensor, generator: torch.Generator) -> Tensor:
        mask = torch.ones_like(seen[:, :1])
        mask[..., :16] = 0.0
        return mask

    small = dataclasses.replace(law, size=16, scale=(0.05, 0.14))
    return MultiCrop(law, copy, n_large=3, small=small, n_small=2, mask=saliency, p_mask=0.3)


def speech(made: Speech, *, resident: bool = True, bf16: bool = False, **changes: object) -> Case:
    """A small run on speech; the corpus lies on the device, or batches of it are moved there."""
    config = tiny(made, check_every=1000, **changes)

    def case(device: torch.device) -> Steps:
        corpus = Corpus.open(made.cache)
        pairs, labels = config.time_insensitive != "none", read_cpc_labels(made.labels)
        settings = {"window": config.window, "sampling": config.sampling, "together": config.together, "pairs": pairs}
        windows = WindowBatches(corpus, batch_size=8, seed=0, group=4, **settings)
        learner = speech_run.build_learner(config, corpus=corpus, batches=windows, classes=4)

        def batches() -> Iterator[Any]:
            with allowed_to_wait():
                loader: Any = WindowLoader(corpus, windows, device=device if resident else None)
            if config.supervised:
                network: Any = learner.encoder
                alignment = Alignment.nearest(frame_centre=network.centre)
                loader = LabelledWindows(loader, labels, frames=network.frames(config.window), alignment=alignment)
            while True:
                for batch in loader:
                    yield tree_map_only(Tensor, lambda value: value.to(device, non_blocking=True), batch)

        return take_steps(learner, batches(), device, bf16=bf16)

    return case


def all_cases(made: Speech) -> dict[str, Case]:
    cases = {name: images(name) for name in METHODS}
    cases |= {f"streamed {name}": images("tiny-stec", streamed, action=name) for name in LABELS}
    cases |= {f"copy {name}": images("tiny-stec", action=name) for name in LABELS[1:]}
    cases |= {f"optimizer {name}": images("tiny-stec", optimizer=name) for name in ("lars", "sgd")}
    cases["plain views"] = images("tiny-stec", augmentation=SIMCLR_CIFAR)
    cases["masked multi-crop"] = images("tiny-stec", views=masked)
    cases["micro-batches"] = images("tiny-moco-stec", micro_batch=16)
    cases["micro-batches, frozen statistics"] = images("tiny-stec", micro_batch=16, statistics="frozen")
    for name, changes in SPEECH.items():
        cases[f"speech {name}"] = speech(made, **changes)
    cases["speech moved"] = speech(made, resident=False)
    cases |= {f"bf16 {name}": images(name, bf16=True) for name in ("tiny-stec", "tiny-byol-stec")}
    cases["bf16 streamed exact"] = images("tiny-stec", streamed, bf16=True)
    cases["bf16 masked multi-crop"] = images("tiny-stec", views=masked, bf16=True)
    cases["bf16 micro-batches"] = images("tiny-moco-stec", micro_batch=16, bf16=True)
    cases |= {f"bf16 speech {name}": speech(made, bf16=True, **SPEECH[name]) for name in ("cpc", "pooled", "frames")}
    return cases


LABELS = ("exact", "official", "augself-colour")  # allocentric and augself differ from exact in arithmetic alone
METHODS = [f"tiny-{name}-stec" for name in ("relicv2", "byol", "simsiam", "vicreg", "moco", "barlow")]
METHODS += ["tiny-simclr", "tiny-stec", "tiny-stec-star", "table2-stl10-augself-200ep"]
SPEECH: dict[str, dict[str, Any]] = {
    "cpc": {},
    "drawn": {"samples": 3, "own_sequence": False},
    "transformer": {"predictor": "transformer", "score": "mean", "negatives": "all"},
    "mlp": {"predictor": "mlp", "recurrence": "lstm"},
    "pooled": {"time_insensitive": "pooled"},
    "frames": {"time_insensitive": "frames"},
    "switch": {"time_insensitive": "switch", "together": "speaker", "object": "chapter"},
    "supervised": {"supervised": True},
    "same group": {"negatives": "same group", "together": "speaker"},
}


def run(case: Case) -> dict[str, Any]:
    """How terms and changes of weights differ from the CPU's, relative to them, and the launches of the last step."""
    host, device = case(CPU), case(DEVICE)
    assert not any(host.launches)
    difference = (device.terms - host.terms).abs() / host.terms.abs().clamp(min=1e-2)
    assert bool((device.terms.isnan() == host.terms.isnan()).all())
    launches = {"launches": device.launches[-1], "of views": device.of_views[-1]}
    apart = float((device.moved - host.moved).norm() / host.moved.norm())
    return {"difference": float(difference.nan_to_num().max()), "moved apart": apart, **launches}


def rules() -> dict[str, str]:
    """What the simulated device says to the things that CUDA forbids, waits for, and does at once."""
    with Simulation(), allowed_to_wait():
        value = torch.arange(6.0).to(DEVICE).view(2, 3)
        place, host = torch.tensor([1]).to(DEVICE), torch.ones(2, 3)
        pixels = torch.full((4, 3, 32, 32), 200, dtype=torch.uint8).to(DEVICE)
        chosen = value > 2

    def views_in_bf16() -> Tensor:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            assert (value @ value.mT).dtype == torch.bfloat16
            return two_views(pixels, generator=torch.Generator().manual_seed(0), augmentation=SIMCLR_STL).x

    deeds: dict[str, Callable[[], Any]] = {
        "mixed": lambda: value + host,
        "item": lambda: value.sum().item(),
        "bool": lambda: bool(chosen.any()),
        "tolist": lambda: value.tolist(),
        "nonzero": lambda: value.nonzero(),
        "mask": lambda: value[chosen],
        "host index": lambda: value[torch.tensor([1])],
        "read": lambda: value.cpu(),
        "copy": lambda: host.to(DEVICE),
        "tensor": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
        "new_tensor": lambda: value.new_tensor([1.0]),
        "copy_": lambda: value.clone().copy_(host),
        "repeat": lambda: torch.repeat_interleave(place),
        "unique": lambda: value.unique(),
        "async copy": lambda: host.to(DEVICE, non_blocking=True),
        "async copy_": lambda: value.clone().copy_(host, non_blocking=True),
        "host scalar": lambda: value + torch.tensor(1.0),
        "index": lambda: value[place],
        "where": lambda: torch.where(chosen, value, 0.0),
        "made there": lambda: torch.full((2,), 3.0, device=DEVICE),
        "views in bf16": views_in_bf16,
        "view and write": lambda: value.clone()[0].fill_(1.0),
    }
    said = {}
    for name, deed in deeds.items():
        with Simulation():
            try:
                said[name] = type(deed()).__name__
            except RuntimeError as error:
                said[name] = type(error).__name__
    return said


def main(names: list[str]) -> None:
    if names == ["rules"]:
        print(json.dumps(rules()))
        return
    with tempfile.TemporaryDirectory() as folder:
        cases = all_cases(make_speech(Path(folder)))
        part, of = (int(word) for word in names[0].split("/")) if names and "/" in names[0] else (1, 1)
        named = bool(names) and of == 1
        for name in names if named else list(cases)[part - 1 :: of]:
            try:
                found = run(cases[name])
            except Exception as error:
                if named:
                    raise
                found = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
