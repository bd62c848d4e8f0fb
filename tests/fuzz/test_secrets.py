"""What a run leaves behind names no user, no host and no folder of the machine, but for config.json, which must."""

import dataclasses
import getpass
import platform
import socket
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes import records
from recipes.vision import export
from recipes.vision.presets import preset
from recipes.vision.run import pretrain, record_of

MARK = "qzx4711"  # in every name that must not come out
ROOT, USER, HOST = f"disk-{MARK}", f"user-{MARK}", f"host-{MARK}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps by a user on a host in folders with marked names, its record and its export."""
    home = tmp_path_factory.mktemp("machine") / ROOT / "home" / USER
    data, folder = home / "pictures", home / "runs" / "one"
    for name in ("cat", "dog"):
        (data / name).mkdir(parents=True)
        for i in range(16):
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / name / f"{i}.png")
    config = dataclasses.replace(
        preset("quickstart"),
        data="folder",
        root=data,
        width=4,
        limit=None,
        batch_size=16,
        epochs=2,
        warmup_epochs=1,
        check_every=1,
        precision="32-true",
        projection_hidden=16,
        projection_out=8,
        manipulation_hidden=16,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: HOST)
        patch.setattr(platform, "node", lambda: HOST)
        patch.setattr(getpass, "getuser", lambda: USER)
        for name, value in {"HOME": home, "USER": USER, "LOGNAME": USER, "HOSTNAME": HOST}.items():
            patch.setenv(name, str(value))
        patch.setattr(sys, "argv", ["pretrain", "quickstart", f"--root={data}", "--out", str(folder)])
        patch.chdir(home)
        outcome = pretrain(config, folder, quiet=True)
        results = [records.Result("accuracy", 0.5, "online")]
        records.update([record_of(config, results, seconds=outcome.seconds, stage="pretrain")], folder / "results.json")
        export.export(export.Arguments(outcome.checkpoint, folder / "export"))
    return folder


def says(path: Path) -> bool:
    """Whether a file's name or content, or that of a member of an archive, has the mark."""
    contents = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            contents += [archive.read(name) for name in archive.namelist()]
    return MARK in path.name or any(MARK.encode() in content for content in contents)


def told(run: Path, pattern: str) -> list[str]:
    """The files that say it, of those that fit the pattern, of which there is at least one."""
    files = [path for path in run.rglob(pattern) if path.is_file()]
    assert files
    return sorted(str(path.relative_to(run)) for path in files if says(path))


def test_records_and_exports_which_are_handed_on_say_nothing(run: Path) -> None:
    assert told(run, "results.json") == []
    assert told(run / "export", "*") == []
    assert "quickstart" in (run / "results.json").read_text()


def test_logs_say_nothing_in_their_rows(run: Path) -> None:
    assert told(run, "metrics.csv") == []


def test_config_alone_says_where_the_data_lie(run: Path) -> None:
    """So that --resume needs nothing else; it is for the machine that it was written on."""
    assert told(run, "config.json") == ["config.json"]


def test_checkpoints_say_nothing(run: Path) -> None:
    assert told(run, "*.ckpt") == []


def test_names_of_event_files_say_no_host(run: Path) -> None:
    assert told(run, "*tfevents*") == []


def test_nothing_else_says_anything(run: Path) -> None:
    known = ("config.json", ".ckpt", "tfevents")
    others = [path for path in run.rglob("*") if path.is_file() and not any(name in path.name for name in known)]
    assert [path.name for path in others if says(path)] == []


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", f"{'x' * 1000}{MARK}{'x' * 1000}")
    (tmp_path / MARK).touch()
    (tmp_path / "c").write_text(f"/home/{USER}")
    assert told(tmp_path, "*") == ["a.ckpt", "c", MARK]
