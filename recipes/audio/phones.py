"""Read phones off frozen features: python -m recipes.audio.phones --checkpoint FILE --corpus CACHE --labels FILE
--train-split FILE --test-split FILE.

Labels are in the CPC text format (`<utterance> id id ...`, one every 10 ms), splits name an utterance a line. A linear
head for every layer and offset, and one with a hidden layer for each of --hidden, train in one pass on features that
are extracted once, over whole utterances or (--context windows) window by window. What the splits name and the corpus
or the labels lack is counted and left out; with --strict it is an error. --baselines adds MFCC and the untrained
encoder. Numbers go into the run's results.json, correct frames by utterance into phones.json beside it.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from recipes import records
from recipes.audio import networks, pictures
from recipes.audio.labelled import count_classes
from recipes.audio.measure import (
    Context,
    Counts,
    Frames,
    Layer,
    PhoneProbe,
    encoder_frames,
    majority,
    mfcc_frames,
    probe_phones,
)
from recipes.audio.presets import Config, method
from recipes.audio.run import load_learner, record_of
from recipes.progress import EpochProgress
from recipes.results.published import published_speech
from recipes.run_folder import check_writable
from recipes.terminal import command, say, table
from stec.audio.alignment import CONVENTIONS, Alignment
from stec.audio.corpus import Corpus
from stec.audio.cpc_labels import read_cpc_labels
from stec.audio.encoders import CPCEncoder
from stec.audio.phones import Inventory
from stec.audio.splits import check_splits, overlap_with, read_split, select
from stec.core.heads import PROTOCOLS

COUNTS = "phones.json"  # beside the results: correct frames by method, head and utterance


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to probe, on which speech and labels, how."""

    checkpoint: Path  # a file of a run's checkpoints folder
    corpus: Path  # the cache that recipes.audio.prepare wrote
    labels: Path  # CPC text format
    train_split: Path  # utterances that heads learn on
    test_split: Path  # utterances that count
    layers: tuple[Layer, ...] = ("context", "latents")
    offsets: tuple[int, ...] = (0,)  # frames past the one whose centre is nearest to the label's
    hidden: tuple[int, ...] = ()  # also heads with one hidden layer of so many units
    context: Context = "utterances"  # or "windows" of 1.28 s, each with a context of its own, as Oord et al. have it
    alignment: str = "nearest"  # of frames and labels; or as "cpc_audio", "s3prl", "gim" have it
    protocol: str = "stec"  # how heads train: a name of stec.core.heads.PROTOCOLS
    speakers: bool = False  # also a head for the speaker of every frame, in the same pass; splits must share speakers
    baselines: bool = False  # also MFCC, and the encoder before training
    phones: Path | None = None  # names of the labels in order of their ids, a line each, for pictures
    pictures: Path | None = None  # a folder for pictures: one utterance, confusions, accuracy by offset and layer
    strict: bool = False  # refuse splits that name utterances without audio or labels
    features: Path | None = None  # a folder for features that exceed memory, in memory-mapped files
    seed: int = 0
    out: Path | None = None  # where to write; results.json in the run's folder by default


@dataclasses.dataclass(frozen=True)
class Task:
    """A corpus of the utterances of both splits, with labels that fit."""

    corpus: Corpus
    labels: Mapping[str, np.ndarray]
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: int


