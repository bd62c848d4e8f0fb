"""Copies from the host to a device for which the host does not wait."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, without waiting for the device.

    To CUDA it goes by way of pinned memory: from other memory the host takes part in the copy.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
