"""The folder of a run: settings, checkpoints and a lock; what may be written there, and what is there to go on from."""

import atexit
import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.ranks import is_first
from recipes.saving import checkpoints
from recipes.terminal import say
from stec.core.checkpoints import load_checkpoint
from stec.core.files import only_writer, whole


def plain(value: Any) -> Any:
    """Dictionaries, lists, strings and numbers in place of dataclasses, tuples and paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def check_output(folder: Path) -> None:
    """ValueError where a run cannot write to `folder`, or would overwrite another run."""
    if holds_checkpoints(folder):  # without one there is nothing to lose
        raise ValueError(f"{folder} holds a run already; go on with --resume {folder}, or choose another --out")
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Make the folder if need be; ValueError where nothing can be written to it.

    What was made here, parents too, goes when the program ends if nothing has come into it: a mistake in the data or
    the settings, which shows later, leaves no empty folder behind.
    """
    made = [path.absolute() for path in (folder, *folder.parents) if not path.exists()]  # the deepest first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable"):  # its own: others may try at the same time
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another --out") from error
    finally:
        if made:
            atexit.register(_remove_empty, made)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Those that hold something stay, and so do the ones above them."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def make_folder(folder: Path, *, mark: str, own: Sequence[str]) -> None:
    """An empty folder, which one with the file `mark` and nothing but `own` may become.

    ValueError where it holds anything else.
    """
    if folder.exists() and any(folder.iterdir()):
        strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in (mark, *own))
        if not (folder / mark).is_file() or strangers:
            raise ValueError(f"{folder} holds what quickstart did not write ({', '.join(strangers[:3])}); name another")
        for name in own:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / mark).write_text("made by a quickstart, which empties this folder when it runs again\n")


def holds_checkpoints(folder: Path) -> bool:
    """Whether a run of this folder has something to go on from."""
    return any((folder / "checkpoints").glob("*.ckpt"))


def last_checkpoint(folder: Path) -> Path:
    """The last whole checkpoint of a run folder; says which later ones are torn. ValueError where there is none."""
    torn = []
    for path in checkpoints(folder / "checkpoints"):
        try:
            load_checkpoint(path)
        except ValueError as error:
            torn.append(str(error))
        else:
            for complaint in torn:
                say(f"{complaint}; going on from {path.name}")
            return path
    raise ValueError(
        f"{folder} has no readable checkpoint; start again with another --out" + "".join(f"\n{t}" for t in torn)
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in config.json of a run folder. ValueError where the folder holds no run."""
    settings = read_json(folder)
    settings.pop("checkpoint_minutes", None)  # no setting: it changes no number
    return settings


def read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run (no config.json); give the folder that a pretraining run made")
    try:
        settings = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is torn ({str(error)[:200]!r}); the checkpoints are unharmed: remove it, and give the whole "
            "command again, with --go-on"
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is torn or of another version; the checkpoints are unharmed")
    return settings


def write_json(content: Mapping[str, Any], folder: Path) -> None:
    with whole(folder / "config.json") as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in (*folder.glob("*.part"), *folder.glob("checkpoints/*.part"), *folder.glob("logs/*.part")):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """ValueError where another run trains in the folder for 20 seconds more; workers of a killed one end after 5."""
    if not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, doing="training in", patience=20.0):
        yield
