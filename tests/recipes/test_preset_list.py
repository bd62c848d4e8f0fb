"""The list of presets: by purpose, with the numbers that a newcomer chooses by, and by a word."""

import pytest

from recipes.audio import pretrain as speech
from recipes.audio.presets import PRESETS as SPEECH
from recipes.presets import PURPOSES, listing, purpose
from recipes.vision import pretrain as vision
from recipes.vision.presets import PRESETS


def rows(text: str) -> dict[str, list[str]]:
    """The words of each line by its first one, and titles of groups by themselves."""
    return {line.split()[0] if line.startswith("  ") else line: line.split() for line in text.splitlines() if line}


def test_presets_stand_by_purpose_own_images_and_small_machines_first() -> None:
    text = listing(PRESETS, vision.line)
    titles = [line.removesuffix(":") for line in text.splitlines() if line.endswith(":")]
    assert titles[:2] == ["your own images", "small machines, minutes"]
    names = [line.split()[0] for line in text.splitlines() if line.startswith("  ")][1:]
    assert sorted(names) == sorted(PRESETS)
    assert names[0] == "folder"
    assert names.index("tiny-stec") < names.index("cifar10-resnet18-stec") < names.index("imagenet-resnet50-stec")
    groups = [list(PURPOSES).index(purpose(name)) for name in names]
    assert groups == sorted(groups)
    assert purpose("small-cpc") == "small machines, minutes"
    assert {purpose(name) for name in PRESETS} <= set(list(PURPOSES)[:-1])  # none is left over


def test_each_line_has_size_batch_and_epochs() -> None:
    of = rows(listing(PRESETS, vision.line))
    assert of["folder"][1:5] == ["96", "px", "256", "200"]
    assert of["tiny-stec"][1:4] == ["own", "64", "25"]
    assert rows(listing(SPEECH, speech.line))["cpc"][1:5] == ["1.28", "s", "64", "675"]


def test_the_header_is_of_what_is_listed() -> None:
    speech_header, images_header = (
        listing(presets, line).splitlines()[0] for presets, line in ((SPEECH, speech.line), (PRESETS, vision.line))
    )
    assert "images" not in speech_header
    assert "data" not in speech_header
    assert speech_header.endswith("method, network (size of a window)")
    assert images_header.endswith("method, network, data (size own: as the images are)")


def test_a_word_chooses_from_names_and_lines() -> None:
    found = [name for name in rows(listing(PRESETS, vision.line, "byol")) if name in PRESETS]
    assert found
    assert all("byol" in name for name in found)
    assert len(found) == sum("byol" in name for name in PRESETS)
    assert "tiny-stec" in rows(listing(PRESETS, vision.line, "S-TEC exact"))
    assert next(name for name in rows(listing(PRESETS, vision.line, "own images")) if name in PRESETS) == "folder"
    with pytest.raises(ValueError, match="'dino' stands in no preset; --list alone shows all"):
        listing(PRESETS, vision.line, "dino")
