"""The encoder of contrastive predictive coding: strided convolutions on the waveform, then a recurrent context."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

KERNELS, STRIDES = (10, 8, 4, 4, 4), (5, 4, 2, 2, 2)
# Paddings of the public implementations, one for each layer; frames are centred on 160 j + the number beside.
PADDINGS: dict[str, tuple[int, ...]] = {
    "cpc_audio": (3, 2, 1, 1, 1),  # Riviere et al. 2020: 79.5
    "gim": (2, 2, 2, 2, 1),  # Löwe et al. 2019: 20.5
    "none": (0, 0, 0, 0, 0),  # 232.5: no frame sees beyond the waveform
}
Normalisation = Literal["none", "channel", "batch"]


class ChannelNorm(nn.Module):
    """Every frame to mean 0, variance 1 over its channels, then a gain and a shift for each (Riviere et al. 2020).

    As in their code, the variance is the sum of squares over c - 1, where a layer norm divides by c.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "b c *t"]) -> Float[Tensor, "b c *t"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=1, keepdim=True)
        weight, bias = (value.view(-1, *(1,) * (x.ndim - 2)) for value in (self.weight, self.bias))
        scale = weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(bias - mean * scale, x, scale).to(x.dtype)


class CPCEncoder(nn.Module):
    """Waveforms to latents z (a frame every 160 samples) and, over them, the context c (Oord et al. 2018, section 3.1).

    Five convolutions with ReLU, strides 5, 4, 2, 2, 2 and kernels 10, 8, 4, 4, 4, of `channels`; then a GRU or LSTM of
    `context` units. Waveforms (b, n) at 16 kHz are in [-1, 1]; `mean` and `std` are taken off and divided by, as fixed
    numbers. `normalisation` is that of each convolution's output: "none", "channel" or "batch". The recurrence starts
    from 0 with every waveform.

    >>> encoder = CPCEncoder(channels=16, context_dim=8)
    >>> [part.shape for part in encoder(torch.zeros(2, 20_480))]
    [torch.Size([2, 128, 8]), torch.Size([2, 128, 16])]
    """

    hop = 160

    def __init__(
        self,
        *,
        channels: int = 512,
        context_dim: int = 256,
        paddings: Sequence[int] = PADDINGS["cpc_audio"],
        normalisation: Normalisation = "none",
        recurrence: Literal["gru", "lstm"] = "gru",
        recurrent_layers: int = 1,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        if len(paddings) != len(KERNELS) or any(not 0 <= p < k for p, k in zip(paddings, KERNELS)):
            raise ValueError(f"paddings are {tuple(paddings)}; need one for each of the kernels {KERNELS}, below it")
        if std <= 0:
            raise ValueError(f"std is {std}; need a positive value")
        if normalisation not in ("none", "channel", "batch"):
            raise ValueError(f"normalisation is {normalisation!r}; use 'none', 'channel' or 'batch'")
        if recurrence not in ("gru", "lstm"):
            raise ValueError(f"recurrence is {recurrence!r}; use 'gru' or 'lstm'")
        norm = ChannelNorm if normalisation == "channel" else nn.BatchNorm2d
        self.paddings = tuple(paddings)
        self.mean, self.std = mean, std
        self.normalisation = normalisation
        self.feature_dim, self.latent_dim = context_dim, channels
        # Two-dimensional over a height of 1, since one dimension has no channels-last layout.
        self.convolutions = nn.Sequential()
        for i, (kernel, stride, padding) in enumerate(zip(KERNELS, STRIDES, paddings)):
            width = 1 if i == 0 else channels
            convolution = nn.Conv2d(width, channels, (1, kernel), (1, stride), (0, padding))
            self.convolutions.add_module(f"conv_{i}", convolution)
            if normalisation != "none":
                self.convolutions.add_module(f"norm_{i}", norm(channels))
            self.convolutions.add_module(f"relu_{i}", nn.ReLU(inplace=True))
        recurrent = {"gru": nn.GRU, "lstm": nn.LSTM}[recurrence]
        self.recurrence = recurrent(channels, context_dim, recurrent_layers, batch_first=True)

    @property
    def centre(self) -> float:
        """Frame j is centred on sample 160 j + centre, counted from the left edge of sample 0.

        >>> CPCEncoder(channels=4, context_dim=4).centre
        79.5
        """
        centre, jump = 0.5, 1
        for kernel, stride, padding in zip(KERNELS, STRIDES, self.paddings):
            centre += ((kernel - 1) / 2 - padding) * jump
            jump *= stride
        return centre

    def frames(self, n: int) -> int:
        """How many frames a waveform of `n` samples gives; 0 where it is too short for one.

        >>> CPCEncoder(channels=4, context_dim=4).frames(20_480)
        128
        """
        for kernel, stride, padding in zip(KERNELS, STRIDES, self.paddings):
            n = max(0, (n + 2 * padding - kernel) // stride + 1)
        return n

    def latents(self, waveforms: Float[Tensor, "b n"]) -> Float[Tensor, "b t f"]:
        """z: the output of the convolutions. ValueError where the waveforms are too short for a frame."""
        if not self.frames(waveforms.shape[1]):
            raise ValueError(f"waveforms of {waveforms.shape[1]} samples give no frame; 465 samples always give one")
        x = ((waveforms - self.mean) / self.std).contiguous()[:, None, None]
        # With channels last a processor is faster in bf16 (the convolutions by 1.3 times), and slower in float32 or
        # with ChannelNorm. One channel in one row lies in memory as in either layout: its strides say which is meant.
        if torch.is_autocast_enabled(x.device.type) and self.normalisation != "channel":
            n = x.shape[3]
            x = x.as_strided(x.shape, (n, 1, n, 1))
        z: Tensor = self.convolutions(x)
        return z[:, :, 0].transpose(1, 2)

    def context(self, latents: Float[Tensor, "b t f"]) -> Float[Tensor, "b t d"]:
        """c: the recurrence over the latents; frame t knows frames 0 to t."""
        # Without autocast: a state that is fed back 128 times would gather the rounding of a narrow type.
        with torch.autocast(device_type=latents.device.type, enabled=False):
            c: Tensor = self.recurrence(latents.to(self.recurrence.weight_ih_l0.dtype))[0]
        return c

    def forward(self, waveforms: Float[Tensor, "b n"]) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t f"]]:
        z = self.latents(waveforms)
        return self.context(z), z
