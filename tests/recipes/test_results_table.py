"""The tables that records make: the paper's value beside the right row, and a table for what encoders do elsewhere."""

import dataclasses
from pathlib import Path

import pytest

from recipes.records import Record, Result, merge, read
from recipes.results.differences import additions, paired
from recipes.results.published import paper_value, published_speech
from recipes.results.short import short
from recipes.results.table import BEGIN, END, HERE, SHORT, filled, main, markdown, outcomes, speech
from recipes.vision import presets
from recipes.vision.config import method as config_method

ROOT = Path(__file__).parents[2]
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
    first = preset.split("-")[0]
    data = {"tiny": "cifar10", "small": "cifar10", "table2": "stl10"}.get(first, first)
    record = dataclasses.replace(RECORD, preset=preset, method=method)
    assert paper_value(dataclasses.replace(record, data=data)) == value
    for other in ("folder", "rendered", "tiny-imagenet"):
        assert paper_value(dataclasses.replace(record, data=other)) == ""


def test_without_a_value_of_the_paper_there_is_no_column_for_it() -> None:
    own = dataclasses.replace(RECORD, results=[Result("accuracy", 0.5, "linear")])
    assert "paper" not in markdown([own])
    theirs = dataclasses.replace(own, data="cifar10", method="SimCLR")
    assert "| paper, linear % |" in markdown([theirs])
    assert "| 91.5 ± 0.1 |" in markdown([theirs])


@pytest.mark.parametrize(
    ("metric", "details", "is_theirs"),
    [
        ("phone accuracy", {"phones": 41, "train": 22_800, "test": 5_700}, True),
        ("phone accuracy", {"phones": 41, "train": 237, "test": 59}, False),
        ("phone accuracy", {"phones": 40, "train": 22_800, "test": 5_700}, False),
        ("phone accuracy", {"train": 22_800, "test": 5_700}, False),  # of records that do not say
        ("speaker accuracy", {"speakers": 251, "utterances": 28_539}, True),
        ("speaker accuracy", {"speakers": 3, "utterances": 28_539}, False),
        ("speaker accuracy", {"speakers": 251, "utterances": 132_553}, False),  # another set
    ],
)
def test_published_speech_stands_beside_its_task_alone(
    metric: str, details: dict[str, object], is_theirs: bool
) -> None:
    found = [dataclasses.replace(RECORD, results=[Result(metric, 0.5, "linear", {"layer": "context", **details})])]
    assert ("65.1" in published_speech(found)) == is_theirs
    assert ("Oord et al." in speech(found)) == is_theirs


def test_speech_has_its_differences_below() -> None:
    """Paired by seed, of the context alone: 2, 4 and 6 points of phones, 10 of speakers on the seed that both have."""

    def of(method: str, seed: int, **values: float) -> Record:
        found = [
            Result("phone accuracy", values["phones"], "linear", {"layer": "context", "offset": "+0"}),
            Result("phone accuracy", 0.9, "linear", {"layer": "latents", "offset": "+0"}),
            Result("phone accuracy", 0.8, "linear", {"layer": "context", "offset": "+4"}),
            *(
                [Result("speaker accuracy", values["frame"], "frame", {"layer": "context"})]
                if "frame" in values
                else []
            ),
        ]
        return dataclasses.replace(RECORD, method=method, preset=method, seed=seed, results=found)

    found = [of("untrained", 0, phones=0.1), of("MFCC", 0, phones=0.1), of("CPC", 0, phones=0.5, frame=0.2)]
    found += [of("CPC", 1, phones=0.4), of("CPC", 2, phones=0.3), of("supervised", 0, phones=0.9)]
    found += [of("CPC + switch", seed, phones=value, frame=0.3) for seed, value in enumerate((0.52, 0.44, 0.36))]
    text = speech(found)
    assert "accuracy less that of CPC, points" in text
    assert "| method | common seeds | phones | speakers, by frame |" in text
    assert text.count("| CPC + switch | 3 | +4.0 [-1.0,+9.0] | +10.0 |") == 1
    assert "| supervised | 1 | 90.0" in text  # in the first table alone
    assert text.count("| supervised") == 1
    assert "less that of" not in speech([r for r in found if r.method != "CPC + switch"])


def of_seeds(method: str, values: dict[int, float]) -> list[Record]:
    return [
        dataclasses.replace(RECORD, method=method, preset=method, seed=seed, results=[Result("accuracy", v, "linear")])
        for seed, v in values.items()
    ]


