"""Pictures of a phone probe: what is drawn lies where its time is, and shows the numbers that were measured."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import Tensor

from recipes.audio import pictures
from recipes.audio.accuracy_picture import _per_cent, draw_accuracies
from recipes.audio.confusion_picture import cluster_order, confusions, draw_confusion
from recipes.audio.measure import Frames, PhoneProbe, probe_phones
from recipes.audio.phones import Task
from recipes.audio.pictures import best_linear, draw_all
from recipes.audio.utterance_picture import MARK, TRUE, Stretch, draw_utterance, stretches
from recipes.records import Result
from stec.audio.corpus import Corpus
from stec.audio.frame_features import FrameFeatures

NAMES = ("sil", "AE", "T", "S")
LENGTHS = {"a-1": 48_000, "b-1": 32_000, "c-1": 16_000, "c-2": 40_000, "c-3": 16_000}
TEST = ("c-2", "c-1", "c-3")
CENTRE = 79.5


def pixels(path: Path) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def columns(picture: np.ndarray, colour: str, rows: slice) -> np.ndarray:
    """Which columns hold a colour in 5 of these rows at least: edges of letters hold all sorts of colours."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.nonzero((np.abs(picture[rows] - wanted).sum(axis=2) < 6).sum(axis=0) >= 5)[0]


def speech(samples: int) -> Tensor:
    return 0.3 * torch.sin(torch.arange(samples) / 9) * torch.sin(torch.arange(samples) / 4_000)


