"""Speech as it is published: which files a folder holds, and who speaks in them.

Two layouts are known: LibriSpeech's (Panayotov et al. 2015), and any folder of audio files.
"""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

EXTENSIONS = (".flac", ".wav", ".ogg", ".mp3")
# Of the subsets of LibriSpeech as published (Panayotov et al. 2015; openslr.org/12).
UTTERANCES = {
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
}
LAYOUT = "<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac"


class AudioFile(NamedTuple):
    """One utterance that has not been read yet; `speaker` and `chapter` are "" where there is none."""

    path: Path
    utterance: str
    speaker: str
    chapter: str


def find_audio(
    root: Path, *, speaker: Literal["folder", "none"], subsets: Sequence[str] | None = None
) -> list[AudioFile]:
    """The files of `librispeech` where `root` has its layout, else those of `audio_folder`; errors as there.

    `subsets` are LibriSpeech's, so naming one says that the layout must be there. With `speaker` "none" nobody is told
    apart in either layout.
    """
    folder = _existing(root)
    if subsets is None and not _subsets(folder):
        return audio_folder(folder, speaker=speaker)
    files = librispeech(folder, subsets=subsets)
    return files if speaker == "folder" else [file._replace(speaker="") for file in files]


def librispeech(root: Path, *, subsets: Sequence[str] | None = None) -> list[AudioFile]:
    """All utterances of LibriSpeech subsets in the original layout, sorted by their path.

    `root` is the folder LibriSpeech, the folder that holds it, or one subset. A subset may have any name, and its files
    may be WAV, OGG or MP3 instead of FLAC. Raises ValueError where a folder or a named subset is missing, where a
    file's name does not fit its folders, and where `root` (the named subsets, if any) holds audio elsewhere.
    """
    folder = _existing(root)
    found = _subsets(folder)
    if not found:
        held = sorted(entry.name for entry in _folders(folder))
        raise ValueError(
            f"{folder} does not hold LibriSpeech's layout, {LAYOUT}; it holds {_few(held) or 'no folder'}. Name the "
            "folder LibriSpeech, the one above it, or one subset such as train-clean-100 as the archive unpacks it"
        )
    for name in subsets or ():
        if name not in found:
            raise ValueError(f"{folder} has no subset {name!r}; {_nearest(name, found)}")
    chosen = [found[name] for name in sorted(found) if subsets is None or name in subsets]
    files = [file for subset in chosen for file in _utterances(subset)]
    _refuse_doubles(files, "name the subsets to take, or remove one")
    if stray := _strays([folder] if subsets is None else chosen, {file.path.parent for file in files}):
        cure = "move them elsewhere" + (", or name the subsets to take (--subsets)" if subsets is None else "")
        raise ValueError(
            f"{len(stray)} audio files of {folder} do not follow LibriSpeech's layout: {_few(stray)}; {cure}"
        )
    return files


def audio_folder(root: Path, *, speaker: Literal["folder", "none"]) -> list[AudioFile]:
    """All FLAC, WAV, OGG and MP3 files below `root`, at any depth, sorted by their path.

    With `speaker` "folder" the first folder below `root` names the speaker ("" for files in `root` itself); the chapter
    is the file's folder. An utterance is named by its file's stem, or, where two files share one, all by their relative
    paths without extension. Names that begin with a dot are left out; links are followed, each real folder once.
    Raises ValueError where the folder is missing, cannot be read or has no audio, and where two names are the same.
    """
    folder = _existing(root)
    paths = sorted(_walk(folder, set()))
    if not paths:
        raise ValueError(f"{folder} holds no audio; looked at all levels for {', '.join(EXTENSIONS)}")
    relative = [path.relative_to(folder) for path in paths]
    names = [path.stem for path in relative]
    if len(set(names)) < len(names):
        names = [path.with_suffix("").as_posix() for path in relative]
    files = [
        AudioFile(
            path,
            name,
            inner.parts[0] if speaker == "folder" and len(inner.parts) > 1 else "",
            "" if len(inner.parts) == 1 else inner.parent.as_posix(),
        )
        for path, name, inner in zip(paths, names, relative)
    ]
    _refuse_doubles(files, "remove or rename one")
    return files


