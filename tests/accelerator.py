"""A simulated accelerator: tensors that lie "on the device" compute on the CPU, by the device's rules.

Machines without a GPU thus see what would go wrong on one. A tensor of the simulated device meets no host tensor of
one or more dimensions, and whatever makes the host wait for a CUDA device raises `HostWaits`: reading a value, shapes
that depend on values, and copies that are not `non_blocking`, `torch.tensor(..., device=device)` among them.
torch.cuda.set_sync_debug_mode("error") sees the same on a real one; a copy of unpinned host memory it lets pass, as
this does. What this cannot tell is time, and how CUDA's own kernels round.

torch knows the device as its third-party one (PrivateUse1), renamed to "simulated" for the whole process and for good:
import this in a process of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, library
from torch._decomp.decompositions import gru_impl, lstm_impl
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("simulated", backend_module=_Backend())
DEVICE = torch.device("simulated", 0)

# The CPU has no fused cells for tensors of another device: recurrences are written out.
torch._VF.gru, torch._VF.lstm = gru_impl, lstm_impl

WAIT = {  # these wait for the device whatever their arguments
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount",
    "_unique", "_unique2", "unique_dim", "unique_consecutive", "_linalg_eigh", "_linalg_svd",
}  # fmt: skip
COPIES = {"_to_copy", "copy_"}  # between host and device, when they are asked to
MEETS_HOST = COPIES | {"index", "index_put_", "_index_put_impl_"}  # take host tensors: an index is uploaded


# What autocast takes in its narrow type; one argument of another type then is an error, as on a GPU.
NARROW = ("matmul", "mm", "mv", "bmm", "addmm", "baddbmm", "linear", "conv1d", "conv2d", "conv3d")
_AUTOCAST = torch._C.DispatchKeySet(torch._C._parse_dispatch_key("AutocastPrivateUse1"))
_rules = library.Library("aten", "IMPL", "AutocastPrivateUse1")  # they hold as long as this object lives


def _narrowed(name: str) -> Callable[..., Any]:
    operation = getattr(torch.ops.aten, name)

    def narrowed(*args: Any, **kwargs: Any) -> Any:
        def cast(tensor: Tensor) -> Tensor:
            wide = tensor.device.type == DEVICE.type and tensor.dtype == torch.float32
            return tensor.to(torch.get_autocast_dtype(DEVICE.type)) if wide else tensor

        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return operation(*tree_map_only(Tensor, cast, args), **tree_map_only(Tensor, cast, kwargs))

    return narrowed


_others = library.Library("_", "IMPL", "AutocastPrivateUse1")
_others.fallback(library.fallthrough_kernel)  # autocast leaves them alone
for _name in NARROW:
    _rules.impl(_name, _narrowed(_name))

_allowed: list[bool] = []  # stretches that may wait, one within the other


class HostWaits(RuntimeError):
    """An operation for which the host would wait for the device."""


class DeviceTensor(Tensor):
    """A tensor of the simulated device; `inner` holds its values, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "DeviceTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        tensor.inner = values
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """What `func` gives on the values, as tensors of the device where it would give such."""
    name = func._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    device = args[0].device if name == "copy_" else kwargs.get("device") or (DEVICE if on_device else None)
    gives = device is not None and torch.device(device).type == DEVICE.type
    host = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    if on_device and name not in MEETS_HOST and any(tensor.ndim for tensor in host):
        raise RuntimeError(f"{name} of tensors on both the host and the device")
    if why := waits(name, args, kwargs, on_device=bool(on_device), host=bool(host), gives=gives):
        raise HostWaits(f"{name} {why}")

    inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.inner, (args, kwargs))
    if gives and "device" in kwargs:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    result = func(*inner_args, **inner_kwargs)
    if not gives:
        return result
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, DeviceTensor, result))


def waits(name: str, args: Any, kwargs: Any, *, on_device: bool, host: bool, gives: bool) -> str:
    """Why the host would wait for this operation; empty where it would not."""
    if _allowed:
        return ""
    if name in WAIT and on_device:
        return "reads the device's values"
    if name == "repeat_interleave" and on_device and kwargs.get("output_size") is None:
        return "reads the size of its result"
    if name in {"index", "index_put_", "_index_put_impl_"} and on_device:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "by a mask reads how many it chooses"
        if any(not isinstance(index, DeviceTensor) for index in indices):
            return "by host indices copies them"
    if name in COPIES:
        crosses = (on_device and not gives) or (host and gives)
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if crosses and blocking:
            return "between host and device is not non_blocking"
        if crosses and on_device and not gives:
            return "to the host gives values that are not there yet"
    return ""


class Simulation(TorchDispatchMode):
    """While it is on, tensors can be made on `DEVICE`; it counts what a device would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []

    def __enter__(self) -> "Simulation":
        self._kept = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE): on the host first, then a copy
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._kept)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        result = compute(func, args, kwargs)
        leaves = tree_leaves((args, kwargs, result))
        if any(isinstance(leaf, DeviceTensor) for leaf in leaves) and not _is_free(func):
            self.launches.append(func._schema.name.removeprefix("aten::"))
        return result


def _is_free(func: Any) -> bool:
    """Whether an operation launches nothing: it makes a view, or memory without values."""
    schema = func._schema
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return views or schema.name.removeprefix("aten::").startswith(("empty", "new_empty", "detach"))


@contextmanager
def allowed_to_wait() -> Iterator[None]:
    """A stretch, such as a start, that may wait for the device."""
    _allowed.append(True)
    try:
        yield
    finally:
        _allowed.pop()


def to_host(tensor: Tensor) -> Tensor:
    """The values of a tensor of either place."""
    return tensor.inner if isinstance(tensor, DeviceTensor) else tensor
