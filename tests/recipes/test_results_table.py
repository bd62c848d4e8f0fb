"""The tables that records make: the paper's value beside the right row, and a table for what encoders do elsewhere."""

import dataclasses
from pathlib import Path

import pytest

from recipes.records import Record, Result, merge, read
from recipes.results.published import paper_value
from recipes.results.table import markdown, outcomes
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


def test_presets_of_one_method_have_rows_of_their_own() -> None:
    def of(preset: str, value: float, **settings: object) -> Record:
        found = [Result("accuracy", value, "linear")]
        return dataclasses.replace(RECORD, preset=preset, settings=dict(settings), results=found)

    lines = markdown([of("small-simclr", 0.5), of("tiny-simclr", 0.7)]).splitlines()
    assert lines[2].startswith("| SimCLR (small-simclr) | 1 | 50.0 |")
    assert lines[3].startswith("| SimCLR (tiny-simclr) | 1 | 70.0 |")
    with pytest.raises(ValueError, match="runs of SimCLR differ in epochs"):
        markdown([of("tiny-simclr", 0.5, epochs=1), of("tiny-simclr", 0.7, epochs=2)])


def test_a_number_that_is_measured_again_replaces_itself_alone(tmp_path: Path) -> None:
    def of(protocol: str, value: float, **changes: object) -> Record:
        found = [Result("accuracy", value, protocol)]
        return dataclasses.replace(RECORD, results=found, **changes)  # type: ignore[arg-type]

    path = tmp_path / "results.json"
    both = dataclasses.replace(RECORD, results=[*of("linear", 0.5).results, *of("knn", 0.4).results])
    merge([both, of("linear", 0.1, method="raw pixels")], path)
    merge([of("online", 0.3)], path)
    merge([of("linear", 0.6, commit="later")], path)
    merge([of("linear", 0.7, data="other")], path)
    merge([of("linear", 0.8, stage="pretrain")], path)
    found = {(r.method, r.data, r.stage, x.protocol): (x.value, r.commit) for r in read(path) for x in r.results}
    plain = ("SimCLR", "folder", "evaluate")
    assert found == {
        (*plain, "knn"): (0.4, "commit"),
        ("raw pixels", "folder", "evaluate", "linear"): (0.1, "commit"),
        (*plain, "online"): (0.3, "commit"),
        (*plain, "linear"): (0.6, "later"),
        ("SimCLR", "other", "evaluate", "linear"): (0.7, "commit"),
        ("SimCLR", "folder", "pretrain", "linear"): (0.8, "commit"),
    }
