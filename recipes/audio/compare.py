"""Compare presets over seeds at one budget: python -m recipes.audio.compare small-cpc small-pooled --corpus CACHE ...

Pretrains every preset with every seed on --split, then reads phones (with --labels and both splits) and speakers
(--speakers CACHE) off frozen features, measures the surprise of held-out speech, and does the same for the baselines.
Finished runs are kept and interrupted ones taken up, so the same command goes on after an interruption, and several
processes may share the work by their seeds. Differences to the first preset are paired by seed, with 95 % intervals by
Student's t over three seeds or more; of fewer, those of phones carry a paired bootstrap over utterances and seeds.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro

from recipes import records
from recipes.audio import phones, speakers
from recipes.audio.measure import SETTLED, SHOWN, UNSETTLED, surprise
from recipes.audio.presets import PATHS, Config, method, preset
from recipes.audio.run import check_config, load_learner, precision, pretrain, read_config, record_of
from recipes.results import table as tables
from recipes.results.cells import SPREAD, tight
from recipes.results.differences import SPEECH, paired
from recipes.results.published import published_speech
from recipes.results.seeds import check_seeds
from recipes.run_folder import check_writable, last_checkpoint
from recipes.stopping import going_on_by
from recipes.terminal import command, say, table
from stec.audio.corpus import Corpus
from stec.audio.splits import overlap_with, read_split, select
from stec.core.bootstrap import paired_bootstrap

LEAST_SEEDS = 3  # that `paired` gives intervals of


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which presets, which seeds, on which speech, for how long."""

    presets: tyro.conf.Positional[tuple[str, ...]]
    corpus: Path  # the cache to pretrain on
    seeds: tuple[int, ...] = (0, 1, 2)
    split: Path | None = None  # pretrain on these utterances alone
    labels: Path | None = None  # phone labels; without them no phones are read
    train_split: Path | None = None  # of the phone task
    test_split: Path | None = None  # of the phone task; its utterances also measure the surprise
    speakers: Path | None = None  # read speakers of this cache; --speaker-split names utterances
    speaker_split: Path | None = None
    epochs: int | None = None  # the presets' own by default
    runs: Path = Path("runs/compare-audio")  # the run folders
    out: Path | None = None  # the file of all runs' records; NAME.md: the table
    markdown: bool = False  # print the table as Markdown


def configure(arguments: Arguments, name: str, seed: int) -> Config:
    """A preset with the arguments' overrides."""
    config = preset(name)
    epochs = arguments.epochs or config.epochs
    return dataclasses.replace(
        config,
        seed=seed,
        corpus=arguments.corpus,
        # The supervised baseline must not learn from the labels it is tested on.
        split=arguments.train_split if config.supervised else arguments.split,
        labels=arguments.labels if config.supervised else None,
        epochs=epochs,
        warmup_epochs=min(config.warmup_epochs, epochs - 1),
    )


def settled(config: Config) -> Config:
    """A configuration as its run stores it, whatever folder its paths are given from."""
    paths = {name: path.resolve() for name in PATHS if (path := getattr(config, name))}
    return dataclasses.replace(config, precision=precision(config), **paths)


def asked(arguments: Arguments) -> dict[str, str]:
    """What the probes of a run depend on: corpora by name, files by their content."""
    files = (arguments.labels, arguments.train_split, arguments.test_split, arguments.speaker_split)
    names = ("labels", "train_split", "test_split", "speaker_split")
    digests = {
        name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file else "" for name, file in zip(names, files)
    }
    return {
        **digests,
        "corpus": arguments.corpus.name,
        "speakers": arguments.speakers.name if arguments.speakers else "",
    }


