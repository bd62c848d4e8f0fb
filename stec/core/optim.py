"""The optimiser of the paper's code: LARS as multi-tensor kernels, the warm-up + cosine schedule, parameter groups."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

Schedule = Callable[[int, int, int], float]  # (step, warmup_steps, total_steps) to the factor on the learning rate

# Elements that share one entry of the chunk index below: large enough that the index costs nothing beside the
# parameters, small enough that rounding every tensor up to whole chunks costs nothing either.
_CHUNK = 1024


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), with the rule of lightning-bolts 0.5.0 that the paper used.

    For each tensor p with gradient g, where `weight_decay`, |p| and |g| all differ from 0,
    `d = trust_coefficient * |p| / (|g| + weight_decay * |p| + eps) * (g + weight_decay * p)`; otherwise `d = g`,
    without weight decay. Then `b = momentum * b + d` (b starts as d) and `p -= lr * b`. So a group whose
    `weight_decay` is 0 takes plain momentum SGD: see `parameter_groups`.

    A step waits for nothing on the host and launches multi-tensor kernels only: their number is fixed, up to one more
    of each for every 30 or so tensors, as many as CUDA takes in one launch. Parameters without gradient are skipped.
    `lr` may be a tensor, which `torch.compile` needs to follow a schedule without compiling again.
    Raises ValueError for settings out of range and for complex parameters, RuntimeError for sparse gradients.

    >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> weight.grad = torch.tensor([0.0, 2.0])
    >>> LARS([weight], lr=1.0, weight_decay=0.5, trust_coefficient=0.1).step()  # d = 0.5 / 4.5 * (1.5, 4.0)
    >>> weight.detach()
    tensor([2.8333, 3.5556])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        self._chunk_owners: dict[tuple[Any, ...], Tensor] = {}
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._chunk_owners = {}  # not state: made again from the parameters' sizes

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Checks a group's settings and adds it; `torch.optim.Optimizer` calls this for the first groups too."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name in self.defaults:
                if not group[name] >= 0:
                    raise ValueError(f"{name} is {group[name]}; need a value of at least 0")
            if group["momentum"] >= 1:
                raise ValueError(f"momentum is {group['momentum']}; need a value below 1, or old steps never fade")
            if any(parameter.is_complex() for parameter in group["params"]):
                raise ValueError("LARS is defined for real parameters; pass torch.view_as_real of the complex ones")
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.layout != torch.strided:
                    raise RuntimeError("LARS needs dense gradients; build the embedding with sparse=False")
                alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
            for parameters in alike.values():
                self._step(parameters, group)
        return loss

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One update of parameters of one device and data type."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        rates: list[Tensor] | None = None
        if group["weight_decay"] != 0:
            rates = self._rates(parameters, gradients, group)
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if group["momentum"] != 0:
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    # From zeros, m * b + d is d: the first step needs no case of its own.
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            if rates is None:
                torch._foreach_add_(buffers, gradients)
            else:
                torch._foreach_addcmul_(buffers, gradients, rates)
        else:
            buffers = gradients if rates is None else list(torch._foreach_mul(gradients, rates))
        if isinstance(group["lr"], Tensor):
            torch._foreach_sub_(parameters, torch._foreach_mul(buffers, group["lr"]))
        else:
            torch._foreach_add_(parameters, buffers, alpha=-group["lr"])

    def _rates(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Every tensor's trust ratio, spread to the tensor's own shape and strides.

        A kernel over many tensors takes one number for all of them or a tensor for each, of the same layout; it cannot
        read n ratios that lie on the device. So the ratios are spread to full size, once for all tensors, in whole
        chunks, which also keeps every tensor's start aligned for vectorised loads.
        """
        dtype = parameters[0].dtype
        # Squares of half-precision values leave their range: sum them in float32.
        norms = torch._foreach_norm(parameters + gradients, 2, torch.promote_types(dtype, torch.float32))
        p_norm, g_norm = torch.stack(norms).chunk(2)
        decay = group["weight_decay"]
        ratio = group["trust_coefficient"] * p_norm / (g_norm + decay * p_norm + group["eps"])
        # |p| = 0: d = g + decay * 0, plain g. |g| = 0: d = g as well, which is 0, without the decay.
        ratio = ratio.masked_fill_(p_norm == 0, 1.0).masked_fill_(g_norm == 0, 0.0).to(dtype)

        # The memory that a tensor's elements span: its size, unless it is a slice with gaps.
        spans = [
            1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride())) if p.numel() else 0
            for p in parameters
        ]
        chunks = [-(-span // _CHUNK) for span in spans]
        spread = ratio.index_select(0, self._owner_of_each_chunk(chunks, ratio.device))
        spread = spread[:, None].expand(-1, _CHUNK).contiguous()
        rates, start = [], 0
        for parameter, count in zip(parameters, chunks):
            rates.append(spread.as_strided(parameter.shape, parameter.stride(), start * _CHUNK))
            start += count
        return rates

    def _owner_of_each_chunk(self, chunks: list[int], device: torch.device) -> Int[Tensor, " chunks"]:
        """(sum(chunks),): which tensor each chunk belongs to. Kept, since making it waits for a copy from the host."""
        key = (device, *chunks)
        if key not in self._chunk_owners:
            counts = torch.tensor(chunks, device=device)
            owners = torch.repeat_interleave(torch.arange(len(chunks), device=device), counts, output_size=sum(chunks))
            self._chunk_owners[key] = owners
        return self._chunk_owners[key]


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor on the learning rate at an optimiser step: linear warm-up from 0, then half a cosine down to 0.

    The first step's factor is 0, as in the released code (lightning-bolts 0.5.0); it is 1 at `warmup_steps`. Past
    `total_steps` it stays 0, where lightning-bolts' would rise again.

    >>> [round(warmup_cosine(step, 2, 6), 3) for step in range(8)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def warmup_constant(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor on the learning rate: linear warm-up that ends with step `warmup_steps`, then 1 (0 steps: always 1).

    Its first step moves, unlike `warmup_cosine`'s: (step + 1) / (warmup_steps + 1).

    >>> [warmup_constant(step, 3, 6) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / (warmup_steps + 1))


def by_kind(name: str, parameter: Tensor) -> bool:
    """Adapt and decay tensors of two or more dimensions; biases and norm parameters take plain SGD."""
    return parameter.ndim >= 2


def by_name(name: str, parameter: Tensor) -> bool:
    """The released code's rule: adapt and decay whatever has neither "bias" nor "bn" in its name.

    A quirk comes with it: the BatchNorm weight of a torchvision ResNet's shortcut is called `downsample.1.weight`, so
    it is adapted and decayed (3 tensors of a ResNet-18, 4 of a ResNet-50).
    """
    return "bias" not in name and "bn" not in name


def parameter_groups(
    module: nn.Module, *, weight_decay: float, adapt: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, Any]]:
    """Two groups: "adapted", with weight decay, and "plain", without; LARS adapts the first, and no rate of the second.

    `adapt(name, parameter)` is the rule: `by_kind` or `by_name`. A group holds `name`, `params`, `names` (one for each
    parameter) and `weight_decay`. Parameters that require no gradient are left out. LARS adapts nothing whose decay
    is 0. Raises ValueError for a negative decay.

    >>> groups = parameter_groups(nn.Linear(3, 2), weight_decay=1e-6, adapt=by_kind)
    >>> [(group["name"], group["names"]) for group in groups]
    [('adapted', ['weight']), ('plain', ['bias'])]
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay is {weight_decay}; need 0 or a positive value")
    groups: list[dict[str, Any]] = [
        {"name": "adapted", "params": [], "names": [], "weight_decay": weight_decay},
        {"name": "plain", "params": [], "names": [], "weight_decay": 0.0},
    ]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = groups[0 if adapt(name, parameter) else 1]
            group["params"].append(parameter)
            group["names"].append(name)
    return groups
