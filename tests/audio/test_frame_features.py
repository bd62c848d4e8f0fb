"""Frames of many utterances: where those of some lie, and sums over each."""

import torch

from stec.audio.frame_features import FrameFeatures


def test_rows_and_sums() -> None:
    features = FrameFeatures(torch.randn(5, 2), ("a", "b"), torch.tensor([0, 2]), torch.tensor([2, 3]))
    assert features.rows([1]).tolist() == [2, 3, 4]
    assert features.rows([1, 0]).tolist() == [2, 3, 4, 0, 1]
    assert features.rows([]).tolist() == []
    assert features.sums(torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])).tolist() == [1, 3]
