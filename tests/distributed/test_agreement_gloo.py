"""Processes that go on from different steps say so, all of them, before they train."""

from pathlib import Path

import torch
from test_gloo import run
from torch import Tensor

from recipes.ranks import Agreement


def what_is_said(rank: int) -> dict[str, list[Tensor]]:
    agreement = Agreement()
    agreement.check_same(7)
    assert agreement.largest([rank, -rank]) == [1, 0]
    try:
        agreement.check_same(3 + rank)
    except ValueError as error:
        said = str(error)
    else:
        said = ""
    return {"said": [torch.tensor([ord(letter) for letter in said])]}


def test_processes_must_go_on_from_the_same_step(tmp_path: Path) -> None:
    for part in run(what_is_said, tmp_path):
        said = "".join(chr(letter) for letter in part["said"][0].tolist())
        assert said.startswith("some processes go on from step 3, others from 4: the run folder must be the same")
