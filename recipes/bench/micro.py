"""Large contrastive batches in little memory: python -m recipes.bench.micro --batch 4096 --micro-batch 1024.

One S-TEC step of a batch in micro-batches, of the same batch in one piece, and of a batch as large as a micro-batch,
each in a process of its own: peak memory (of the process, or of the GPU), seconds, and how far the gradient of
micro-batches is from the one of the whole, with frozen statistics, where the two are equal but for rounding.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import tyro
from torch import Tensor

from recipes import records
from recipes.bench.methods import ready_pair
from recipes.run_folder import check_writable
from recipes.terminal import command, say, table
from recipes.vision import networks
from recipes.vision.config import Config
from recipes.vision.presets import preset
from stec.core.memory import return_freed_memory
from stec.core.micro import MicroBatches
from stec.core.objective import encode


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How large the batches are, and the encoder."""

    batch: int = 4096  # pairs
    micro_batch: int = 1024  # views whose activations are kept at a time: two of each pair
    width: int = 16  # of the encoder
    stem: str = "stl"  # "cifar" takes four times the memory and time
    worker: str | None = None  # internal: measure this one alone and print it
    gradients: Path | None = None  # internal: where a worker leaves its gradient
    out: Path | None = None  # a file of records


def configuration(arguments: Arguments) -> Config:
    """CIFAR-10's row of S-TEC at another width and stem."""
    return dataclasses.replace(preset("cifar10-resnet18-stec"), width=arguments.width, stem=arguments.stem)  # type: ignore[arg-type]


def peak_mib(device: torch.device) -> float:
    """The most memory that was taken so far: by tensors on a GPU, else by the process (Linux only)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) / 1024


def step(config: Config, batch: int, micro_batch: int | None, device: torch.device) -> list[Tensor]:
    """The gradient of S-TEC's loss at the encoder, BatchNorm with frozen statistics."""
    torch.manual_seed(0)
    encoder = networks.encoder(config).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = networks.objective(config, int(encoder.feature_dim), (32, 32)).to(device)
    size = 2 * batch if micro_batch is None else micro_batch
    plain = encoder.eval() if micro_batch is None else MicroBatches(encoder, size=size, statistics="frozen")
    pair = ready_pair(config, batch, device)
    objective(encode(plain, pair), None, pair)["loss"].backward()
    return [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]


def work(arguments: Arguments) -> None:
    """Measure one step after a small one, and print it as JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        return_freed_memory()  # as training in micro-batches does; here in all
    config = configuration(arguments)
    batch = arguments.micro_batch // 2 if arguments.worker == "small" else arguments.batch
    micro = arguments.micro_batch if arguments.worker == "micro" else None
    step(config, 8, None, device)
    start = time.perf_counter()
    gradients = [gradient.cpu() for gradient in step(config, batch, micro, device)]
    print(json.dumps({"peak": peak_mib(device), "seconds": time.perf_counter() - start}))
    if arguments.gradients:
        torch.save(gradients, arguments.gradients)


def measured(arguments: Arguments, name: str, gradients: Path | None) -> dict[str, float]:
    """What a process of its own gives. RuntimeError where it died, of memory for one."""
    settings = dataclasses.asdict(dataclasses.replace(arguments, worker=name, gradients=gradients, out=None))
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items() if value is not None]
    done = subprocess.run([sys.executable, "-m", "recipes.bench.micro", *options], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the {name} step died with {done.returncode} ({last}); choose a smaller --batch")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.bench.micro", description=__doc__)
    if arguments.worker:
        work(arguments)
        return
    if arguments.out:
        check_writable(arguments.out.parent)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in ("micro", "whole")}
        found = {name: measured(arguments, name, files.get(name)) for name in ("small", "micro", "whole")}
        ours, whole = (torch.load(files[name], weights_only=True) for name in ("micro", "whole"))
    vectors = [torch.cat([part.double().flatten() for part in gradient]) for gradient in (ours, whole)]
    difference = float((vectors[0] - vectors[1]).norm() / vectors[1].norm())
    where = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [[name, f"{f['peak']:,.0f}", f"{f['seconds']:.2f}"] for name, f in found.items()]
    table(["", "peak MiB", "seconds"], rows, title=f"batch {arguments.batch}, {arguments.micro_batch} views at a time")
    say(f"relative difference of the gradients: {difference:.1e}")
    ratios = {
        "peak memory of micro-batches over the whole batch": found["micro"]["peak"] / found["whole"]["peak"],
        "peak memory of micro-batches over a batch of their size": found["micro"]["peak"] / found["small"]["peak"],
        "seconds of micro-batches over the whole batch": found["micro"]["seconds"] / found["whole"]["seconds"],
        "relative difference of the gradients": difference,
    }
    if arguments.out:
        details: dict[str, object] = {f"{n}, {k}": round(v, 3) for n, f in found.items() for k, v in f.items()}
        record = records.record(
            method="speed",
            preset="cifar10-resnet18-stec",
            data="ready batches",
            seed=0,
            seconds=time.perf_counter() - start,
            results=[records.Result(key, float(f"{value:.3g}"), where, details) for key, value in ratios.items()],
            settings={"batch": arguments.batch, "micro_batch": arguments.micro_batch, "width": arguments.width},
            stage="bench",
        )
        records.write([record], arguments.out)


if __name__ == "__main__":
    command(main, RuntimeError)
