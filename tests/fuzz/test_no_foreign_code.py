"""Nothing in stec and recipes loads a pickle of unknown origin, evaluates text or calls a shell."""

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torchvision

from stec.vision.data import cifar10

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted(ROOT.glob("stec/**/*.py")), *sorted(ROOT.glob("recipes/**/*.py")), ROOT / "hubconf.py"]
NEVER = {
    "eval", "exec", "compile", "marshal.load", "marshal.loads", "shelve.open",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load",
    "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "yaml.load",
    "yaml.unsafe_load", "os.system", "os.popen", "subprocess.getoutput", "pandas.read_pickle", "torch.jit.load",
    "torch.hub.load", "torch.package.PackageImporter", "runpy.run_path", "numpy.lib.format.read_array",
}  # fmt: skip
NEEDED = {"torch.load": ("weights_only", True)}  # argument, and the one value that it may have
REFUSED = {"numpy.load": ("allow_pickle", False), "subprocess.*": ("shell", False)}  # where it is given at all


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a module, under the full name of what is called, whatever it was imported as."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            first, dot, rest = written.partition(".")
            yield f"{names.get(first, first)}{dot}{rest}", node


def faults(source: str) -> list[str]:
    """The calls of a module that could run what a stranger wrote."""
    found = []
    for name, call in calls(ast.parse(source)):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if name in NEVER:
            found.append(name)
        if name in NEEDED:
            argument, value = NEEDED[name]
            word = given.get(argument)
            if not (isinstance(word, ast.Constant) and word.value is value):
                found.append(f"{name} without {argument}={value}")
        for pattern, (argument, value) in REFUSED.items():
            if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
                word = given.get(argument)
                if word is not None and not (isinstance(word, ast.Constant) and word.value is value):
                    found.append(f"{name} with {argument}")
    return found


def test_no_module_loads_pickles_evaluates_text_or_calls_a_shell() -> None:
    assert len(SOURCES) > 80
    wrong = {str(path.relative_to(ROOT)): found for path in SOURCES if (found := faults(path.read_text()))}
    assert wrong == {}


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p)",
        "import torch as t\nt.load(p, weights_only=False)",
        "from torch import load as fetch\nfetch(p, weights_only=flag)",
        "import pickle\npickle.load(f)",
        "from pickle import loads\nloads(b)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import subprocess\nsubprocess.run(c, shell=True)",
        "import yaml\nyaml.load(t)",
        "eval(t)",
        "import joblib\njoblib.load(p)",
    ],
)
def test_each_of_them_would_be_seen(source: str) -> None:
    assert len(faults(source)) == 1


def test_what_is_allowed_is_not_reported() -> None:
    assert faults("import torch, re\ntorch.load(p, weights_only=True)\nnet.eval()\nre.compile(t)") == []


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (str(self.folder),)


def test_cifars_pickles_are_known_before_they_are_read(tmp_path: Path) -> None:
    """torchvision unpickles CIFAR's batches, after it has compared each with the checksum of the published file."""
    kind = torchvision.datasets.CIFAR10
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    for name in [*(name for name, _ in (*kind.train_list, *kind.test_list)), kind.meta["filename"]]:
        (folder / name).write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(ValueError, match="does not match its checksums"):
        cifar10(tmp_path, train=True)
    assert not (tmp_path / "ran").exists()
    for other in (kind, torchvision.datasets.CIFAR100):  # no file that is read goes without a checksum
        assert all(len(checksum) == 32 for _, checksum in (*other.train_list, *other.test_list))
        assert len(other.meta["md5"]) == 32
