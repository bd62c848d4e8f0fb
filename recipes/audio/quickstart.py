"""Speech in six minutes on two cores, no download: python -m recipes.audio.quickstart.

Synthesises a phone-labelled corpus (espeak-ng: pip install -e ".[synthesis]"), prepares it, pretrains CPC with and
without the time-insensitive identity model, reads phones and speakers off frozen features beside the commonest phone,
MFCC and the untrained encoder, and draws what was read. Writes runs/quickstart-audio/.
"""

import dataclasses
import time
from pathlib import Path

import tyro

from recipes import records
from recipes.audio import phones, speakers
from recipes.audio.measure import SHOWN
from recipes.audio.presets import preset
from recipes.audio.run import pretrain
from recipes.run_folder import make_folder
from recipes.terminal import command, say, table
from stec.audio.espeak import version
from stec.audio.preparing import prepare
from stec.audio.sources import find_audio
from stec.audio.synthetic_corpus import write_corpus

RUNS = {"cpc": "small-cpc", "time-insensitive": "small-pooled"}
OWN = (*RUNS, "speech", "speech.partial", "cache", "pictures", "results.json", "phones.json")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Everything has a default; the flags are for smaller trials."""

    out: Path = Path("runs/quickstart-audio")  # made anew
    speakers: int = 10
    minutes: float = 12.0  # of speech
    epochs: int = 24
    seed: int = 0


def main() -> None:
    """The command line."""
    arguments = tyro.cli(Arguments, prog="python -m recipes.audio.quickstart", description=__doc__)
    start = time.monotonic()
    version()  # says what to install, before anything is written
    out = arguments.out
    make_folder(out, mark=".quickstart-audio", own=OWN)
    say(f"synthesising {arguments.minutes:g} minutes of {arguments.speakers} speakers")
    speech = out / "speech"
    write_corpus(speech, speakers=arguments.speakers, minutes=arguments.minutes, seed=arguments.seed, workers=2)
    prepare(find_audio(speech / "LibriSpeech", speaker="folder"), out / "cache", workers=2)
    found: list[records.Record] = []
    for name, of in RUNS.items():
        config = dataclasses.replace(
            preset(of),
            corpus=out / "cache",
            split=speech / "train_split.txt",
            epochs=arguments.epochs,
            warmup_epochs=min(1, arguments.epochs - 1),
            seed=arguments.seed,
            checkpoint_every=arguments.epochs,
        )
        outcome = pretrain(config, out / name)
        task = phones.Arguments(
            outcome.checkpoint,
            out / "cache",
            speech / "labels.txt",
            speech / "train_split.txt",
            speech / "test_split.txt",
            baselines=not found,
            phones=speech / "phones.txt",
            pictures=out / "pictures" if name == "cpc" else None,
        )
        found += phones.evaluate(task, seconds=outcome.seconds)
        found += speakers.evaluate(
            speakers.Arguments(
                outcome.checkpoint, out / "cache", protocols=("frame", "window"), baselines=name == "cpc"
            ),
            seconds=outcome.seconds,
        )
    records.write(found, out / "results.json")
    summary(found)
    say(
        f"{time.monotonic() - start:.0f} s in all. Pictures: {out}/pictures; probe more: --help of recipes.audio.phones"
    )


def summary(found: list[records.Record]) -> None:
    """A line for each method."""
    rows = []
    for method in dict.fromkeys(record.method for record in found):
        cells = {}
        for record in found:
            for r in record.results:
                if record.method == method:
                    cells[r.metric, r.protocol, str(r.details.get("layer", "context"))] = f"{100 * r.value:.1f}"
        layer = "mfcc" if method == "MFCC" else "context"
        protocol = "majority" if method == "majority" else "linear"
        keys = [
            ("phone accuracy", protocol, layer),
            ("phone accuracy", protocol, "latents"),
            ("speaker accuracy", "frame", layer),
            ("speaker accuracy", "window", layer),
        ]
        rows.append([method, *(cells.get(key, "") for key in keys)])
    header = ["", "phones (c), %", "phones (z), %", "speakers by frame, %", "speakers by window, %"]
    table(header, rows, title="linear heads on frozen features; phones of speakers not heard in training")
    say(SHOWN)


if __name__ == "__main__":
    command(main, RuntimeError, ImportError)
