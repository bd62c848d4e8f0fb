"""Speed of image S-TEC as ratios, each measured side by side in this run: python -m recipes.bench.vision.

Views: pairs with their actions against a per-image PIL/torchvision pipeline, on one thread. Step: the S-TEC training
step against the SimCLR step and against a bare forward and backward pass of the encoder on the same batch. Methods:
the step of every identity model, alone and with actions, against the passes of its encoders. Loss:
NT-Xent of 4,096 pairs against a plain cross-entropy on the logits, and its peak memory. On a GPU the same, with the
device waited for; that a step there never waits is tests/recipes/test_gpu.py's to show.

Nothing else should run meanwhile: the last line says how much processor time other programs took.
"""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro

from recipes import records
from recipes.bench.methods import methods
from recipes.bench.turns import in_turn
from recipes.bench.views import measure
from recipes.others import Others
from recipes.run_folder import check_writable
from recipes.terminal import command, say, table
from recipes.vision import networks
from recipes.vision.presets import Identity, preset
from recipes.vision.run import optimizer_factory
from stec.core.losses import nt_xent
from stec.core.objective import STECObjective, encode
from stec.core.optim import by_kind, parameter_groups
from stec.vision.views import TwoViews


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    parts: tuple[Literal["views", "step", "methods", "loss"], ...] = ("views", "step", "methods", "loss")
    identities: tuple[Identity, ...] = ()  # of the part "methods"; every one by default
    folder_32: Path | None = None  # a folder of images of 32 pixels for the views; rendered ones without
    folder_96: Path | None = None  # of 96 pixels
    compiled: bool = False  # also the compiled views, which take a minute to compile
    width: int = 64  # of the encoder in the step
    batch: int = 128
    rounds: int = 4  # samples of each step and loss, in turn
    seconds: float = 8.0  # for each row of views
    out: Path | None = None  # a file of records


def views(arguments: Arguments) -> list[records.Result]:
    """Pairs per second of one core, peer and ours in turn."""
    results = []
    for size, folder in ((32, arguments.folder_32), (96, arguments.folder_96)):
        for compiled in (False, True)[: 1 + arguments.compiled]:
            for row in measure(size, folder=folder, compile=compiled, seconds=arguments.seconds):
                name = f"{size} px, {row.name}" + (", compiled" if compiled else "")
                details = {"ours, pairs/s": round(row.ours), "per image, pairs/s": round(row.peer)}
                results.append(records.Result(f"views {name}: times the per-image pipeline", row.ratio, "cpu", details))
    return results