def test_differences_are_paired_by_seed() -> None:
    """By hand: 10, 14 and 12 points on common seeds, mean 12, t(0.975, 2) * 2 / sqrt(3) = 4.97 to each side."""
    found = [
        *of_seeds("SimCLR", {0: 0.5, 1: 0.2, 2: 0.6}),
        *of_seeds("raw pixels", {0: 0.1, 1: 0.1}),
        *of_seeds("S-TEC", {1: 0.34, 0: 0.6, 2: 0.72}),
        *of_seeds("VICReg", {1: 0.34, 0: 0.6}),
        *of_seeds("BYOL", {2: 0.5}),
        *of_seeds("MoCo", {7: 0.8}),
    ]
    title, header, rows = paired(found)
    assert "less that of SimCLR" in title
    assert "95 % interval" in title
    assert header == ["method", "common seeds", "linear"]
    several = [["S-TEC", "3", "+12.0 [+7.0,+17.0]"], ["VICReg", "2", "+12.0"]]  # of two an interval tells nothing
    assert rows == [*several, ["BYOL", "1", "-10.0"], ["MoCo", "0", ""]]
    near = [*of_seeds("A", {0: 0.5}), *of_seeds("B", {0: 0.4998})]
    assert paired(near)[2] == [["B", "1", "+0.0"]]  # and no -0.0
    assert paired(found[:5])[2] == []  # nothing to compare with


def with_actions(method: str, values: dict[int, float], **settings: object) -> list[Record]:
    settings = {"lambda_manip": 0.0, "action": "exact", "manipulation": "binned", "lr": 0.1, **settings}
    return [
        dataclasses.replace(r, settings={**settings, "preset": method, "seed": r.seed, "root": f"/{r.seed}"})
        for r in of_seeds(method, values)
    ]


def test_what_actions_add_is_paired_by_seed_and_identity_model() -> None:
    """By hand: SimCLR +2, +4, +6 (mean 4, t * 2 / sqrt(3) = 4.97); BYOL +1, +1 on two seeds; their mean 1.5 and 2.5."""
    simclr = with_actions("SimCLR", {0: 0.5, 1: 0.4}, identity="simclr")
    simclr += with_actions("SimCLR", {2: 0.3}, identity="simclr", added_since="at its default")
    byol = with_actions("BYOL", {0: 0.3, 1: 0.2}, identity="byol")
    found = [
        *simclr,
        *with_actions("S-TEC exact", {2: 0.36, 1: 0.44, 0: 0.52}, identity="simclr", lambda_manip=2.0),
        *with_actions("S-TEC official", {0: 0.4}, identity="simclr", lambda_manip=3.0, action="official", bins=10),
        *with_actions("BYOL + exact", {0: 0.31, 1: 0.21, 3: 0.9}, identity="byol", lambda_manip=1.0),
        *with_actions("VICReg + exact", {0: 0.9}, identity="vicreg", lambda_manip=1.0),  # without its like
        *byol,
        *with_actions("SimCLR, slow", {0: 0.1}, identity="simclr", lr=0.01),  # like nothing that has actions
        *with_actions("raw pixels", {0: 0.1}, identity="simclr"),
    ]
    title, header, rows = additions(found)
    assert "what actions add" in title
    assert header == ["method", "common seeds", "linear"]
    assert rows == [
        ["S-TEC exact", "3", "+4.0 [-1.0,+9.0]"],
        ["S-TEC official", "1", "-10.0"],
        ["BYOL + exact", "2", "+1.0"],
        ["mean of the 2 with exact actions", "2", "+2.0"],
    ]
    assert "what actions add to accuracy" in markdown(found, additions(found))
    both_rates = [*found, *with_actions("S-TEC exact, slow", {0: 0.2}, identity="simclr", lambda_manip=2.0, lr=0.01)]
    assert ["S-TEC exact, slow", "1", "+10.0"] in additions(both_rates)[2]
    assert not any("mean of" in row[0] for row in additions(both_rates)[2])  # SimCLR would count twice
    assert additions([*simclr, *byol]) == ("", [], [])
    assert additions(of_seeds("A", {0: 0.5})) == ("", [], [])  # records without settings
    assert markdown(simclr, additions(simclr)) == markdown(simclr)


def test_the_documents_hold_the_tables_of_the_records() -> None:
    """`make docs` was run since the records changed; and the README shows a few rows alone."""
    for name in ("README.md", "docs/results.md"):
        text = (ROOT / name).read_text()
        assert filled(text, HERE) == text, f"{name} is out of date: make docs"
    readme = (ROOT / "README.md").read_text()
    assert 10 <= sum(line.startswith("| ") for line in readme.split(SHORT[0])[1].split(SHORT[1])[0].splitlines()) <= 16
    assert len(readme.splitlines()) < 300


