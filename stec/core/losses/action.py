"""Losses of the action read off two representations: as bins (Eq. 3), or as a normal distribution around it."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

NO_BIN = torch.iinfo(torch.int64).min


def mean_over_valid(values: Float[Tensor, "b *rest"], valid: Bool[Tensor, " b"] | None) -> Float[Tensor, ""]:
    """Mean over the rows marked valid; exactly 0, with gradient 0, where there is none."""
    if valid is None:
        return values.mean()
    rows = values.flatten(1).mean(dim=1) if values.ndim > 1 else values
    return torch.where(valid, rows, 0.0).sum() / valid.sum().clamp(min=1)


def binned_nll(
    logits: Float[Tensor, "b d k"], bins: Int[Tensor, "b d"], valid: Bool[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Eq. 3: -log softmax(logits)[bin], mean over valid pairs and over the d components, in nats.

    Equal logits give log k; no valid pair gives exactly 0. The paper sums over components: d times this. A valid pair
    whose bin is none of the k, as that of an action that is NaN, raises ValueError on the CPU, and stops the program on
    a device, where nobody waits to look.

    >>> binned_nll(torch.zeros(2, 4, 6), torch.zeros(2, 4, dtype=torch.long))   # log 6
    tensor(1.7918)
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide)
    if valid is not None:  # whatever an invalid row holds, it reaches neither the loss nor the gradient
        logits, bins = logits.where(valid[:, None, None], 0.0), bins.where(valid[:, None], 0)
    if bins.device.type == "cpu" and bins.numel():  # where looking waits for nothing
        low, high = (int(end) for end in bins.aminmax())
        if low < 0 or high >= logits.shape[2]:
            raise ValueError(
                f"bins of valid pairs lie between {low} and {high}, and there are {logits.shape[2]}, from 0 on; an "
                "action that is NaN has none: mark its pair invalid"
            )
    # No bin is to be ignored: one out of range is an error on every device.
    nll = F.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none", ignore_index=NO_BIN)
    return mean_over_valid(nll.view_as(bins), valid)


def gaussian_nll(
    mean: Float[Tensor, "b d"],
    action: Float[Tensor, "b d"],
    std: Float[Tensor, " d"],
    valid: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """((action - mean) / std)^2 / 2, mean over valid pairs and components: nats, up to the normal's constant.

    >>> gaussian_nll(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(2))
    tensor(0.5000)
    """
    difference = action - mean.to(torch.promote_types(mean.dtype, torch.float32))
    if valid is not None:
        difference = difference.where(valid[:, None], 0.0)
    return mean_over_valid((difference / std).square() / 2, valid)
