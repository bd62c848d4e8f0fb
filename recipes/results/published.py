"""Published numbers that stand beside ours where the task is the same: accuracies on images, what speech tells."""

from collections.abc import Mapping, Sequence

from recipes.records import Record

# Linear accuracy in %, Table 1 of Scherr et al. 2022 (1,000 epochs, 5 runs), Table 3 for ImageNet (100 epochs, top-1).
PAPER = {
    ("resnet18", "cifar10"): {
        "SimCLR": "91.5 ± 0.1",
        "ReLIC": "91.5 ± 0.2",
        "MoCo v2": "90.9 ± 0.2",
        "BYOL": "92.0 ± 0.2",
        "S-TEC": "92.0 ± 0.2",
        "S-TEC*": "92.6 ± 0.1",
    },
    ("resnet18", "cifar100"): {
        "SimCLR": "65.3 ± 0.3",
        "ReLIC": "65.6 ± 0.3",
        "MoCo v2": "65.7 ± 0.4",
        "BYOL": "66.4 ± 0.4",
        "S-TEC": "66.6 ± 0.3",
        "S-TEC*": "67.6 ± 0.4",
    },
    ("resnet18", "stl10"): {
        "SimCLR": "91.5 ± 0.4",
        "ReLIC": "91.4 ± 0.2",
        "MoCo v2": "88.6 ± 0.6",
        "BYOL": "91.1 ± 0.2",
        "S-TEC": "91.6 ± 0.2",
        "S-TEC*": "91.4 ± 0.2",
    },
    ("resnet50", "cifar10"): {
        "SimCLR": "93.2 ± 0.2",
        "ReLIC": "93.2 ± 0.2",
        "S-TEC": "93.9 ± 0.2",
        "S-TEC*": "94.0 ± 0.1",
    },
    ("resnet50", "cifar100"): {
        "SimCLR": "70.8 ± 0.2",
        "ReLIC": "70.8 ± 0.2",
        "S-TEC": "71.9 ± 0.4",
        "S-TEC*": "72.4 ± 0.1",
    },
    ("resnet50", "stl10"): {
        "SimCLR": "94.0 ± 0.1",
        "ReLIC": "93.8 ± 0.1",
        "S-TEC": "94.3 ± 0.2",
        "S-TEC*": "93.9 ± 0.2",
    },
    ("resnet50", "imagenet"): {"SimCLR": "64.6", "ReLIC": "66.2", "S-TEC": "64.8", "S-TEC*": "66.3"},
    ("resnet50", "imagenet-300ep"): {"ReLIC": "70.0", "S-TEC*": "70.2"},
    # Table 2, by epochs; SimSiam's 200 are Lee et al.'s (2021)
    ("stl10", "200ep"): {"SimSiam": "86.32", "AugSelf": "86.03", "SimCLR": "86.1 ± 0.2", "S-TEC": "86.2 ± 0.2"},
    ("stl10", "1000ep"): {
        "SimSiam": "90.2 ± 0.3",
        "AugSelf": "90.8 ± 0.2",
        "SimCLR": "91.5 ± 0.4",
        "S-TEC": "91.6 ± 0.2",
    },
}

# A linear layer on c, 41 phones, 251 speakers by frame: Scherr et al. 2022, section 4.4, and Oord et al. 2018, Table 1.
PUBLISHED_SPEECH = (
    "Published, on the 100 hours of LibriSpeech: 41 phones, CPC 65.1 %, with the time-insensitive model 65.4 % (Scherr "
    "et al. 2022); untrained 27.6, MFCC 39.7, CPC 64.6, supervised 74.6; 251 speakers by frame 1.9, 17.6, 97.4, 98.5 "
    "(Oord et al. 2018)."
)
UTTERANCES, PHONES, SPEAKERS = 28_539, 41, 251  # of train-clean-100 and of its phone task
AT_LEAST = 28_000  # the splits of the phone task, and what is long enough, leave a few utterances out


def paper_value(record: Record) -> str:
    """The paper's linear accuracy for this method, of the row that the preset stands for, on the data of that row.

    Nothing where the run was on other data; "small" and "tiny" stand for CIFAR-10's row.
    """
    first, *rest = record.preset.split("-")
    if first in ("small", "tiny"):
        row, data = ("resnet18", "cifar10"), "cifar10"
    elif first == "table2":
        row, data = ("stl10", rest[-1] if rest else ""), "stl10"
    else:
        row, data = (rest[0] if rest else "", f"{first}-300ep" if "300ep" in rest else first), first
    if record.data != data:
        return ""
    name = record.method
    for variant in (" exact", " official", ", as released"):
        name = name.removesuffix(variant)
    return PAPER.get(row, {}).get(name, "")


def published_speech(found: Sequence[Record]) -> str:
    """What was published of phones or speakers, where these records are of that task; nothing where of another one."""
    return PUBLISHED_SPEECH if any(_is_published(x.metric, x.details) for r in found for x in r.results) else ""


def _is_published(metric: str, details: Mapping[str, object]) -> bool:
    """Whether a number is of the published task: its classes, and about as many utterances."""

    def number(name: str) -> int:
        value = details.get(name)
        return value if isinstance(value, int) else 0

    if metric == "phone accuracy":
        classes, utterances = number("phones") == PHONES, number("train") + number("test")
    else:
        classes, utterances = number("speakers") == SPEAKERS, number("utterances")
    return classes and AT_LEAST <= utterances <= UTTERANCES
