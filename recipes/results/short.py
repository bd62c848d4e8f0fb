"""The few rows of the committed records that the README shows."""

from collections.abc import Mapping, Sequence

from recipes import records
from recipes.results.cells import BASELINES, SEEDS, WITHOUT_PRESET, by_row, lines, seeds, spread

IMAGES, SPEECH = "cifar10-jpeg-tiny", "speech-synthetic-small"  # the files of records
OWN = ("SimCLR", "S-TEC official", "S-TEC exact")  # methods that are shown whatever they reach
PROTOCOLS = {"linear": "linear %", "logistic": "logistic %", "knn": "kNN %"}
# Of the linear probe on the context: the heading, the metric and the protocol.
READ = (
    ("phones %", "phone accuracy", "linear"),
    ("speakers, by frame %", "speaker accuracy", "frame"),
    ("speakers, by utterance %", "speaker accuracy", "utterance"),
)

Rows = list[tuple[str, list[records.Record]]]


def short(found: Mapping[str, Sequence[records.Record]]) -> str:
    """Two small tables, of images and of speech. ValueError where one of the two files is missing.

    Of images: the baselines, SimCLR, S-TEC and the best other identity model by the linear probe.
    """
    if missing := [name for name in (IMAGES, SPEECH) if name not in found]:
        raise ValueError(f"there is no {missing[0]}.json among the records; give --results the folder that holds it")
    return f"{_images(by_row(found[IMAGES], BASELINES))}\n\n{_speech(by_row(found[SPEECH], WITHOUT_PRESET))}"


def _values(of: Sequence[records.Record], metric: str, protocol: str) -> list[float]:
    """A metric's values over seeds, of images or on the context of speech."""
    layers = (None, "context", "mfcc")
    return [
        x.value
        for r in of
        for x in r.results
        if (x.metric, x.protocol) == (metric, protocol) and x.details.get("layer") in layers
    ]


def _images(rows: Rows) -> str:
    """The baselines, our own methods, and the best of the others."""

    def linear(row: tuple[str, list[records.Record]]) -> float:
        values = _values(row[1], "accuracy", "linear")
        return sum(values) / len(values)

    best = max((row for row in rows if row[0] not in (*BASELINES, *OWN)), key=linear)
    order = [*reversed(BASELINES), *OWN]
    shown = [*sorted((row for row in rows if row[0] in order), key=lambda row: order.index(row[0])), best]
    cells = [
        [
            f"{name}, highest linear mean of the others" if name == best[0] else name,
            seeds(of),
            *(spread(_values(of, "accuracy", protocol), 100, 1) for protocol in PROTOCOLS),
        ]
        for name, of in shown
    ]
    return "\n".join(lines(["images", SEEDS, *PROTOCOLS.values()], cells))


def _speech(rows: Rows) -> str:
    """Every method but the forms of the time-insensitive model that change little."""
    cells = [
        [name, seeds(of), *(spread(_values(of, metric, _of(name, protocol)), 100, 1) for _, metric, protocol in READ)]
        for name, of in rows
        if not name.endswith(("(frames)", "(switch)"))
    ]
    return "\n".join(lines(["speech", SEEDS, *(heading for heading, _, _ in READ)], cells))


def _of(name: str, protocol: str) -> str:
    return "majority" if (name, protocol) == ("majority", "linear") else protocol
