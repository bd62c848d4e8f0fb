"""Training a detector or segmenter to the end: one loop for both, whose interrupted runs go on exactly.

The order of the data and every draw are functions of (seed, step): torch's generator is seeded anew at each step.
A checkpoint holds weights, optimiser and settings. One process, one device. (CUDA adds some gradients up in any order,
as those of pooled boxes: there, two runs of one seed differ by rounding, interrupted or not.)
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset

from recipes.differing import differing
from recipes.metrics import MetricsFile
from recipes.run_folder import last_checkpoint
from recipes.terminal import CONSOLE, say
from recipes.vision.voc_schedule import Schedule, sgd
from stec.core.actions import step_seed
from stec.core.batches import EpochBatches
from stec.core.checkpoints import FORMAT, load_checkpoint
from stec.core.learner import NonFiniteLoss
from stec.vision.streaming import SeededBatches

STREAM = -3  # of `step_seed`: what the network draws in a training step
KEPT = 2  # checkpoints: the one before the last stays, should the last be torn
Batch = Any
Loss = Callable[[nn.Module, Batch, torch.device], dict[str, Tensor]]


class Fitted(NamedTuple):
    """A finished training; `seconds` and `losses` (the last means) are of its last leg, empty where none was left."""

    seconds: float
    losses: dict[str, float]


def device() -> torch.device:
    """Where training takes place."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fit(
    model: nn.Module,
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Batch],
    loss: Loss,
    folder: Path,
    *,
    schedule: Schedule,
    settings: Mapping[str, Any],
    seed: int,
    resume: bool,
) -> Fitted:
    """Trains `model` by `loss`, whose terms are summed, from the start or from the last checkpoint of `folder`.

    `dataset` takes keys (index, seed). Afterwards the model is in evaluation mode, on `device()`. ValueError where the
    checkpoint was made with other settings; NonFiniteLoss, naming the step, where a loss is not finite.
    """
    schedule.check()
    where = device()
    model.to(where)
    optimizer = sgd(model, schedule)
    batches = EpochBatches(len(dataset), batch_size=schedule.batch_size, seed=seed)  # type: ignore[arg-type]
    done = _take_up(model, optimizer, folder, settings) if resume else 0
    if 0 < done < schedule.steps:
        say(f"{folder.name}: going on from step {done:,} of {schedule.steps:,}")
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_sampler=SeededBatches(batches),
        collate_fn=collate,
        num_workers=schedule.workers,
        persistent_workers=schedule.workers > 0,
        pin_memory=where.type == "cuda",
    )
    run = _Run(model, optimizer, loss, folder, schedule, settings, seed, done)
    batches.steps_done = lambda: run.step
    stream = _endless(loader)
    start = time.monotonic()
    with _bar() as bar:
        task = bar.add_task(folder.name, total=schedule.steps, completed=done, losses="")
        while run.step < schedule.steps:
            run.train_step(next(stream))
            bar.update(task, completed=run.step, losses=_words(run.last))
        run.measure_statistics(stream)
    model.eval()
    return Fitted(time.monotonic() - start, run.last)


def _endless(loader: "DataLoader[Batch]") -> Iterator[Batch]:
    while True:
        yield from loader


class _Run:
    """The state of a training: the step, and the losses not read yet."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        loss: Loss,
        folder: Path,
        schedule: Schedule,
        settings: Mapping[str, Any],
        seed: int,
        step: int,
    ) -> None:
        self.model, self.optimizer, self.loss, self.folder = model, optimizer, loss, folder
        self.schedule, self.settings, self.seed, self.step = schedule, settings, seed, step
        self.log = MetricsFile(folder / "metrics.csv", step=step)
        self.last: dict[str, float] = {}
        self._trace: list[Tensor] = []

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch, in training mode, with the draws of this step."""
        where = device()
        self.model.train()
        torch.manual_seed(step_seed(self.seed, self.step, stream=STREAM))
        mixed = self.schedule.precision == "bf16-mixed"
        with torch.autocast(where.type, dtype=torch.bfloat16, enabled=mixed):
            return self.loss(self.model, batch, where)

    def train_step(self, batch: Batch) -> None:
        """One step of the optimiser; every so often the losses are read and a checkpoint is written."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * self.schedule.factor(self.step)
        terms = self._terms(batch)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self._trace.append(torch.stack([total, *(term.float() for term in terms.values())]).detach())
        self.step += 1
        save = self.step == self.schedule.steps or self.step % self.schedule.save_every == 0
        if save or self.step % self.schedule.check_every == 0:
            self._read(["loss", *terms])
        if save:
            self._save()

    def _read(self, names: list[str]) -> None:
        trace, self._trace = torch.stack(self._trace).cpu(), []
        bad = (~trace.isfinite()).nonzero()
        if len(bad):
            row, term = (int(i) for i in bad[0])
            step = self.step - len(trace) + row
            raise NonFiniteLoss(f"{names[term]} became {float(trace[row, term])} at step {step}; try a lower --lr")
        self.last = dict(zip(names, trace.mean(dim=0).tolist()))
        self.log.log_metrics({**self.last, "lr": self.optimizer.param_groups[0]["lr"]}, step=self.step)
        if not CONSOLE.is_terminal:
            say(f"{self.folder.name}  step {self.step}/{self.schedule.steps}  {_words(self.last)}")

    def _save(self) -> None:
        """A checkpoint, whole or not at all; older ones go."""
        path = self.folder / "checkpoints" / f"step={self.step}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"config": dict(self.settings), "optimizer": self.optimizer.state_dict()}
        content = {"state_dict": self.model.state_dict(), "global_step": self.step}
        part = path.with_suffix(".part")
        torch.save({**content, "stec": {"format": FORMAT, "record": record}}, part)
        os.replace(part, path)
        for old in sorted(path.parent.glob("*.ckpt"), key=lambda p: p.stat().st_mtime)[:-KEPT]:
            old.unlink()

    @torch.no_grad()
    def measure_statistics(self, stream: Iterator[Batch]) -> None:
        """Replaces BatchNorm's running means by plain means over the next batches, with the weights as they are now.

        So does the published code of MoCo (He et al. 2020) before it tests: running means lag behind the weights.
        """
        if not self.schedule.precise_bn:
            return
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        end = self.step
        for _ in range(self.schedule.precise_bn):
            self._terms(next(stream))
            self.step += 1  # the next batch has draws of its own
        self.step = end
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def _take_up(model: nn.Module, optimizer: torch.optim.SGD, folder: Path, settings: Mapping[str, Any]) -> int:
    """Loads the last checkpoint of the folder, if it has one; the steps it had done."""
    if not any((folder / "checkpoints").glob("*.ckpt")):
        return 0
    path = last_checkpoint(folder)
    read = load_checkpoint(path)
    if other := differing(read.record["config"], dict(settings)):
        raise ValueError(f"{path} was made with other settings: {'; '.join(other)}; give the same, or another --out")
    model.load_state_dict(read.weights)
    optimizer.load_state_dict(read.record["optimizer"])
    return read.step


def write_settings(folder: Path, settings: Mapping[str, Any], root: Path) -> None:
    """config.json of a run, with where the data lay."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**settings, "root": str(root)}, indent=1) + "\n")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[losses]}"))
    return Progress(*columns, *times, console=CONSOLE, disable=not CONSOLE.is_terminal)


def _words(losses: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
