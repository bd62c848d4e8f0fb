"""What the documents say of the code is so."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["concept.md", "speech.md", "family.md"])
def test_every_test_that_the_theory_names_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    file, found = "", 0
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)", text):
        file = path or file
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
        found += 1
    assert found > 10


def test_every_file_that_the_documents_link_exists() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "docs/concept.md", "docs/speech.md", "docs/family.md"):
        path = ROOT / document
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{document}: {target}"


EXAMPLES = {
    "resnet18": {"identity", "manipulation", "loss"},
    "CPCEncoder": {"time_sensitive", "time_insensitive", "loss"},
}


@pytest.mark.unchecked
@pytest.mark.parametrize("encoder", EXAMPLES)
def test_the_examples_of_the_readme_run(encoder: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    block = next(block for block in blocks if f"import {encoder}" in block)
    names: dict[str, object] = {}
    exec(block, names)
    terms = names["terms"]
    assert isinstance(terms, dict)
    assert set(terms) == EXAMPLES[encoder]


PLAIN = ["evaluate", "sweep", "collapse", "embed", "finetune", "transfer", "export", "import_official"]


@pytest.mark.parametrize("command", PLAIN)
def test_the_commands_of_the_readme_have_the_options_that_it_names(command: str) -> None:
    arguments = importlib.import_module(f"recipes.vision.{command}").Arguments
    lines = re.findall(rf"^python -m recipes\.vision\.{command} (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        tyro.cli(arguments, args=shlex.split(line, comments=True))
