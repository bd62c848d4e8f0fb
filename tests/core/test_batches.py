"""The order of the data is a function of (seed, step)."""

import pytest
import torch

from stec.core.batches import EpochBatches


def test_an_epoch_is_a_permutation_without_its_rest() -> None:
    batches = list(EpochBatches(23, batch_size=4, seed=0))
    assert [len(batch) for batch in batches] == [4] * 5
    assert len(torch.cat(batches).unique()) == 20


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = EpochBatches(64, batch_size=8, seed=seed)
        batches.steps_done = lambda: epoch * 8
        return torch.cat(list(batches)).tolist()

    orders = [tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6
    assert order(1, 2) == list(orders[5])


@pytest.mark.parametrize("done", [0, 3, 8, 13, 16])
def test_resumed_anywhere_the_order_goes_on(done: int) -> None:
    whole = EpochBatches(64, batch_size=8, seed=5)
    sequence = []
    for epoch in range(3):
        whole.steps_done = lambda epoch=epoch: epoch * 8
        sequence += [batch.tolist() for batch in whole]
    resumed = EpochBatches(64, batch_size=8, seed=5)
    resumed.steps_done = lambda: done
    found = [batch.tolist() for batch in resumed]
    assert found == sequence[done : (done // 8 + 1) * 8]
    assert resumed.epoch == done // 8


@pytest.mark.parametrize(("n", "size", "words"), [(10, 11, "larger than the data set"), (10, 1, "at least 2")])
def test_impossible_batches(n: int, size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EpochBatches(n, batch_size=size, seed=0)


def test_a_checkpoint_of_other_data_is_refused() -> None:
    state = EpochBatches(64, batch_size=8, seed=5).state_dict()
    EpochBatches(64, batch_size=8, seed=5).load_state_dict(state)
    with pytest.raises(ValueError, match="use the same"):
        EpochBatches(64, batch_size=8, seed=6).load_state_dict(state)


def test_a_checksum_tells_data_of_the_same_size_apart() -> None:
    state = EpochBatches(64, batch_size=8, seed=5, checksum=1).state_dict()
    EpochBatches(64, batch_size=8, seed=5, checksum=1).load_state_dict(state)
    with pytest.raises(ValueError, match="checksum 1 there, 2 here"):
        EpochBatches(64, batch_size=8, seed=5, checksum=2).load_state_dict(state)
    with pytest.raises(ValueError, match="checksum 1 there, None here"):
        EpochBatches(64, batch_size=8, seed=5).load_state_dict(state)
    without = EpochBatches(64, batch_size=8, seed=5).state_dict()  # as checkpoints of older versions
    EpochBatches(64, batch_size=8, seed=5, checksum=1).load_state_dict(without)
