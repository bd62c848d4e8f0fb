"""Speed of decoding: both ways read the same files, processor time counts the workers', and all is recorded."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes import records
from recipes.bench import decoding
from recipes.bench.decoding import DECODE, OURS, PLAIN, Arguments, Rates, cores, describe, main, processor_time, results
from recipes.bench.decoding_peers import Decoded, PlainPairs, write_noise
from recipes.others import Others
from stec.vision.folder import image_folder

# Python 3.12 warns wherever a process with threads, such as torch's own, starts another one by fork.
may_fork = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
TINY = ["--rounds", "1", "--size", "16", "--batch", "2"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Five files below a folder, of which the first is a plane of one colour."""
    folder = tmp_path / "photographs" / "below"
    folder.mkdir(parents=True)
    Image.new("RGB", (60, 40), (200, 100, 50)).save(folder / "0.png")
    for i in range(1, 5):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return folder.parent


@may_fork
def test_a_run_ends_in_one_record(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []

    class Counted(Others):
        def __init__(self) -> None:
            alive.append(len(multiprocessing.active_children()))
            super().__init__()

        def cores(self) -> float:
            alive.append(len(multiprocessing.active_children()))
            return super().cores()

    monkeypatch.setattr(decoding, "Others", Counted)
    out = tmp_path / "results" / "speed.json"
    main([*TINY, "--root", str(photographs), "--workers", "0", "2", "0", "--out", str(out)])
    (record,) = records.read(out)
    assert record.stage == "bench"
    assert record.data.startswith("5 files of photographs, on average 0.00 megapixels and ")
    assert str(tmp_path) not in record.command
    assert record.settings == {"size": 16, "batch": 2, "rounds": 1}
    assert [r.metric for r in record.results] == [
        "decoding and two crops, 0 workers: times plain torchvision",
        "decoding and two crops, 2 workers: times plain torchvision",
        "decoding and two crops: cores for 1,000 pairs/s",
        "decoding and two crops: cores for 2,500 pairs/s",
        "decoding and two crops: cores for 5,000 pairs/s",
    ]
    for result in record.results[:2]:
        assert list(result.details) == [
            *(f"{arm}, pairs/s of one core" for arm in (OURS, PLAIN, DECODE)),
            *(f"{arm}, pairs/s" for arm in (OURS, PLAIN, DECODE)),
            "other programs, cores",
        ]
        assert float(str(result.details["other programs, cores"])) >= 0
        rates = [float(str(result.details[f"{arm}, pairs/s of one core"])) for arm in (OURS, PLAIN)]
        assert min(rates) > 0
    said = capsys.readouterr().out
    assert "other programs used up to" in said
    assert "torchvision" in said
    assert alive == [0] * 4  # a worker that lives is not counted as this program's


def test_noise_is_as_large_as_imagenets_files(tmp_path: Path) -> None:
    write_noise(tmp_path, 4)
    files = image_folder(tmp_path, labelled=False)
    data = describe(files, "noise")
    assert data.startswith("4 files of noise, on average 0.19 megapixels and ")
    assert 90 < float(data.split()[-2]) < 130


def test_without_a_folder_noise_is_read_and_a_consumption_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    main([*TINY, "--limit", "2", "--workers", "0", "--consumption", "1234.5", "--out", str(out)])
    (record,) = records.read(out)
    assert record.data.startswith("2 files of noise")
    ratio, needed = record.results
    assert needed.metric == "decoding and two crops: cores for 1,234.5 pairs/s"
    rate = float(str(ratio.details["ours, pairs/s of one core"]))
    assert needed.value == pytest.approx(1234.5 / rate, rel=0.02)
    assert "1,234.5 pairs/s" in capsys.readouterr().out


def test_numbers_are_ratios_of_rates_for_each_core() -> None:
    def rates(workers: int, ours: float) -> Rates:
        return Rates(workers, {OURS: ours, PLAIN: 200.0, DECODE: 800.0}, {OURS: 1.0, PLAIN: 2.0, DECODE: 3.0}, 0.25)

    rows = results([rates(1, 300.0), rates(4, 250.0)], Arguments())
    assert [row.value for row in rows] == [1.5, 1.25, 4.0, 10.0, 20.0]  # the cores at the rate of the last
    assert rows[0].details["torchvision, pairs/s of one core"] == 200
    assert rows[0].details["decoding, pairs/s"] == 3
    assert rows[0].details["other programs, cores"] == 0.25
    assert cores(2_500, 400) == 6.25


def test_the_peers_read_the_same_pixels(photographs: Path) -> None:
    files = image_folder(photographs, labelled=False)
    plain, decoded = PlainPairs(files, 16), Decoded(files)
    assert len(plain) == len(decoded) == 5
    for view in plain[0]:
        assert view.shape == (3, 16, 16)
        assert view.dtype == torch.uint8
        assert view.flatten(1).unique(dim=1).flatten().tolist() == [200, 100, 50]
    first, second = plain[1]
    assert not torch.equal(first, second)
    assert decoded[1] == 40 * 60


def busy(seconds: float, done: object) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    done.set()  # type: ignore[attr-defined]
    time.sleep(30)


@may_fork
def test_processor_time_counts_this_process_and_its_living_children() -> None:
    context = multiprocessing.get_context("fork")
    done = context.Event()
    child = context.Process(target=busy, args=(0.2, done))
    before, mine = processor_time(), time.process_time()
    child.start()
    try:
        assert done.wait(60)
        spent, mine = processor_time() - before, time.process_time() - mine
        assert 0.15 < spent - mine < 0.4
    finally:
        child.kill()
        child.join()
    before = processor_time()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert 0.1 <= processor_time() - before < 0.2


def test_the_first_pass_warms_up_and_every_pass_is_told(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # processor time as a clock that a pass moves by hand: 100 s for the first pass of each, then 2, 4 and 1 s
    passes: dict[str, int] = {}
    clock = [0.0]
    cost = {OURS: 2.0, PLAIN: 4.0, DECODE: 1.0}
    order: list[str] = []

    class Slow(list):  # type: ignore[type-arg]
        def __init__(self, name: str) -> None:
            self.name = name
            super().__init__()

        def __iter__(self):  # type: ignore[no-untyped-def]
            order.append(self.name)
            passes[self.name] = passes.get(self.name, 0) + 1
            clock[0] += 100.0 if passes[self.name] == 1 else cost[self.name]
            return iter(())

    names = iter((PLAIN, DECODE))
    monkeypatch.setattr(decoding, "streaming_loader", lambda *args, **kwargs: Slow(OURS))
    monkeypatch.setattr(decoding, "DataLoader", lambda *args, **kwargs: Slow(next(names)))
    monkeypatch.setattr(decoding, "processor_time", lambda: clock[0])
    told: list[int] = []
    files = image_folder(photographs, labelled=False)
    rates = decoding.measure(files, Arguments(rounds=1, batch=2), 1, lambda: told.append(1))
    assert rates.core == {OURS: 4 / 2.0, PLAIN: 4 / 4.0, DECODE: 4 / 1.0}  # two batches of two
    assert order == [OURS, PLAIN, DECODE] * 2
    assert len(told) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "rounds is 0; need at least 1"),
        (["--size", "0"], "size is 0; need at least 1"),
        (["--workers", "-1"], r"workers are \(-1,\); give one number or more"),
        (["--consumption", "0"], "consumption is 0.0; give the pairs/s"),
        (["--root", "nowhere"], "nowhere does not exist"),
        (["--batch", "600"], "batch size 600 is larger than the data set"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, photographs: Path) -> None:
    with pytest.raises(ValueError, match=message):
        main([*TINY, "--root", str(photographs), "--workers", "0", *words])
