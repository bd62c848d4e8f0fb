"""Checkpoints: read without running anything in them, and turned into plain encoder weights.

A checkpoint is lightning's file with one more entry, "stec": a format number and a record of plain values (preset,
configuration, commit) from which the networks can be built again. Files are read with `weights_only=True`.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from stec.core.files import whole
from stec.core.inert import named
from stec.core.torch_files import TorchFile, refuse_compressed

FORMAT = 1
_TYPES = [[kind, dict, int] for kind in (dict, OrderedDict)]  # of weights, record and step


class Checkpoint(NamedTuple):
    """What a checkpoint holds: weights by name, the record of the run, and the number of steps taken."""

    weights: dict[str, Tensor]
    record: dict[str, Any]
    step: int

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The weights below `prefix`, such as "encoder", with the prefix taken off."""
        cut = len(prefix) + 1
        return {name[cut:]: value for name, value in self.weights.items() if name.startswith(prefix + ".")}


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. ValueError names the file where it is torn, foreign or of another version.

    Every byte that is used is compared with the checksums in the file, which torch.load does not do.
    """
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        near = sorted(str(p) for p in folder.rglob("*.ckpt"))[:5] if folder.is_dir() else []
        raise ValueError(f"no checkpoint at {path}" + (f"; there are {', '.join(near)}" if near else ""))
    if not _is_archive(path):  # torch.load would make room for as much as such a file says
        torn = "is torn or is no checkpoint (no archive); use an earlier one of the run folder, or start again"
        raise ValueError(f"{path} {_objects(path) or torn}")
    try:
        refuse_compressed(path)
        _compare_checksums(path)
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:  # of the machine, not of the file
        raise
    except Exception as error:  # a damaged file can fail in any way: name it, whatever the way
        if isinstance(error, pickle.UnpicklingError) and (objects := _objects(path)):
            raise ValueError(f"{path} {objects}") from error
        reason = named([str(error).splitlines()[0]]) if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} is torn or is no checkpoint ({reason}); use an earlier one of the run folder, or start again"
        ) from error
    header = raw.get("stec") if isinstance(raw, dict) else None
    if not isinstance(header, dict) or not {"state_dict", "global_step"} <= set(raw) or "record" not in header:
        raise ValueError(
            f"{path} was not written by stec; an encoder's plain weights load with load_state_dict, and checkpoints of "
            "the authors' released code are read by recipes.vision.import_official"
        )
    if header.get("format") != FORMAT:
        told = header.get("format")
        other = named([str(told)]) if isinstance(told, int | float | str) else type(told).__name__
        raise ValueError(f"{path} has format {other}, this version of stec reads {FORMAT}")
    if [*map(type, (raw["state_dict"], header["record"], raw["global_step"]))] not in _TYPES:
        raise ValueError(f"{path} is torn or is no checkpoint: weights, record and step are of other types")
    return Checkpoint(raw["state_dict"], header["record"], int(raw["global_step"]))


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its end speaks of several disks
        return False


def _compare_checksums(path: Path) -> None:
    """ValueError where a part of the archive is not what was written."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged.partition('/')[2]} in it is damaged: its checksum differs")


def _objects(path: Path) -> str | None:
    """What is wrong with a whole file that holds more than tensors and plain values; None for one that is torn."""
    try:
        file = TorchFile(path)
    except ValueError:
        return None
    if file.foreign:
        return f"holds code: loading it with pickle would run {named(file.foreign)}. Nothing was run"
    return (
        "was not written by stec: it holds objects beside tensors and plain values; "
        "one of the authors' released code is read by recipes.vision.import_official"
    )


def save_checkpoint(path: str | Path, weights: Mapping[str, Tensor], record: Mapping[str, Any], *, step: int) -> None:
    """Write what `load_checkpoint` reads, whole or not at all; `record` holds plain values alone."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stec = {"format": FORMAT, "record": dict(record)}
    with whole(path) as file:
        torch.save({"state_dict": dict(weights), "global_step": step, "stec": stec}, file)


def load_weights(module: nn.Module, weights: dict[str, Tensor], *, source: str | Path) -> None:
    """Load weights by name, all of them or none. ValueError lists what differs between the two architectures."""
    mine = module.state_dict()
    missing = sorted(set(mine) - set(weights))
    surplus = sorted(set(weights) - set(mine))
    shapes = [
        f"{name} {tuple(weights[name].shape)} in the file, {tuple(mine[name].shape)} here"
        for name in sorted(set(mine) & set(weights))
        if mine[name].shape != weights[name].shape
    ]
    differences = [
        f"{len(names)} {what}, first {names[0]}"
        for what, names in (("missing", missing), ("not known here", surplus), ("of another shape", shapes))
        if names
    ]
    if differences:
        raise ValueError(f"{source} holds another architecture: {'; '.join(differences)}")
    module.load_state_dict(weights)


def export_weights(
    weights: Mapping[str, Tensor], path: str | Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights by name as safetensors, whole or not at all; `metadata` goes into the header of the file."""
    tensors = {name: value.contiguous() for name, value in weights.items()}
    content = save(tensors, metadata={"format": "pt", **(metadata or {})})
    with whole(Path(path)) as file:
        file.write(content)
