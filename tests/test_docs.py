"""What the documents say of the code is so."""

import importlib
import logging
import math
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import tyro

from stec.core.probe import logistic_accuracy

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
    for document in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/concept.md",
        "docs/speech.md",
        "docs/family.md",
        "docs/your-modality.md",
    ):
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


def test_the_page_on_a_new_modality_trains_one(capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints and says is so; its blocks are one program."""
    page = (ROOT / "docs" / "your-modality.md").read_text()
    level = logging.getLogger("lightning.pytorch").level
    names: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            exec("".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)), names)
    finally:
        logging.getLogger("lightning.pytorch").setLevel(level)
    shown = capsys.readouterr()
    told = re.search(r"`manipulation minus chance: (\S+) nats; rhythms: (\d+) %`.* regression gets (\d+) %", page)
    assert told is not None
    gap, rhythms, raw = map(float, told.groups())
    found = float(names["manipulation"] - names["chance"])
    assert found < -0.5
    assert found == pytest.approx(gap, abs=0.15)
    assert 100 * names["rhythms"] == pytest.approx(rhythms, abs=2)
    assert float(names["chance"]) == pytest.approx(math.log(6), abs=1e-3)
    (train, labels), (test, truth) = names["train"], names["test"]
    assert 100 * logistic_accuracy(train[:, 64:320], labels, test[:, 64:320], truth).accuracy == pytest.approx(
        raw, abs=3
    )
    assert f"{found:.1f} nats" in shown.out
    assert set(names["learner"].last) == {"identity", "manipulation", "loss"}
    assert "litlogger" not in shown.out + shown.err
    assert "GPU" not in shown.out + shown.err


PLAIN = ["evaluate", "sweep", "collapse", "embed", "pairs", "finetune", "transfer", "export", "import_official"]


@pytest.mark.parametrize("command", PLAIN)
def test_the_commands_of_the_readme_have_the_options_that_it_names(command: str) -> None:
    arguments = importlib.import_module(f"recipes.vision.{command}").Arguments
    lines = re.findall(rf"^python -m recipes\.vision\.{command} (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        tyro.cli(arguments, args=shlex.split(line, comments=True))