def download_librispeech(root: Path, subset: str) -> Path:
    """Fetch a subset of LibriSpeech (needs a network) into `root/LibriSpeech/<subset>`, and give that folder.

    Archives have 0.3 to 30 GB and are checked by their SHA-256. Fetches nothing where the folder is there. Raises
    ValueError for an unknown subset, where the download fails, and where the folder has fewer utterances than were
    published, as after an interrupted unpacking.
    """
    from torchaudio.datasets import LIBRISPEECH

    folder = root.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        LIBRISPEECH(folder, subset, download=True)
    except (OSError, RuntimeError) as error:  # no network, a full disk; a wrong checksum
        raise ValueError(
            f"cannot fetch {subset} into {folder} ({error}); look at the network and the disk and try again, "
            "or unpack the archive from openslr.org/12 there"
        ) from error
    unpacked = folder / "LibriSpeech" / subset
    held = sum(file.path.suffix.lower() == ".flac" for file in _in_layout(unpacked))
    if held < UTTERANCES[subset]:
        raise ValueError(
            f"{unpacked} holds {held} of the {UTTERANCES[subset]} utterances of {subset}, as after an interrupted "
            f"download; delete {unpacked} and run it again"
        )
    return unpacked


def _subsets(folder: Path) -> dict[str, Path]:
    """The folders in LibriSpeech's layout that `folder` is, holds, or holds within a folder LibriSpeech."""
    if _is_subset(folder):
        return {folder.resolve().name: folder}
    for above in (folder, folder / "LibriSpeech"):
        if above.is_dir() and (found := {inner.name: inner for inner in _folders(above) if _is_subset(inner)}):
            return found
    return {}


def _is_subset(folder: Path) -> bool:
    return any(file.path.stem.startswith(f"{file.speaker}-{file.chapter}-") for file in _in_layout(folder))


def _utterances(subset: Path) -> list[AudioFile]:
    files = sorted(_in_layout(subset))
    for file in files:
        if not file.utterance.startswith(f"{file.speaker}-{file.chapter}-"):
            raise ValueError(
                f"{file.path} lies in the folders of speaker {file.speaker}, chapter {file.chapter}, which its name "
                f"contradicts; rename the folders or the file so that they fit {LAYOUT}"
            )
    return files


def _in_layout(subset: Path) -> Iterator[AudioFile]:
    """The audio files two folders below `subset`, whatever their names."""
    for speaker in _folders(subset):
        for chapter in _folders(speaker):
            for entry in _entries(chapter):
                if entry.name.lower().endswith(EXTENSIONS):
                    path = Path(entry.path)
                    yield AudioFile(path, path.stem, speaker.name, chapter.name)


def _strays(roots: Sequence[Path], chapters: set[Path]) -> list[str]:
    """The audio files below `roots` that do not lie in one of `chapters` itself."""
    seen = {_identity(chapter) for chapter in chapters}
    below = [inner for chapter in sorted(chapters) for inner in _folders(chapter)]
    return sorted(str(path) for folder in (*roots, *below) for path in _walk(folder, seen))


def _folders(folder: Path) -> Iterator[Path]:
    return (Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder but for hidden names, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except PermissionError as error:
        raise ValueError(f"{folder} cannot be read; change its permissions, or leave it out") from error


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """All audio files below a folder; real folders in `seen` are passed over, so a loop of links ends."""
    identity = _identity(folder)
    if identity in seen:
        return
    seen.add(identity)
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(Path(entry.path), seen)
        elif entry.name.lower().endswith(EXTENSIONS):
            yield Path(entry.path)  # also a link to nothing: it is named when decoded, not passed over


def _identity(folder: Path) -> tuple[int, int]:
    """What is the same for all links to a folder."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _existing(root: Path) -> Path:
    """`root` with ~ expanded; ValueError where it is no folder, with the nearest name beside it."""
    folder = root.expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{folder} is a file; name the folder that holds the audio")
    above = next(parent for parent in folder.absolute().parents if parent.is_dir())
    wanted = folder.absolute().relative_to(above).parts[0]
    raise ValueError(f"{folder} does not exist; in {above}, {_nearest(wanted, [e.name for e in _folders(above)])}")


def _nearest(name: str, names: Iterable[str]) -> str:
    """The sentence that says what is there instead of `name`."""
    names = sorted(names)
    if near := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
        return f"the nearest to {name!r}: {', '.join(near)}"
    return f"there is {_few(names) or 'no folder'}"


def _refuse_doubles(files: Sequence[AudioFile], cure: str) -> None:
    counts = Counter(file.utterance for file in files)
    if double := next((name for name, count in counts.items() if count > 1), None):
        first, second = [file.path for file in files if file.utterance == double][:2]
        raise ValueError(f"{first} and {second} are both named {double}; {cure}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
