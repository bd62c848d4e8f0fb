"""Checkpoints of others and ours: pickles that would run code, archives that swell, tensors that are not there."""

import collections
import importlib.util
import os
import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from random import Random

import pytest
import torch
from mutations import BINARY, Target, address_space, check, mutated, refusing
from safetensors.torch import save as save_safetensors

from stec.core.checkpoints import load_checkpoint
from stec.core.inert import InertUnpickler, plain
from stec.core.torch_files import TorchFile, refuse_compressed
from stec.vision.official import read_official

_SPEC = importlib.util.spec_from_file_location("hubconf", Path(__file__).parents[2] / "hubconf.py")
assert _SPEC is not None and _SPEC.loader is not None  # noqa: PT018
hubconf = importlib.util.module_from_spec(_SPEC)  # a file beside the package, which is not installed
_SPEC.loader.exec_module(hubconf)
RAN = Path("ran")  # what a pickle of `Runs` would leave; no test's folder has it


class Runs:
    """Writes a file when it is unpickled as pickle does."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {RAN}",)


def _saved(content: object, *, legacy: bool = False) -> bytes:
    file = BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _weights() -> dict[str, torch.Tensor]:
    names = ("encoder.conv1.weight", "encoder.layer1.0.conv1.weight", "projection.model.hidden.weight")
    return {**{name: torch.ones(2, 3, 3, 3) for name in names}, "supervised_head.linear_layer.weight": torch.ones(4, 2)}


_CONTENT = {
    "ours": {"state_dict": _weights(), "global_step": 3, "stec": {"format": 1, "record": {"config": {}, "classes": 2}}},
    "theirs": {"state_dict": collections.OrderedDict(_weights()), "hyper_parameters": {"lr": 0.1}, "global_step": 3},
    "code": {"state_dict": _weights(), "evil": Runs()},
}
SEEDS = [_saved(content, legacy=legacy) for content in _CONTENT.values() for legacy in (False, True)]
_PICKLED = ({"a": [1.5, "b"], (1, 2): Runs()}, [{"a": {1, 2}}] * 3)
PICKLES = [pickle.dumps(content, protocol=protocol) for content in _PICKLED for protocol in (0, 2, 4)]


def file_of_torch(random: Random) -> bytes:
    """One of torch.save's files, with the pickle in the archive broken more often than the archive itself."""
    data = random.choice(SEEDS)
    if not zipfile.is_zipfile(BytesIO(data)) or random.random() < 0.4:
        head = random.choice((200, 1000, len(data)))
        return mutated(data[:head], random, BINARY) + data[head:]
    made = BytesIO()
    compression = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(BytesIO(data)) as before, zipfile.ZipFile(made, "w", compression) as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, mutated(content, random, BINARY) if name.endswith("data.pkl") else content)
    return made.getvalue()


def a_pickle(random: Random) -> bytes:
    """A pickle of any protocol."""
    return mutated(random.choice(PICKLES), random, BINARY)


def an_export(random: Random) -> bytes:
    """A safetensors file; its metadata say an architecture that the weights are not of, so no network is built."""
    told = {"arch": "resnet18", "stem": random.choice(("cifar", "none")), "width": random.choice(("4", "x", "-1"))}
    return mutated(save_safetensors({"conv1.weight": torch.ones(2)}, {**told, "arch": "vgg"}), random, BINARY)


def read_torch(data: bytes, folder: Path) -> None:
    path = folder / "a.ckpt"
    path.write_bytes(data)
    with refusing(path):
        file = TorchFile(path)
        plain(file.content)
        held = file.content.get("state_dict") if isinstance(file.content, dict) else None
        if isinstance(held, dict):
            made = file.tensors({str(name): value for name, value in held.items()})
            assert sum(tensor.nbytes for tensor in made.values()) < 8 * len(data)
    assert not RAN.exists()


def read_theirs(data: bytes, folder: Path) -> None:
    path = folder / "a.ckpt"
    path.write_bytes(data)
    with refusing(path):
        read_official(path, encoder_only=len(data) % 2 == 0)
    assert not RAN.exists()


def read_ours(data: bytes, folder: Path) -> None:
    path = folder / "a.ckpt"
    path.write_bytes(data)
    with refusing(path):
        load_checkpoint(path)
    assert not RAN.exists()


def read_pickle(data: bytes, folder: Path) -> None:
    try:
        content = InertUnpickler(BytesIO(data), {}).load()
    except MemoryError:
        raise
    except Exception:  # as TorchFile says: a damaged file can fail in any way; what counts is what did not happen
        content = None
    plain(content)
    assert not RAN.exists()


def read_export(data: bytes, folder: Path) -> None:
    path = folder / "encoder.safetensors"
    path.write_bytes(data)
    with refusing(path):
        hubconf.encoder(str(path))


TARGETS = [
    Target("torch files", file_of_torch, read_torch),
    Target("released checkpoints", file_of_torch, read_theirs),
    Target("checkpoints", file_of_torch, read_ours),
    Target("pickles", a_pickle, read_pickle, guided=True),
    Target("exports", an_export, read_export),
]


@pytest.mark.parametrize("target", [pytest.param(t, id=t.name) for t in TARGETS])
def test_broken_checkpoints_are_read_or_refused_and_nothing_runs(target: Target, tmp_path: Path) -> None:
    check(target, tmp_path, examples=60)


