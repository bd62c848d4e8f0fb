"""Pictures of a phone probe: one utterance with what was read in it, confusions, accuracy by layer and offset."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from recipes.audio.accuracy_picture import draw_accuracies
from recipes.audio.confusion_picture import draw_confusion
from recipes.audio.measure import Frames, PhoneProbe
from recipes.audio.utterance_picture import HOP, draw_utterance
from recipes.records import Result

if TYPE_CHECKING:  # phones imports this module
    from recipes.audio.phones import Task


def draw_all(
    task: "Task",
    frames: Frames,
    probe: PhoneProbe,
    *,
    names: Sequence[str],
    folder: Path,
    beside: Mapping[str, Sequence[Result]] | None = None,
) -> list[Path]:
    """Write utterance.png, confusion.png and accuracy.png into `folder`; the first two show the best linear head.

    `names` are those of the phones in the order of their ids, or none; `beside` are results of other methods, which
    the third shows beside the probe's. The utterance is the first of median length in
    the test split. ValueError where there is nothing to draw, or fewer names than phones.
    """
    if not task.test:
        raise ValueError(f"{folder}: there are no test utterances to draw; name some in the test split")
    best = best_linear(probe)
    head = probe.heads.heads[best]
    features, labels = frames.sets[head.features], probe.labels[best]
    of_test = set(task.test)
    tested = {name: i for i, name in enumerate(features.utterances) if name in of_test}
    predicted = {name: probe.heads.predict(best, features.of(i)) for name, i in tested.items()}
    truth = {name: labels[features.starts[i] : features.starts[i] + features.lengths[i]] for name, i in tested.items()}
    title = f"{head.features}, linear head" + ("" if int(head.labels) == 0 else f" at offset {head.labels}")

    lengths = [int(task.corpus.lengths[task.corpus.index(name)]) for name in task.test]
    median = task.test[lengths.index(statistics.median_low(lengths))]
    paths = [folder / f"{what}.png" for what in ("utterance", "confusion", "accuracy")]
    draw_utterance(
        task.corpus.waveform(task.corpus.index(median)),
        torch.as_tensor(task.labels[median]),
        predicted=predicted[median],
        truth=truth[median],
        # a head that reads a label from k frames later is drawn where that label is
        centre=frames.centre - HOP * int(head.labels),
        names=names,
        title=f"{median}: {title}",
        path=paths[0],
    )
    draw_confusion(
        torch.cat([truth[name] for name in task.test]),
        torch.cat([predicted[name] for name in task.test]),
        classes=task.classes,
        names=names,
        title=title,
        path=paths[1],
    )
    others = {name: _of_phones(results) for name, results in (beside or {}).items()}
    draw_accuracies(_of_phones(probe.results), path=paths[2], beside=others)
    return paths


def _of_phones(results: Sequence[Result]) -> list[Result]:
    return [r for r in results if r.metric == "phone accuracy"]


def best_linear(probe: PhoneProbe) -> str:
    """The linear head with the highest accuracy; the first of equals."""
    shares = {
        name: float(probe.counts[name].correct[name].sum() / probe.counts[name].total.sum())
        for name, head in probe.heads.heads.items()
        if head.hidden is None and name in probe.counts  # not those that read speakers
    }
    return max(shares, key=lambda name: shares[name])
