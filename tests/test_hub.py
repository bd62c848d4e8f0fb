"""torch.hub from a local checkout: encoders bare, exported and imported, and mistakes named."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stec.core.checkpoints import export_weights
from stec.vision.encoders import ResNet, resnet18, resnet50, torchvision_state_dict

CHECKOUT = Path(__file__).resolve().parents[1]


def load(entry: str, **options: Any) -> ResNet:
    return torch.hub.load(str(CHECKOUT), entry, source="local", **options)  # type: ignore[no-untyped-call]


def test_the_entry_points_and_what_they_need() -> None:
    spec = importlib.util.spec_from_file_location("hubconf", CHECKOUT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    public = {name for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
    assert public == {"encoder", "resnet18", "resnet50"}  # what torch.hub lists
    assert all(importlib.util.find_spec(name) for name in module.dependencies)


def test_bare_encoders() -> None:
    assert load("resnet18", stem="cifar", width=4).conv1.kernel_size == (3, 3)
    assert load("resnet50", stem="imagenet", width=4).feature_dim == 128
    assert load("resnet18", stem="stl").feature_dim == 512


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["cifar", "stl", "imagenet"])
def test_an_exported_folder_or_file(arch: str, stem: Any, tmp_path: Path) -> None:
    network = {"resnet18": resnet18, "resnet50": resnet50}[arch](stem, width=8)
    network(torch.rand(4, 3, 40, 40))  # BatchNorm's statistics
    network.eval()
    metadata = {"arch": arch, "stem": stem, "width": "8"}
    export_weights(torchvision_state_dict(network), tmp_path / "encoder.safetensors", metadata=metadata)
    x = torch.rand(2, 3, 40, 40)
    for weights in (tmp_path, tmp_path / "encoder.safetensors"):
        found = load("encoder", weights=str(weights))
        assert not found.training
        with torch.no_grad():
            assert torch.equal(found(x), network(x))


def test_half_precision_is_taken_as_float32(tmp_path: Path) -> None:
    network = resnet18("cifar", width=4).half()
    metadata = {"arch": "resnet18", "stem": "cifar", "width": "4"}
    export_weights(torchvision_state_dict(network), tmp_path / "encoder.safetensors", metadata=metadata)
    found = load("encoder", weights=str(tmp_path))
    assert found.conv1.weight.dtype == torch.float32
    assert torch.equal(found.conv1.weight, network.conv1.weight.float())


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*encoder.safetensors; recipes.vision.export"):
        load("encoder", weights=str(tmp_path))
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"encoder.safetensors is torn or is no safetensors file"):
        load("encoder", weights=str(tmp_path))
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"encoder.safetensors does not say what it is of"):
        load("encoder", weights=str(tmp_path))
    save_file({"conv1.weight": torch.ones(2)}, path, metadata={"arch": "resnet18", "stem": "cifar", "width": "4"})
    with pytest.raises(ValueError, match=r"says width '4', of which it holds no first convolution"):
        load("encoder", weights=str(tmp_path))
    weights = {"conv1.weight": torch.ones(4, 3, 3, 3)}
    save_file(weights, path, metadata={"arch": "resnet18", "stem": "cifar", "width": "4"})
    with pytest.raises(ValueError, match=r"does not hold the weights that it names: .*another architecture"):
        load("encoder", weights=str(tmp_path))