def step(arguments: Arguments, precision: torch.dtype | None) -> list[records.Result]:
    """Seconds of a training step: bare encoder, SimCLR, S-TEC, on one batch of ready views."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = dataclasses.replace(preset("cifar10-resnet18-stec"), width=arguments.width)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (arguments.batch, 3, 32, 32), dtype=torch.uint8, device=device)
    encoder = networks.encoder(config).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    both = networks.objective(config, int(encoder.feature_dim), (32, 32)).to(device)
    simclr = STECObjective({"identity": both.models["identity"]}, {"identity": 2.0})  # type: ignore[dict-item]
    pipeline = TwoViews(config.augmentation, networks.COPIES["exact"])
    pair = pipeline((images, None), torch.Generator().manual_seed(0))
    pair = pair._replace(
        x=pair.x.to(memory_format=torch.channels_last), x_prime=pair.x_prime.to(memory_format=torch.channels_last)
    )

    def train(objective: STECObjective | None) -> Callable[[], None]:
        modules = torch.nn.ModuleList([encoder] if objective is None else [encoder, objective])
        optimizer = optimizer_factory(config)(parameter_groups(modules, weight_decay=1e-6, adapt=by_kind))

        def run() -> None:
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                features = encode(encoder, pair)
                loss = features.x.float().mean() if objective is None else objective(features, None, pair)["loss"]
            loss.backward()
            if objective is not None:
                optimizer.step()
            modules.zero_grad()

        return run

    seconds = in_turn(
        {
            "bare": train(None),
            "SimCLR": train(simclr),
            "S-TEC": train(both),
            "views": lambda: pipeline((images, None), torch.Generator().manual_seed(0)),
        },
        arguments.rounds,
    )
    name = "float32" if precision is None else "bfloat16"
    details: dict[str, object] = {f"{key}, s": round(value, 4) for key, value in seconds.items()}
    details |= {"batch": arguments.batch, "width": arguments.width}
    return [
        records.Result(f"step {name}: S-TEC over SimCLR", seconds["S-TEC"] / seconds["SimCLR"], device.type, details),
        records.Result(f"step {name}: S-TEC over bare encoder", seconds["S-TEC"] / seconds["bare"], device.type),
        records.Result(f"step {name}: views over S-TEC step", seconds["views"] / seconds["S-TEC"], device.type),
    ]


def plain_nt_xent(z: torch.Tensor, z_prime: torch.Tensor, temperature: float) -> torch.Tensor:
    """The usual way: all logits at once, and cross-entropy."""
    views = F.normalize(torch.cat((z, z_prime)), dim=1)
    logits = views @ views.T / temperature
    logits.fill_diagonal_(-1e9)
    return F.cross_entropy(logits, torch.arange(len(views), device=z.device).roll(len(z)))


PEAK = """
import sys, torch
from recipes.bench.vision import plain_nt_xent
from stec.core.losses import nt_xent
z, z_prime = torch.randn(2, 4096, 128).requires_grad_().unbind()
small = z[:8], z_prime[:8]
loss = {"ours": nt_xent, "plain": plain_nt_xent}[sys.argv[1]]
loss(*small, 0.5).backward(retain_graph=True)
def kib(field):  # of this process alone: getrusage would count what its parent held
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(field)))
before = kib("VmRSS")
loss(z, z_prime, 0.5).backward()
print((kib("VmHWM") - before) / 1024)
"""


def loss(arguments: Arguments) -> list[records.Result]:
    """NT-Xent of 4,096 pairs of 128 features, forward and backward: time and peak memory, ours and the usual way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    z, z_prime = torch.randn(2, 4096, 128, device=device).requires_grad_().unbind()
    seconds = in_turn(
        {
            "ours": lambda: nt_xent(z, z_prime, 0.5).backward(retain_graph=True),
            "plain": lambda: plain_nt_xent(z, z_prime, 0.5).backward(retain_graph=True),
        },
        arguments.rounds,
    )
    details: dict[str, object] = {f"{key}, s": round(value, 3) for key, value in seconds.items()}
    results = [
        records.Result("NT-Xent N = 4096: time over plain", seconds["ours"] / seconds["plain"], device.type, details)
    ]
    if device.type == "cpu" and Path("/proc/self/status").is_file():
        for name in ("ours", "plain"):
            peak = subprocess.run([sys.executable, "-c", PEAK, name], capture_output=True, text=True, check=True).stdout
            results.append(records.Result(f"NT-Xent N = 4096: peak memory of {name}, MiB", float(peak), "cpu"))
    return results


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.bench.vision", description=__doc__)
    if arguments.out:
        check_writable(arguments.out.parent)
    start, others = time.perf_counter(), Others()
    results: list[records.Result] = []
    if "views" in arguments.parts:
        results += views(arguments)
    if "step" in arguments.parts:
        results += [*step(arguments, None), *step(arguments, torch.bfloat16)]
    if "methods" in arguments.parts:
        results += methods(arguments.width, arguments.batch, arguments.rounds, arguments.identities)
    if "loss" in arguments.parts:
        results += loss(arguments)
    elapsed, cores = time.perf_counter() - start, others.cores()
    results = [dataclasses.replace(r, value=round(r.value, 3)) for r in results]
    rows = [[r.metric, f"{r.value:.2f}", ", ".join(f"{k} {v}" for k, v in r.details.items())] for r in results]
    table(["", "ratio, MiB", "measured"], rows, title="speed")
    say(f"other programs used {cores:.2f} of a core meanwhile")
    if arguments.out:
        record = records.record(
            method="speed",
            preset="cifar10-resnet18-stec",
            data="ready batches",
            seed=0,
            seconds=elapsed,
            results=results,
            settings={"other programs, cores": round(cores, 2)},
            stage="bench",
        )
        records.write([record], arguments.out)


if __name__ == "__main__":
    command(main)
