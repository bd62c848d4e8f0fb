"""The processes that train together: how many the launcher started, what they agree on, and which of them died."""

import os
import signal
import subprocess
from collections.abc import Sequence
from datetime import timedelta

import lightning
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.utilities import rank_zero_only
from torch.nn.parallel import DistributedDataParallel

from stec.core.batchnorm import join_batchnorm

# How long one process waits for another. One that died is noticed at once, since its connections close; this is for
# a machine that fell silent or a process that hangs, and must be longer than any step, compilation included.
TIMEOUT = timedelta(minutes=5)

_LOST = ("gloo", "nccl", "tcpstore", "connection closed", "connection reset", "broken pipe")  # when one is gone


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machines(devices: int) -> int:
    """Number of machines that torchrun or SLURM started this command on; 1 without them.

    ValueError where torchrun starts another number of processes on a machine than `devices`.
    """
    if dist.is_torchelastic_launched():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if here != devices:
            raise ValueError(
                f"torchrun started {here} processes on this machine, and the run has {devices}: "
                f"give --devices {here}, or torchrun --nproc-per-node {devices}"
            )
        return int(os.environ["GROUP_WORLD_SIZE"])
    return int(os.environ.get("SLURM_NNODES", "1")) if SLURMEnvironment.detect() else 1


def is_first() -> bool:
    """Whether this is the first of the processes that run this command together."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


class Agreement:
    """What all processes know before the next step: a connection of the hosts, which does not wait for devices.

    It also tells each within a step that another died: RuntimeError.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT) if _several() else None

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each of these numbers over all processes."""
        if self._group is None:
            return list(values)
        read = torch.tensor(values)
        dist.all_reduce(read, op=dist.ReduceOp.MAX, group=self._group)
        return [int(value) for value in read]

    def check_same(self, step: int) -> None:
        """ValueError where the processes do not go on from the same step."""
        low, high = self.largest([-step, step])
        if -low != high:
            raise ValueError(
                f"some processes go on from step {-low}, others from {high}: "
                "the run folder must be the same on all machines; start the command again once it is"
            )


class OrderedGradients(lightning.Callback):
    """Gradients of processes on CPUs are added in the order of the processes, so that a run can go on bit for bit.

    DistributedDataParallel orders its buckets anew after a first step, and gloo begins each part of a bucket with
    another process: three or more numbers would be added in another order after a resumption than without one.
    """

    def on_fit_start(self, trainer: lightning.Trainer, learner: lightning.LightningModule) -> None:
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel) and dist.get_backend() == dist.Backend.GLOO:
            model.register_comm_hook(None, _mean_in_order)


class JointStatistics(LayerSync):
    """BatchNorm by the statistics of all processes; for CPUs, where lightning's `sync_batchnorm` cannot work."""

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        return join_batchnorm(model)

    def revert(self, model: torch.nn.Module) -> torch.nn.Module:
        return model  # of one process they are plain ones


def _mean_in_order(
    _: None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    mine = bucket.buffer()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    for part in parts[1:]:
        parts[0] += part
    mean: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    mean.set_result(parts[0] / len(parts))
    return mean


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def lost_another(error: RuntimeError) -> bool:
    """Whether this error is that another process is gone, as the libraries of communication tell it."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _LOST)


def end_others(trainer: lightning.Trainer, *, wait: float) -> list[str]:
    """End the processes that this one started, after `wait` seconds each; which of them had failed, and how."""
    failed = []
    started: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    for rank, process in enumerate(started, start=1):
        try:
            code = process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            continue
        if code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            failed.append(f"process {rank} (pid {process.pid}) {how}")
    return failed
