"""A whole run of `recipes.vision` on the simulated accelerator, as a program: does lightning's loop wait, or do we?

Only the first step, reads of the log and checkpoints may wait. Prints by how much the weights differ from those of the
same run on the CPU; with the argument "waits", a callback reads the loss at every step.
"""

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._pytree import tree_map_only

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from accelerator import DEVICE, DeviceTensor, Simulation, allowed_to_wait, to_host

from recipes.saving import WholeFiles
from recipes.vision.presets import preset
from recipes.vision.run import pretrain
from stec.core.learner import Learner


class SimulatedAccelerator(Accelerator):
    """What lightning asks of an accelerator."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> Any:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "simulated"


class MayWait(lightning.Callback):
    """Until the first step is done, and from the end of the last one."""

    def __init__(self) -> None:
        self.stretch = ExitStack()
        self.stretch.enter_context(allowed_to_wait())

    def on_train_batch_end(self, trainer: lightning.Trainer, learner: lightning.LightningModule, *_: Any) -> None:
        assert all(isinstance(parameter, DeviceTensor) for parameter in learner.parameters())
        if trainer.global_step == 1:
            self.stretch.close()

    def on_train_end(self, *_: Any) -> None:
        self.stretch.enter_context(allowed_to_wait())


class ReadsTheLoss(lightning.Callback):
    def on_train_batch_end(self, trainer: lightning.Trainer, learner: Any, outputs: Any, *_: Any) -> None:
        float(outputs["loss"])


def may_wait(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def waiting(*args: Any, **kwargs: Any) -> Any:
        with allowed_to_wait():
            return function(*args, **kwargs)

    return waiting


def train(*, simulated: bool, callbacks: list[lightning.Callback]) -> torch.Tensor:
    """All weights and statistics of the encoder after a run of 12 steps."""
    config = dataclasses.replace(
        preset("tiny-byol-stec"),
        data="rendered",
        limit=64,
        batch_size=16,
        epochs=3,
        width=4,
        projection_hidden=16,
        projection_out=16,
        predictor_hidden=8,
        manipulation_hidden=16,
        lr=1e-4,
        check_every=3,
        precision="32-true",
    )
    with tempfile.TemporaryDirectory() as folder, Simulation() if simulated else nullcontext():
        learner = pretrain(config, Path(folder) / "run", quiet=True, callbacks=callbacks).learner
        return torch.cat([to_host(value).double().flatten() for value in learner.encoder.state_dict().values()])


def main(waits: bool) -> None:
    expected = train(simulated=False, callbacks=[])
    trainer, read_terms, save = lightning.Trainer, Learner.read_terms, WholeFiles.save_checkpoint

    def simulated_trainer(*, accelerator: str, devices: int, strategy: str, **kwargs: Any) -> lightning.Trainer:
        return trainer(strategy=SingleDeviceStrategy(DEVICE, accelerator=SimulatedAccelerator()), **kwargs)

    def save_from_host(self: WholeFiles, checkpoint: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        save(self, tree_map_only(DeviceTensor, to_host, checkpoint), *args, **kwargs)

    lightning.Trainer = simulated_trainer  # type: ignore[assignment, misc]
    Learner.read_terms = may_wait(read_terms)  # type: ignore[method-assign]
    Learner.on_save_checkpoint = may_wait(Learner.on_save_checkpoint)  # type: ignore[method-assign]
    WholeFiles.save_checkpoint = save_from_host  # type: ignore[method-assign]
    found = train(simulated=True, callbacks=[MayWait(), *([ReadsTheLoss()] if waits else [])])
    print(float((found - expected).abs().max()))


if __name__ == "__main__":
    main(sys.argv[1:] == ["waits"])
