"""Windows to pairs of sensations: what is of one object, of one group, and how samples are scaled."""

import pytest
import torch

from stec.audio.views import SpeechPairs
from stec.audio.windows import Windows
from stec.core.actions import ViewPair


def windows(*, second: bool = True) -> Windows:
    x = torch.tensor([[-32768, -1, 0], [1, 16384, 32767], [2, 3, 4], [5, 6, 7]], dtype=torch.int16)
    return Windows(
        x=x,
        x_prime=-x // 2 if second else None,
        utterance=torch.tensor([4, 4, 9, 1]),
        chapter=torch.tensor([2, 2, 2, 0]),
        speaker=torch.tensor([1, 1, 1, 3]),
        start=torch.tensor([0, 160, 7, 11]),
    )


@pytest.mark.parametrize(
    ("kind", "objects"), [("utterance", [4, 4, 9, 1]), ("chapter", [2, 2, 2, 0]), ("speaker", [1, 1, 1, 3])]
)
def test_the_object_is_what_is_asked_for_and_the_group_is_the_speaker(kind: str, objects: list[int]) -> None:
    pair = SpeechPairs(object=kind)(windows(), torch.Generator())  # type: ignore[arg-type]
    assert pair.object is not None
    assert pair.group is not None
    assert pair.object.tolist() == objects
    assert pair.group.tolist() == pair.label.tolist() == [1, 1, 1, 3]


def test_the_utterance_is_the_default() -> None:
    pair = SpeechPairs()(windows(), torch.Generator())
    assert pair.object is not None
    assert pair.object.tolist() == [4, 4, 9, 1]


def test_samples_are_scaled_to_one() -> None:
    pair = SpeechPairs()(windows(), torch.Generator())
    assert pair.x.dtype == torch.float32
    assert pair.x[:2].tolist() == [[-1.0, -1 / 32768, 0.0], [1 / 32768, 0.5, 32767 / 32768]]
    assert pair.x_prime.tolist()[1] == [-1 / 32768, -0.25, -16384 / 32768]


def test_a_loader_of_single_windows_gives_no_second_view() -> None:
    pair = SpeechPairs()(windows(second=False), torch.Generator())
    assert pair.x_prime is None
    assert pair.x.shape == (4, 3)


def test_there_is_no_action_and_all_pairs_are_valid() -> None:
    pair = SpeechPairs()(windows(), torch.Generator())
    assert isinstance(pair, ViewPair)
    assert pair.action.shape == (4, 0)
    assert pair.valid.tolist() == [True] * 4


def test_nothing_is_drawn() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    SpeechPairs()(windows(), generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.unchecked
def test_another_object_is_refused() -> None:
    with pytest.raises(ValueError, match="object is 'phone'; use 'utterance', 'chapter' or 'speaker'"):
        SpeechPairs(object="phone")  # type: ignore[arg-type]
