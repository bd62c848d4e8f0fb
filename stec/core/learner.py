"""The one LightningModule: knows the batch type, neither the modality nor the method."""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from stec.core import distributed
from stec.core.actions import ViewPair, step_seed
from stec.core.checkpoints import FORMAT
from stec.core.diagnostics import ROWS, CollapsedFeatures, CollapseWatch, Diagnosed, describe
from stec.core.micro import MicroBatches, Statistics
from stec.core.networks import MomentumEncoder
from stec.core.objective import Features, STECObjective, encode
from stec.core.optim import Schedule, by_kind, parameter_groups, warmup_cosine
from stec.core.probe import OnlineProbe

Views = Callable[[Any, torch.Generator], ViewPair]
OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the message names the step, the term and the cure."""


class Learner(lightning.LightningModule):
    """Trains an encoder by an objective on pairs of views, with an online probe on detached features.

    `views(batch, generator)` makes a ViewPair of whatever the loader yields, on the device; its randomness is a
    function of (seed, step, process). `optimizer` makes an optimiser of parameter groups (dictionaries, as torch takes
    them) that already carry `weight_decay`, and theirs is used, whatever the optimiser's own: it has no default, since
    0 would switch off AdamW's decay and LARS's adaptation unseen. `adapt` is the rule that sorts parameters into those
    with decay and those without (`stec.core.optim.by_kind`). The learning rate follows `schedule` step by step over
    `total_steps`, the steps of the whole training. `target_momentum` is the momentum encoder's, for objectives that
    want one. docs/your-modality.md has a whole training.

    Terms are read back, checked to be finite, averaged over processes and logged under the objective's names every
    `check_every` steps, because reading waits for the device; between two reads nothing does. Each read also logs
    `diagnostics` of the last step alone (`stec.core.diagnostics`): the spread of its features over all processes, and
    what models tell of themselves, as means over processes. Features that collapse are warned of once
    (`CollapseWatch`).

    The probe takes steps of `probe_lr` by the optimiser's own rule, under the same schedule; LARS does not adapt them.
    `compiled` compiles the encoder. `micro_batch` is the number of views whose activations are kept at a time, for
    batches that are larger than the memory; see `stec.core.micro.MicroBatches`, also for `statistics`. `record` is what
    a checkpoint says of itself: plain values that recreate the networks.
    """

    def __init__(
        self,
        encoder: nn.Module,
        objective: STECObjective,
        *,
        views: Views,
        optimizer: OptimizerFactory,
        adapt: Callable[[str, nn.Parameter], bool] = by_kind,
        weight_decay: float,
        warmup_steps: int = 0,
        total_steps: int,
        schedule: Schedule = warmup_cosine,
        seed: int = 0,
        probe: OnlineProbe | None = None,
        probe_lr: float = 0.04,
        target_momentum: float | None = None,
        channels_last: bool = False,
        check_every: int = 1,
        compiled: bool = False,
        micro_batch: int | None = None,
        statistics: Statistics = "micro",
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if objective.needs_target and target_momentum is None:
            raise ValueError("a model of this objective reads a momentum encoder; give target_momentum")
        self.encoder = encoder.to(memory_format=torch.channels_last) if channels_last else encoder  # type: ignore[call-overload]
        self.objective = objective
        if warmup_steps >= total_steps:
            raise ValueError(f"warm-up takes {warmup_steps} of {total_steps} steps; warm up for less, or train longer")
        if check_every < 1:
            raise ValueError(f"check_every is {check_every}; need at least 1 step")
        self.probe = probe
        self.probe_lr = probe_lr
        self.target = (
            MomentumEncoder(self.encoder, momentum=target_momentum)
            if objective.needs_target and target_momentum is not None
            else None
        )
        self.views = views
        self.make_optimizer = optimizer
        self.adapt = adapt
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.schedule = schedule
        self.seed = seed
        self.channels_last = channels_last
        self.check_every = check_every
        self.record = dict(record or {})
        online: Callable[[Any], Any] = torch.compile(self.encoder) if compiled else self.encoder
        target: Callable[[Any], Any] | None = self.target
        if micro_batch is not None:
            online = MicroBatches(self.encoder, size=micro_batch, statistics=statistics, call=online)
            if self.target is not None:
                target = MicroBatches(self.target, size=micro_batch, statistics=statistics)
        # What is called in place of the two. In a tuple, outside the module tree: checkpoints keep the plain keys.
        self._encoders = (online, target)
        self._trace: list[Tensor] = []
        self._taken_up: list[Tensor] = []  # of the trace: what a checkpoint held, means over processes already
        self._rate = 0.0  # of the last step in the trace
        self._read = 0
        self.last: dict[str, float] = {}  # the means of the last read, for a progress bar
        self.diagnostics: dict[str, float] = {}  # of the last step before the last read
        self._latest: tuple[Tensor, ...] = ()  # features of the last step, which they describe
        self._collapse = CollapseWatch(after=warmup_steps)

    @property
    def names(self) -> tuple[str, ...]:
        """What is logged: the terms of Eq. 2, their sum, and the online probe's accuracy."""
        return (*self.objective.names, "loss", *(("online",) if self.probe is not None else ()))

    def make_pair(self, batch: Any, step: int) -> ViewPair:
        """The views of a batch at a step: the same on every call, and whatever autocast the networks run under."""
        generator = torch.Generator().manual_seed(step_seed(self.seed, step, stream=2 + distributed.rank()))
        with torch.autocast(self.device.type, enabled=False):
            pair = self.views(batch, generator)
        if not self.channels_last:
            return pair
        x, x_prime = (view if view is None else _channels_last(view) for view in (pair.x, pair.x_prime))
        more = pair.more
        if more is not None:
            more = more._replace(views=tuple(_channels_last(view) for view in more.views))
        return pair._replace(x=x, x_prime=x_prime, more=more)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair = self.make_pair(batch, self.global_step)
        online_encoder, target_encoder = self._encoders
        online = encode(online_encoder, pair)
        target = encode(target_encoder, pair, large_only=True) if target_encoder is not None else None
        terms = self.objective(online, target, pair)
        loss = terms["loss"]
        if self.probe is not None:
            features = both_views(online)
            score = self.probe.loss_and_accuracy(features, pair.label.repeat(len(features) // len(pair.label)))
            terms["online"] = score.accuracy
            loss = loss + score.loss
        self._trace.append(torch.stack([terms[name].detach().float() for name in self.names]))
        self._latest = tuple(view.detach() for view in representations(online))
        self._rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        if (self.global_step + 1) % self.check_every == 0:
            self.read_terms()
        return loss

    def read_terms(self) -> None:
        """Read the terms since the last read, log their means, and raise NonFiniteLoss where one is not finite."""
        if not self._trace:
            return
        described = self._describe()
        steps = len(self._trace)
        read = distributed.mean(torch.cat([*self._trace, *(value.float().reshape(1) for value in described.values())]))
        read, self._trace, self._latest = read.cpu(), [], ()
        trace = read[: steps * len(self.names)].view(steps, -1)
        self._finite(trace)
        self._read += steps
        self.last = dict(zip(self.names, trace.mean(dim=0).tolist()))
        self.diagnostics = dict(zip(described, read[trace.numel() :].tolist()))
        for logger in self.loggers:
            logger.log_metrics({**self.last, "lr": self._rate, **self.diagnostics}, step=self._read)
        message = self._collapse.read(self.diagnostics, self._read - 1)
        if message and distributed.rank() == 0:
            warnings.warn(message, CollapsedFeatures, stacklevel=2)

    def _finite(self, trace: Tensor) -> None:
        """NonFiniteLoss where a term since the last read is not finite."""
        terms = trace[:, : len(self.objective.names) + 1]  # the probe's accuracy is NaN where nothing is labelled
        bad = (~terms.isfinite()).nonzero()
        if len(bad):
            row, term = (int(i) for i in bad[0])
            raise NonFiniteLoss(
                f"{self.names[term]} became {float(terms[row, term])} at step {self._read + row}. {self._good()} "
                "Try a lower learning rate, a longer warm-up, or bf16 in place of fp16."
            )

    @torch.no_grad()
    def _describe(self) -> dict[str, Tensor]:
        """The diagnostics of the last step, on the device; a name that two models use has the model's before it."""
        rows = -(-ROWS // distributed.world_size())  # of each process: they are described together
        found = describe(*(distributed.gather(view[:rows]) for view in self._latest))
        for name, model in self.objective.models.items():
            for module in model.modules():
                if isinstance(module, Diagnosed):
                    told = module.diagnostics()
                    found |= {f"{name}/{key}": told[key] for key in told} if told.keys() & found.keys() else told
        return found

    def optimizer_step(self, *args: Any) -> None:
        """The optimiser's step, then every momentum encoder's."""
        super().optimizer_step(*args)
        progress = min(1.0, (self.global_step + 1) / self.total_steps)
        for module in self.modules():
            if isinstance(module, MomentumEncoder):
                module.update(1.0 - (1.0 - module.momentum) * (math.cos(math.pi * progress) + 1.0) / 2.0)

    def _good(self) -> str:
        """Where the state before a failure lies."""
        folder = getattr(self.trainer.checkpoint_callback, "dirpath", None)
        written = sorted(Path(folder).glob("*.ckpt"), key=lambda path: path.stat().st_mtime) if folder else []
        return f"The last good checkpoint is {written[-1]}." if written else "No checkpoint was written before it."

    def on_train_start(self) -> None:
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError("accumulating gradients is no larger contrastive batch: give micro_batch in place of it")
        if math.isfinite(steps := self.trainer.estimated_stepping_batches) and steps > self.total_steps:
            raise ValueError(
                f"the trainer takes {steps:,} steps and total_steps is {self.total_steps:,}, after which the rate "
                "would be 0; give the same number to both"
            )
        self._trace, self._taken_up = [row.to(self.device) for row in self._taken_up], []
        self._read = self.global_step - len(self._trace)

    def on_train_end(self) -> None:
        self.read_terms()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the terms that are not read yet: a resumed run reads them when an unbroken one does; called by all."""
        if self._trace:
            self._trace = list(distributed.mean(torch.stack(self._trace)))
        trace = torch.stack(self._trace).cpu() if self._trace else torch.empty(0, len(self.names))
        self._finite(trace)
        # A finite loss can have had a gradient that is not: weights that a NaN has reached are not written.
        floats = [value for value in self.state_dict().values() if value.is_floating_point()]
        if not bool(torch.stack([value.isfinite().all() for value in floats]).all()):
            raise NonFiniteLoss(f"weights became NaN or infinite before step {self.global_step}. {self._good()}")
        collapse = self._collapse.state_dict()
        checkpoint["stec"] = {"format": FORMAT, "record": self.record, "collapse": collapse, "trace": trace}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if state := checkpoint["stec"].get("collapse"):
            self._collapse.load_state_dict(state)
        self._taken_up = list(checkpoint["stec"].get("trace", ()))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        method = nn.ModuleDict({"encoder": self.encoder, "objective": self.objective})
        groups = parameter_groups(method, weight_decay=self.weight_decay, adapt=self.adapt)
        if self.probe is not None:  # no part of the method: plain steps at a rate of its own
            probe = list(self.probe.parameters())
            names = [f"probe.{name}" for name, _ in self.probe.named_parameters()]
            groups.append({"name": "probe", "params": probe, "names": names, "weight_decay": 0.0, "lr": self.probe_lr})
        optimizer = self.make_optimizer(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.schedule(step, self.warmup_steps, self.total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def representations(features: Features) -> list[Tensor]:
    """The features of x, and of x' where there is one; of a tuple of representations the first."""
    return [part if isinstance(part, Tensor) else part[0] for part in features.pair]


def both_views(features: Features) -> Tensor:
    """(2b, f): what a probe reads, the representations of both views."""
    return torch.cat(representations(features))


def _channels_last(view: Tensor) -> Tensor:
    return view.to(memory_format=torch.channels_last)