def check(arguments: Arguments) -> None:
    """ValueError for mistakes that would show only after hours of training."""
    if not arguments.presets or len(set(arguments.presets)) < len(arguments.presets):
        raise ValueError(f"presets are {', '.join(arguments.presets) or 'none'}; name one or more, each once")
    phones_of = (arguments.labels, arguments.train_split, arguments.test_split)
    if arguments.labels and None in phones_of:
        raise ValueError("phones are read with --labels, --train-split and --test-split; give all three")
    for name in arguments.presets:
        if preset(name).supervised and arguments.labels is None:
            raise ValueError(f"{name} learns from phone labels; give --labels, --train-split and --test-split")
        check_config(configure(arguments, name, 0))
    if arguments.labels and arguments.train_split and arguments.test_split:
        phones.read_task(
            phones.Arguments(Path(), arguments.corpus, arguments.labels, arguments.train_split, arguments.test_split)
        )
    if arguments.speakers:
        speakers.read_corpus(speakers.Arguments(Path(), arguments.speakers, split=arguments.speaker_split))
    config = configure(arguments, arguments.presets[0], 0)
    corpus, _ = listeners(arguments)
    if int((corpus.lengths >= config.window).sum()) < min(config.batch_group, config.batch_size):
        raise ValueError(
            f"the surprise is measured on groups of {config.batch_group} windows, and fewer of the held-out utterances "
            f"have {config.window} samples; hold out more"
        )


def train(config: Config, folder: Path) -> tuple[Path, float | None]:
    """The last checkpoint of a run, trained as far as that is not done yet, and the seconds where it was done now."""
    done = folder / "done"
    begun = (folder / "config.json").is_file() and any((folder / "checkpoints").glob("*.ckpt"))
    if begun and settled(read_config(folder)) != settled(config):
        raise ValueError(f"{folder} holds a run with other settings; give another --runs, or the same arguments")
    if begun and done.is_file():
        return last_checkpoint(folder), float(done.read_text())
    with going_on_by("the same command goes on"):
        outcome = pretrain(config, folder, resume=begun)
    done.write_text(f"{outcome.seconds:.1f}\n")
    return outcome.checkpoint, outcome.seconds


def one_run(arguments: Arguments, config: Config, folder: Path, *, baselines: bool) -> list[records.Record]:
    """Pretrain and probe, as far as that is not done yet."""
    checkpoint, seconds = train(config, folder)
    out, question = folder / "results.json", folder / "asked.json"
    if question.is_file() and json.loads(question.read_text()) != asked(arguments):
        raise ValueError(
            f"{folder} was probed with other labels, splits or corpora; give another --runs, or remove {question} and "
            f"{out} to probe anew"
        )
    if not question.is_file():
        question.write_text(json.dumps(asked(arguments)) + "\n")
    stages = {record.stage for record in records.read(out)} if out.is_file() else set()
    if arguments.labels and "phones" not in stages:
        assert arguments.train_split is not None
        assert arguments.test_split is not None
        task = phones.Arguments(
            checkpoint, arguments.corpus, arguments.labels, arguments.train_split, arguments.test_split
        )
        phones.evaluate(dataclasses.replace(task, baselines=baselines, seed=config.seed), seconds=seconds)
    if arguments.speakers and "speakers" not in stages:
        who = speakers.Arguments(checkpoint, arguments.speakers, split=arguments.speaker_split)
        speakers.evaluate(dataclasses.replace(who, baselines=baselines, seed=config.seed), seconds=seconds)
    if "surprise" not in stages and not config.supervised:
        records.update([measure_surprise(arguments, checkpoint, seconds)], out)
    return records.read(out)


def listeners(arguments: Arguments) -> tuple[Corpus, bool]:
    """The speech that the surprise is measured on, and whether the arguments hold it out of pretraining."""
    if arguments.speakers and not arguments.test_split:
        corpus, split = Corpus.open(arguments.speakers), arguments.speaker_split
    else:
        corpus, split = Corpus.open(arguments.corpus), arguments.test_split
    if split:
        corpus = corpus.subset(select(read_split(split), corpus=corpus.utterances).names)
    return corpus, split is not None


def measure_surprise(arguments: Arguments, checkpoint: Path, seconds: float | None) -> records.Record:
    """How surprised CPC is by speech that is held out, beside chance; what of it pretraining saw is in the record."""
    learner, config, record = load_learner(checkpoint)
    corpus, held_out = listeners(arguments)
    data = f"{corpus.path.name}, {len(corpus)} utterances"
    who = {**dict(zip(record["utterances"], record["speakers"])), **phones.names_of(corpus)}
    saw = str(overlap_with(record["utterances"], corpus.utterances, speakers=who))
    results = surprise(learner, config, corpus)
    protocol = "held-out" if held_out else "training"
    results = [
        dataclasses.replace(r, protocol=protocol, details={**r.details, "pretraining saw": saw}) for r in results
    ]
    return record_of(config, results, seconds=seconds, stage="surprise", data=data)