def read_task(arguments: Arguments) -> Task:
    """Read and check everything before anything is computed. ValueError names the file, the value and the cure."""
    if arguments.protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {arguments.protocol!r}; there are {', '.join(PROTOCOLS)}")
    if arguments.alignment not in CONVENTIONS:
        raise ValueError(f"no alignment {arguments.alignment!r}; there are {', '.join(CONVENTIONS)}")
    if CONVENTIONS[arguments.alignment].offset is None and arguments.offsets != (0,):
        raise ValueError(f"--alignment {arguments.alignment} aligns ends, which has no --offsets: leave them out")
    if not arguments.offsets or not arguments.layers or any(units < 1 for units in arguments.hidden):
        raise ValueError("give at least one layer and offset, and hidden layers of at least 1 unit")
    if arguments.features:
        check_writable(arguments.features)
    names = Inventory.read(arguments.phones).names if arguments.phones else ()
    corpus = Corpus.open(arguments.corpus)
    labels = read_cpc_labels(arguments.labels, classes=len(names) or None)
    train, test = read_split(arguments.train_split), read_split(arguments.test_split)
    try:
        check_splits(train, test)
    except ValueError as error:
        raise ValueError(f"{arguments.train_split} and {arguments.test_split}: {error}") from error
    chosen = []
    for path, split in ((arguments.train_split, train), (arguments.test_split, test)):
        try:
            selection = select(split, corpus=corpus.utterances, labels=labels)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        chosen.append(selection)
        if selection.without_audio or selection.without_labels:
            if arguments.strict:
                raise ValueError(f"{path}: {selection}; complete {arguments.corpus} and {arguments.labels}")
            say(f"{path.name}: {selection}, left out")
    corpus = corpus.subset([*chosen[0].names, *chosen[1].names])
    for i, name in enumerate(corpus.utterances):
        Alignment().check(int(corpus.lengths[i]), len(labels[name]), name)
    classes = max(count_classes(labels, corpus.utterances), len(names), 2)
    return Task(corpus, labels, chosen[0].names, chosen[1].names, classes)


def seen(record: Mapping[str, Any], task: Task) -> dict[str, object]:
    """What pretraining has seen of the splits, for the record, and said to the person.

    ValueError where a supervised run has learnt from the labels of test utterances.
    """
    who = {**dict(zip(record["utterances"], record["speakers"])), **names_of(task.corpus)}
    checks = {
        split: overlap_with(record["utterances"], names, speakers=who)
        for split, names in (("train", task.train), ("test", task.test))
    }
    if record["config"]["supervised"] and checks["test"].seen_utterances:
        raise ValueError(
            f"the supervised run learnt from the labels of {checks['test'].seen_utterances} test utterances; train it "
            "with --split, the training split"
        )
    for split, check in checks.items():
        say(f"pretraining has seen, of the {split} split, {check}")
    return {f"pretraining saw of {split}": str(check) for split, check in checks.items()}


def probe(arguments: Arguments, task: Task, frames: Frames) -> PhoneProbe:
    """All heads of one set of features."""
    with EpochProgress(reading="training heads") as progress:
        found = probe_phones(
            frames,
            task.labels,
            task.train,
            task.test,
            classes=task.classes,
            offsets=arguments.offsets,
            hidden=arguments.hidden,
            alignment=arguments.alignment,
            protocol=arguments.protocol,
            block=128 if arguments.features else 1,
            seed=arguments.seed,
            speakers=speakers_of(task.corpus) if arguments.speakers else None,
            progress=progress.reading,
        )
    more = {"input": arguments.context, "phones": task.classes}
    results = [dataclasses.replace(r, details={**r.details, **more}) for r in found.results]
    return dataclasses.replace(found, results=results)


def names_of(corpus: Corpus) -> dict[str, str]:
    """The speaker of each utterance; "" where the corpus does not know."""
    return {name: corpus.speakers[int(i)] for name, i in zip(corpus.utterances, corpus.speaker)}


def speakers_of(corpus: Corpus) -> dict[str, str]:
    """The speaker of each utterance. ValueError where the corpus does not know them all."""
    found = names_of(corpus)
    if unknown := [name for name, speaker in found.items() if not speaker]:
        raise ValueError(f"{corpus.path} does not know who speaks in {unknown[0]}; prepare it with --speaker folder")
    return found


def encode_frames(arguments: Arguments, task: Task, network: CPCEncoder) -> Frames:
    """Features of an encoder, with a bar."""
    with EpochProgress(reading="extracting features") as progress:
        return encoder_frames(
            network,
            task.corpus,
            layers=arguments.layers,
            context=arguments.context,
            folder=arguments.features,
            progress=progress.reading,
        )


