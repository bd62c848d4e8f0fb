"""Windows: where they lie, which ones come together, that all is a function of (seed, step), and their samples."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stec.audio.corpus import Corpus
from stec.audio.windows import WindowBatches, WindowIndex, WindowLoader, gather
from stec.core import distributed

WINDOW = 10


def corpus_of(lengths: Sequence[int], speaker: Sequence[int], *, speakers: Sequence[str] | None = None) -> Corpus:
    """A corpus in memory whose sample k has the value k, with a gap of 3 before each utterance."""
    starts = np.cumsum([3, *(length + 3 for length in lengths[:-1])])
    samples: Any = np.arange(int(starts[-1]) + lengths[-1], dtype=np.int16)
    return Corpus(
        Path("cache"),
        samples.view(np.memmap),
        rate=16_000,
        utterances=[f"u{i}" for i in range(len(lengths))],
        starts=torch.from_numpy(starts),
        lengths=torch.tensor(lengths),
        speaker=torch.tensor(speaker),
        chapter=torch.tensor(speaker) + 10,
        speakers=speakers or [f"s{i}" for i in range(max(speaker) + 1)],
        chapters=[f"c{i}" for i in range(max(speaker) + 11)],
    )


LENGTHS = [25, 9, 10, 47, 31, 64, 12, 30, 58, 33, 80, 11]
SPEAKER = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
CORPUS = corpus_of(LENGTHS, SPEAKER)


def batches(corpus: Corpus = CORPUS, **options: Any) -> WindowBatches:
    return WindowBatches(
        corpus,
        **{"batch_size": 4, "seed": 0, "window": WINDOW, "sampling": "all", "together": "uniform", **options},
    )


def rows(order: WindowBatches, epoch: int = 0) -> list[tuple[int, int]]:
    order.steps_done = lambda: epoch * len(order)
    return [pair for batch in order for pair in zip(batch.utterance.tolist(), batch.start.tolist())]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=3, max_size=12),
    sampling=st.sampled_from(["random", "all"]),
    together=st.sampled_from(["uniform", "speaker", "utterance"]),
    group=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 1000),
)
def test_what_holds_for_every_order(lengths: list[int], sampling: str, together: str, group: int, seed: int) -> None:
    speaker = [i // 3 for i in range(len(lengths))]
    corpus = corpus_of(lengths, speaker)
    options = {"batch_size": group, "seed": seed, "sampling": sampling, "together": together, "group": group}
    each = [length // WINDOW if sampling == "all" else int(length >= WINDOW) for length in lengths]
    if together == "utterance" and sampling == "random":
        each = [group * count for count in each]
    kinds = {"uniform": [sum(each)], "utterance": each}
    sums = [sum(count for count, who in zip(each, speaker) if who == s) for s in set(speaker)]
    size = 1 if together == "uniform" else group
    full = sum(count // size * size for count in kinds.get(together, sums))
    if full < group:
        with pytest.raises(ValueError, match=r"too short|no utterance"):
            batches(corpus, **options)
        return
    order = batches(corpus, pairs=True, **options)
    assert order.too_short == sum(length < WINDOW for length in lengths)
    assert order.left_out == sum(each) - full
    assert len(order) == full // group
    found = list(order)
    assert len(found) == len(order)
    for batch in found:
        assert batch.start_prime is not None
        for utterance, start, start_prime in zip(*(part.tolist() for part in batch)):
            assert 0 <= start <= lengths[utterance] - WINDOW
            assert 0 <= start_prime <= lengths[utterance] - WINDOW
        who = {"uniform": [0], "utterance": batch.utterance.tolist()}
        assert len(set(who.get(together, [speaker[u] for u in batch.utterance.tolist()]))) == 1
    taken = Counter(utterance for batch in found for utterance in batch.utterance.tolist())
    assert all(count <= each[utterance] for utterance, count in taken.items())


def test_one_random_window_of_each_utterance() -> None:
    order = batches(batch_size=11, sampling="random")
    seen: dict[int, Counter[int]] = {i: Counter() for i in range(len(LENGTHS))}
    for epoch in range(3000):
        windows = rows(order, epoch)
        assert sorted(utterance for utterance, _ in windows) == [0, *range(2, 12)]
        for utterance, start in windows:
            seen[utterance][start] += 1
    for utterance, length in enumerate(LENGTHS):
        if length >= WINDOW:  # every start of an utterance is as likely as any other
            possible = length - WINDOW + 1
            counts = np.array([seen[utterance][start] for start in range(possible)])
            assert ((counts - 3000 / possible) ** 2 / (3000 / possible)).sum() < possible + 6 * possible**0.5


def test_all_windows_follow_one_another_from_an_offset_of_their_own() -> None:
    order = batches(batch_size=1)
    assert len(order) == sum(length // WINDOW for length in LENGTHS)
    offsets: dict[int, set[int]] = {i: set() for i in range(len(LENGTHS))}
    for epoch in range(200):
        starts: dict[int, list[int]] = {}
        for utterance, start in rows(order, epoch):
            starts.setdefault(utterance, []).append(start)
        for utterance, found in starts.items():
            first = min(found)
            assert sorted(found) == [first + WINDOW * i for i in range(LENGTHS[utterance] // WINDOW)]
            offsets[utterance].add(first)
    for utterance, length in enumerate(LENGTHS):
        assert offsets[utterance] == (set(range(length % WINDOW + 1)) if length >= WINDOW else set())


def test_groups_of_a_speaker_mix_and_leave_other_windows_out_each_time() -> None:
    order = batches(batch_size=4, together="speaker", group=2, sampling="random")
    assert (order.left_out, order.too_short) == (3, 1)  # 3, 3 and 5 windows
    pairs: set[tuple[int, ...]] = set()
    for epoch in range(60):
        found = rows(order, epoch)
        for first, second in zip(found[::2], found[1::2]):
            assert SPEAKER[first[0]] == SPEAKER[second[0]]
            pairs.add(tuple(sorted((first[0], second[0]))))
    assert len(pairs) == 3 + 3 + 10
    assert {SPEAKER[rows(order, epoch)[0][0]] for epoch in range(60)} == {0, 1, 2}  # groups come in random order


def test_a_group_of_an_utterance_is_random_windows_of_it() -> None:
    order = batches(batch_size=8, together="utterance", group=4, sampling="random")
    assert (order.left_out, len(order)) == (0, 44 // 8)
    found = [tuple(start for u, start in rows(order, epoch) if u == 10) for epoch in range(20)]
    assert {len(starts) for starts in found} <= {0, 4}
    assert len(set(found)) > 10
    assert max(len(set(starts)) for starts in found) == 4


def test_second_windows_are_independent() -> None:
    corpus = corpus_of([1009] * 500, [0] * 500)
    for sampling in ("random", "all"):
        order = batches(corpus, batch_size=500, sampling=sampling, pairs=True)
        batch = next(iter(order))
        assert batch.start_prime is not None
        both = torch.stack([batch.start.double(), batch.start_prime.double()])
        assert abs(float(both.corrcoef()[0, 1])) < 0.15
        assert abs(float(both[1].mean()) - 499.5) < 60
    short = batches(corpus_of([WINDOW + 1] * 100, [0] * 100), batch_size=100, pairs=True)
    (batch,) = short
    assert batch.start_prime is not None
    assert set(batch.start_prime.tolist()) == {0, 1}
    assert next(iter(batches())).start_prime is None


def test_epochs_and_seeds_differ_and_repeat() -> None:
    for options in ({}, {"sampling": "random"}, {"together": "speaker", "group": 4}):
        orders = [tuple(rows(batches(seed=seed, **options), epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
        assert len(set(orders)) == 6
        assert tuple(rows(batches(seed=1, **options), 2)) == orders[5]


@pytest.mark.parametrize("done", [0, 3, 10, 13])
def test_resumed_anywhere_the_order_goes_on(done: int) -> None:
    options = {"batch_size": 2, "together": "speaker", "group": 2, "pairs": True}
    whole = batches(**options)
    sequence = []
    for epoch in range(2):
        whole.steps_done = lambda epoch=epoch: epoch * len(whole)
        sequence += [[part.tolist() for part in batch] for batch in whole]
    resumed = batches(**options)
    resumed.steps_done = lambda: done
    found = [[part.tolist() for part in batch] for batch in resumed]
    assert found == sequence[done : (done // len(whole) + 1) * len(whole)]
    assert resumed.epoch == done // len(whole)


def test_processes_share_each_batch_in_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"batch_size": 8, "together": "speaker", "group": 2, "pairs": True}
    whole = list(batches(**options))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(list(batches(**options)))
    for batch, left, right in zip(whole, *parts):
        for both, first, second in zip(batch, left, right):
            assert torch.equal(both, torch.cat([first, second]))
    for wrong in ({"batch_size": 5}, {"batch_size": 6, "together": "speaker", "group": 6}):
        with pytest.raises(ValueError, match="does not divide among 2 processes"):
            next(iter(batches(**wrong)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 81}, "longest has 80; choose a window of at most 80"),
        ({"batch_size": 40}, r"has 37 windows \(1 utterances are too short.* --batch-size, or a shorter --window$"),
        ({"batch_size": 40, "sampling": "random"}, r"a shorter --window, or --sampling all$"),
        ({"batch_size": 40, "together": "speaker", "group": 2}, r"a smaller --batch-size or --batch-group, or a"),
        ({"batch_size": 6, "together": "speaker", "group": 4}, "no multiple of the group of 4"),
        ({"batch_size": 9, "together": "utterance", "group": 9}, "37 windows fill no group"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_impossible_batches(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        batches(**options)


def test_speakers_must_be_known_to_come_together() -> None:
    corpus = corpus_of(LENGTHS, SPEAKER, speakers=["", "a", "b"])
    with pytest.raises(ValueError, match="--speaker folder"):
        batches(corpus, together="speaker", group=2)
    batches(corpus.subset([4, 5, 6, 7, 8, 9]), together="speaker", group=2)


def test_a_checkpoint_of_other_data_is_refused() -> None:
    state = batches().state_dict()
    batches().load_state_dict(state)
    assert all(isinstance(value, str | int | bool) for value in state.values())
    for other in (batches(seed=1), batches(pairs=True), batches(CORPUS.subset([3, 4, 5]))):
        with pytest.raises(ValueError, match="use the same"):
            other.load_state_dict(state)


# --- samples


def test_gather_copies_what_lies_there() -> None:
    samples = np.arange(100, dtype=np.int16)
    found = gather(samples, np.array([0, 90, 7]), 10)
    assert found.dtype == torch.int16
    assert found.tolist() == [list(range(start, start + 10)) for start in (0, 90, 7)]
    for start in (-1, 91):
        with pytest.raises(ValueError, match="leave 100 samples"):
            gather(samples, np.array([0, start]), 10)


@pytest.mark.parametrize("device", [None, "cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_loader_gathers_what_the_order_names(device: str | None, pairs: bool) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    corpus = CORPUS.subset([5, 3, 10, 8])  # other places in the corpus than on the device
    order = batches(corpus, pairs=pairs)
    loader = WindowLoader(corpus, order, device=device)
    assert len(loader) == len(order)
    assert [batch.x.tolist() for batch in loader] == [batch.x.tolist() for batch in loader]
    for wanted, found in zip(order, loader):
        assert found.x.device.type == (device or "cpu")
        assert {part.device for part in found if part is not None} == {found.x.device}
        first = corpus.starts[wanted.utterance]
        # A sample's value is its place.
        assert torch.equal(found.x.cpu().long(), (first + wanted.start)[:, None] + torch.arange(WINDOW))
        assert found.utterance.tolist() == wanted.utterance.tolist()
        assert found.speaker.tolist() == [SPEAKER[int(corpus.utterances[u][1:])] for u in wanted.utterance]
        assert found.chapter.tolist() == (found.speaker + 10).tolist()
        if not pairs:
            assert found.x_prime is None
        else:
            assert found.x_prime is not None
            assert wanted.start_prime is not None
            assert torch.equal(found.x_prime[:, 0].cpu().long(), first + wanted.start_prime)


def test_the_loader_takes_any_batches() -> None:
    class Once:
        window = 4

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            yield WindowIndex(torch.tensor([0, 2]), torch.tensor([5, 0]), None)

    (found,) = WindowLoader(CORPUS, Once())
    assert found.x.tolist() == [[8, 9, 10, 11], [43, 44, 45, 46]]


def test_windows_of_real_speech(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    from stec.audio.preparing import prepare
    from stec.audio.sources import librispeech

    prepare(librispeech(shared_data("LibriSpeech"), subsets=["test-other"]), tmp_path, workers=2)
    corpus = Corpus.open(tmp_path)
    order = WindowBatches(corpus, batch_size=16, seed=3, sampling="random", together="speaker", pairs=True)
    for index, batch, resident in zip(order, WindowLoader(corpus, order), WindowLoader(corpus, order, device="cpu")):
        for part, other in zip(batch, resident):
            assert torch.equal(part, other)
        whole = corpus.waveform(int(index.utterance[0]))
        start = int(index.start[0])
        assert torch.equal(batch.x[0] / 32768, whole[start : start + 20_480])
        assert all(len(set(group.tolist())) == 1 for group in batch.speaker.view(-1, 8))