HUGE = struct.pack("<I", 0x7FFFFFFF)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02]r" + HUGE + b".",  # store the list as number 2**31 - 1
        b"\x80\x02]p" + b"9" * 12 + b"\n.",
        b"\x80\x02X" + HUGE + b"abc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    ],
)
def test_numbers_in_a_pickle_take_no_memory(data: bytes) -> None:
    with address_space(256 << 20):
        read_pickle(data, Path())


def test_a_registered_code_is_no_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    import copyreg

    monkeypatch.setattr(copyreg, "_extension_cache", {7: os.system})
    monkeypatch.setattr(pickle, "_extension_cache", {7: os.system})
    with pytest.raises(ValueError, match="extension"):
        InertUnpickler(BytesIO(b"\x80\x02\x82\x07."), {}).load()


def laughing(levels: int) -> object:
    """A list of itself, so to say: 2**levels when it is written out, `levels` in a file."""
    value: object = ["ha"]
    for _ in range(levels):
        value = [value, value]
    return value


def test_what_is_small_in_a_file_stays_small(tmp_path: Path) -> None:
    many: object = ["ha"]
    for _ in range(4):
        many = [many] * 100
    path = tmp_path / "a.ckpt"
    told = {"state_dict": {"encoder.conv1.weight": torch.ones(1)}, "hyper_parameters": {"a": many, "b": laughing(60)}}
    torch.save(told, path)
    with address_space(256 << 20), refusing(path):
        found = plain(TorchFile(path).content)
        assert len(str(found)) < 200_000
        read_official(path, encoder_only=True)


def archive(data: bytes, *, compression: int = zipfile.ZIP_STORED, values: bytes = b"") -> bytes:
    """A file as torch.save writes it, around any pickle."""
    made = BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        file.writestr("a/data.pkl", data)
        file.writestr("a/byteorder", b"little")
        file.writestr("a/data/0", values)
    return made.getvalue()


def test_a_swollen_archive_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    path.write_bytes(
        archive(b"\x80\x02X" + struct.pack("<I", 1 << 27) + bytes(1 << 27), compression=zipfile.ZIP_DEFLATED)
    )
    assert path.stat().st_size < 1 << 20
    with address_space(64 << 20), pytest.raises(ValueError, match=r"bomb\.ckpt is torn .*compressed"):
        TorchFile(path)


def _tensor(size: str, *, key: str = "X\x01\x00\x00\x000", numel: bytes = b"K\x04") -> bytes:
    """The pickle of a float tensor on storage "0" with this `size`, written as opcodes."""
    pid = b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + key.encode("latin1") + b"X\x03\0\0\0cpu" + numel + b"tQ"
    return (
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n("
        + pid
        + b"K\0"
        + size.encode("latin1")
        + b"(K\x00t\x89NtRs."
    )


@pytest.mark.parametrize(
    "size",
    [
        "(J\xff\xff\xff\x7ft",  # more than is there
        "(K\x00X\x04\0\0\0haha\x8a\x05\0\0\0\0\x10t",  # a text, many times
        "(J\xff\xff\xff\xffJ\xff\xff\xff\xfft",  # -1, -1
        "(G@\x10\0\0\0\0\0\0t",  # 4.0
    ],
)
def test_a_tensor_is_no_larger_than_its_values(size: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(archive(_tensor(size), values=bytes(16)))
    file = TorchFile(path)
    with address_space(256 << 20), pytest.raises(ValueError, match=r"w in .*a\.ckpt is torn or is no tensor"):
        file.tensors(file.content)


def test_compressed_archives_are_refused_before_torch_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(archive(_tensor("(K\x04t"), values=bytes(16)))
    refuse_compressed(path)
    path.write_bytes(archive(_tensor("(K\x04t"), compression=zipfile.ZIP_DEFLATED, values=bytes(16)))
    with pytest.raises(ValueError, match=r"a\.ckpt is torn or is no checkpoint \(it is compressed"):
        load_checkpoint(path)


def test_a_tensor_without_its_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(archive(_tensor("(K\x04t"), values=bytes(16)))
    file = TorchFile(path)
    assert torch.equal(file.tensors(file.content)["w"], torch.zeros(4))
    path.write_bytes(archive(_tensor("(K\x05t", numel=b"K\x05"), values=bytes(16)))
    with address_space(256 << 20), pytest.raises(ValueError, match="asks for 5 of 4 values"):
        file.tensors(file.content | TorchFile(path).content)
    path.write_bytes(archive(_tensor("(J\xff\xff\xff\x7ft", numel=b"J\xff\xff\xff\x7f"), values=bytes(16)))
    with address_space(256 << 20), refusing(path):
        load_checkpoint(path)


def test_values_shared_by_many_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    values = torch.zeros(1 << 16)
    torch.save({f"w{i}": values[0 : 1 << 16] for i in range(50)}, path)
    file = TorchFile(path)
    with pytest.raises(ValueError, match="share their values"):
        file.tensors(file.content)
    two = file.tensors(dict(list(file.content.items())[:2]))  # as tied weights do
    assert torch.equal(two["w1"], values)