def made_up(folder: Path, *, offsets: tuple[int, ...] = (0,)) -> tuple[Task, Frames, PhoneProbe]:
    """Layers that tell the phone of the frame (context: nearly always) and an inventory of four."""
    generator = torch.Generator().manual_seed(0)
    starts = np.cumsum([0, *LENGTHS.values()])
    samples = np.memmap(folder / "samples", dtype="<i2", mode="w+", shape=(int(starts[-1]),))
    samples[:] = (speech(len(samples)) * 32767).numpy()
    nobody = torch.zeros(len(LENGTHS), dtype=torch.long)
    corpus = Corpus(
        folder,
        samples,
        rate=16_000,
        utterances=list(LENGTHS),
        starts=torch.from_numpy(starts[:-1]),
        lengths=torch.tensor(list(LENGTHS.values())),
        speaker=nobody,
        chapter=nobody,
        speakers=[""],
        chapters=[""],
    )
    labels, values, counts = {}, {"latents": [], "context": []}, []  # type: ignore[var-annotated]
    for name, length in LENGTHS.items():
        phones = torch.randint(4, (length // 1600 + 1,), generator=generator).repeat_interleave(10)
        labels[name] = phones[: length // 160 - 2].numpy()
        counts.append(length // 160)
        # frame j shows label j - 1: the nearest frame to label i is i + 1
        shown = torch.nn.functional.one_hot(torch.cat((phones[:1], phones))[: counts[-1]], 4).float()
        for layer, noise in (("latents", 1.0), ("context", 0.5)):
            values[layer].append(shown + noise * torch.randn(shown.shape, generator=generator))
    frames_of = torch.tensor(counts)
    sets = {
        layer: FrameFeatures(torch.cat(rows), tuple(LENGTHS), frames_of.cumsum(0) - frames_of, frames_of)
        for layer, rows in values.items()
    }
    task, frames = Task(corpus, labels, ("a-1", "b-1"), TEST, 4), Frames(sets, CENTRE)
    settings: dict[str, Any] = {"classes": 4, "hidden": (8,), "protocol": "stec", "seed": 0}
    return task, frames, probe_phones(frames, labels, task.train, TEST, offsets=offsets, **settings)


def test_stretches_lie_around_the_centres_of_their_frames() -> None:
    found = stretches(torch.tensor([5, 5, 5, -1, -1, 0, 5]), centre=200.0)
    # frame i reaches from 10 i + 7.5 to 10 i + 17.5 ms
    assert [one.value for one in found] == [5, 0, 5]
    times = np.array([(one.start, one.end) for one in found])
    np.testing.assert_allclose(times, [(0.0075, 0.0375), (0.0575, 0.0675), (0.0675, 0.0775)], atol=1e-12)
    (first,) = stretches(torch.tensor([3]), centre=79.5)
    assert (first.start, first.end) == pytest.approx(((79.5 - 80) / 16_000, (79.5 + 80) / 16_000))
    assert stretches(torch.tensor([-1, -1]), centre=0.0) == []
    assert stretches(torch.zeros(0, dtype=torch.long), centre=0.0) == []
    assert stretches(torch.tensor([2, 2]), centre=80.0) == [Stretch(2, 0.0, 0.02)]


def test_wrong_frames_are_marked_at_their_times(tmp_path: Path) -> None:
    labels = torch.zeros(198, dtype=torch.long)
    truth = torch.cat((torch.tensor([-1]), labels, torch.tensor([-1])))
    predicted = torch.zeros(200, dtype=torch.long)
    predicted[0] = 1  # without a label: neither right nor wrong
    predicted[50:60] = 1
    predicted[150:155] = 2
    path = tmp_path / "new" / "one.png"
    draw_utterance(
        speech(32_000),
        labels,
        predicted=predicted,
        truth=truth,
        centre=CENTRE,
        names=NAMES,
        title="one",
        path=path,
    )
    picture = pixels(path)
    grey = columns(picture, TRUE, slice(430, 500))  # the labels reach from 7.5 to 1987.5 ms
    per_second = (grey[-1] - grey[0]) / 1.98
    seconds = (columns(picture, MARK, slice(530, 545)) - grey[0]) / per_second + 0.0075
    seconds = seconds[seconds < 2]  # the legend is beyond
    starts = seconds[np.diff(seconds, prepend=-1) > 0.1]
    ends = seconds[np.diff(seconds, append=3) > 0.1]
    expected = [((CENTRE + 160 * (i - 0.5)) / 16_000) for i in (50, 60, 150, 155)]
    assert [starts[0], ends[0], starts[1], ends[1]] == pytest.approx(expected, abs=0.004)


def test_a_long_utterance_is_cut(tmp_path: Path) -> None:
    labels = torch.zeros(398, dtype=torch.long)  # of 4 s
    widths = []
    for seconds in (4, 10):
        path = tmp_path / f"{seconds}.png"
        draw_utterance(
            speech(16_000 * seconds),
            labels,
            predicted=labels,
            truth=labels,
            centre=200.0,
            names=(),
            title="one",
            path=path,
        )
        picture = pixels(path)
        widths.append(np.ptp(columns(picture, TRUE, slice(430, 500))))
        wave = picture[60:140, 110:1270]
        assert (wave[:, -40:] < 200).any()  # the waveform reaches the right edge
    assert widths[0] == widths[1] > 1100  # and not 0.4 of it


def test_confusions_are_those_of_sklearn() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(5, (400,), generator=generator)
    predicted = torch.where(torch.rand(400, generator=generator) < 0.6, truth, torch.randint(6, (400,)))
    found = confusions(
        torch.cat((truth, torch.full((50,), -1))), torch.cat((predicted, torch.arange(50) % 6)), classes=6
    )
    expected = confusion_matrix(truth, predicted, labels=range(6), normalize="true")
    np.testing.assert_allclose(found[:5], expected[:5], atol=1e-12)
    assert np.isnan(found[5]).all()  # sklearn has zeros where a class has no frame


def test_phones_taken_for_one_another_are_neighbours() -> None:
    shares = 0.7 * np.eye(6)
    for a, b in ((0, 3), (1, 5), (2, 4)):
        shares[a, b] = shares[b, a] = 0.3
    order = cluster_order(shares)
    assert sorted(order) == list(range(6))
    assert {frozenset(order[i : i + 2]) for i in (0, 2, 4)} == {frozenset(p) for p in ((0, 3), (1, 5), (2, 4))}
    shares[1] = np.nan  # a class without frames
    assert sorted(cluster_order(shares)) == list(range(6))


def test_the_matrix_has_true_phones_in_rows(tmp_path: Path) -> None:
    truth, predicted = torch.tensor([0, 1, 2, 2]), torch.tensor([2, 1, 2, 2])  # only 0 is mistaken, for 2
    draw_confusion(truth, predicted, classes=3, names=(), title="linear", path=tmp_path / "c.png")
    picture = pixels(tmp_path / "c.png")
    # inches: a matrix of 4 x 4 at 0.8 from the left and 0.75 from the bottom
    cells = np.array(
        [
            [picture[-int(75 + 400 * (5 - 2 * i) / 6), int(80 + 400 * (2 * j + 1) / 6)] for j in range(3)]
            for i in range(3)
        ]
    )
    dark = cells.sum(axis=2) < 300
    np.testing.assert_array_equal(dark, [[False, False, True], [False, True, False], [False, False, True]])


@pytest.mark.parametrize(("offsets", "names"), [((0,), NAMES), ((-1, 0, 2), ())])
def test_all_pictures_of_a_probe(tmp_path: Path, offsets: tuple[int, ...], names: tuple[str, ...]) -> None:
    task, frames, probe = made_up(tmp_path, offsets=offsets)
    paths = draw_all(task, frames, probe, names=names, folder=tmp_path / "pictures")
    assert [path.name for path in paths] == ["utterance.png", "confusion.png", "accuracy.png"]
    for path in paths:
        picture = pixels(path)
        assert min(picture.shape[:2]) >= 400
        assert picture.std() > 10


def test_pictures_show_the_best_linear_head_on_test_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, frames, probe = made_up(tmp_path, offsets=(2, 0))
    assert best_linear(probe) == "context linear +0"
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    for name in ("draw_utterance", "draw_confusion", "draw_accuracies"):
        monkeypatch.setattr(pictures, name, lambda *some, name=name, **more: given.update({name: (some, more)}))
    draw_all(task, frames, probe, names=NAMES, folder=tmp_path)

    (truth, predicted), more = given["draw_confusion"]
    (result,) = (
        r for r in probe.results if (r.details["layer"], r.details["offset"], r.protocol) == ("context", "+0", "linear")
    )
    assert int((truth >= 0).sum()) == result.details["frames"]
    assert float((truth == predicted)[truth >= 0].double().mean()) == pytest.approx(result.value, abs=1e-4)
    assert more["classes"] == 4

    (waveform, labels), more = given["draw_utterance"]
    assert more["title"].startswith("c-1: context, linear")  # of 40,000, 16,000 and 16,000 samples
    torch.testing.assert_close(waveform, task.corpus.waveform(2))
    np.testing.assert_array_equal(labels, task.labels["c-1"])
    np.testing.assert_array_equal(more["truth"][1:99], task.labels["c-1"])
    assert more["centre"] == CENTRE
    assert given["draw_accuracies"][0] == (probe.results,)

    later = {name: head for name, head in probe.heads.heads.items() if name != "context linear +0"}
    probe.heads.heads = {name: later[name] for name in ("context linear +2",)}
    draw_all(task, frames, dataclasses.replace(probe), names=NAMES, folder=tmp_path)
    (_, labels), more = given["draw_utterance"]
    np.testing.assert_array_equal(more["truth"][3:], labels[:97])
    # so that frame 3, which reads label 0, is drawn as near to label 0 as frame 1 of the other head was
    assert more["centre"] + 3 * 160 == CENTRE + 160
    assert "offset +2" in more["title"]


def result(layer: str, head: str, offset: str, value: float, **interval: float) -> Result:
    return Result("phone accuracy", value, head, {"layer": layer, "offset": offset, **interval})


def test_bars_are_as_high_as_the_accuracy(tmp_path: Path) -> None:
    draw_accuracies(
        [result("context", "linear", "+0", 0.6), result("latents", "linear", "+0", 0.3)], path=tmp_path / "a.png"
    )
    picture = pixels(tmp_path / "a.png")
    blue = (np.abs(picture - np.array([0, 0x72, 0xB2])).sum(axis=2) < 6)[:, : picture.shape[1] * 3 // 4]
    where = np.nonzero(blue.any(axis=0))[0]
    heights = [blue[:, where[0] + 5].sum(), blue[:, where[-1] - 5].sum()]
    assert heights[0] / heights[1] == pytest.approx(2, abs=0.03)


def test_accuracies_with_and_without_intervals_differ(tmp_path: Path) -> None:
    for offsets in (("+0",), ("-1", "+0", "+1")):
        drawn = []
        for interval in ({}, {"low": 0.35, "high": 0.47}):
            results = [result(layer, "linear", o, 0.4, **interval) for layer in ("context", "latents") for o in offsets]
            draw_accuracies(results, path=tmp_path / "a.png")
            drawn.append(pixels(tmp_path / "a.png"))
        assert (drawn[0] != drawn[1])[60:].any()  # below the title
    assert _per_cent(results[0]) == pytest.approx((40, 5, 7))


def test_baselines_stand_beside_the_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MFCC and the untrained encoder as bars of their own, the commonest phone as a line at its height."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (figures.append(figure), save(figure, path)))
    beside = {
        "majority": [Result("phone accuracy", 0.15, "majority", {"class": 0})],
        "MFCC": [result("mfcc", "linear", "+0", 0.5)],
        "untrained": [result("context", "linear", "+0", 0.3), result("latents", "linear", "+0", 0.2)],
    }
    own = [result("context", "linear", "+0", 0.7), result("latents", "linear", "+0", 0.6)]
    draw_accuracies(own, path=tmp_path / "a.png", beside=beside)
    (axes,) = figures[0].axes
    names = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    heights = [round(bar.get_height(), 6) for bar in axes.patches if isinstance(bar, Rectangle)]
    assert dict(zip(names, heights)) == {
        "trained, context": 70,
        "trained, latents": 60,
        "MFCC": 50,
        "untrained, context": 30,
        "untrained, latents": 20,
    }
    (line,) = axes.lines
    assert list(line.get_ydata()) == [15, 15]
    legend = axes.get_legend()
    assert legend is not None
    assert "majority: 15.0" in [text.get_text() for text in legend.get_texts()]
    assert (tmp_path / "a.png").stat().st_size < 150_000


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.png"
    none, some = torch.zeros(0, dtype=torch.long), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"no\.png.*no results"):
        draw_accuracies([], path=path)
    for truth in (none, torch.full((3,), -1)):
        with pytest.raises(ValueError, match="one: no frame has a label"):
            draw_confusion(truth, some[: len(truth)], classes=3, names=(), title="one", path=path)
    with pytest.raises(ValueError, match="2 names for 3 phones"):
        draw_confusion(some, some, classes=3, names=("a", "b"), title="one", path=path)
    utterance: dict[str, Any] = {"centre": CENTRE, "title": "one", "path": path}
    with pytest.raises(ValueError, match="one: 0 samples"):
        draw_utterance(torch.zeros(0), some, predicted=some, truth=some, names=(), **utterance)
    with pytest.raises(ValueError, match="0 of them known"):
        draw_utterance(torch.zeros(600), some, predicted=some, truth=torch.full((3,), -1), names=(), **utterance)
    with pytest.raises(ValueError, match="2 predictions and 3 labels"):
        draw_utterance(torch.zeros(600), some, predicted=some[:2], truth=some, names=(), **utterance)
    with pytest.raises(ValueError, match="2 names for 3 phones"):
        draw_utterance(torch.zeros(600), some, predicted=some, truth=some, names=("a", "b"), **utterance)
    task, frames, probe = made_up(tmp_path)
    with pytest.raises(ValueError, match="no test utterances"):
        draw_all(dataclasses.replace(task, test=()), frames, probe, names=NAMES, folder=tmp_path)
    assert not path.exists()


def test_silence_of_one_frame_is_drawn(tmp_path: Path) -> None:
    one = torch.tensor([0])
    path = tmp_path / "silence.png"
    draw_utterance(
        torch.zeros(400), one, predicted=one, truth=one, centre=200.0, names=("$_$",), title="$_$", path=path
    )
    assert pixels(path)[300, 600].sum() < 30  # black: far below any level
