"""Files of torch.save read as torch.load reads them, and torn or hostile ones refused."""

import io
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stec.core.torch_files import TorchFile

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(path: Path, content: Any, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_as_torch_reads_it(dtype: torch.dtype, zipped: bool, tmp_path: Path) -> None:
    base = (torch.arange(24).reshape(4, 6) % 3).to(dtype)
    values = {
        "whole": base,
        "part": base[1:3, ::2],
        "transposed": base.T,
        "scalar": base[0, 1],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base.clone(), requires_grad=dtype.is_floating_point),
        "channels last": base.reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "expanded": torch.ones(1, dtype=dtype).expand(1, 1),
    }
    file = TorchFile(save(tmp_path / "a.pt", {"deep": [values]}, zipped))
    found = file.tensors(file.content["deep"][0])
    expected = torch.load(tmp_path / "a.pt", weights_only=False)["deep"][0]
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value.detach()), name
        assert found[name].is_contiguous()
    assert found["whole"].untyped_storage().data_ptr() != found["part"].untyped_storage().data_ptr()
    assert file.foreign == []


@settings(max_examples=30)
@given(shape=st.lists(st.integers(0, 4), max_size=4), start=st.integers(0, 5), zipped=st.booleans(), data=st.data())
def test_any_view_of_any_storage(shape: list[int], start: int, zipped: bool, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    storage = torch.arange(5 + 4**4, dtype=torch.float32)
    count = int(torch.tensor(shape).prod()) if shape else 1
    view = storage[start : start + count].reshape(shape).permute(order)
    stream = io.BytesIO()
    torch.save({"a": view, "b": storage}, stream, _use_new_zipfile_serialization=zipped)
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "a.pt").write_bytes(stream.getvalue())
        file = TorchFile(path)
        found = file.tensors(file.content)
    assert torch.equal(found["a"], view)
    assert torch.equal(found["b"], storage)


@FORMATS
def test_a_tensor_with_attributes_of_its_own(zipped: bool, tmp_path: Path) -> None:
    value = torch.arange(3.0)
    value.note = "kept by torch.save"  # type: ignore[attr-defined]
    file = TorchFile(save(tmp_path / "a.pt", {"a": value}, zipped))
    assert torch.equal(file.tensors(file.content)["a"], torch.arange(3.0))


@FORMATS
def test_code_does_not_run_and_is_named(zipped: bool, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    content = {"state_dict": {"a": torch.ones(2)}, "callbacks": Evil()}
    file = TorchFile(save(tmp_path / "evil.pt", content, zipped))
    assert file.foreign == ["os.mkdir"]
    assert torch.equal(file.tensors(file.content["state_dict"])["a"], torch.ones(2))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"raw.pt .*a pickle of something else.* would run os.mkdir"):
        TorchFile(tmp_path / "raw.pt")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # with pickle it does run


@FORMATS
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.97])
def test_a_torn_file(zipped: bool, keep: float, tmp_path: Path) -> None:
    path = save(tmp_path / "torn.pt", {"a": torch.rand(1000)}, zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    reason = r"\(an archive whose end is missing\)" if zipped and keep else ""
    with pytest.raises(ValueError, match=rf"torn.pt is torn or is no checkpoint {reason}.*copy or fetch it again"):
        TorchFile(path)


def test_values_that_changed_on_the_way(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"a": torch.full((1000,), 3.0)}, True)
    data = bytearray(path.read_bytes())
    place = data.index(torch.full((1000,), 3.0).numpy().tobytes())
    data[place + 100] ^= 1
    path.write_bytes(data)
    file = TorchFile(path)
    with pytest.raises(ValueError, match=r"^a in .*a.pt is torn or is no tensor \(Bad CRC-32"):
        file.tensors(file.content)
    path = save(tmp_path / "a.pt", {"a": torch.ones(2), "text": "unharmed"}, True)
    path.write_bytes(path.read_bytes().replace(b"unharmed", b"UNharmed"))
    with pytest.raises(ValueError, match=r"a.pt is torn or is no checkpoint \(Bad CRC-32"):
        TorchFile(path)


@pytest.mark.parametrize(
    ("entry", "words"),
    [(3, "it is a int"), (torch.device("cpu"), "it is a torch.device"), ({}, "it is a dict")],
)
def test_entries_that_are_no_tensors(entry: object, words: str, tmp_path: Path) -> None:
    file = TorchFile(save(tmp_path / "a.pt", {"a": entry}, True))
    with pytest.raises(ValueError, match=rf"a in .*a.pt is torn or is no tensor \({words}\)"):
        file.tensors(file.content)


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((10**9,), (0,), 0), ((4,), (1,), 10), ((4,), (-1,), 0), ((-4,), (1,), 0)]
)
def test_a_tensor_that_claims_more_than_there_is(
    size: tuple[int], stride: tuple[int], offset: int, tmp_path: Path
) -> None:
    class Liar:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            storage = torch.ones(4)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, {})

    file = TorchFile(save(tmp_path / "a.pt", {"a": Liar()}, True))
    with pytest.raises(ValueError, match=r"a in .*a.pt is torn or is no tensor"):
        file.tensors(file.content)


def test_other_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/readme.txt", "no weights")
    with pytest.raises(ValueError, match=r"a.zip .*zip file of something else"):
        TorchFile(tmp_path / "a.zip")
    path = save(tmp_path / "a.pt", {"a": torch.ones(2)}, True)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "big.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    with pytest.raises(ValueError, match=r"big.pt .*big-endian"):
        TorchFile(tmp_path / "big.pt")
    with pytest.raises(ValueError, match="there is no file"):
        TorchFile(tmp_path / "none.pt")