def test_the_best_of_the_family_is_chosen_by_its_linear_mean() -> None:
    spoken = dataclasses.replace(RECORD, results=[Result("phone accuracy", 0.5, "linear", {"layer": "context"})])
    image = [*of_seeds("SimCLR", {0: 0.99}), *of_seeds("A", {0: 0.9, 1: 0.1}), *of_seeds("B", {0: 0.6, 1: 0.6})]
    text = short({"cifar10-jpeg-tiny": image, "speech-synthetic-small": [spoken]})
    assert "| B, highest linear mean of the others | 2 | 60.0 ± 0.0 |" in text
    assert "| A" not in text
    with pytest.raises(ValueError, match=r"no speech-synthetic-small\.json among the records; give --results"):
        short({"cifar10-jpeg-tiny": image})


def test_the_command_writes_each_file_as_its_marks_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, few, none = (tmp_path / f"{name}.md" for name in ("full", "few", "none"))
    full.write_text(f"a\n{BEGIN}\nof before\n{END}\nb\n")
    few.write_text(f"a\n{SHORT[0]}\nof before\n{SHORT[1]}\nb\n")
    none.write_text("a\n")
    monkeypatch.setattr("sys.argv", ["table", "--write", str(full), str(few)])
    main()
    assert "## speed-peers-two-cores" in full.read_text()
    assert "highest linear mean of the others" in few.read_text()
    assert "## " not in few.read_text()
    for path in (full, few):
        assert path.read_text().startswith("a\n<!--")
        assert path.read_text().endswith("-->\nb\n")
        assert "of before" not in path.read_text()
    monkeypatch.setattr("sys.argv", ["table", "--write", str(none)])
    with pytest.raises(ValueError, match="the file needs the lines"):
        main()


def test_what_an_encoder_does_elsewhere_has_a_table_of_its_own() -> None:
    detected = dataclasses.replace(RECORD, data="voc", stage="detect", method="S-TEC exact")
    found = [
        dataclasses.replace(detected, results=[Result("AP50", 0.5, "fine-tuned"), Result("loss", 0.25, "training")]),
        dataclasses.replace(detected, seed=1, results=[Result("AP50", 0.7, "fine-tuned")]),
        dataclasses.replace(RECORD, data="tiny", stage="transfer", results=[Result("accuracy", 0.305, "logistic")]),
    ]
    assert outcomes(found).splitlines()[:4] == [
        "| method | seeds (mean ± SD) | voc: AP50, fine-tuned % | voc: loss, training | tiny: logistic % |",
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


def test_encoders_of_several_presets_have_a_row_each_elsewhere() -> None:
    def of(name: str, value: float, share: float) -> Record:
        found = [Result("accuracy", value, f"{share:.0%} of the labels")]
        return dataclasses.replace(RECORD, preset=name, stage="finetune", results=found, settings={"share": share})

    text = outcomes([of("tiny-stec", 0.2, 0.01), of("small-stec", 0.9, 0.01), of("tiny-stec", 0.4, 0.1)])
    assert "| SimCLR (tiny-stec) | 1 | 20.0 | 40.0 |" in text
    assert "| SimCLR (small-stec) | 1 | 90.0 |  |" in text


def test_numbers_of_another_seed_or_preset_stand_beside_each_other(tmp_path: Path) -> None:
    """As after `evaluate --out all.json` of four runs; raw pixels, which each brings along, count once for a seed."""
    path = tmp_path / "all.json"
    for i, (seed, name) in enumerate([(0, "tiny-simclr"), (1, "tiny-simclr"), (0, "tiny-byol"), (1, "tiny-byol")]):
        own = dataclasses.replace(RECORD, preset=name, method=name, seed=seed)
        pixels = dataclasses.replace(own, method="raw pixels", results=[Result("accuracy", 0.1 * (i + 1), "knn")])
        merge([pixels, dataclasses.replace(own, results=[Result("accuracy", 0.5, "knn")])], path)
        merge([dataclasses.replace(pixels, results=[Result("accuracy", 0.3, "linear")])], path)
    table = markdown(read(path)).splitlines()
    assert "| raw pixels | 2 | 30.0 ± 0.0 |  | 15.0 ± 7.1 |  |" in table
    assert sum(line.startswith(("| tiny-simclr | 2 |", "| tiny-byol | 2 |")) for line in table) == 2
