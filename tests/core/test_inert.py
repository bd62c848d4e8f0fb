"""Pickles read as records: nothing imported, nothing called, whatever the protocol."""

import argparse
import collections
import functools
import os
import pathlib
import pickle
import pickletools
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stec.core.inert import Inert, InertUnpickler, entries, ordinary, plain

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(data: bytes) -> tuple[Any, dict[str, type[Inert]]]:
    found: dict[str, type[Inert]] = {}
    return InertUnpickler(BytesIO(data), found).load(), found


class Runs:
    """Makes a folder when it is unpickled as pickle does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_would_run_is_recorded_and_does_not(protocol: int, tmp_path: Path) -> None:
    data = pickle.dumps({"weights": [1.5], "evil": Runs(tmp_path / "ran")}, protocol=protocol)
    content, found = read(data)
    assert content["weights"] == [1.5]
    assert list(found) == ["os.mkdir"]
    assert content["evil"].args == (str(tmp_path / "ran"),)
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)
    assert (tmp_path / "ran").exists()  # with pickle it does run


def test_a_module_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_by_pickle.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    content, found = read(b"cimported_by_pickle\nThing\n)R.")
    assert repr(content) == "<imported_by_pickle.Thing>"
    assert "imported_by_pickle" not in sys.modules
    assert list(found) == ["imported_by_pickle.Thing"]


def test_every_opcode_that_calls_or_sets_is_harmless() -> None:
    """INST, OBJ, NEWOBJ, NEWOBJ_EX, REDUCE on a result, BUILD with attributes to set, and an extension's number."""
    programs = {
        b"(S'echo'\nios\nsystem\n.": "os.system",
        b"(cos\nsystem\nS'echo'\no.": "os.system",
        b"cos\nsystem\n(S'echo'\nt\x81.": "os.system",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.": "os.system",
        b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR(S'y'\ntR.": "builtins.getattr",
        b"cos\nsystem\n)R(N}S'name'\nS'other'\nstb.": "os.system",
    }
    for program, name in programs.items():
        content, found = read(program)
        assert name in found
        assert content.name == name, pickletools.dis(program)
    with pytest.raises(TypeError):  # attributes of the stand-in itself: refused
        read(b"cos\nsystem\n(N}S'name'\nS'other'\nstb.")
    with pytest.raises(ValueError, match="extension"):
        read(b"\x80\x02\x82\x01.")


class Own(dict):  # type: ignore[type-arg]
    """A class that only its module knows."""


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])  # torch.save writes 2; before it classes of one's own were calls
def test_containers_keep_what_they_hold(protocol: int) -> None:
    value = {
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, b=[2]),
        "own": Own(c=3),
        "namespace": argparse.Namespace(d=4),
        "path": pathlib.PurePosixPath("/a/b"),
        "number": np.float64(0.25),
        "count": np.int32(-7),
        "flag": np.bool_(True),
        "text": "ü",
        "nested": (1, [2.5, None, {"e": True}]),
    }
    content, _ = read(pickle.dumps(value, protocol=protocol))
    assert plain(content) == {
        "ordered": {"a": 1},
        "default": {"b": [2]},
        "own": {"c": 3},
        "namespace": {"d": 4},
        "path": "/a/b",
        "number": 0.25,
        "count": -7,
        "flag": True,
        "text": "ü",
        "nested": [1, [2.5, None, {"e": True}]],
    }
    assert entries(content["own"]) == {"c": 3}
    assert entries(3) == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_are_known_by_name(protocol: int) -> None:
    value = [collections.Counter, functools.partial(print, 1), {1, 2}, torch.float16, np.array([1.0])]
    content, found = read(pickle.dumps(value, protocol=protocol))
    shown = plain(content)
    assert shown[:2] == ["collections.Counter", "<functools.partial>"]
    assert shown[3] == "torch.float16"
    assert "builtins.print" in found


def test_what_is_deep_or_goes_in_circles_is_cut() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert plain(circle, depth=3) == [1, [1, [1, "..."]]]
    assert plain({"a": {"b": {}}}, depth=1) == {"a": "..."}


@pytest.mark.parametrize(
    "name",
    [
        "collections.OrderedDict",
        "argparse.Namespace",
        "torch.FloatStorage",
        "torch.cuda.HalfStorage",
        "torch.storage.UntypedStorage",
        "torch.bfloat16",
        "torch._utils._rebuild_tensor_v2",
        "torch.optim.lr_scheduler.LambdaLR",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.PosixPath",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "lightning_fabric.utilities.data.AttributeDict",
        "pl_bolts.optimizers.lars.LARS",
        "builtins.set",
    ],
)
def test_ordinary_names(name: str) -> None:
    assert ordinary(name)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.getattr",
        "builtins.__import__",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "torch.utils.cpp_extension.load",
        "torch.storage._load_from_bytes",
        "numpy.load",
        "numpy.testing._private.utils.runstring",
        "pytorch_lightning.utilities.cloud_io.load",
        "pytorch_lightning.core.saving.load_hparams_from_yaml",
        "collections.namedtuple",
        "__main__.Model",
        "xos.system",
        "collections.OrderedDict.fromkeys",
        "some_module.pytorch_lightning.Trainer",
    ],
)
def test_foreign_names(name: str) -> None:
    assert not ordinary(name)
