"""JSON of others: records of results and the tables made of them, the index of a prepared corpus, settings of runs."""

import dataclasses
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from mutations import TEXT, Target, check, mutated, refusing

from recipes import records
from recipes.audio import run as audio_run
from recipes.audio.presets import preset as audio_preset
from recipes.results import table
from recipes.vision import run as vision_run
from recipes.vision.axes import parse_grid
from recipes.vision.presets import preset as vision_preset
from stec.audio.corpus import Corpus
from stec.vision.data import stl10_fold

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**400,
    2**63,
    -(2**63),
    float("nan"),
    float("inf"),
    -float("inf"),
    1e308,
    "",
    "a|b",
    "1",
    "\x1b[2J",
    "[/bold]",
    "a\nb",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "\ud800",
    "x" * 3000,
    [],
    {},
    [[]],
    [{}],
    {"a": []},
    ["a"],
    [1],
    {"metric": "accuracy"},
    "<!-- results: end -->",
    "<script>",
    "`",
    "\u202e",
)


def scattered(value: Any, random: Random) -> Any:
    """A JSON value with one of its inner values replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(sorted(value))
        way = random.random()
        if way < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if way < 0.2:
            return {**value, random.choice(("a", "", "__class__", "self")): random.choice(VALUES)}
        return {**value, key: scattered(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        way = random.random()
        if way < 0.1:
            return value[:at] + value[at + 1 :]
        if way < 0.2:
            return [*value, value[at]]
        return [*value[:at], scattered(value[at], random), *value[at + 1 :]]
    return random.choice(VALUES)


def broken(value: Any, random: Random) -> bytes:
    """As JSON, with other values, other bytes, or nested as nobody nests."""
    for _ in range(random.choice((0, 1, 1, 2))):
        value = scattered(value, random)
    data = json.dumps(value).encode()
    way = random.random()
    if way < 0.02:
        return b"[" * 100_000 + data
    return mutated(data, random, TEXT) if way < 0.4 else data


def record(random: Random) -> bytes:
    """Records of a run, as `recipes.records.write` writes them."""
    stage = random.choice(("evaluate", "bench", "transfer", "phones", "detect"))
    metric = random.choice(("accuracy", "phone accuracy", "speaker accuracy", "AP50", "manipulation minus chance"))
    result = {"metric": metric, "value": 0.5, "protocol": "linear", "details": {"train": 10, "layer": "context"}}
    one = {
        "method": "SimCLR", "preset": "small-simclr", "data": "cifar10", "seed": 0, "seconds": 1.5,
        "command": "python -m recipes.vision.evaluate", "commit": "abc", "hardware": "CPU", "date": "2026-01-01",
        "results": [result, {**result, "protocol": "knn"}], "settings": {"width": 64}, "stage": stage,
    }  # fmt: skip
    return broken([one, {**one, "seed": 1}], random)


def read_record(data: bytes, folder: Path) -> None:
    path = folder / "results.json"
    path.write_bytes(data)
    with refusing(path):
        found = records.read(path)
        text = table.render(path)
        assert all(c.isprintable() or c == "\n" for c in text)
        width = {}
        for line in text.split("\n"):  # a name cannot add a column or a row
            if line.startswith("|"):
                cells = line.replace("\\|", "").count("|")
                assert width.setdefault("columns", cells) == cells
            elif line.startswith("## "):
                width.clear()
        assert table.END not in text
        records.write(found, folder / "again.json")


def index(random: Random) -> bytes:
    """The index of a corpus of two utterances."""
    one = {
        "version": 1, "rate": 16_000, "samples_file": "samples-0123456789abcdef.int16", "samples_total": 30,
        "utterance": ["1-1-0", "1-1-1"], "speaker": ["1", "1"], "chapter": ["1", "1"], "file": ["a.flac", "b.flac"],
        "size": [1, 2], "mtime_ns": [1, 2], "start": [0, 10], "samples": [10, 20], "crc": [3, 4], "left_out": [],
    }  # fmt: skip
    return broken(one, random)


def read_index(data: bytes, folder: Path) -> None:
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    np.arange(30, dtype="<i2").tofile(cache / "samples-0123456789abcdef.int16")
    np.arange(30, dtype="<i2").tofile(folder / "elsewhere.int16")
    (cache / "index.json").write_bytes(data)
    with refusing(cache):
        corpus = Corpus.open(cache)
        assert Path(str(corpus.samples.filename)).parent.resolve() == cache.resolve()
        assert corpus.hours > 0
        for i, name in enumerate(corpus.utterances):
            assert corpus.index(name) == i
            assert len(corpus.waveform(i)) == int(corpus.lengths[i])
    with refusing(cache):
        Corpus.open(cache, verify=True)


def grid(random: Random) -> bytes:
    """The axes of a sweep."""
    words = (
        "bins=4,6",
        "lambda_manip=0,0.2",
        "action=exact,official",
        "momentum=none,0.99",
        "lr=1e-3",
        "scale=0.2:1,0.3:1",
    )
    return mutated("\n".join(random.sample(words, random.randrange(1, 4))).encode(), random, TEXT)


def read_grid(data: bytes, folder: Path) -> None:
    with refusing(None):
        for values in parse_grid(data.decode("utf-8", "replace").split("\n")).values():
            assert all(not isinstance(value, float) or math.isfinite(value) for value in values)


def folds(random: Random) -> bytes:
    """Ten folds of four images."""
    lines = [" ".join(str(random.randrange(40)) for _ in range(4)) for _ in range(10)]
    return mutated("\n".join(lines).encode(), random, TEXT)


def read_folds(data: bytes, folder: Path) -> None:
    path = folder / "fold_indices.txt"
    path.write_bytes(data)
    with refusing(path):
        chosen = stl10_fold(path, 3, images=40)
        assert 0 <= int(chosen.min()) <= int(chosen.max()) < 40


def run_settings(random: Random) -> bytes:
    """The config.json of a run on images or on speech."""
    here = random.choice((vision_run.to_plain(vision_preset("tiny-stec")), audio_run.to_plain(audio_preset("cpc"))))
    return broken({**here, "checkpoint_minutes": 15.0}, random)


def read_run_settings(data: bytes, folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(data)
    for reader in (vision_run.read_config, audio_run.read_config):
        with refusing(path):
            config = reader(folder)
            for field in dataclasses.fields(config):
                value = getattr(config, field.name)
                assert not isinstance(value, (list, dict)), field.name
                assert not (field.type is float and isinstance(value, str)), field.name


TARGETS = [
    Target("records", record, read_record, guided=True),
    Target("corpus index", index, read_index, guided=True),
    Target("run settings", run_settings, read_run_settings, guided=True),
    Target("grid", grid, read_grid, guided=True),
    Target("STL-10 folds", folds, read_folds, guided=True),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_broken_records_are_read_or_refused_with_their_name(target: Target, tmp_path: Path) -> None:
    check(target, tmp_path, examples=100)