def baselines(
    arguments: Arguments, task: Task, config: Config
) -> tuple[list[records.Record], dict[str, dict[str, Counts]]]:
    """The commonest label, MFCC, and the encoder that the run started from."""
    stage = stage_of(arguments)
    blind = [majority(task.labels, task.train, task.test)]
    found = [record_of(config, blind, seconds=None, name="majority", stage=stage, data=data_of(task))]
    counts = {}
    for name, frames in (
        ("MFCC", mfcc_frames(task.corpus)),
        ("untrained", encode_frames(arguments, task, networks.untrained(config))),
    ):
        result = probe(arguments, task, frames)
        counts[name] = result.counts
        found.append(record_of(config, result.results, seconds=None, name=name, stage=stage, data=data_of(task)))
    return found, counts


def stage_of(arguments: Arguments) -> str:
    """What sets these numbers apart from others of the run: a later probe replaces those of its own stage."""
    return "phones" if arguments.context == "utterances" else f"phones, {arguments.context}"


def data_of(task: Task) -> str:
    """The corpus by name and size."""
    return f"{task.corpus.path.name}, {len(task.train)} train and {len(task.test)} test utterances"


def write_counts(counts: Mapping[str, Mapping[str, Counts]], path: Path) -> None:
    """Correct frames by method, head and utterance."""
    plain = {name: {head: found.plain() for head, found in heads.items()} for name, heads in counts.items()}
    path.write_text(json.dumps(plain) + "\n")


def evaluate(arguments: Arguments, *, seconds: float | None = None) -> list[records.Record]:
    """Everything the arguments ask for, as records; `seconds` is how long pretraining took, where that is known."""
    out = arguments.out or arguments.checkpoint.parent.parent / "results.json"
    check_writable(out.parent)
    if out.name == COUNTS:
        raise ValueError(f"{out} is where the correct frames go; choose another name for --out")
    learner, config, record = load_learner(arguments.checkpoint)
    task = read_task(arguments)
    saw = seen(record, task)
    found, counts = baselines(arguments, task, config) if arguments.baselines else ([], {})
    assert isinstance(learner.encoder, CPCEncoder)
    frames = encode_frames(arguments, task, learner.encoder)
    result = probe(arguments, task, frames)
    counts[method(config)] = result.counts
    results = [dataclasses.replace(r, details={**r.details, **saw}) for r in result.results]
    stage = stage_of(arguments)
    found.append(record_of(config, results, seconds=seconds, stage=stage, data=data_of(task)))
    records.update(found, out)
    write_counts(counts, out.with_name(COUNTS))
    if arguments.pictures:
        names = Inventory.read(arguments.phones).names if arguments.phones else ()
        beside = {r.method: r.results for r in found[:-1]}  # the baselines
        pictures.draw_all(task, frames, result, names=names, folder=arguments.pictures, beside=beside)
        say(f"pictures in {arguments.pictures}")
    return found


def show(found: list[records.Record]) -> None:
    """The table for the terminal."""
    rows = []
    for record in found:
        for r in record.results:
            what = r.protocol if r.protocol == "majority" else f"{r.details['layer']}, {r.protocol}"
            if r.metric == "speaker accuracy":
                what = f"{r.details['layer']}, speaker"
            offset = str(r.details.get("offset", ""))
            interval = ""
            if "low" in r.details:
                low, high = (100 * float(str(r.details[key])) for key in ("low", "high"))
                interval = f"{low:.1f} to {high:.1f}"
            rows.append([record.method, what, offset, f"{100 * r.value:.1f}", interval])
    table(["", "features, head", "offset", "%", "95 % interval"], rows, title="accuracy by frame, test split")


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.audio.phones", description=__doc__)
    found = evaluate(arguments)
    show(found)
    if published := published_speech(found):
        say(published)
    say(f"written to {arguments.out or arguments.checkpoint.parent.parent / 'results.json'}")


if __name__ == "__main__":
    command(main, RuntimeError)