def differences(arguments: Arguments) -> list[str]:
    """For each preset and head a line: how much better phones are read than after the first preset, by bootstrap.

    None of LEAST_SEEDS or more: then the table has intervals over seeds, and the bootstrap's would be too narrow.
    """
    if len(arguments.seeds) >= LEAST_SEEDS:
        return []
    counts: dict[str, dict[str, list[list[int]]]] = {}
    totals: dict[str, list[int]] = {}
    for name in arguments.presets:
        for seed in arguments.seeds:
            path = arguments.runs / f"{name}-seed{seed}" / "phones.json"
            if not path.is_file():
                return []
            for head, found in json.loads(path.read_text())[method(preset(name))].items():
                counts.setdefault(name, {}).setdefault(head, []).append(found["correct"][head])
                totals[head] = found["total"]
    first, *others = arguments.presets
    lines = []
    for name in others:
        for head, correct in counts[name].items():
            a, b = (torch.tensor(c, dtype=torch.float64) for c in (correct, counts[first][head]))
            found = paired_bootstrap(a, b, torch.tensor(totals[head], dtype=torch.float64), seed=0)
            lines.append(
                f"{name} - {first}, {head}: {100 * found.difference:+.2f} points, 95 % interval "
                f"{100 * found.low:+.2f} to {100 * found.high:+.2f}, p {found.p:.3g} (bootstrap over utterances and "
                f"{len(correct)} seeds; too narrow for others: take {LEAST_SEEDS} seeds or more)"
            )
    return lines


def captions(found: Sequence[records.Record]) -> list[str]:
    """What the table's words mean, and which runs are too short for it."""
    updates = {(r.preset, r.seed): int(str(n)) for r in found for x in r.results if (n := x.details.get(UNSETTLED))}
    if not updates:
        return [SHOWN]
    shortest, seed = min(updates, key=updates.__getitem__)
    return [
        SHOWN,
        f"{len(updates)} runs are short, such as {shortest}, seed {seed}, of {updates[shortest, seed]} updates. After "
        "training, BatchNorm's running statistics are read, which take "
        f"{SETTLED} updates to forget their start: until then all these numbers are worse than the losses in training "
        "say, and CPC may be above chance; give more --epochs",
    ]


def collect(arguments: Arguments) -> Sequence[records.Record]:
    """All records, each run trained and probed where it is not yet."""
    check(arguments)
    found: list[records.Record] = []
    runs = [(seed, name) for seed in arguments.seeds for name in arguments.presets]
    for i, (seed, name) in enumerate(runs, start=1):
        say(f"run {i} of {len(runs)}: {name}, seed {seed}")
        folder, first = arguments.runs / f"{name}-seed{seed}", name == arguments.presets[0]
        found += one_run(arguments, configure(arguments, name, seed), folder, baselines=first)
    return found


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.audio.compare", description=__doc__)
    if arguments.out:
        check_writable(arguments.out.parent)
    check_seeds(arguments.seeds)
    found = collect(arguments)
    if arguments.markdown:
        print(tables.speech(found))
    else:
        table(*tight(*tables.speech_rows(found)), title=SPREAD)
        for line in captions(found):
            say(line)
        title, header, rows = paired(found, baselines=tables.NOT_PRETRAINED, columns=SPEECH)
        if rows:
            table(header, rows, title=title)
        if published := published_speech(found):
            say(published)
    lines = differences(arguments)
    for line in lines:
        say(line)
    if arguments.out:
        if arguments.out.suffix == ".md":
            bullets = [f"- {line}" for line in lines]
            arguments.out.write_text("\n".join([tables.speech(found), *(["", *bullets] if bullets else [])]) + "\n")
        else:
            records.write(found, arguments.out)
        say(f"written to {arguments.out}")


if __name__ == "__main__":
    command(main, RuntimeError)
