"""What a training step of CPC takes beside others: seconds, and what its loss adds to the peak of memory."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from recipes import records
from recipes.audio import networks
from recipes.audio.measure import device
from recipes.audio.presets import Config, preset
from recipes.audio.run import precision
from recipes.bench.speech_peers import FRAMES, GATHERED, PermutedInfoNCE, fresh_peak, pair_of
from recipes.bench.turns import measured
from recipes.terminal import say
from stec.core.actions import ViewPair
from stec.core.objective import Features, STECObjective, encode


def train(
    config: Config,
    pair: ViewPair,
    loss_of: Callable[[Features], torch.Tensor],
    *,
    encoder: torch.nn.Module,
    loss: torch.nn.Module | None,
) -> Callable[[], None]:
    """A training step of Adam; without the parameters of a `loss` a mere forward and backward pass."""
    modules = torch.nn.ModuleList([encoder] if loss is None else [encoder, loss])
    optimizer = torch.optim.Adam(modules.parameters(), lr=config.lr)
    forward = torch.compile(encoder) if config.compiled else encoder
    narrow = precision(config) == "bf16-mixed"

    def run() -> None:
        with torch.autocast(pair.x.device.type, dtype=torch.bfloat16, enabled=narrow):
            value = loss_of(encode(forward, pair))
        value.backward()
        if loss is not None:
            optimizer.step()
        optimizer.zero_grad()

    return run


def step(*, batch: int, window: int, channels: int, compiled: bool, rounds: int) -> list[records.Result]:
    """Seconds of a step on one batch of ready waveforms: bare, float32, the default settings, Greedy InfoMax."""
    where = device()
    torch.manual_seed(0)
    pair = pair_of(0.1 * torch.randn(batch, window, device=where))
    default = dataclasses.replace(preset("cpc"), channels=channels, compiled=compiled)
    plain = dataclasses.replace(default, precision="32-true", compiled=False)
    peer = dataclasses.replace(preset("gim"), channels=channels, precision="32-true", compiled=False)

    def ours(config: Config) -> Callable[[], None]:
        objective: STECObjective = networks.objective(config, 0).to(where)
        encoder = networks.encoder(config).to(where)
        return train(config, pair, lambda f: objective(f, None, pair)["loss"], encoder=encoder, loss=objective)

    infonce = PermutedInfoNCE(peer.context_dim, peer.channels, steps=peer.steps, negatives=peer.samples or 10).to(where)
    work: dict[str, Callable[[], object]] = {
        "bare": train(plain, pair, lambda f: f.x[0].mean(), encoder=networks.encoder(plain).to(where), loss=None),
        "float32": ours(plain),
        "default": ours(default),
        "Greedy InfoMax": train(
            peer, pair, lambda f: infonce(*f.x), encoder=networks.encoder(peer).to(where), loss=infonce
        ),
    }
    start = time.perf_counter()
    work["default"]()
    first = time.perf_counter() - start
    seconds, details = measured(work, rounds)
    details |= {
        "first default step, with its compilation, s": round(first, 1),
        "default": f"{precision(default)}, {'compiled' if default.compiled else 'not compiled'}",
        "batch": batch,
        "window": window,
        "channels": channels,
    }
    ratios = (
        ("step: CPC over bare encoder, both float32", "float32", "bare", "<= 1.4"),
        ("step: CPC in float32 over default settings", "float32", "default", ">= 2"),
        ("step: plain Greedy InfoMax over CPC, both float32", "Greedy InfoMax", "float32", ""),
        ("step: plain Greedy InfoMax over default settings", "Greedy InfoMax", "default", ""),
    )
    return [
        records.Result(
            name,
            seconds[above] / seconds[below],
            where.type,
            ({"wanted": wanted} if wanted else {}) | (details if i == 0 else {}),
        )
        for i, (name, above, below, wanted) in enumerate(ratios)
    ]


def memory(*, batch: int, channels: int) -> list[records.Result]:
    """What the loss adds to the peak, each form in a fresh process; none where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        say("memory: left out, this system has no /proc to read the peak from")
        return []
    kibibytes = next(line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    available = 1024 * int(kibibytes) / 1e9
    vectors = batch * FRAMES * GATHERED * channels * 4 / 1e9
    need = 5 * vectors  # and what autograd keeps and adds up of them
    details: dict[str, object] = {"batch": batch, "frames": FRAMES, "channels": channels}
    if need > available / 2:
        note = f"left out: needs some {need:.1f} GB, and {available:.1f} GB are available"
        say(f"memory of {GATHERED} gathered vectors a frame: {note}")
        details["gathered form"] = note
    results = [
        records.Result(
            "memory: added by CPC, MB", fresh_peak("ours", batch, channels), "cpu", {**details, "wanted": "< 500"}
        )
    ]
    if need <= available / 2:
        metric = f"memory: added by {GATHERED} gathered vectors a frame, MB"
        results.append(records.Result(metric, fresh_peak("gathered", batch, channels), "cpu", details))
    return results
