"""Settings that were written down: the types of every preset, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from recipes.audio import presets as audio
from recipes.settings import fits, typed
from recipes.vision import presets as vision
from recipes.vision.run import from_plain, to_plain

FILE = Path("runs/a/config.json")


@dataclasses.dataclass(frozen=True)
class Law:
    scale: tuple[float, float]
    size: int | None
    kind: Literal["a", "b"] = "a"
    hidden: int | tuple[int, ...] = 3


@pytest.mark.parametrize("settings", [{"scale": [0.1, 1], "size": None}, {"scale": [0, 1], "size": 3, "hidden": []}])
def test_lists_become_tuples_and_defaults_stand(settings: dict[str, Any]) -> None:
    law = typed(Law, json.loads(json.dumps(settings)), source=FILE)
    assert law == Law(tuple(settings["scale"]), settings["size"], hidden=() if "hidden" in settings else 3)
    assert type(law.scale) is tuple


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": [0.1], "size": 1}, r"has \[0\.1\] for scale"),
        ({"scale": [0.1, "x"], "size": 1}, "for scale"),
        ({"scale": [0.1, 1.0], "size": 1.0}, "has 1.0 for size"),
        ({"scale": [0.1, 1.0], "size": True}, "has True for size"),
        ({"scale": [0.1, 1.0], "size": 1, "kind": "c"}, "has 'c' for kind"),
        ({"scale": [0.1, 1.0], "size": 1, "kind": ["a"]}, "for kind"),
        ({"scale": [0.1, 1.0], "size": 1, "hidden": [1.5]}, "for hidden"),
        ({"scale": [0.1, 1.0], "size": 1, "hue": 1}, "has hue, no setting of Law"),
        ({"scale": [0.1, 1.0]}, "does not have size"),
        ({"scale": [0.1, 1.0], "hue": 1}, "has hue and lacks size: it is another file, or of another version"),
    ],
)
def test_what_is_refused_names_file_and_field(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        typed(Law, settings, source=FILE)
    assert str(raised.value).startswith(str(FILE))


@pytest.mark.parametrize("name", [*vision.PRESETS, *audio.PRESETS])
def test_every_preset_is_of_the_types_that_it_names(name: str) -> None:
    config = vision.preset(name) if name in vision.PRESETS else audio.preset(name)
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    assert typed(type(config), settings, source=FILE) == config


def test_a_setting_of_another_type_names_the_file() -> None:
    settings = json.loads(json.dumps(to_plain(vision.preset("tiny-stec"))))
    with pytest.raises(ValueError, match=r"config\.json has 'many' for epochs"):
        from_plain({**settings, "epochs": "many"}, None, source=FILE)
    with pytest.raises(ValueError, match=r"config\.json holds no settings of images"):
        from_plain([], None, source=FILE)


def test_numbers_of_settings() -> None:
    assert fits(1, float)
    assert not fits("1", float)
    assert not fits(True, float)
    assert not fits(1, bool)
