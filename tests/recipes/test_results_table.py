"""The tables that records make: the paper's value beside the right row, and a table for what encoders do elsewhere."""

import dataclasses

import pytest

from recipes.records import Record, Result
from recipes.results.table import outcomes, paper_value
from recipes.vision import presets
from recipes.vision.config import method as config_method

RECORD = Record("SimCLR", "tiny-simclr", "folder", 0, None, "command", "commit", "hardware", "date", [])


@pytest.mark.parametrize(
    ("preset", "method", "value"),
    [
        ("tiny-simclr", "SimCLR", "91.5 ± 0.1"),
        ("small-stec-official", "S-TEC official", "92.0 ± 0.2"),
        ("tiny-stec-star", "S-TEC* exact", "92.6 ± 0.1"),
        ("tiny-moco", "MoCo v2", "90.9 ± 0.2"),
        ("tiny-byol-stec", "BYOL + exact", ""),  # no row of the paper
        ("stl10-resnet18-byol", "BYOL", "91.1 ± 0.2"),
        ("imagenet-resnet50-relic", "ReLIC", "66.2"),
        ("imagenet-resnet50-300ep-stec-star", "S-TEC* exact", "70.2"),
        ("table2-stl10-simsiam-200ep", "SimSiam", "86.32"),
        ("table2-stl10-augself-1000ep", "AugSelf", "90.8 ± 0.2"),
        ("table2-stl10-stec-1000ep", "S-TEC exact", "91.6 ± 0.2"),
        ("quickstart", "S-TEC exact", ""),
    ],
)
def test_the_papers_value_stands_beside_its_row(preset: str, method: str, value: str) -> None:
    assert config_method(presets.preset(preset)) == method
    assert paper_value(dataclasses.replace(RECORD, preset=preset, method=method)) == value


def test_what_an_encoder_does_elsewhere_has_a_table_of_its_own() -> None:
    detected = dataclasses.replace(RECORD, data="voc", stage="detect", method="S-TEC exact")
    found = [
        dataclasses.replace(detected, results=[Result("AP50", 0.5, "fine-tuned"), Result("loss", 0.25, "training")]),
        dataclasses.replace(detected, seed=1, results=[Result("AP50", 0.7, "fine-tuned")]),
        dataclasses.replace(RECORD, data="tiny", stage="transfer", results=[Result("accuracy", 0.305, "logistic")]),
    ]
    assert outcomes(found).splitlines()[:4] == [
        "| method | seeds | voc: AP50, fine-tuned % | voc: loss, training | tiny: logistic % |",
        "|---|---|---|---|---|",
        "| S-TEC exact | 2 | 60.0 ± 14.1 | 0.25 |  |",
        "| SimCLR | 1 |  |  | 30.5 |",
    ]
