"""What the audio benchmark measures against: plain loops as the public projects have them, written from descriptions.

Greedy InfoMax (Löwe et al. 2019): negatives are gathered as vectors from permuted rows; its phone probe decodes and
encodes an utterance for every step. Besides, reading a window or a whole file with soundfile as anyone would; and what
our loss and the peer's add to a process's peak, here since a fresh process is to load little else.
"""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from recipes.audio.presets import preset
from stec.audio.encoders import CPCEncoder
from stec.core.actions import ViewPair
from stec.core.objective import Features
from stec.core.sequence import CPC, LinearPredictor

FRAMES, GATHERED = 128, 128  # frames of a window; negative vectors that the plain form gathers for each


def draw_orders(rows: int, negatives: int) -> Int[Tensor, "n rows"]:
    """A permutation of the rows for every negative."""
    return torch.stack([torch.randperm(rows) for _ in range(negatives)])


def permuted_infonce(
    predictions: Float[Tensor, "b t k f"], latents: Float[Tensor, "b t f"], orders: Int[Tensor, "n rows"]
) -> Float[Tensor, ""]:
    """Mean over steps of -log softmax of the positive against one row of each permuted copy of the latents, nats.

    Rows are all frames of all sequences, frame by frame: row t * b + i is frame t of sequence i.
    """
    b, t, steps, _ = predictions.shape
    by_time = latents.transpose(0, 1).contiguous()  # (t, b, f): what is left of a later frame is no copy
    negatives = by_time.flatten(0, 1)[orders.T].view(t, b, len(orders), -1)
    total = predictions.new_zeros(())
    for k in range(1, steps + 1):
        predicted = predictions[:, : t - k, k - 1].transpose(0, 1).unsqueeze(3)  # (t - k, b, f, 1)
        positive = by_time[k:].unsqueeze(2) @ predicted
        negative = negatives[k:] @ predicted
        logits = torch.cat((positive, negative), dim=2).squeeze(3)
        total = total - F.log_softmax(logits, dim=2)[:, :, 0].mean()
    return total / steps


class PermutedInfoNCE(nn.Module):
    """The loss of Greedy InfoMax with its predictor: one linear layer without bias for all steps."""

    def __init__(self, context_dim: int, latent_dim: int, *, steps: int, negatives: int) -> None:
        super().__init__()
        self.steps, self.negatives = steps, negatives
        self.predictor = nn.Linear(context_dim, steps * latent_dim, bias=False)

    def forward(self, context: Float[Tensor, "b t d"], latents: Float[Tensor, "b t f"]) -> Float[Tensor, ""]:
        predictions = self.predictor(context).unflatten(2, (self.steps, -1))
        orders = draw_orders(latents.shape[0] * latents.shape[1], self.negatives)
        return permuted_infonce(predictions, latents, orders.to(latents.device))


def probe_epoch(
    encoder: CPCEncoder, paths: Sequence[Path], labels: Sequence[Tensor], linear: nn.Linear, optimizer: torch.optim.Adam
) -> None:
    """An epoch of its phone probe: every utterance is decoded and encoded anew, and is a step of its own."""
    device = linear.weight.device
    for path, truth in zip(paths, labels):
        with torch.no_grad():
            context, _ = encoder(read_file(path)[None].to(device))
        loss = F.cross_entropy(linear(context[0]), truth.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def read_file(path: Path) -> Float[Tensor, " n"]:
    """A whole file."""
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def read_windows(paths: Sequence[Path], starts: Sequence[int], window: int) -> Float[Tensor, "b n"]:
    """A batch of windows: each file is opened, and read from where its window starts."""
    rows = [
        torch.from_numpy(soundfile.read(path, start=start, frames=window, dtype="float32")[0])
        for path, start in zip(paths, starts)
    ]
    return torch.stack(rows)


def decode(paths: Sequence[Path], workers: int) -> int:
    """Decode files in threads and drop what comes out; the samples there were."""
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(lambda path: len(soundfile.read(path, dtype="int16")[0]), paths))


def pair_of(x: Tensor) -> ViewPair:
    """One view of as many objects as `x` has rows."""
    ids = torch.arange(len(x), device=x.device)
    return ViewPair(x, None, x.new_zeros(len(x), 0), torch.ones_like(ids, dtype=torch.bool), ids, object=ids, group=ids)


def loss_peak(form: str, batch: int, channels: int) -> float:
    """MB that forward and backward of the loss on given features add to this process's peak; Linux only.

    `form` is "ours" (CPC, linear predictor, K = 12, all candidates of groups of 8) or "gathered" (128 vectors each).
    """
    config = preset("cpc")
    d, k = config.context_dim, config.steps
    cpc = CPC(LinearPredictor(d, channels, steps=k), negatives=config.negatives, batch_group=config.batch_group)
    gathered = PermutedInfoNCE(d, channels, steps=k, negatives=GATHERED)

    def run(b: int, frames: int) -> None:
        context, latents = (torch.randn(b, frames, width).requires_grad_() for width in (d, channels))
        start.append(kilobytes("VmRSS"))
        loss = (
            cpc(Features((context, latents), None), None, pair_of(context))
            if form == "ours"
            else gathered(context, latents)
        )
        loss.backward()

    def kilobytes(field: str) -> int:  # of this process alone: getrusage would count what its parent held
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field))) // 1000

    start: list[int] = []
    run(config.batch_group, k + 2)  # what a first call alone takes
    run(batch, FRAMES)
    return (kilobytes("VmHWM") - start[-1]) / 1000


PEAK = """
import sys
from recipes.bench.speech_peers import loss_peak
print(loss_peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def fresh_peak(form: str, batch: int, channels: int) -> float:
    """`loss_peak` in a process of its own."""
    words = [sys.executable, "-c", PEAK, form, str(batch), str(channels)]
    return float(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
